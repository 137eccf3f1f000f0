//! The tracker's machine: announces in, handouts and leases out; and a peer's session with it.
//!
//! ```text
//!  peer                                         tracker
//!   | announce (full: wants, progress)            |
//!   |------------------------------------------->|  roster
//!   |          accepted: next interval, handouts |
//!   |<-------------------------------------------|  handout
//!   | take (missing, starving)                    |
//!   |------------------------------------------->|  lease authority of (blob, region): parked, or
//!   |                       granted chunk, term  |
//!   |<-------------------------------------------|
//!   | renew or waiting, then done or failed       |
//!   |------------------------------------------->|
//! ```
//!
//! The state is soft: after a restart the epoch is another one, each peer announces in full, and
//! the leases and missing chunks that peers report are enough to continue. The machine never sees a
//! digest, a name, an address, a clock or a byte of payload; its driver translates names to slots
//! ([`SlotNames`]), calls [`TrackerMachine::handle`], drains [`TrackerMachine::poll_output`] after
//! each call, and calls [`TrackerMachine::handle_timeout`] at [`TrackerMachine::poll_timeout`]. The
//! same inputs and the same `rng_seed` give the same outputs.

mod authorities;
mod config;
mod handout;
mod lease;
mod machine;
mod messages;
mod names;
mod origins;
mod rendezvous;
mod roster;
mod session;
mod slots;
mod timers;

#[cfg(test)]
mod tests;

pub use config::{LeaseSettings, TrackerConfig};
pub use machine::{SwarmSummary, TrackerMachine};
pub use messages::{
    Announce, AnnounceOutcome, Handout, Lease, LeaseEvent, LeaseOutcome, ReportedLease, RequestId,
    RoleChange, SwarmRole, Take, TrackerCounts, TrackerInput, TrackerOutput,
};
pub use names::SlotNames;
pub use rendezvous::{TrackerGroup, ranked};
pub use roster::Progress;
pub use session::{
    CancelReason, ExchangeId, LeaseUpdate, NamedPeers, PeerSnapshot, SessionInput, SessionOutput,
    TrackerRequest, TrackerSession, TrackerUrl, Urgency,
};
pub use slots::{BlobSlot, PeerSlot, RegionSlot, ZoneSlot};

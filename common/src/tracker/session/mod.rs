//! A peer's session with its trackers: announces out, handouts in, leases requested.
//!
//! ```text
//! shell (peer or simulator)           session                            tracker
//!   StateChanged ───────────────────▶
//!   ◀────────────────── NeedSnapshot
//!   Snapshot ───────────────────────▶
//!   ◀───────── Post {announce} ─────────────────────────────────────────▶
//!   AnnounceAnswered ───────────────▶ epoch, sequence, next announce ◀────
//!   ◀─────────── Handouts, Reachable
//!   RequestLease ───────────────────▶ (waits until the blob is announced)
//!   ◀───────── Post {lease} ────────────────────────────────────────────▶ parked
//!   LeaseAnswered ──────────────────▶ ◀───────────────────────────────────
//!   ◀─── LeaseGranted, LeaseWait
//! ```
//!
//! Each tracker is announced to on its own schedule. Of several trackers of a region, the best two
//! by rendezvous hashing learn about a blob; leases come from the first of them that answers. The
//! session's health table decides which trackers answer. A lease request that a tracker has parked
//! moves to the next tracker when the first one becomes unresponsive. Trackers of another region
//! are used only while no tracker of the own one answers.
//!
//! The session has no clock, socket or randomness: the shell passes the time in, posts what
//! [`TrackerSession::poll_output`] returns, and calls [`TrackerSession::handle_timeout`] at
//! [`TrackerSession::poll_timeout`]. It never decides what a peer fetches, and it never retries a
//! lease request by itself: it reports the outcome, and the peer's machine requests again.

mod announcer;
mod exchanges;
mod groups;
mod health;
mod io;
mod leases;
mod limits;
mod machine;

#[cfg(test)]
mod tests;

pub use exchanges::ExchangeId;
pub use groups::TrackerUrl;
pub use io::{
    CancelReason, LeaseUpdate, NamedPeers, PeerSnapshot, SessionInput, SessionOutput,
    TrackerRequest, Urgency,
};
pub use machine::TrackerSession;

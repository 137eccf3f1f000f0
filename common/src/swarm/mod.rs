//! The peer's side of a swarm: everything that decides in a peer process, and nothing that acts.
//!
//! One [`PeerMachine`] stands for one peer process: all blobs it holds or wants, all its
//! neighbours, the upload and download slots that they share, its leases and its opinion of the
//! origins. Time comes in as an argument, randomness from a generator seeded once, so the same
//! inputs give the same outputs on every machine, in a simulation and in the field alike. It never
//! sees a payload byte, a digest, a socket or a clock.
//!
//! # The driver's loop
//!
//! ```text
//! loop {
//!     while let Some(output) = machine.poll_output() { act on it }
//!     wait for an event, at most until machine.poll_timeout()
//!     machine.handle(now, input)   or   machine.handle_timeout(now)
//! }
//! ```
//!
//! # One chunk from a neighbour
//!
//! ```text
//! driver                          machine                           driver of the neighbour, its machine
//!   Have {peer, blob, chunks} ──▶
//!                              ◀── Fetch {transfer, Source::Peer}
//!   request on the wire ─────────────────────────────────────────▶ UploadRequest ──▶ Serve | Refuse
//!   FirstByte, Progress ──────▶
//!   (each part is verified against the chunk table and written)
//!   Received ─────────────────▶                                    UploadEnded ──▶
//!                              ◀── Have {blob, batch}, Fetch {next}
//! ```
//!
//! # One chunk from the origin
//!
//! ```text
//!                              ◀── LeaseTake {blob, missing}         (parked at the tracker)
//!   LeaseGranted {chunk} ─────▶
//!                              ◀── Fetch {transfer, Source::Origin}
//!   Progress ─────────────────▶ ◀── LeaseRenew, about twice per term
//!   Received ─────────────────▶ ◀── LeaseDone, Have {blob, batch}
//! ```
//! Without a tracker, or when nothing moves for too long, the fetch happens without a lease.
//!
//! # How two peers meet over a blob
//!
//! A greeting is the map of what one holds, perhaps nothing. Whoever wants a blob greets the peers
//! of its handout once connected; whoever is greeted about a blob that it knows greets back, once.
//! From then on each tells the other what it newly holds ([`Output::Have`] to
//! [`PeerMachine::audience`]).
//!
//! # What is deliberately absent
//!
//! - Queues behind slots: who is full refuses at once, and the request goes elsewhere.
//! - Marks that outlive their reason: a chunk being fetched is *pending*, never *held*; when the
//!   transfer ends in any way the mark is cleared.
//! - Ordered maps and hash maps: slots are indices into vectors, chunk maps are bitsets.

mod blob_exchange;
mod blobs;
mod candidates;
mod config;
mod context;
mod counters;
mod dialer;
mod downloads;
mod eta;
mod have_batches;
mod io;
mod known_peer;
mod leases;
mod machine;
mod neighbours;
mod origin_fallback;
mod origin_health;
mod per_blob;
mod picker;
mod pull;
mod request_window;
mod rng;
mod stall_reasons;
mod timers;
mod transfer;
mod transfer_failures;
mod unresponsive;
mod uploads;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use counters::TransferCounters;
pub use io::{
    Batch, BlobSlot, Failure, Have, Input, Nearness, OriginSlot, Output, PeerFacts, PeerSlot,
    Refusal, Source, TransferId, UploadId,
};
pub use machine::PeerMachine;
pub use stall_reasons::{Wait, WaitTimes};

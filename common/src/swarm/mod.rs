//! The peer's side of a swarm: all decisions of a peer process, without any I/O.
//!
//! One [`PeerMachine`] stands for one peer process: all blobs that it holds or wants, all its
//! neighbours, the upload and download slots that they share, and its leases. Which origin is asked
//! for a chunk is decided by [`crate::failover`], whose machine the driver asks. Time comes in as
//! an argument and randomness from a generator that is seeded once, so the same inputs give the
//! same outputs on every computer, in simulations and in production. The machine never sees a
//! payload byte, a digest, a socket or a clock.
//!
//! # The driver's loop
//!
//! ```text
//! loop {
//!     while let Some(output) = machine.poll_output() { carry it out }
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
//!                              ◀── Fetch {transfer, ChunkSource::Peer}
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
//!                              ◀── Fetch {transfer, ChunkSource::Origin}   (from the origin that failover names)
//!   Progress ─────────────────▶ ◀── LeaseRenew, about twice per term; LeaseWaiting without progress
//!   Received ─────────────────▶ ◀── LeaseDone, Have {blob, batch}
//! ```
//! When nothing moves for too long, the chunk is fetched without a lease.
//!
//! # One chunk from the origin without a tracker
//!
//! ```text
//!                              ◀── Fetch {transfer, ChunkSource::Origin}
//!                              ◀── Claims {blob, claims}             (again while it moves)
//!   claims on the wire ──────────────────────────────────────────▶ Claims {peer, blob, claims} ──▶
//!                                                                  ◀── Claims, handed on once
//!   Received ─────────────────▶ ◀── Have {blob, batch}                (the claim has ended)
//! ```
//!
//! # How two peers become neighbours for a blob
//!
//! Neighbours for a blob first exchange chunk maps (possibly empty). A peer that wants a blob sends
//! its map to each connected peer of its handout; the receiver answers once with its own map. After
//! that both send Have messages for new chunks ([`Output::Have`] to
//! [`PeerMachine::have_recipients`]).
//!
//! # Structure
//!
//! Each sub-machine owns its state in private fields. Its methods take the `Context` (time,
//! settings, random numbers, outputs, timers, chunk maps) and references to the sub-machines that
//! they use. Work for sub-machines above them is a return value. Modules import downwards only:
//!
//! ```text
//! machine                                   routes inputs, passes on results
//! transfer_failures, stall_reasons
//! leases, origin_fallback
//! claims (claim_rate, claim_hearing)
//! downloads (picker, transfer, pull, request_window), uploads (slot_count)
//! neighbours (known_peer, dialer, unresponsive, candidates), have_batches
//! context
//! blobs (blob_exchange), timers, outbox, rng, config, io
//! ```
//!
//! # What is deliberately absent
//!
//! - Queues behind slots: a peer whose slots are taken refuses at once, and the request goes
//!   elsewhere. The peer tells refused neighbours when it has a free slot, but reserves none.
//! - Marks that outlive their reason: a chunk that is being fetched is *pending*, never *held*, and
//!   the mark is cleared when the transfer ends in any way.
//! - Ordered maps and hash maps: slots are indices into vectors, chunk maps are bitsets.

mod blob_exchange;
mod blobs;
mod candidates;
mod claim_hearing;
mod claim_rate;
mod claims;
mod config;
mod context;
mod counters;
mod dialer;
mod downloads;
mod far_peers;
mod have_batches;
mod io;
mod known_peer;
mod leases;
mod machine;
mod neighbours;
mod origin_fallback;
mod outbox;
mod per_blob;
mod picker;
mod progress;
mod pull;
mod request_window;
mod rng;
mod slot_count;
mod stall_reasons;
mod timers;
mod transfer;
mod transfer_failures;
mod unresponsive;
mod uploads;

#[cfg(test)]
mod tests;

pub use config::SwarmConfig;
pub use counters::TransferCounters;
pub use io::{
    BlobSlot, ChunkSource, Claim, DownloadFailure, HaveBatch, HeldChunks, Input, Nearness, Output,
    PeerFacts, PeerSlot, RefusalReason, TransferId, UploadId,
};
pub use machine::PeerMachine;
pub use stall_reasons::{StallReason, StallTimes};

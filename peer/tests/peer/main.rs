//! Tests of whole peers, with a minimal origin and a minimal tracker in the same process.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

mod failover;
mod harness;
mod hostile;
mod origin_outage;
mod recording;
mod runtime_contract;
mod small_store;
mod status;
mod transfers;
mod trust;

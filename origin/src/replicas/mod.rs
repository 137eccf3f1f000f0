//! Invalidation between the replicas of a region, so that an acknowledged change is visible through
//! all of them.
//!
//! ```text
//! sender    compare-and-swap -> own cache -> POST to every listed replica -> acknowledge, once each
//!           of them has answered or the time-to-live has passed since the swap
//! receiver  advance the epoch of the key: drop the value, detach fills in flight -> answer
//! ```
//! The time-to-live makes this safe, the message makes it fast: a replica that is dead, partitioned
//! or not listed serves its cache for one time-to-live and no longer. A change is never
//! acknowledged earlier for a replica that has not answered, and an answer counts only if it proves
//! knowledge of the storage's secret.

mod discovery;
mod invalidate;
mod message;
mod server;

pub use discovery::{ReplicaAddress, ReplicaAddressError, Replicas};
pub(crate) use invalidate::Invalidator;
pub(crate) use message::{Changed, Secret};
pub(crate) use server::router;

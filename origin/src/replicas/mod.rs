//! The replicas of a region tell each other what changed, so that an acknowledged change is seen
//! through all of them.
//!
//! ```text
//! write   compare-and-swap -> own cache -> POST to every listed replica -> acknowledge, when each of them
//!         has answered, or its time-to-live has passed since the swap
//! told    bump the key's epoch: drop the value, detach fills in flight -> answer
//! ```
//! The time-to-live is what makes it safe, the message what makes it quick: a replica that is dead,
//! cut off or not listed serves what it remembers for one time-to-live and no longer. It must never
//! acknowledge earlier than that for a replica that has not answered, and an answer counts only if
//! it proves that it knows the storage's secret.

mod discovery;
mod invalidate;
mod message;
mod server;

pub use discovery::{ReplicaAddress, ReplicaAddressError, Replicas};
pub(crate) use invalidate::Invalidator;
pub(crate) use message::{Changed, Secret};
pub(crate) use server::router;

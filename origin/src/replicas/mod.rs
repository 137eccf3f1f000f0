//! Messages between the replicas of a region, so that an acknowledged change is visible through all
//! of them.
//!
//! ```text
//! sender    compare-and-swap -> own cache -> POST to every listed replica -> acknowledge, once each
//!           of them has answered, does not run, or cannot serve the old value any more
//! receiver  advance the epoch of the key: drop the value, detach fills in flight -> answer
//! ```
//! Time makes this safe, the message makes it fast. A change is acknowledged without the answer of
//! a listed replica only if that replica cannot serve what the change replaced:
//!
//! | the replica | because |
//! |---|---|
//! | refuses the connection | it does not run: it listens here before it serves its first client and until it has served its last |
//! | holds no lease of the sender | it keeps values for 200 ms, and those have passed since the swap |
//! | does not answer | the time-to-live has passed since the swap |
//!
//! **Cache leases.** Every second a replica asks each listed address for a lease of 3 s, counted
//! from the question. Only while it holds one of each may it keep tags, manifests and memberships
//! for their whole time-to-live; otherwise it keeps them for 200 ms
//! ([`CacheTerm`](crate::cache::CacheTerm)). So a stopped or cut-off replica delays changes for the
//! rest of its lease and by 200 ms afterwards, and the replicas that miss it read tags more often
//! until it is back or removed from the list. A replica that drains gives its leases back.
//!
//! The rules that make this sound, each with a broken twin in `protocol_models/replica_leases.rs`:
//! - A lease begins when it is asked for, and ends later for its issuer than for its holder.
//! - After a gap, a value that was read before all leases were held again stays short-lived: a
//!   change may have been acknowledged without this replica in the gap.
//! - Refusal counts as a lease of 3 s. Therefore a process that has just begun waits as if every
//!   replica that it does not hear held one of its leases.
//! - Processes have random ids and addresses do not tell them apart, so the change waits for every
//!   process that holds a lease and has not acknowledged, wherever it may be.
//! - An address at which no process ever asked for a lease is waited for until the time-to-live has
//!   passed: it may not list this replica. So is one whose process goes on to ask for leases but
//!   receives no messages.
//!
//! An answer counts only if it proves knowledge of the region's secret and of this very question.
//! An attacker on the network who answers connections with a reset in place of a replica can make
//! reads through that replica old by one time-to-live, and no more.

mod discovery;
mod exchange;
mod invalidate;
mod leases;
mod message;
mod renewal;
mod server;
mod standing;

pub use discovery::{ReplicaAddress, ReplicaAddressError, Replicas};
pub(crate) use invalidate::Invalidator;
#[cfg(test)]
pub(crate) use leases::{GrantedLeases, HeldLeases, ProcessId};
pub(crate) use message::{Changed, Secret};
pub(crate) use server::{Receiver, router};

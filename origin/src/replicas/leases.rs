//! Which replicas may still serve what a change replaced: the two sides of a lease, without I/O.
//!
//! A replica asks every listed address for a lease each second. [`HeldLeases`] is its side: it may
//! keep facts that others can change for their whole time-to-live while each address has granted
//! a lease, or refused the connection, less than [`LEASE`] before. [`GrantedLeases`] is the side of
//! the replica that changes something: it waits for every replica that may hold a lease of its own.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flotilla_common::time::Time;

use crate::cache::CUT_OFF_TIME_TO_LIVE;

/// How long a lease lasts, from the moment at which its holder asked for it.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// How long its issuer counts it as held, from the moment of the grant. The clocks of two machines
/// do not run equally fast.
const COUNTED: Duration = Duration::from_millis(3_200);

/// Identifies a process; a restarted replica has another one.
pub(crate) type ProcessId = u128;

/// The leases that this replica holds.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct HeldLeases {
    until: BTreeMap<SocketAddr, Time>,
}

impl HeldLeases {
    /// The process at `address` granted a lease that was asked for at `asked_at`, or no process
    /// listened there then.
    pub(crate) fn renewed(&mut self, address: SocketAddr, asked_at: Time) {
        let until = self.until.entry(address).or_default();
        *until = (*until).max(asked_at + LEASE);
    }

    /// Until when all listed addresses have granted; forgets the others.
    pub(crate) fn held_until(&mut self, listed: &[SocketAddr]) -> Time {
        self.until.retain(|address, _| listed.contains(address));
        let until = |address| self.until.get(address).copied().unwrap_or(Time::ZERO);
        listed.iter().map(until).min().unwrap_or(Time::MAX)
    }
}

/// The leases that this replica has granted.
#[derive(Clone, Debug, Hash)]
pub(crate) struct GrantedLeases {
    own: ProcessId,
    started: Time,
    /// When each process was granted its last lease.
    granted: BTreeMap<ProcessId, Time>,
    /// Addresses at which a process answered that asks for leases: whatever runs there does.
    asking: BTreeSet<SocketAddr>,
}

impl GrantedLeases {
    pub(crate) const fn new(own: ProcessId, started: Time) -> Self {
        Self {
            own,
            started,
            granted: BTreeMap::new(),
            asking: BTreeSet::new(),
        }
    }

    /// Grants `process` a lease, before the answer is sent.
    pub(crate) fn grant(&mut self, process: ProcessId, now: Time) {
        self.granted.retain(|_, at| now < *at + COUNTED);
        if process != self.own {
            self.granted.insert(process, now);
        }
    }

    /// `process` drains: it holds no lease any more and will ask for none.
    pub(crate) fn left(&mut self, process: ProcessId) {
        self.granted.remove(&process);
    }

    /// `process` answered at `address`.
    pub(crate) fn answered(&mut self, address: SocketAddr, process: ProcessId) {
        if self.granted.contains_key(&process) {
            self.asking.insert(address);
        }
    }

    /// When a change that was written at `written` need not wait any longer for an `address` that
    /// does not answer. Processes in `invalidated` have dropped the old values. The answer holds
    /// at the moment of the call: a later grant may move it.
    pub(crate) fn waits_until(
        &self,
        address: SocketAddr,
        written: Time,
        time_to_live: Duration,
        invalidated: &BTreeSet<ProcessId>,
    ) -> Time {
        let expired = written + time_to_live;
        if !self.asking.contains(&address) {
            // Perhaps it lists fewer replicas than this one, and keeps values without a lease.
            return expired;
        }
        // Any of the other processes may be the one at this address, and one that never asked here
        // may have found this address without a process just before this one began.
        let held = self
            .granted
            .iter()
            .filter(|(process, _)| !invalidated.contains(process))
            .map(|(_, at)| *at + COUNTED)
            .chain([self.started + COUNTED, written + CUT_OFF_TIME_TO_LIVE])
            .max();
        held.map_or(expired, |held| held.min(expired))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    const TIME_TO_LIVE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn leases_count_only_if_every_listed_address_granted() {
        let mut held = HeldLeases::default();
        let listed = [address(1), address(2)];
        assert_eq!(held.held_until(&[]), Time::MAX);
        held.renewed(address(1), at(5));
        assert_eq!(held.held_until(&listed), Time::ZERO);
        held.renewed(address(2), at(4));
        assert_eq!(held.held_until(&listed), at(4) + LEASE);
        held.renewed(address(2), at(3));
        assert_eq!(held.held_until(&listed), at(4) + LEASE, "a late answer");
        assert_eq!(held.held_until(&listed[..1]), at(5) + LEASE);
        assert_eq!(held.held_until(&listed), Time::ZERO, "it was forgotten");
    }

    #[test]
    fn silent_replica_is_waited_for_until_its_lease_ends() {
        let none = BTreeSet::new();
        let mut granted = GrantedLeases::new(1, at(0));
        let wait = |granted: &GrantedLeases, written, invalidated: &BTreeSet<_>| {
            let until = granted.waits_until(address(2), written, TIME_TO_LIVE, invalidated);
            until.saturating_since(written)
        };
        assert_eq!(wait(&granted, at(100), &none), TIME_TO_LIVE, "unknown");
        granted.grant(2, at(100));
        granted.answered(address(2), 2);
        assert_eq!(
            wait(&granted, at(101), &none),
            COUNTED - Duration::from_secs(1)
        );
        assert_eq!(wait(&granted, at(110), &none), CUT_OFF_TIME_TO_LIVE);
        // A process that asks and is not known by an address may be the one that is silent.
        granted.grant(3, at(110));
        assert_eq!(wait(&granted, at(110), &none), COUNTED);
        assert_eq!(
            wait(&granted, at(110), &BTreeSet::from([3])),
            CUT_OFF_TIME_TO_LIVE
        );
        granted.left(3);
        assert_eq!(wait(&granted, at(110), &none), CUT_OFF_TIME_TO_LIVE);
        granted.grant(1, at(110));
        assert_eq!(
            wait(&granted, at(110), &none),
            CUT_OFF_TIME_TO_LIVE,
            "itself"
        );
    }
}

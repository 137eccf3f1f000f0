//! Checks each tracker after each of its steps.
//!
//! - Its state is bounded: peers, parked requests and open leases stay within the machine's limits.
//! - Leases are kept: no chunk is under two open leases in a group of trackers at the same time. A
//!   peer reports its leases to both trackers of a blob, so both may have the same one. Across
//!   trackers this holds only until one of the group fails: peers that cannot reach the first
//!   tracker of a blob and peers that can are then served by different ones.

use flotilla_common::digest::Digest;
use flotilla_common::wire::tracker::PeerInfo;

use crate::tracker::SimulatedTracker;
use crate::world::World;

/// An open lease.
#[derive(Clone, Copy, Debug)]
struct Lease<'a> {
    digest: &'a Digest,
    chunk: u32,
    holder: &'a PeerInfo,
}

impl World<'_> {
    pub(crate) fn check_tracker(&mut self, number: u32) {
        let regions = self.scenario.peers.regions.get() as usize;
        let tracker = &self.trackers[number as usize];
        if let Some(excess) = excess(tracker, regions) {
            self.oracle
                .complain(|| format!("tracker {number} has {excess}"));
        }
        let tracker = &self.trackers[number as usize];
        let leased: Vec<Lease<'_>> = leases(tracker).collect();
        let others = self.group_of(number).flat_map(leases);
        let conflict = repeated(&leased).or_else(|| conflict(&leased, others));
        if let Some(Lease { chunk, holder, .. }) = conflict {
            let complaint = format!(
                "tracker {number} has a lease on chunk {chunk} beside the one of {}",
                holder.id
            );
            self.oracle.complain(|| complaint);
        }
    }

    /// The other trackers that share the blobs of a tracker; none once one of them has failed.
    fn group_of(&self, number: u32) -> impl Iterator<Item = &SimulatedTracker> {
        let group = self.scenario.tracker.group_of(number);
        let has_failed = |tracker: u32| self.trackers[tracker as usize].has_failed;
        let is_whole = !group.clone().any(has_failed);
        let others = group.filter(move |other| is_whole && *other != number);
        others.map(|other| &self.trackers[other as usize])
    }
}

/// What a tracker has too much of.
fn excess(tracker: &SimulatedTracker, regions: usize) -> Option<String> {
    let limits = &tracker.config;
    let peers = tracker.machine.peer_count();
    if peers > limits.peers_limit {
        let limit = limits.peers_limit;
        return Some(format!("{peers} peers, above its limit of {limit}"));
    }
    tracker.machine.swarms().find_map(|swarm| {
        let parked = (limits.lease.parked_limit * regions).min(swarm.peers);
        let open = match regions {
            1 => limits.lease.most_open(),
            _ => limits.lease.most_open().max(limits.lease.most_far_open()) * regions,
        };
        let counts = [
            (swarm.peers, peers as usize, "peers in a swarm"),
            (swarm.parked, parked, "parked requests for a blob"),
            (swarm.leases_open, open, "open leases on a blob"),
        ];
        let (count, limit, what) = counts.into_iter().find(|(count, limit, _)| count > limit)?;
        Some(format!("{count} {what}, above its limit of {limit}"))
    })
}

impl Lease<'_> {
    /// Whether the other lease is on the same chunk, in the same region.
    fn is_on_same_chunk(&self, other: &Self) -> bool {
        self.chunk == other.chunk
            && self.digest == other.digest
            && self.holder.region == other.holder.region
    }
}

/// A lease of a tracker on a chunk that an earlier one is on.
fn repeated<'a>(leased: &[Lease<'a>]) -> Option<Lease<'a>> {
    let mut numbered = leased.iter().enumerate();
    let found = numbered.find(|(at, lease)| {
        let mut before = leased[..*at].iter();
        before.any(|other| other.is_on_same_chunk(lease))
    });
    found.map(|(_, lease)| *lease)
}

/// A lease of other trackers on a chunk that another peer has a lease on here.
fn conflict<'a>(
    leased: &[Lease<'_>],
    mut others: impl Iterator<Item = Lease<'a>>,
) -> Option<Lease<'a>> {
    others.find(|other| {
        let mut leased = leased.iter();
        leased.any(|lease| lease.is_on_same_chunk(other) && lease.holder.id != other.holder.id)
    })
}

/// The open leases of a tracker.
fn leases(tracker: &SimulatedTracker) -> impl Iterator<Item = Lease<'_>> {
    let names = &tracker.names;
    tracker
        .machine
        .leases()
        .filter_map(|(blob, chunk, holder)| {
            Some(Lease {
                digest: names.digest(blob)?,
                chunk,
                holder: names.info(holder)?,
            })
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use flotilla_common::chunk_map::ChunkMap;
    use flotilla_common::tracker::{RequestId, TrackerInput};
    use flotilla_common::wire::tracker::{
        AnnounceRequest, BlobState, Change, LeaseAsk, LeaseRequest,
    };

    use super::*;
    use crate::images::BlobId;
    use crate::names::peer_info;
    use crate::peer::Location;
    use crate::record::RunOptions;
    use crate::scenario::Scenario;

    /// The complaints about a burst of 24 peers with two trackers, after `break_it`.
    fn complaints(break_it: impl FnOnce(&mut World<'_>)) -> Vec<String> {
        let scenario = "name = 'two'\n[image]\nlayers = ['4MiB', '4MiB']\n[peers]\ncount = 24\n\
             up = '100Mbit'\ndown = '100Mbit'\n[origin]\nup = '100Mbit'\n[tracker]\ncount = 2\n\
             open_leases = 12";
        let scenario = Scenario::parse(scenario).unwrap();
        let mut world = World::new(&scenario, 1, &RunOptions::default());
        break_it(&mut world);
        world.run().details.complaints
    }

    fn assert_complains(complaints: &[String], part: &str) {
        let is_about = |complaint: &String| complaint.contains(part);
        assert!(complaints.iter().any(is_about), "{part}: {complaints:?}");
    }

    #[test]
    fn trackers_as_shipped_keep_their_limits_and_leases() {
        assert_eq!(complaints(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn machine_that_ignores_its_limit_of_peers_is_found() {
        let found = complaints(|world| world.trackers[0].config.peers_limit = 20);
        assert_complains(&found, "21 peers, above its limit of 20");
    }

    #[test]
    fn machine_that_ignores_its_limit_of_parked_requests_is_found() {
        let found = complaints(|world| world.trackers[0].config.lease.parked_limit = 3);
        assert_complains(&found, "parked requests for a blob, above its limit of 3");
    }

    #[test]
    fn machine_that_ignores_its_limit_of_leases_is_found() {
        let found = complaints(|world| {
            for tracker in &mut world.trackers {
                tracker.config.lease.open_limit = 1;
            }
        });
        assert_complains(&found, "open leases on a blob, above its limit of 6");
    }

    /// A tracker grants the first chunk of the first blob to a peer.
    fn grant(world: &mut World<'_>, tracker: usize, peer: usize) {
        let digest = world.images.blob(BlobId(0)).digest;
        let peer = world.infos[peer].clone();
        let tracker = &mut world.trackers[tracker];
        let lease = LeaseRequest {
            peer: peer.id.clone(),
            digest,
            first_unreachable: false,
            ask: LeaseAsk::Take {
                number: 1,
                missing: ChunkMap::full(world.images.geometry(BlobId(0)).chunks()),
                starving: false,
                unreachable: Vec::new(),
                origins: 1,
            },
        };
        let announce = AnnounceRequest {
            peer,
            epoch: 0,
            sequence: 0,
            full: true,
            changes: vec![Change {
                digest,
                state: BlobState::Wanted { progress: 0 },
            }],
            leases: Vec::new(),
            neighbours: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        };
        let announce = tracker.names.announce(RequestId(1), announce);
        let machine = &mut tracker.machine;
        machine.handle(world.now, TrackerInput::Announce(announce));
        let lease = tracker.names.lease(RequestId(2), lease).unwrap();
        machine.handle(world.now, lease);
        while machine.poll_output().is_some() {}
        assert_eq!(leases(tracker).count(), 1);
    }

    #[test]
    fn trackers_that_grant_each_others_leases_are_found() {
        let found = complaints(|world| {
            grant(world, 0, 0);
            grant(world, 1, 0);
            world.check_tracker(0);
            assert!(!world.oracle.has_complaints(), "the same peer's lease");
        });
        assert_eq!(found, Vec::<String>::new());
        let found = complaints(|world| {
            grant(world, 0, 0);
            grant(world, 1, 1);
            world.trackers[0].has_failed = true;
            world.check_tracker(1);
            assert!(!world.oracle.has_complaints(), "after a failure");
            world.trackers[0].has_failed = false;
            world.check_tracker(1);
        });
        assert_complains(
            &found,
            "tracker 1 has a lease on chunk 0 beside the one of peer-0",
        );
    }

    #[test]
    fn chunk_under_two_leases_of_one_tracker_is_found() {
        let place = |region| Location {
            zone: region,
            region,
        };
        let [one, other] = [0, 1].map(|region| peer_info(region, place(region)));
        let digest = &Digest::sha256(b"blob");
        let lease = |holder, chunk| Lease {
            digest,
            chunk,
            holder,
        };
        let kept = [lease(&one, 1), lease(&other, 1), lease(&one, 2)];
        assert!(
            repeated(&kept).is_none(),
            "each region has leases of its own"
        );
        let broken = [lease(&one, 1), lease(&one, 2), lease(&one, 1)];
        assert_eq!(repeated(&broken).unwrap().chunk, 1);
    }
}

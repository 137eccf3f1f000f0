//! The tracker's machine on a virtual clock.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod leases;
mod origins;
mod proptests;
mod stalls;

use std::collections::BTreeMap;

use core::time::Duration;

use super::*;
use crate::chunk_map::ChunkMap;
use crate::time::Time;

pub(super) const BLOB: BlobSlot = BlobSlot(0);
pub(super) const REGION: RegionSlot = RegionSlot(0);

/// The holder got the chunk, and does not say from where.
const DONE: LeaseEvent = LeaseEvent::Done { from: None };
/// The holder waits for the origin that it was told to ask.
const WAITING: LeaseEvent = LeaseEvent::Waiting { from: None };

/// A renewal that does not name the origin.
fn renew(received: u64) -> LeaseEvent {
    LeaseEvent::Renew {
        received,
        from: None,
    }
}

/// A tracker, a clock, and all answers.
pub(super) struct Harness {
    pub(super) machine: TrackerMachine,
    pub(super) now: Time,
    pub(super) leases: BTreeMap<RequestId, LeaseOutcome>,
    pub(super) answered_at: BTreeMap<RequestId, Time>,
    pub(super) announced: BTreeMap<RequestId, AnnounceOutcome>,
    pub(super) forgotten_peers: Vec<PeerSlot>,
    pub(super) forgotten_blobs: Vec<BlobSlot>,
    sequences: BTreeMap<PeerSlot, u64>,
    requests: u64,
}

impl Harness {
    pub(super) fn new(config: TrackerConfig) -> Self {
        Self::with_rng_seed(config, 7)
    }

    pub(super) fn with_rng_seed(config: TrackerConfig, rng_seed: u64) -> Self {
        Self {
            machine: TrackerMachine::new(config, rng_seed),
            now: Time::from_nanos(1_000_000_000),
            leases: BTreeMap::new(),
            answered_at: BTreeMap::new(),
            announced: BTreeMap::new(),
            forgotten_peers: Vec::new(),
            forgotten_blobs: Vec::new(),
            sequences: BTreeMap::new(),
            requests: 0,
        }
    }

    pub(super) fn handle(&mut self, input: TrackerInput) {
        self.machine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                TrackerOutput::Lease { request, answer } => {
                    self.answered_at.insert(request, self.now);
                    assert_eq!(
                        self.leases.insert(request, answer),
                        None,
                        "a request is answered once"
                    );
                }
                TrackerOutput::Announced { request, answer } => {
                    assert_eq!(
                        self.announced.insert(request, answer),
                        None,
                        "an announce is answered once"
                    );
                }
                TrackerOutput::OriginChanged { .. } => {}
                TrackerOutput::PeerForgotten(peer) => self.forgotten_peers.push(peer),
                TrackerOutput::BlobForgotten(blob) => self.forgotten_blobs.push(blob),
            }
        }
    }

    /// Advances the clock and fires every timer on the way.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.machine.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub(super) fn announce_with(
        &mut self,
        peer: PeerSlot,
        zone: u32,
        change: impl FnOnce(&mut Announce),
    ) -> AnnounceOutcome {
        let request = self.request();
        let mut announce = Announce {
            request,
            peer,
            zone: ZoneSlot(zone),
            region: RegionSlot(zone / 10),
            epoch: self.machine.epoch(),
            sequence: 0,
            full: true,
            changes: Vec::new(),
            leases: Vec::new(),
            neighbours: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        };
        change(&mut announce);
        if announce.neighbours.is_empty() {
            let changes = announce.changes.iter();
            let wanted = changes.filter(|it| matches!(it.state, SwarmRole::Wanted(_)));
            announce.neighbours = wanted.map(|change| (change.blob, 16)).collect();
        }
        self.sequences.insert(peer, announce.sequence);
        self.handle(TrackerInput::Announce(announce));
        self.announced[&request].clone()
    }

    /// Announces in full that the peer is in the swarm of [`BLOB`]. Returns the handout.
    pub(super) fn join(&mut self, peer: u32, zone: u32, state: SwarmRole) -> Vec<PeerSlot> {
        let answer = self.announce_with(PeerSlot(peer), zone, |announce| {
            announce.changes.push(RoleChange { blob: BLOB, state });
        });
        let AnnounceOutcome::Accepted { handouts, .. } = answer else {
            panic!("not accepted: {answer:?}")
        };
        handouts
            .into_iter()
            .next()
            .map(|handout| handout.peers.into_iter().map(|(peer, _)| peer).collect())
            .unwrap_or_default()
    }

    fn join_all(&mut self, peers: core::ops::Range<u32>) {
        for peer in peers {
            self.join(peer, 0, SwarmRole::Wanted(Progress::NONE));
        }
    }

    /// Announces without changes, next in sequence.
    fn stay(&mut self, peer: u32) {
        let sequence = self.sequences[&PeerSlot(peer)] + 1;
        let answer = self.announce_with(PeerSlot(peer), 0, |announce| {
            announce.full = false;
            announce.sequence = sequence;
        });
        assert!(matches!(answer, AnnounceOutcome::Accepted { .. }));
    }

    pub(super) fn take(&mut self, peer: u32, missing: &ChunkMap) -> RequestId {
        self.take_with(peer, missing, |_| {})
    }

    pub(super) fn starve(&mut self, peer: u32, missing: &ChunkMap) -> RequestId {
        self.take_with(peer, missing, |take| take.starving = true)
    }

    pub(super) fn take_with(
        &mut self,
        peer: u32,
        missing: &ChunkMap,
        change: impl FnOnce(&mut Take),
    ) -> RequestId {
        let request = self.request();
        let mut take = Take {
            request,
            peer: PeerSlot(peer),
            blob: BLOB,
            number: request.0,
            missing: missing.clone(),
            starving: false,
            unreachable: Vec::new(),
            origins: 0,
        };
        change(&mut take);
        self.handle(TrackerInput::Take(take));
        request
    }

    pub(super) fn lease(&mut self, peer: u32, chunk: u32, event: LeaseEvent) -> LeaseOutcome {
        let request = self.request();
        self.handle(TrackerInput::Lease(Lease {
            request,
            peer: PeerSlot(peer),
            blob: BLOB,
            chunk,
            event,
        }));
        self.leases[&request]
    }

    fn granted(&self, request: RequestId) -> Option<u32> {
        match self.leases.get(&request) {
            Some(LeaseOutcome::Granted { chunk, .. }) => Some(*chunk),
            _ => None,
        }
    }
}

/// A peer wants a blob, and has none of it.
fn wanted(blob: BlobSlot) -> RoleChange {
    let state = SwarmRole::Wanted(Progress::NONE);
    RoleChange { blob, state }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn only(chunks: u32, held: &[u32]) -> ChunkMap {
    let mut map = ChunkMap::empty(chunks);
    for chunk in held {
        map.insert(*chunk);
    }
    map
}

#[test]
fn handout_is_three_quarters_own_zone() {
    let mut tracker = Harness::new(TrackerConfig::default());
    for peer in 0..400 {
        tracker.join(peer, peer % 4, SwarmRole::Wanted(Progress::NONE));
    }
    let handout = tracker.join(400, 2, SwarmRole::Wanted(Progress::NONE));
    let near = handout.iter().filter(|peer| peer.0 % 4 == 2).count();
    assert_eq!((handout.len(), near), (16, 12));
    let mut distinct = handout.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 16);
    assert!(!handout.contains(&PeerSlot(400)));
}

#[test]
fn handout_of_a_small_zone_is_filled_from_the_region() {
    let mut tracker = Harness::new(TrackerConfig::default());
    for peer in 0..200 {
        tracker.join(
            peer,
            if peer < 3 { 0 } else { 1 + peer % 3 * 10 },
            SwarmRole::Wanted(Progress::NONE),
        );
    }
    let handout = tracker.join(200, 0, SwarmRole::Wanted(Progress::NONE));
    assert_eq!(handout.len(), 16);
    assert_eq!(handout.iter().filter(|peer| peer.0 < 3).count(), 3);
    assert_eq!(
        handout
            .iter()
            .filter(|peer| peer.0 >= 3 && peer.0 % 3 != 0)
            .count(),
        1
    );
}

#[test]
fn burst_graph_is_connected_and_balanced() {
    let peers = 1_000;
    let mut tracker = Harness::new(TrackerConfig::default());
    let mut degree = vec![0_u32; peers as usize];
    let mut group: Vec<u32> = (0..peers).collect();
    for peer in 0..peers {
        for other in tracker.join(peer, peer % 25, SwarmRole::Wanted(Progress::NONE)) {
            degree[peer as usize] += 1;
            degree[other.0 as usize] += 1;
            let (one, two) = (group[peer as usize], group[other.0 as usize]);
            group
                .iter_mut()
                .filter(|group| **group == two)
                .for_each(|group| *group = one);
        }
    }
    assert!(
        group.iter().all(|one| *one == group[0]),
        "the graph is not connected"
    );
    let busiest = degree.iter().max().unwrap();
    // At random among those that came before, the first are handed out about 16 ln(1000 / 16)
    // times.
    assert!(*busiest <= 120, "one peer has {busiest} neighbours");
}

#[test]
fn connected_peers_come_first_in_three_quarters_of_a_handout() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..200);
    let connected: Vec<PeerSlot> = (50..80).map(PeerSlot).collect();
    let answer = tracker.announce_with(PeerSlot(200), 0, |announce| {
        announce.changes.push(wanted(BLOB));
        announce.connected = connected.clone();
        announce.unreachable = vec![PeerSlot(50)];
    });
    let AnnounceOutcome::Accepted { handouts, .. } = answer else {
        panic!("{answer:?}")
    };
    let peers: Vec<PeerSlot> = handouts[0].peers.iter().map(|(peer, _)| *peer).collect();
    let known = peers.iter().filter(|peer| connected.contains(peer)).count();
    assert_eq!(peers.len(), 16);
    assert!((9..16).contains(&known), "{known} connected");
    assert!(!peers.contains(&PeerSlot(50)));
}

#[test]
fn only_sought_neighbours_are_named() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..100);
    let answer = tracker.announce_with(PeerSlot(100), 0, |announce| {
        announce.changes = vec![wanted(BLOB), wanted(BlobSlot(1))];
        announce.neighbours = vec![(BLOB, 3)];
    });
    let AnnounceOutcome::Accepted { handouts, .. } = answer else {
        panic!("{answer:?}")
    };
    let counts: Vec<_> = handouts
        .iter()
        .map(|it| (it.blob, it.peers.len()))
        .collect();
    assert_eq!(counts, [(BLOB, 3)]);
}

#[test]
fn single_seeder_is_handed_to_some_peers_only() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join(0, 0, SwarmRole::Held(Progress::COMPLETE));
    let mut with_seeder = 0;
    for peer in 1..=500 {
        with_seeder += u32::from(
            tracker
                .join(peer, 0, SwarmRole::Wanted(Progress::NONE))
                .contains(&PeerSlot(0)),
        );
    }
    assert!((40..250).contains(&with_seeder), "{with_seeder} of 500");
}

#[test]
fn seeders_fill_at_most_half_of_a_handout_with_leechers() {
    let mut tracker = Harness::new(TrackerConfig::default());
    for peer in 0..300 {
        let state = if peer < 250 {
            SwarmRole::Held(Progress::COMPLETE)
        } else {
            SwarmRole::Wanted(Progress::NONE)
        };
        tracker.join(peer, 0, state);
    }
    let handout = tracker.join(300, 0, SwarmRole::Wanted(Progress::NONE));
    assert_eq!(handout.len(), 16);
    assert!(handout.iter().filter(|peer| peer.0 < 250).count() <= 9);
}

#[test]
fn announce_out_of_sequence_gets_resync() {
    let mut tracker = Harness::new(TrackerConfig::default());
    let delta = |sequence: u64, epoch_off: u64| {
        move |announce: &mut Announce| {
            announce.full = false;
            announce.sequence = sequence;
            announce.epoch = announce.epoch.wrapping_add(epoch_off);
        }
    };
    assert_eq!(
        tracker.announce_with(PeerSlot(0), 0, delta(1, 0)),
        AnnounceOutcome::Resync,
        "unknown peer"
    );
    assert_eq!(
        tracker.forgotten_peers,
        [PeerSlot(0)],
        "the slot is released"
    );
    tracker.join(0, 0, SwarmRole::Wanted(Progress::NONE));
    assert!(matches!(
        tracker.announce_with(PeerSlot(0), 0, delta(1, 0)),
        AnnounceOutcome::Accepted { .. }
    ));
    assert!(matches!(
        tracker.announce_with(PeerSlot(0), 0, delta(1, 0)),
        AnnounceOutcome::Accepted { .. }
    ));
    assert_eq!(
        tracker.announce_with(PeerSlot(0), 0, delta(3, 0)),
        AnnounceOutcome::Resync,
        "a gap in the sequence"
    );
    assert_eq!(
        tracker.announce_with(PeerSlot(0), 0, delta(2, 1)),
        AnnounceOutcome::Resync,
        "another epoch"
    );
    assert_eq!(
        tracker.announce_with(PeerSlot(0), 1, delta(2, 0)),
        AnnounceOutcome::Resync,
        "another zone"
    );
    assert!(matches!(
        tracker.announce_with(PeerSlot(0), 0, delta(2, 0)),
        AnnounceOutcome::Accepted { .. }
    ));
}

#[test]
fn expired_peers_and_empty_swarms_are_removed() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join(0, 0, SwarmRole::Wanted(Progress::NONE));
    tracker.join(1, 0, SwarmRole::Wanted(Progress::NONE));
    for _ in 0..5 {
        tracker.pass(Duration::from_secs(5));
        tracker.stay(1);
    }
    assert_eq!(tracker.forgotten_peers, [PeerSlot(0)]);
    assert!(tracker.forgotten_blobs.is_empty());
    tracker.announce_with(PeerSlot(1), 0, |announce| announce.leaving = true);
    assert_eq!(tracker.forgotten_peers, [PeerSlot(0), PeerSlot(1)]);
    assert_eq!(tracker.forgotten_blobs, [BLOB]);
    assert_eq!(tracker.machine.peer_count(), 0);
    assert_eq!(tracker.machine.swarms().count(), 0);
}

#[test]
fn full_announce_replaces_the_peers_swarms_and_zone() {
    let mut tracker = Harness::new(TrackerConfig::default());
    tracker.join_all(0..2);
    let other = BlobSlot(1);
    tracker.announce_with(PeerSlot(0), 3, |announce| {
        announce.changes.push(wanted(other));
        announce.changes.push(RoleChange {
            blob: other,
            state: SwarmRole::Held(Progress::COMPLETE),
        });
    });
    let swarms: Vec<(BlobSlot, usize, usize)> = tracker
        .machine
        .swarms()
        .map(|swarm| (swarm.blob, swarm.peers, swarm.seeders))
        .collect();
    assert_eq!(swarms, [(BLOB, 1, 0), (other, 1, 1)]);
    assert!(tracker.forgotten_blobs.is_empty());
}

#[test]
fn interval_grows_with_the_number_of_peers() {
    let config = TrackerConfig {
        announces_per_second: 10,
        ..TrackerConfig::default()
    };
    let mut tracker = Harness::new(config);
    let mut intervals = Vec::new();
    for peer in 0..1_000 {
        let answer = tracker.announce_with(PeerSlot(peer), 0, |_| {});
        let AnnounceOutcome::Accepted { next, .. } = answer else {
            panic!("{answer:?}")
        };
        intervals.push(next);
    }
    assert!(intervals[0] >= millis(3_750) && intervals[0] <= millis(6_250));
    let late: Duration = intervals[900..].iter().sum::<Duration>() / 100;
    assert!(
        late > Duration::from_secs(85) && late < Duration::from_secs(105),
        "{late:?}"
    );
    assert_ne!(intervals[998], intervals[999], "jittered");
}

#[test]
fn peers_and_swarms_over_the_limit_are_rejected() {
    let mut tracker = Harness::new(TrackerConfig {
        peers_limit: 1,
        swarms_per_peer_limit: 1,
        ..TrackerConfig::default()
    });
    tracker.announce_with(PeerSlot(0), 0, |announce| {
        announce.changes = (0..3)
            .map(|blob| RoleChange {
                blob: BlobSlot(blob),
                state: SwarmRole::Held(Progress::NONE),
            })
            .collect();
    });
    assert_eq!(tracker.machine.swarms().count(), 1);
    assert_eq!(tracker.forgotten_blobs, [BlobSlot(1), BlobSlot(2)]);
    assert_eq!(
        tracker.announce_with(PeerSlot(1), 0, |_| {}),
        AnnounceOutcome::Full
    );
    assert_eq!(tracker.forgotten_peers, [PeerSlot(1)]);
}

/// Peer 0 wants blobs 0 to 9 and reports a lease on each, of blobs of so many chunks.
fn announce_leases(tracker: &mut Harness, peer: u32, chunks: u32) {
    tracker.announce_with(PeerSlot(peer), 0, |announce| {
        announce.changes = (0..10)
            .map(|blob| wanted(BlobSlot(10 * peer + blob)))
            .collect();
        announce.leases = (0..10)
            .map(|blob| ReportedLease {
                blob: BlobSlot(10 * peer + blob),
                chunk: 0,
                chunks,
            })
            .collect();
    });
}

#[test]
fn chunks_of_reported_leases_are_bounded_for_each_peer_and_for_all() {
    let mut config = TrackerConfig::default();
    config.lease.created_chunks_limit = 4_000;
    config.lease.all_chunks_limit = 6_000;
    let mut tracker = Harness::new(config);
    let leases = |tracker: &Harness| tracker.machine.leases().count();
    announce_leases(&mut tracker, 0, 1_000);
    assert_eq!(
        leases(&tracker),
        4,
        "the others are beyond the peer's limit"
    );
    announce_leases(&mut tracker, 1, 1_000);
    assert_eq!(
        leases(&tracker),
        6,
        "the others are beyond that of all peers"
    );
    let request = tracker.take_with(0, &ChunkMap::full(1_000), |take| take.blob = BlobSlot(9));
    let outcome = tracker.leases.get(&request);
    assert!(
        matches!(outcome, Some(LeaseOutcome::Wait { .. })),
        "{outcome:?}"
    );
    // Three of the peer's four swarms end, so there is room for three others.
    tracker.announce_with(PeerSlot(0), 0, |announce| {
        announce.changes = (3..8).map(BlobSlot).map(wanted).collect();
    });
    assert_eq!(leases(&tracker), 3);
    announce_leases(&mut tracker, 0, 1_000);
    assert_eq!(leases(&tracker), 6);
}

#[test]
fn rng_seed_determines_the_answers() {
    let run = || {
        let mut tracker = Harness::with_rng_seed(TrackerConfig::default(), 42);
        (0..300)
            .map(|peer| tracker.join(peer, peer % 7, SwarmRole::Wanted(Progress::NONE)))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

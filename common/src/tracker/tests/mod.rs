//! Stories of the tracker on a virtual clock.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod leases;

use std::collections::BTreeMap;

use core::time::Duration;

use super::*;
use crate::map::ChunkMap;
use crate::time::Time;

pub(super) const BLOB: BlobSlot = BlobSlot(0);
pub(super) const REGION: RegionSlot = RegionSlot(0);

/// A tracker, a clock, and the answers so far.
pub(super) struct Desk {
    pub(super) machine: TrackerMachine,
    pub(super) now: Time,
    pub(super) leases: BTreeMap<RequestId, LeaseAnswer>,
    pub(super) answered_at: BTreeMap<RequestId, Time>,
    pub(super) announced: BTreeMap<RequestId, AnnounceAnswer>,
    pub(super) forgotten_peers: Vec<PeerSlot>,
    pub(super) forgotten_blobs: Vec<BlobSlot>,
    sequences: BTreeMap<PeerSlot, u64>,
    requests: u64,
}

impl Desk {
    pub(super) fn new(config: Config) -> Self {
        Self::with_rng_seed(config, 7)
    }

    pub(super) fn with_rng_seed(config: Config, rng_seed: u64) -> Self {
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

    pub(super) fn handle(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Lease { request, answer } => {
                    self.answered_at.insert(request, self.now);
                    assert_eq!(
                        self.leases.insert(request, answer),
                        None,
                        "a request is answered once"
                    );
                }
                Output::Announced { request, answer } => {
                    assert_eq!(
                        self.announced.insert(request, answer),
                        None,
                        "an announce is answered once"
                    );
                }
                Output::PeerForgotten(peer) => self.forgotten_peers.push(peer),
                Output::BlobForgotten(blob) => self.forgotten_blobs.push(blob),
            }
        }
    }

    /// Lets time pass, with every timer on the way.
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
    ) -> AnnounceAnswer {
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
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        };
        change(&mut announce);
        self.sequences.insert(peer, announce.sequence);
        self.handle(Input::Announce(announce));
        self.announced[&request].clone()
    }

    /// Announces in full that the peer is in the swarm of [`BLOB`]; the handout.
    pub(super) fn join(&mut self, peer: u32, zone: u32, state: BlobState) -> Vec<PeerSlot> {
        let answer = self.announce_with(PeerSlot(peer), zone, |announce| {
            announce.changes.push(Change { blob: BLOB, state });
        });
        let AnnounceAnswer::Accepted { handouts, .. } = answer else {
            panic!("not accepted: {answer:?}")
        };
        handouts
            .into_iter()
            .next()
            .map(|(_, peers)| peers)
            .unwrap_or_default()
    }

    fn join_all(&mut self, peers: core::ops::Range<u32>) {
        for peer in peers {
            self.join(peer, 0, BlobState::Wanted(Progress::NONE));
        }
    }

    /// An announce without changes, next in sequence.
    fn stay(&mut self, peer: u32) {
        let sequence = self.sequences[&PeerSlot(peer)] + 1;
        let answer = self.announce_with(PeerSlot(peer), 0, |announce| {
            announce.full = false;
            announce.sequence = sequence;
        });
        assert!(matches!(answer, AnnounceAnswer::Accepted { .. }));
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
        };
        change(&mut take);
        self.handle(Input::Take(take));
        request
    }

    pub(super) fn lease(&mut self, peer: u32, chunk: u32, event: LeaseEvent) -> LeaseAnswer {
        let request = self.request();
        self.handle(Input::Lease(Lease {
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
            Some(LeaseAnswer::Granted { chunk, .. }) => Some(*chunk),
            _ => None,
        }
    }
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
fn three_quarters_of_a_handout_are_of_the_own_zone() {
    let mut desk = Desk::new(Config::default());
    for peer in 0..400 {
        desk.join(peer, peer % 4, BlobState::Wanted(Progress::NONE));
    }
    let handout = desk.join(400, 2, BlobState::Wanted(Progress::NONE));
    let near = handout.iter().filter(|peer| peer.0 % 4 == 2).count();
    assert_eq!((handout.len(), near), (16, 12));
    let mut distinct = handout.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 16);
    assert!(!handout.contains(&PeerSlot(400)));
}

#[test]
fn a_small_zone_is_filled_up_from_the_region_and_one_peer_is_of_another_region() {
    let mut desk = Desk::new(Config::default());
    for peer in 0..200 {
        desk.join(
            peer,
            if peer < 3 { 0 } else { 1 + peer % 3 * 10 },
            BlobState::Wanted(Progress::NONE),
        );
    }
    let handout = desk.join(200, 0, BlobState::Wanted(Progress::NONE));
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
fn the_graph_of_a_burst_is_connected_and_nobody_is_dialled_by_everybody() {
    let peers = 1_000;
    let mut desk = Desk::new(Config::default());
    let mut degree = vec![0_u32; peers as usize];
    let mut group: Vec<u32> = (0..peers).collect();
    for peer in 0..peers {
        for other in desk.join(peer, peer % 25, BlobState::Wanted(Progress::NONE)) {
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
        "two halves never meet"
    );
    let busiest = degree.iter().max().unwrap();
    // At random among those that came before, the first are handed out about 16 ln(1000 / 16)
    // times.
    assert!(*busiest <= 120, "a peer is a neighbour of {busiest}");
}

#[test]
fn connected_peers_come_first_but_leave_room_for_strangers() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..200);
    let connected: Vec<PeerSlot> = (50..80).map(PeerSlot).collect();
    let answer = desk.announce_with(PeerSlot(200), 0, |announce| {
        announce.changes.push(Change {
            blob: BLOB,
            state: BlobState::Wanted(Progress::NONE),
        });
        announce.connected = connected.clone();
        announce.unreachable = vec![PeerSlot(50)];
    });
    let AnnounceAnswer::Accepted { handouts, .. } = answer else {
        panic!("{answer:?}")
    };
    let peers = &handouts[0].1;
    let known = peers.iter().filter(|peer| connected.contains(peer)).count();
    assert_eq!(peers.len(), 16);
    assert!((9..16).contains(&known), "{known} connected");
    assert!(!peers.contains(&PeerSlot(50)));
}

#[test]
fn a_lone_seeder_is_handed_to_some_but_not_to_all() {
    let mut desk = Desk::new(Config::default());
    desk.join(0, 0, BlobState::Held(Progress::COMPLETE));
    let mut with_seeder = 0;
    for peer in 1..=500 {
        with_seeder += u32::from(
            desk.join(peer, 0, BlobState::Wanted(Progress::NONE))
                .contains(&PeerSlot(0)),
        );
    }
    assert!((40..250).contains(&with_seeder), "{with_seeder} of 500");
}

#[test]
fn many_seeders_fill_half_of_a_handout_while_there_are_leechers() {
    let mut desk = Desk::new(Config::default());
    for peer in 0..300 {
        let state = if peer < 250 {
            BlobState::Held(Progress::COMPLETE)
        } else {
            BlobState::Wanted(Progress::NONE)
        };
        desk.join(peer, 0, state);
    }
    let handout = desk.join(300, 0, BlobState::Wanted(Progress::NONE));
    assert_eq!(handout.len(), 16);
    assert!(handout.iter().filter(|peer| peer.0 < 250).count() <= 9);
}

#[test]
fn an_unknown_epoch_or_a_gap_is_answered_by_resync_and_a_repetition_is_taken() {
    let mut desk = Desk::new(Config::default());
    let delta = |sequence: u64, epoch_off: u64| {
        move |announce: &mut Announce| {
            announce.full = false;
            announce.sequence = sequence;
            announce.epoch = announce.epoch.wrapping_add(epoch_off);
        }
    };
    assert_eq!(
        desk.announce_with(PeerSlot(0), 0, delta(1, 0)),
        AnnounceAnswer::Resync,
        "nobody known"
    );
    assert_eq!(
        desk.forgotten_peers,
        [PeerSlot(0)],
        "the slot is free again"
    );
    desk.join(0, 0, BlobState::Wanted(Progress::NONE));
    assert!(matches!(
        desk.announce_with(PeerSlot(0), 0, delta(1, 0)),
        AnnounceAnswer::Accepted { .. }
    ));
    assert!(matches!(
        desk.announce_with(PeerSlot(0), 0, delta(1, 0)),
        AnnounceAnswer::Accepted { .. }
    ));
    assert_eq!(
        desk.announce_with(PeerSlot(0), 0, delta(3, 0)),
        AnnounceAnswer::Resync,
        "a gap"
    );
    assert_eq!(
        desk.announce_with(PeerSlot(0), 0, delta(2, 1)),
        AnnounceAnswer::Resync,
        "another epoch"
    );
    assert_eq!(
        desk.announce_with(PeerSlot(0), 1, delta(2, 0)),
        AnnounceAnswer::Resync,
        "another zone"
    );
    assert!(matches!(
        desk.announce_with(PeerSlot(0), 0, delta(2, 0)),
        AnnounceAnswer::Accepted { .. }
    ));
}

#[test]
fn a_silent_peer_is_forgotten_and_so_is_a_swarm_without_members() {
    let mut desk = Desk::new(Config::default());
    desk.join(0, 0, BlobState::Wanted(Progress::NONE));
    desk.join(1, 0, BlobState::Wanted(Progress::NONE));
    for _ in 0..5 {
        desk.pass(Duration::from_secs(5));
        desk.stay(1);
    }
    assert_eq!(desk.forgotten_peers, [PeerSlot(0)]);
    assert!(desk.forgotten_blobs.is_empty());
    desk.announce_with(PeerSlot(1), 0, |announce| announce.leaving = true);
    assert_eq!(desk.forgotten_peers, [PeerSlot(0), PeerSlot(1)]);
    assert_eq!(desk.forgotten_blobs, [BLOB]);
    assert_eq!(desk.machine.peer_count(), 0);
    assert_eq!(desk.machine.swarms().count(), 0);
}

#[test]
fn a_full_announce_leaves_what_it_does_not_name_and_moves_with_its_peer() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..2);
    let other = BlobSlot(1);
    desk.announce_with(PeerSlot(0), 3, |announce| {
        announce.changes.push(Change {
            blob: other,
            state: BlobState::Wanted(Progress::NONE),
        });
        announce.changes.push(Change {
            blob: other,
            state: BlobState::Held(Progress::COMPLETE),
        });
    });
    let swarms: Vec<(BlobSlot, usize, usize)> = desk
        .machine
        .swarms()
        .map(|swarm| (swarm.blob, swarm.peers, swarm.seeders))
        .collect();
    assert_eq!(swarms, [(BLOB, 1, 0), (other, 1, 1)]);
    assert!(desk.forgotten_blobs.is_empty());
}

#[test]
fn the_interval_grows_with_the_peers() {
    let config = Config {
        announces_per_second: 10,
        ..Config::default()
    };
    let mut desk = Desk::new(config);
    let mut intervals = Vec::new();
    for peer in 0..1_000 {
        let answer = desk.announce_with(PeerSlot(peer), 0, |_| {});
        let AnnounceAnswer::Accepted { next, .. } = answer else {
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
fn too_many_peers_and_too_many_swarms_are_turned_away() {
    let mut desk = Desk::new(Config {
        peers_limit: 1,
        swarms_per_peer_limit: 1,
        ..Config::default()
    });
    desk.announce_with(PeerSlot(0), 0, |announce| {
        announce.changes = (0..3)
            .map(|blob| Change {
                blob: BlobSlot(blob),
                state: BlobState::Held(Progress::NONE),
            })
            .collect();
    });
    assert_eq!(desk.machine.swarms().count(), 1);
    assert_eq!(desk.forgotten_blobs, [BlobSlot(1), BlobSlot(2)]);
    assert_eq!(
        desk.announce_with(PeerSlot(1), 0, |_| {}),
        AnnounceAnswer::Full
    );
    assert_eq!(desk.forgotten_peers, [PeerSlot(1)]);
}

#[test]
fn the_same_rng_seed_gives_the_same_answers() {
    let run = || {
        let mut desk = Desk::with_rng_seed(Config::default(), 42);
        (0..300)
            .map(|peer| desk.join(peer, peer % 7, BlobState::Wanted(Progress::NONE)))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

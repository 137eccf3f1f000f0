//! Stories of the tracker on a virtual clock.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

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
                    assert_eq!(self.leases.insert(request, answer), None, "a request is answered once");
                }
                Output::Announced { request, answer } => {
                    assert_eq!(self.announced.insert(request, answer), None, "an announce is answered once");
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
        let AnnounceAnswer::Accepted { handouts, .. } = answer else { panic!("not accepted: {answer:?}") };
        handouts.into_iter().next().map(|(_, peers)| peers).unwrap_or_default()
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

    fn take_with(&mut self, peer: u32, missing: &ChunkMap, change: impl FnOnce(&mut Take)) -> RequestId {
        let request = self.request();
        let mut take = Take {
            request,
            peer: PeerSlot(peer),
            blob: BLOB,
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
        self.handle(Input::Lease(Lease { request, peer: PeerSlot(peer), blob: BLOB, chunk, event }));
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
        desk.join(peer, if peer < 3 { 0 } else { 1 + peer % 3 * 10 }, BlobState::Wanted(Progress::NONE));
    }
    let handout = desk.join(200, 0, BlobState::Wanted(Progress::NONE));
    assert_eq!(handout.len(), 16);
    assert_eq!(handout.iter().filter(|peer| peer.0 < 3).count(), 3);
    assert_eq!(handout.iter().filter(|peer| peer.0 >= 3 && peer.0 % 3 != 0).count(), 1);
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
            group.iter_mut().filter(|group| **group == two).for_each(|group| *group = one);
        }
    }
    assert!(group.iter().all(|one| *one == group[0]), "two halves never meet");
    let busiest = degree.iter().max().unwrap();
    // At random among those that came before, the first are handed out about 16 ln(1000 / 16) times.
    assert!(*busiest <= 120, "a peer is a neighbour of {busiest}");
}

#[test]
fn connected_peers_come_first_but_leave_room_for_strangers() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..200);
    let connected: Vec<PeerSlot> = (50..80).map(PeerSlot).collect();
    let answer = desk.announce_with(PeerSlot(200), 0, |announce| {
        announce.changes.push(Change { blob: BLOB, state: BlobState::Wanted(Progress::NONE) });
        announce.connected = connected.clone();
        announce.unreachable = vec![PeerSlot(50)];
    });
    let AnnounceAnswer::Accepted { handouts, .. } = answer else { panic!("{answer:?}") };
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
        with_seeder +=
            u32::from(desk.join(peer, 0, BlobState::Wanted(Progress::NONE)).contains(&PeerSlot(0)));
    }
    assert!((40..250).contains(&with_seeder), "{with_seeder} of 500");
}

#[test]
fn many_seeders_fill_half_of_a_handout_while_there_are_leechers() {
    let mut desk = Desk::new(Config::default());
    for peer in 0..300 {
        let state =
            if peer < 250 { BlobState::Held(Progress::COMPLETE) } else { BlobState::Wanted(Progress::NONE) };
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
    assert_eq!(desk.announce_with(PeerSlot(0), 0, delta(1, 0)), AnnounceAnswer::Resync, "nobody known");
    assert_eq!(desk.forgotten_peers, [PeerSlot(0)], "the slot is free again");
    desk.join(0, 0, BlobState::Wanted(Progress::NONE));
    assert!(matches!(desk.announce_with(PeerSlot(0), 0, delta(1, 0)), AnnounceAnswer::Accepted { .. }));
    assert!(matches!(desk.announce_with(PeerSlot(0), 0, delta(1, 0)), AnnounceAnswer::Accepted { .. }));
    assert_eq!(desk.announce_with(PeerSlot(0), 0, delta(3, 0)), AnnounceAnswer::Resync, "a gap");
    assert_eq!(desk.announce_with(PeerSlot(0), 0, delta(2, 1)), AnnounceAnswer::Resync, "another epoch");
    assert_eq!(desk.announce_with(PeerSlot(0), 1, delta(2, 0)), AnnounceAnswer::Resync, "another zone");
    assert!(matches!(desk.announce_with(PeerSlot(0), 0, delta(2, 0)), AnnounceAnswer::Accepted { .. }));
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
        announce.changes.push(Change { blob: other, state: BlobState::Wanted(Progress::NONE) });
        announce.changes.push(Change { blob: other, state: BlobState::Held(Progress::COMPLETE) });
    });
    let swarms: Vec<(BlobSlot, usize, usize)> =
        desk.machine.swarms().map(|swarm| (swarm.blob, swarm.peers, swarm.seeders)).collect();
    assert_eq!(swarms, [(BLOB, 1, 0), (other, 1, 1)]);
    assert!(desk.forgotten_blobs.is_empty());
}

#[test]
fn the_interval_grows_with_the_peers() {
    let config = Config { announces_per_second: 10, ..Config::default() };
    let mut desk = Desk::new(config);
    let mut intervals = Vec::new();
    for peer in 0..1_000 {
        let answer = desk.announce_with(PeerSlot(peer), 0, |_| {});
        let AnnounceAnswer::Accepted { next, .. } = answer else { panic!("{answer:?}") };
        intervals.push(next);
    }
    assert!(intervals[0] >= millis(3_750) && intervals[0] <= millis(6_250));
    let late: Duration = intervals[900..].iter().sum::<Duration>() / 100;
    assert!(late > Duration::from_secs(85) && late < Duration::from_secs(105), "{late:?}");
    assert_ne!(intervals[998], intervals[999], "jittered");
}

#[test]
fn too_many_peers_and_too_many_swarms_are_turned_away() {
    let mut desk = Desk::new(Config { peers_limit: 1, swarms_per_peer_limit: 1, ..Config::default() });
    desk.announce_with(PeerSlot(0), 0, |announce| {
        announce.changes = (0..3)
            .map(|blob| Change { blob: BlobSlot(blob), state: BlobState::Held(Progress::NONE) })
            .collect();
    });
    assert_eq!(desk.machine.swarms().count(), 1);
    assert_eq!(desk.forgotten_blobs, [BlobSlot(1), BlobSlot(2)]);
    assert_eq!(desk.announce_with(PeerSlot(1), 0, |_| {}), AnnounceAnswer::Full);
    assert_eq!(desk.forgotten_peers, [PeerSlot(1)]);
}

#[test]
fn different_chunks_go_to_different_peers_four_at_a_time() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..8);
    let all = ChunkMap::full(6);
    let requests: Vec<RequestId> = (0..8).map(|peer| desk.take(peer, &all)).collect();
    let granted: Vec<Option<u32>> = requests.iter().map(|request| desk.granted(*request)).collect();
    assert_eq!(granted, [Some(0), Some(1), Some(2), Some(3), None, None, None, None]);
    let granted_now = |desk: &Desk| {
        let mut granted: Vec<u32> = requests.iter().filter_map(|request| desk.granted(*request)).collect();
        granted.sort_unstable();
        granted
    };
    assert_eq!(desk.lease(2, 2, LeaseEvent::Done), LeaseAnswer::Noted);
    assert_eq!(granted_now(&desk), [0, 1, 2, 3, 4], "somebody in the queue has the next chunk");
    assert_eq!(desk.lease(0, 0, LeaseEvent::Failed), LeaseAnswer::Noted);
    assert_eq!(granted_now(&desk), [0, 0, 1, 2, 3, 4], "what failed is granted again at once");
    desk.lease(1, 1, LeaseEvent::Done);
    assert_eq!(granted_now(&desk), [0, 0, 1, 2, 3, 4, 5]);
    desk.lease(3, 3, LeaseEvent::Done);
    assert_eq!(granted_now(&desk).len(), 7, "nothing is left to grant");
    desk.pass(Duration::from_secs(10));
    assert_eq!(granted_now(&desk).len(), 8, "leases that nobody renewed ran out, and the last one got one");
}

#[test]
fn a_holder_that_is_silent_from_the_start_does_not_keep_the_origin_idle() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..6);
    let all = ChunkMap::full(100);
    let requests: Vec<RequestId> = (0..6).map(|peer| desk.take(peer, &all)).collect();
    let granted = |desk: &Desk| requests.iter().filter(|request| desk.granted(**request).is_some()).count();
    for peer in [0, 1, 2] {
        desk.lease(peer, peer, LeaseEvent::Renew { received: 0 });
    }
    desk.pass(millis(49));
    assert_eq!(granted(&desk), 4);
    desk.pass(millis(1));
    assert_eq!(granted(&desk), 5, "only the silent one is passed over");
    assert!(desk.machine.open_leases(BLOB, REGION).contains(&(3, PeerSlot(3))), "but its lease stands");
}

#[test]
fn one_peer_has_one_lease_of_a_blob_unless_nobody_else_asks() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..4);
    let all = ChunkMap::full(6);
    let requests: Vec<RequestId> = [0, 0, 1, 2, 3].map(|peer| desk.take(peer, &all)).to_vec();
    let granted: Vec<Option<u32>> = requests.iter().map(|request| desk.granted(*request)).collect();
    assert_eq!(granted, [Some(0), Some(1), Some(2), Some(3), None], "alone at first, it has two");
    let more = desk.take(0, &all);
    desk.lease(0, 0, LeaseEvent::Done);
    assert_eq!((desk.granted(more), desk.granted(requests[4])), (None, Some(4)), "others come first");
}

#[test]
fn a_term_is_extended_by_progress_only_and_not_for_ever() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..2);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    let next = desk.take(1, &one);
    let confirmed = desk.lease(0, 0, LeaseEvent::Renew { received: 0 });
    assert_eq!(confirmed, LeaseAnswer::Renewed { term: millis(1_000) });
    desk.pass(millis(900));
    let renewed = desk.lease(0, 0, LeaseEvent::Renew { received: 10 });
    assert_eq!(renewed, LeaseAnswer::Renewed { term: millis(1_000) });
    desk.pass(millis(900));
    let renewed = desk.lease(0, 0, LeaseEvent::Renew { received: 10 });
    assert_eq!(renewed, LeaseAnswer::Renewed { term: millis(100) }, "no progress, no extension");
    assert_eq!(desk.granted(next), None);
    desk.pass(millis(100));
    assert_eq!(desk.granted(next), Some(0));
    assert_eq!(desk.lease(0, 0, LeaseEvent::Renew { received: 20 }), LeaseAnswer::NotHeld);
    let began = desk.now;
    let mut waiting = desk.take(0, &one);
    for received in 0.. {
        desk.lease(1, 0, LeaseEvent::Renew { received });
        desk.stay(0);
        desk.stay(1);
        desk.pass(millis(500));
        if desk.granted(waiting).is_some() {
            break;
        }
        waiting = desk.take(0, &one);
    }
    assert_eq!(
        desk.now.saturating_since(began),
        Duration::from_secs(30),
        "enough for a chunk, now somebody else"
    );
}

#[test]
fn a_holder_that_was_slow_is_believed_when_it_comes_with_the_chunk() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..3);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    let second = desk.take(1, &one);
    desk.pass(millis(1_000));
    assert_eq!(desk.granted(second), Some(0));
    desk.lease(0, 0, LeaseEvent::Done);
    desk.lease(1, 0, LeaseEvent::Failed);
    let third = desk.starve(2, &one);
    assert_eq!(desk.leases[&third], LeaseAnswer::Dial { holder: PeerSlot(0), chunk: 0 });
}

#[test]
fn a_chunk_that_was_done_is_granted_again_only_when_its_holder_is_gone_and_somebody_starves_once_per_term() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..4);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    desk.lease(0, 0, LeaseEvent::Done);
    let hungry = desk.starve(1, &one);
    assert_eq!(desk.leases[&hungry], LeaseAnswer::Dial { holder: PeerSlot(0), chunk: 0 });
    desk.pass(millis(1_500));

    desk.handle(Input::Gone { peer: PeerSlot(0) });
    let patient = desk.take(2, &one);
    assert_eq!(desk.leases.get(&patient), None, "who does not starve waits for neighbours");
    let starving = desk.starve(1, &one);
    assert_eq!(desk.granted(starving), Some(0));
    desk.lease(1, 0, LeaseEvent::Done);
    desk.handle(Input::Gone { peer: PeerSlot(1) });
    let again = desk.starve(3, &one);
    assert_eq!(desk.leases.get(&again), None, "once per term");
    desk.pass(millis(1_000));
    assert_eq!(desk.leases[&again], LeaseAnswer::Wait { retry_after: Duration::ZERO });
    let again = desk.starve(3, &one);
    assert_eq!(desk.granted(again), Some(0));
}

#[test]
fn a_holder_that_cannot_be_dialled_or_lost_the_chunk_counts_as_gone() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..3);
    let both = ChunkMap::full(2);
    desk.take(0, &both);
    desk.lease(0, 0, LeaseEvent::Done);
    desk.pass(millis(1_000));
    desk.take(0, &only(2, &[1]));
    desk.lease(0, 1, LeaseEvent::Done);
    desk.pass(millis(1_000));
    let unreachable = desk.take_with(1, &both, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(0)];
    });
    assert_eq!(desk.granted(unreachable), Some(0));
    desk.lease(1, 0, LeaseEvent::Done);
    desk.take(1, &only(2, &[0]));
    desk.pass(millis(1_000));
    let starving = desk.starve(2, &both);
    assert_eq!(desk.granted(starving), Some(0), "who had it misses it itself");
}

#[test]
fn a_seeder_of_the_region_is_dialled_before_the_origin_is_asked() {
    let mut desk = Desk::new(Config::default());
    desk.join(9, 0, BlobState::Held(Progress::COMPLETE));
    desk.join_all(0..2);
    let all = ChunkMap::full(5);
    let calm = desk.take(0, &all);
    assert_eq!(desk.leases.get(&calm), None);
    let starving = desk.starve(1, &all);
    assert_eq!(desk.leases[&starving], LeaseAnswer::Dial { holder: PeerSlot(9), chunk: 0 });
    let cut_off = desk.take_with(1, &all, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(9)];
    });
    desk.pass(millis(999));
    assert_eq!(desk.leases.get(&cut_off), None, "a tracker that just started waits for what peers hold");
    desk.pass(millis(1_001));
    let cut_off = desk.take_with(1, &all, |take| {
        take.starving = true;
        take.unreachable = vec![PeerSlot(9)];
    });
    assert_eq!(desk.granted(cut_off), Some(0));
}

#[test]
fn a_tracker_that_was_restarted_takes_up_leases_and_learns_what_is_in_the_swarm() {
    let mut desk = Desk::new(Config::default());
    let some = BlobState::Wanted(Progress::from_step(4).unwrap());
    desk.join(0, 0, some);
    desk.join(1, 0, some);
    let missing = only(8, &[5, 6, 7]);
    let early = desk.take(0, &missing);
    assert_eq!(desk.leases.get(&early), None, "not everybody has told what they hold");
    desk.announce_with(PeerSlot(2), 0, |announce| {
        announce.changes.push(Change { blob: BLOB, state: some });
        announce.leases.push(HeldLease { blob: BLOB, chunk: 5, chunks: 8 });
    });
    assert_eq!(desk.machine.open_leases(BLOB, REGION), [(5, PeerSlot(2))]);
    assert_eq!(
        desk.lease(2, 5, LeaseEvent::Renew { received: 9 }),
        LeaseAnswer::Renewed { term: millis(1_000) }
    );
    desk.pass(millis(900));
    desk.lease(2, 5, LeaseEvent::Done);
    desk.pass(millis(1_100));
    assert_eq!(desk.granted(early), Some(6), "five is done, and four are held by peers or their neighbours");
    assert_eq!(desk.machine.free_chunks(BLOB, REGION), Some(1));
}

#[test]
fn a_burst_on_a_tracker_that_just_started_waits_for_nothing() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..1);
    let request = desk.take(0, &ChunkMap::full(8));
    assert_eq!(desk.granted(request), Some(0));
}

#[test]
fn each_region_has_its_own_leases() {
    let mut desk = Desk::new(Config::default());
    desk.join(0, 0, BlobState::Wanted(Progress::NONE));
    desk.join(1, 10, BlobState::Wanted(Progress::NONE));
    let all = ChunkMap::full(3);
    let (here, there) = (desk.take(0, &all), desk.take(1, &all));
    assert_eq!((desk.granted(here), desk.granted(there)), (Some(0), Some(0)));
}

#[test]
fn who_is_not_known_or_counts_other_chunks_is_told_so() {
    let mut desk = Desk::new(Config::default());
    let unknown = desk.take(0, &ChunkMap::full(3));
    assert_eq!(desk.leases[&unknown], LeaseAnswer::Unknown);
    assert_eq!(desk.lease(0, 0, LeaseEvent::Done), LeaseAnswer::Unknown);
    desk.join_all(0..2);
    desk.take(0, &ChunkMap::full(3));
    let mismatch = desk.take(1, &ChunkMap::full(4));
    assert_eq!(desk.leases[&mismatch], LeaseAnswer::Mismatch);
    let other = BlobSlot(1);
    let elsewhere = desk.take_with(1, &ChunkMap::full(4), |take| take.blob = other);
    assert_eq!(desk.leases[&elsewhere], LeaseAnswer::Unknown);
    assert_eq!(desk.lease(1, 99, LeaseEvent::Done), LeaseAnswer::Noted);
    assert_eq!(desk.lease(1, 99, LeaseEvent::Renew { received: 1 }), LeaseAnswer::NotHeld);
}

#[test]
fn a_parked_request_is_answered_in_time_superseded_dropped_or_turned_away() {
    let config =
        Config { lease: LeaseConfig { parked_limit: 1, ..LeaseConfig::default() }, ..Config::default() };
    let mut desk = Desk::new(config);
    desk.join_all(0..3);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    desk.lease(0, 0, LeaseEvent::Done);
    let older = desk.take(1, &one);
    let newer = desk.take(1, &one);
    assert!(matches!(desk.leases[&older], LeaseAnswer::Wait { .. }));
    assert_eq!(desk.leases.get(&newer), None);
    let third = desk.take(2, &one);
    assert!(matches!(desk.leases[&third], LeaseAnswer::Wait { retry_after } if retry_after >= millis(500)));
    desk.pass(millis(9_999));
    assert_eq!(desk.leases.get(&newer), None);
    desk.pass(millis(1));
    assert_eq!(desk.leases[&newer], LeaseAnswer::Wait { retry_after: Duration::ZERO });
    let dropped = desk.take(2, &one);
    desk.handle(Input::Drop { peer: PeerSlot(2), blob: BLOB });
    assert!(matches!(desk.leases[&dropped], LeaseAnswer::Wait { .. }));
}

#[test]
fn a_peer_that_goes_leaves_its_lease_to_the_next_at_once() {
    let mut desk = Desk::new(Config::default());
    desk.join_all(0..2);
    let one = ChunkMap::full(1);
    desk.take(0, &one);
    let next = desk.take(1, &one);
    desk.announce_with(PeerSlot(0), 0, |announce| announce.leaving = true);
    assert_eq!(desk.granted(next), Some(0));
}

#[test]
fn the_same_rng_seed_gives_the_same_answers() {
    let run = || {
        let mut desk = Desk::with_rng_seed(Config::default(), 42);
        (0..300).map(|peer| desk.join(peer, peer % 7, BlobState::Wanted(Progress::NONE))).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn progress_is_exact_at_both_ends() {
    for chunks in 1..300 {
        assert_eq!(Progress::of(0, chunks), Progress::NONE);
        assert_eq!(Progress::of(chunks, chunks), Progress::COMPLETE);
        for held in 1..chunks {
            assert!((1..15).contains(&Progress::of(held, chunks).step()));
        }
    }
}

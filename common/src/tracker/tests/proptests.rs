//! Random schedules against a model of the tracker's inputs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};

use core::time::Duration;
use proptest::prelude::*;

use super::*;
use crate::chunk_map::ChunkMap;
use crate::time::Time;

const PEERS: u32 = 7;

#[derive(Clone, Debug)]
enum Step {
    Join {
        peer: u32,
        progress: u8,
    },
    Leave {
        peer: u32,
    },
    Gone {
        peer: u32,
    },
    Take {
        peer: u32,
        missing: u64,
        starving: bool,
        unreachable: Option<u32>,
    },
    Drop {
        peer: u32,
    },
    Renew {
        peer: u32,
        chunk: u32,
        received: u64,
    },
    Waiting {
        peer: u32,
        chunk: u32,
    },
    Done {
        peer: u32,
        chunk: u32,
    },
    Failed {
        peer: u32,
        chunk: u32,
    },
    Hold {
        peer: u32,
        chunk: u32,
    },
    Pass {
        millis: u64,
    },
}

fn step(chunks: u32) -> impl Strategy<Value = Step> {
    let peer = 0..PEERS;
    let chunk = 0..chunks;
    prop_oneof![
        3 => (peer.clone(), 0_u8..15).prop_map(|(peer, progress)| Step::Join { peer, progress }),
        1 => peer.clone().prop_map(|peer| Step::Leave { peer }),
        1 => peer.clone().prop_map(|peer| Step::Gone { peer }),
        10 => (peer.clone(), any::<u64>(), any::<bool>(), prop::option::weighted(0.2, peer.clone())).prop_map(
            |(peer, missing, starving, unreachable)| Step::Take { peer, missing, starving, unreachable }
        ),
        1 => peer.clone().prop_map(|peer| Step::Drop { peer }),
        3 => (peer.clone(), chunk.clone(), 0_u64..100).prop_map(|(peer, chunk, received)| Step::Renew {
            peer,
            chunk,
            received
        }),
        3 => (peer.clone(), chunk.clone()).prop_map(|(peer, chunk)| Step::Waiting { peer, chunk }),
        6 => (peer.clone(), chunk.clone()).prop_map(|(peer, chunk)| Step::Done { peer, chunk }),
        2 => (peer.clone(), chunk.clone()).prop_map(|(peer, chunk)| Step::Failed { peer, chunk }),
        1 => (peer, chunk).prop_map(|(peer, chunk)| Step::Hold { peer, chunk }),
        6 => (1_u64..2_000).prop_map(|millis| Step::Pass { millis }),
    ]
}

/// A request without an answer.
struct OpenRequest {
    peer: PeerSlot,
    missing: ChunkMap,
    starving: bool,
    /// The latest time of its answer.
    bound: Time,
}

/// The tracker, and the model.
struct Model {
    tracker: Harness,
    config: TrackerConfig,
    chunks: u32,
    joined: BTreeSet<PeerSlot>,
    asked: BTreeMap<RequestId, OpenRequest>,
    /// Peers that reported that they, or a neighbour, have the chunk.
    holders: BTreeMap<u32, BTreeSet<PeerSlot>>,
    was_done: BTreeSet<u32>,
    granted_at: BTreeMap<u32, Time>,
}

impl Model {
    fn new(config: TrackerConfig, chunks: u32) -> Self {
        Self {
            tracker: Harness::new(config.clone()),
            config,
            chunks,
            joined: BTreeSet::new(),
            asked: BTreeMap::new(),
            holders: BTreeMap::new(),
            was_done: BTreeSet::new(),
            granted_at: BTreeMap::new(),
        }
    }

    fn open(&self) -> Vec<(u32, PeerSlot)> {
        self.tracker.machine.open_leases(BLOB, REGION)
    }

    fn apply(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Join { peer, progress } => {
                let progress = Progress::from_step(progress).unwrap();
                self.tracker.join(peer, 0, SwarmRole::Wanted(progress));
                self.joined.insert(PeerSlot(peer));
                if progress == Progress::NONE {
                    self.forget_holder(PeerSlot(peer));
                }
            }
            Step::Leave { peer } => {
                self.tracker
                    .announce_with(PeerSlot(peer), 0, |announce| announce.leaving = true);
            }
            Step::Gone { peer } => self.tracker.handle(TrackerInput::Gone {
                peer: PeerSlot(peer),
            }),
            Step::Take {
                peer,
                missing,
                starving,
                unreachable,
            } => self.take(peer, missing, starving, unreachable),
            Step::Drop { peer } => self.tracker.handle(TrackerInput::Drop {
                peer: PeerSlot(peer),
                blob: BLOB,
            }),
            Step::Renew {
                peer,
                chunk,
                received,
            } => {
                self.tracker.lease(peer, chunk, renew(received));
            }
            Step::Waiting { peer, chunk } => {
                self.tracker.lease(peer, chunk, WAITING);
            }
            Step::Done { peer, chunk } => self.done(PeerSlot(peer), chunk),
            Step::Failed { peer, chunk } => {
                self.holders
                    .entry(chunk)
                    .or_default()
                    .remove(&PeerSlot(peer));
                self.tracker.lease(peer, chunk, LeaseEvent::Failed);
            }
            Step::Hold { peer, chunk } => {
                self.joined.insert(PeerSlot(peer));
                let lease = ReportedLease {
                    blob: BLOB,
                    chunk,
                    chunks: self.chunks,
                };
                self.tracker.announce_with(PeerSlot(peer), 0, |announce| {
                    let state = SwarmRole::Wanted(Progress::from_step(1).unwrap());
                    announce.changes.push(RoleChange { blob: BLOB, state });
                    announce.leases.push(lease);
                });
            }
            Step::Pass { millis } => self.tracker.pass(Duration::from_millis(millis)),
        }
        self.check()
    }

    fn take(&mut self, peer: u32, missing: u64, starving: bool, unreachable: Option<u32>) {
        let mut map = ChunkMap::empty(self.chunks);
        for chunk in (0..self.chunks).filter(|chunk| missing >> (chunk % 64) & 1 == 1) {
            map.insert(chunk);
        }
        self.ask(PeerSlot(peer), map, starving, unreachable.map(PeerSlot));
    }

    fn ask(
        &mut self,
        peer: PeerSlot,
        missing: ChunkMap,
        starving: bool,
        unreachable: Option<PeerSlot>,
    ) -> RequestId {
        if self.joined.contains(&peer) {
            for chunk in 0..self.chunks {
                let holders = self.holders.entry(chunk).or_default();
                if missing.contains(chunk) {
                    holders.remove(&peer);
                    unreachable.map(|unreachable| holders.remove(&unreachable));
                } else {
                    holders.insert(peer);
                }
            }
        }
        let request = self.tracker.request();
        let lease = &self.config.lease;
        let bound = self.tracker.now
            + if starving {
                lease.park_starving
            } else {
                lease.park
            };
        self.asked.insert(
            request,
            OpenRequest {
                peer,
                missing: missing.clone(),
                starving,
                bound,
            },
        );
        let unreachable = unreachable.into_iter().collect();
        let number = request.0;
        self.tracker.handle(TrackerInput::Take(Take {
            request,
            peer,
            blob: BLOB,
            number,
            missing,
            starving,
            unreachable,
            origins: 0,
        }));
        request
    }

    fn done(&mut self, peer: PeerSlot, chunk: u32) {
        if self.joined.contains(&peer) && self.tracker.machine.free_chunks(BLOB, REGION).is_some() {
            self.holders.entry(chunk).or_default().insert(peer);
            self.was_done.insert(chunk);
        }
        self.tracker.lease(peer.0, chunk, DONE);
    }

    fn forget_holder(&mut self, peer: PeerSlot) {
        self.holders
            .values_mut()
            .for_each(|holders| _ = holders.remove(&peer));
    }

    /// Checks the invariants; after every step.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for peer in core::mem::take(&mut self.tracker.forgotten_peers) {
            self.joined.remove(&peer);
            self.forget_holder(peer);
        }
        if self.joined.is_empty() {
            // The swarm ended, and the tracker forgot everything about it.
            self.was_done.clear();
            self.granted_at.clear();
            self.holders.clear();
        }
        let open = self.open();
        prop_assert!(open.len() <= self.config.lease.open_limit, "{open:?}");
        let chunks: BTreeSet<u32> = open.iter().map(|(chunk, _)| *chunk).collect();
        let holders: BTreeSet<PeerSlot> = open.iter().map(|(_, holder)| *holder).collect();
        prop_assert_eq!(chunks.len(), open.len(), "one holder per chunk");
        prop_assert!(
            holders.is_subset(&self.joined),
            "a peer that left holds no lease"
        );
        let mut answers: Vec<(RequestId, LeaseOutcome)> = core::mem::take(&mut self.tracker.leases)
            .into_iter()
            .collect();
        answers.sort_by_key(|(request, _)| self.tracker.answered_at[request]);
        for (request, answer) in answers {
            if let Some(asked) = self.asked.remove(&request) {
                let at = self.tracker.answered_at[&request];
                prop_assert!(at <= asked.bound, "answered in time");
                self.check_answer(&asked, answer, at)?;
            }
        }
        for asked in self.asked.values() {
            prop_assert!(
                self.joined.contains(&asked.peer),
                "requests of peers that left are answered"
            );
            prop_assert!(
                asked.bound > self.tracker.now,
                "a request is answered in time"
            );
        }
        Ok(())
    }

    fn check_answer(
        &mut self,
        asked: &OpenRequest,
        answer: LeaseOutcome,
        at: Time,
    ) -> Result<(), TestCaseError> {
        match answer {
            LeaseOutcome::Granted { chunk, .. } => {
                prop_assert!(asked.missing.contains(chunk), "granted what is missing");
                if self.was_done.contains(&chunk) {
                    prop_assert!(
                        asked.starving,
                        "chunk {} granted again to a peer that does not starve",
                        chunk
                    );
                    if let Some(before) = self.granted_at.get(&chunk) {
                        prop_assert!(*before + self.config.lease.term <= at, "once per term");
                    }
                }
                self.granted_at.insert(chunk, at);
            }
            LeaseOutcome::Dial { holder, chunk } => {
                prop_assert!(asked.starving && asked.missing.contains(chunk));
                prop_assert!(holder != asked.peer && self.joined.contains(&holder));
            }
            LeaseOutcome::Wait { .. } | LeaseOutcome::Unknown => {}
            other => prop_assert!(false, "not an answer to a request: {other:?}"),
        }
        Ok(())
    }

    /// All peers are neighbours of each other and request leases until no chunk is missing.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        let mut has = ChunkMap::empty(self.chunks);
        for peer in 0..PEERS {
            self.apply(Step::Join { peer, progress: 1 })?;
        }
        for round in 0.. {
            prop_assert!(
                round < 40 + 10 * self.chunks,
                "stranded with {} of {}",
                has.count(),
                self.chunks
            );
            let mut missing = ChunkMap::full(self.chunks);
            has.iter().for_each(|chunk| _ = missing.remove(chunk));
            if missing.is_empty() {
                return Ok(());
            }
            for peer in 0..PEERS {
                self.ask(PeerSlot(peer), missing.clone(), true, None);
                self.check()?;
            }
            for (chunk, holder) in self.open() {
                self.done(holder, chunk);
                has.insert(chunk);
                self.check()?;
            }
            self.tracker.pass(Duration::from_millis(250));
            for peer in 0..PEERS {
                self.apply(Step::Join { peer, progress: 1 })?;
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leases_are_safe_and_strand_no_peer(
        (chunks, steps) in (1_u32..20).prop_flat_map(|chunks| (Just(chunks), prop::collection::vec(step(chunks), 0..150))),
        open_limit in 1_usize..6,
    ) {
        // No peer confirms a lease here, and the limit is exact only as long as all leases count.
        let confirm = LeaseSettings::default().longest;
        let lease = LeaseSettings { open_limit, confirm, ..LeaseSettings::default() };
        let mut model = Model::new(TrackerConfig { lease, ..TrackerConfig::default() }, chunks);
        for step in steps {
            model.apply(step)?;
        }
        model.finish()?;
    }

    /// Peers come, leave, expire and move between zones; the roster stays equal to a plain map.
    #[test]
    fn roster_equals_the_announced_state(
        steps in prop::collection::vec((0_u32..12, 0_u32..4, 0_u32..3, 0_u8..=15, 0_u8..8), 1..120),
    ) {
        let mut tracker = Harness::new(TrackerConfig::default());
        let mut facts: BTreeMap<(PeerSlot, BlobSlot), Progress> = BTreeMap::new();
        for (peer, zone, blob, progress, kind) in steps {
            let (peer, blob) = (PeerSlot(peer), BlobSlot(blob));
            let progress = Progress::from_step(progress).unwrap();
            let answer = tracker.announce_with(peer, zone * 7, |announce| {
                announce.changes.push(RoleChange { blob, state: SwarmRole::Wanted(progress) });
                announce.leaving = kind == 0;
            });
            facts.retain(|(other, _), _| *other != peer);
            if kind > 0 {
                facts.insert((peer, blob), progress);
            }
            if let AnnounceOutcome::Accepted { handouts, .. } = answer {
                for Handout { blob, peers } in handouts {
                    prop_assert!(peers.iter().all(|(other, progress)| facts.get(&(*other, blob)) == Some(progress)));
                    let peers: Vec<PeerSlot> = peers.into_iter().map(|(other, _)| other).collect();
                    let distinct: BTreeSet<PeerSlot> = peers.iter().copied().collect();
                    prop_assert_eq!(distinct.len(), peers.len());
                    prop_assert!(!distinct.contains(&peer));
                    prop_assert!(peers.iter().all(|other| facts.contains_key(&(*other, blob))));
                    let others = facts.keys().filter(|(other, of)| *of == blob && *other != peer).count();
                    prop_assert_eq!(peers.len(), others.min(16), "all members of a small swarm");
                }
            }
            for blob in (0..3).map(BlobSlot) {
                let members = facts.iter().filter(|((_, of), _)| *of == blob);
                let seeders = members.clone().filter(|(_, progress)| progress.is_complete()).count();
                let summary = tracker.machine.swarms().find(|swarm| swarm.blob == blob);
                let seen = summary.map_or((0, 0), |swarm| (swarm.peers, swarm.seeders));
                prop_assert_eq!(seen, (members.count(), seeders));
            }
        }
        tracker.pass(Duration::from_secs(60));
        prop_assert_eq!(tracker.machine.peer_count(), 0);
        prop_assert_eq!(tracker.machine.swarms().count(), 0);
    }
}

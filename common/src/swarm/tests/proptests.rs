//! Random schedules: a few machines, an origin and no tracker, whose messages arrive in any order,
//! whose transfers are refused, corrupted or lost, and whose connections break.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use core::time::Duration;

use proptest::prelude::*;

use crate::chunk::Geometry;
use crate::map::ChunkMap;
use crate::swarm::{
    BlobSlot, Config, Failure, Have, Input, Nearness, Output, PeerFacts, PeerMachine, PeerSlot,
    Refusal, Source, TransferId, UploadId,
};
use crate::time::Time;

const BLOB: BlobSlot = BlobSlot(0);

/// Something under way. Peers are numbered alike in all tables.
#[derive(Clone, Debug)]
enum Flying {
    Have {
        from: u32,
        to: u32,
        have: Have,
    },
    Ask {
        from: u32,
        to: u32,
        transfer: TransferId,
        chunk: u32,
    },
    Refused {
        to: u32,
        transfer: TransferId,
        reason: Refusal,
    },
    Body {
        from: Option<u32>,
        to: u32,
        transfer: TransferId,
        upload: Option<UploadId>,
        chunk: u32,
    },
    Dial {
        from: u32,
        to: u32,
    },
}

#[derive(Clone, Debug)]
enum Step {
    /// The message at this place arrives.
    Arrive(u8),
    /// The body at this place, if it is one, fails.
    Fail(u8, Failure),
    /// A connection breaks.
    Break(u8, u8),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        Just(Failure::Link),
        Just(Failure::Corrupt),
        Just(Failure::Timeout),
        Just(Failure::Store)
    ];
    prop_oneof![
        12 => any::<u8>().prop_map(Step::Arrive),
        1 => (any::<u8>(), failure).prop_map(|(place, why)| Step::Fail(place, why)),
        1 => (0_u8..5, 0_u8..5).prop_map(|(one, other)| Step::Break(one, other)),
        2 => (1_u16..3000).prop_map(Step::Pass),
    ]
}

struct World {
    now: Time,
    machines: Vec<PeerMachine>,
    /// What reached each whole and true.
    verified: Vec<ChunkMap>,
    flying: Vec<Flying>,
    connected: Vec<(u32, u32)>,
    complete: Vec<bool>,
    uploads: u64,
}

impl World {
    fn new(peers: u32, chunks: u32) -> Self {
        let geometry = Geometry::for_size(u64::from(chunks) << 18);
        let mut world = Self {
            now: Time::ZERO,
            machines: Vec::new(),
            verified: Vec::new(),
            flying: Vec::new(),
            connected: Vec::new(),
            complete: vec![false; peers as usize],
            uploads: 0,
        };
        for peer in 0..peers {
            let config = Config {
                key: u64::from(peer),
                ..Config::default()
            };
            world
                .machines
                .push(PeerMachine::new(config, u64::from(peer)));
            world.verified.push(ChunkMap::empty(chunks));
        }
        for peer in 0..peers {
            let others = (0..peers)
                .filter(|other| *other != peer)
                .map(facts)
                .collect();
            world.feed(peer, Input::TrackerUnreachable);
            world.feed(
                peer,
                Input::AddBlob {
                    blob: BLOB,
                    geometry,
                    held: ChunkMap::empty(chunks),
                },
            );
            world.feed(peer, Input::Want { blob: BLOB });
            world.feed(
                peer,
                Input::Handout {
                    blob: BLOB,
                    peers: others,
                },
            );
        }
        world
    }

    fn feed(&mut self, peer: u32, input: Input) {
        self.machines[peer as usize].handle(self.now, input);
        self.drain(peer);
    }

    fn drain(&mut self, peer: u32) {
        while let Some(output) = self.machines[peer as usize].poll_output() {
            self.act(peer, output);
        }
    }

    fn act(&mut self, peer: u32, output: Output) {
        match output {
            Output::Dial { peer: to } => self.flying.push(Flying::Dial {
                from: peer,
                to: to.0,
            }),
            Output::HangUp { peer: to } => self.cut(peer, to.0, false),
            Output::Greet { peer: to, .. } => {
                let have = Have::Map(self.machines[peer as usize].held(BLOB).unwrap().clone());
                self.flying.push(Flying::Have {
                    from: peer,
                    to: to.0,
                    have,
                });
            }
            Output::Have { batch, .. } => {
                let audience = self.machines[peer as usize].audience(BLOB, &batch);
                let audience: Vec<u32> = audience.map(|to| to.0).collect();
                for to in audience {
                    self.flying.push(Flying::Have {
                        from: peer,
                        to,
                        have: Have::Chunks(batch),
                    });
                }
            }
            Output::Fetch {
                transfer,
                chunk,
                source,
                ..
            } => {
                assert!(
                    !self.verified[peer as usize].contains(chunk),
                    "fetches what it has"
                );
                self.flying.push(match source {
                    Source::Peer(to) => Flying::Ask {
                        from: peer,
                        to: to.0,
                        transfer,
                        chunk,
                    },
                    Source::Origin(_) => Flying::Body {
                        from: None,
                        to: peer,
                        transfer,
                        upload: None,
                        chunk,
                    },
                });
            }
            Output::Cancel { transfer } => self.forget(peer, transfer),
            Output::Serve { upload } => self.answer(upload, None),
            Output::Refuse { upload, reason } => self.answer(upload, Some(reason)),
            Output::Complete { .. } => self.complete[peer as usize] = true,
            Output::Quarantine { .. } | Output::Announce => {}
            other => panic!("without a tracker nobody says {other:?}"),
        }
    }

    /// Answers the request that was put last: machines answer at once.
    fn answer(&mut self, id: UploadId, refusal: Option<Refusal>) {
        let Some(Flying::Ask {
            from,
            to,
            transfer,
            chunk,
        }) = self.flying.pop()
        else {
            panic!("an answer to nothing")
        };
        self.flying.push(match refusal {
            Some(reason) => Flying::Refused {
                to: from,
                transfer,
                reason,
            },
            None => {
                assert!(
                    self.verified[to as usize].contains(chunk),
                    "serves what it has not verified"
                );
                Flying::Body {
                    from: Some(to),
                    to: from,
                    transfer,
                    upload: Some(id),
                    chunk,
                }
            }
        });
    }

    fn forget(&mut self, peer: u32, id: TransferId) {
        let is_it = |flying: &Flying| match flying {
            Flying::Ask { from, transfer, .. } => (*from, *transfer) == (peer, id),
            Flying::Refused { to, transfer, .. } | Flying::Body { to, transfer, .. } => {
                (*to, *transfer) == (peer, id)
            }
            Flying::Have { .. } | Flying::Dial { .. } => false,
        };
        if let Some(at) = self.flying.iter().position(is_it)
            && let Flying::Body {
                from: Some(from),
                upload: Some(upload),
                ..
            } = self.flying.swap_remove(at)
        {
            self.feed(from, Input::UploadEnded { upload });
        }
    }

    fn cut(&mut self, one: u32, other: u32, tell_one: bool) {
        let key = (one.min(other), one.max(other));
        let Some(at) = self.connected.iter().position(|pair| *pair == key) else {
            return;
        };
        self.connected.swap_remove(at);
        let is_between = |from: u32, to: u32| (from.min(to), from.max(to)) == key;
        self.flying.retain(|flying| match flying {
            Flying::Have { from, to, .. } | Flying::Ask { from, to, .. } => !is_between(*from, *to),
            Flying::Body {
                from: Some(from),
                to,
                ..
            } => !is_between(*from, *to),
            // Whose refusal it was is not known here any more: the machine ignores what it has
            // forgotten.
            Flying::Refused { .. } | Flying::Body { .. } | Flying::Dial { .. } => true,
        });
        if tell_one {
            self.feed(
                one,
                Input::Disconnected {
                    peer: PeerSlot(other),
                },
            );
        }
        self.feed(
            other,
            Input::Disconnected {
                peer: PeerSlot(one),
            },
        );
    }

    fn arrive(&mut self, at: usize) {
        match self.flying.remove(at) {
            Flying::Dial { from, to } => {
                let key = (from.min(to), from.max(to));
                if !self.connected.contains(&key) {
                    self.connected.push(key);
                }
                for (one, other) in [(from, to), (to, from)] {
                    let round_trip = Duration::from_millis(1);
                    self.feed(
                        one,
                        Input::Connected {
                            facts: facts(other),
                            round_trip,
                        },
                    );
                }
            }
            Flying::Have { from, to, have } => {
                self.feed(
                    to,
                    Input::Have {
                        peer: PeerSlot(from),
                        blob: BLOB,
                        have,
                    },
                );
            }
            Flying::Ask {
                from,
                to,
                transfer,
                chunk,
            } => {
                self.uploads += 1;
                let upload = UploadId(self.uploads);
                self.flying.push(Flying::Ask {
                    from,
                    to,
                    transfer,
                    chunk,
                });
                let request = Input::UploadRequest {
                    peer: PeerSlot(from),
                    blob: BLOB,
                    chunk,
                    upload,
                };
                self.feed(to, request);
            }
            Flying::Refused {
                to,
                transfer,
                reason,
            } => self.feed(to, Input::Refused { transfer, reason }),
            Flying::Body {
                from,
                to,
                transfer,
                upload,
                chunk,
            } => {
                if let (Some(from), Some(upload)) = (from, upload) {
                    self.feed(from, Input::UploadEnded { upload });
                }
                assert!(
                    self.verified[to as usize].insert(chunk),
                    "chunk {chunk} came twice"
                );
                self.feed(to, Input::Received { transfer });
            }
        }
    }

    fn fail(&mut self, at: usize, why: Failure) {
        let Flying::Body {
            from,
            to,
            transfer,
            upload,
            ..
        } = self.flying[at].clone()
        else {
            return;
        };
        self.flying.remove(at);
        if let (Some(from), Some(upload)) = (from, upload) {
            self.feed(from, Input::UploadEnded { upload });
        }
        self.feed(to, Input::Failed { transfer, why });
    }

    /// Lets time pass, with every deadline on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let deadlines = self
                .machines
                .iter()
                .map(|machine| machine.poll_timeout().unwrap_or(Time::MAX));
            let (at, peer) = deadlines.zip(0_u32..).min().unwrap();
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            self.machines[peer as usize].handle_timeout(self.now);
            self.drain(peer);
        }
        self.now = end;
    }

    fn apply(&mut self, step: Step) {
        let place = |place: u8, world: &Self| usize::from(place) % world.flying.len().max(1);
        match step {
            Step::Pass(millis) => self.pass(Duration::from_millis(millis.into())),
            Step::Break(one, other) => {
                let peers = self.machines.len() as u32;
                self.cut(u32::from(one) % peers, u32::from(other) % peers, true);
            }
            Step::Arrive(_) | Step::Fail(..) if self.flying.is_empty() => {}
            Step::Arrive(at) => self.arrive(place(at, self)),
            Step::Fail(at, why) => self.fail(place(at, self), why),
        }
    }

    fn check(&self) {
        for (machine, verified) in self.machines.iter().zip(&self.verified) {
            assert_eq!(
                machine.held(BLOB),
                Some(verified),
                "believes what was verified"
            );
            let (ctx, neighbours, downloads) = machine.parts();
            let transfers: Vec<_> = downloads.transfers().collect();
            assert!(
                transfers.len() <= 3 * machine.slots() as usize + 2,
                "slots are exceeded"
            );
            let mut chunks: Vec<u32> = transfers.iter().map(|transfer| transfer.chunk).collect();
            chunks.sort_unstable();
            let pending = ctx.blobs.get(BLOB).unwrap().pending();
            assert_eq!(
                chunks,
                pending.iter().collect::<Vec<_>>(),
                "each pending chunk has one transfer"
            );
            for slot in (0..neighbours.count()).map(PeerSlot) {
                let asked = transfers
                    .iter()
                    .filter(|transfer| transfer.source == Source::Peer(slot))
                    .count();
                assert_eq!(
                    downloads.open_requests(slot),
                    asked,
                    "request windows count transfers"
                );
                assert!(asked <= 2, "two requests per neighbour at most");
            }
        }
    }
}

fn facts(peer: u32) -> PeerFacts {
    PeerFacts {
        peer: PeerSlot(peer),
        nearness: Nearness::SameZone,
        key: u64::from(peer),
    }
}

#[test]
fn a_store_that_fails_at_the_last_chunk_delays_the_pull_and_no_more() {
    let mut world = World::new(1, 1);
    world.pass(Duration::ZERO);
    world.fail(0, Failure::Store);
    assert!(world.flying.is_empty(), "the store is given a rest");
    world.pass(Duration::from_secs(2));
    world.arrive(0);
    assert!(world.complete[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_marks_are_soft_and_everybody_completes(
        peers in 1_u32..6,
        chunks in 1_u32..40,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut world = World::new(peers, chunks);
        for step in steps {
            world.apply(step);
            world.check();
        }
        // From now on everything arrives, in order, and time passes.
        for _ in 0..20_000 {
            if world.complete.iter().all(|complete| *complete) {
                break;
            }
            if world.flying.is_empty() {
                world.pass(Duration::from_millis(100));
            } else {
                world.arrive(0);
            }
            world.check();
        }
        prop_assert!(world.complete.iter().all(|complete| *complete), "{:?}", world.complete);
    }
}

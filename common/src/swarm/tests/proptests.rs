//! Random schedules: a few machines with an origin and without a tracker. Messages arrive in any
//! order, transfers are refused, corrupted or lost, and connections break.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use core::time::Duration;

use proptest::prelude::*;

use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::swarm::{
    BlobSlot, ChunkSource, Claim, DownloadFailure, HeldChunks, Input, Nearness, Output, PeerFacts,
    PeerMachine, PeerSlot, RefusalReason, SwarmConfig, TransferId, UploadId,
};
use crate::time::Time;

const BLOB: BlobSlot = BlobSlot(0);

/// A message or body under way. Peers have the same numbers in all tables.
#[derive(Clone, Debug)]
enum InFlight {
    Have {
        from: u32,
        to: u32,
        have: HeldChunks,
    },
    SlotFree {
        from: u32,
        to: u32,
    },
    Claims {
        from: u32,
        to: u32,
        claims: Vec<Claim>,
    },
    Request {
        from: u32,
        to: u32,
        transfer: TransferId,
        chunk: u32,
    },
    Refused {
        to: u32,
        transfer: TransferId,
        reason: RefusalReason,
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
    /// The message at this index arrives.
    Arrive(u8),
    /// The message at this index fails if it is a body.
    Fail(u8, DownloadFailure),
    /// A connection breaks.
    Disconnect(u8, u8),
    /// Milliseconds pass.
    PassTime(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        Just(DownloadFailure::Link),
        Just(DownloadFailure::Corrupt),
        Just(DownloadFailure::Timeout),
        Just(DownloadFailure::Store)
    ];
    prop_oneof![
        12 => any::<u8>().prop_map(Step::Arrive),
        1 => (any::<u8>(), failure).prop_map(|(index, why)| Step::Fail(index, why)),
        1 => (0_u8..5, 0_u8..5).prop_map(|(one, other)| Step::Disconnect(one, other)),
        2 => (1_u16..3000).prop_map(Step::PassTime),
    ]
}

struct World {
    now: Time,
    machines: Vec<PeerMachine>,
    /// The chunks that reached each machine complete and uncorrupted.
    verified: Vec<ChunkMap>,
    in_flight: Vec<InFlight>,
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
            in_flight: Vec::new(),
            connected: Vec::new(),
            complete: vec![false; peers as usize],
            uploads: 0,
        };
        for peer in 0..peers {
            let config = SwarmConfig::default();
            let machine = PeerMachine::new(config, u64::from(peer));
            world.machines.push(machine);
            world.verified.push(ChunkMap::empty(chunks));
        }
        for peer in 0..peers {
            let others = (0..peers)
                .filter(|other| *other != peer)
                .map(facts)
                .collect();
            world.handle(peer, Input::TrackerUnreachable);
            world.handle(
                peer,
                Input::AddBlob {
                    blob: BLOB,
                    geometry,
                    held: ChunkMap::empty(chunks),
                },
            );
            world.handle(peer, Input::Want { blob: BLOB });
            world.handle(
                peer,
                Input::Handout {
                    blob: BLOB,
                    peers: others,
                },
            );
        }
        world
    }

    fn handle(&mut self, peer: u32, input: Input) {
        self.machines[peer as usize].handle(self.now, input);
        self.drain(peer);
    }

    fn drain(&mut self, peer: u32) {
        while let Some(output) = self.machines[peer as usize].poll_output() {
            self.carry_out(peer, output);
        }
    }

    fn carry_out(&mut self, peer: u32, output: Output) {
        match output {
            Output::Dial { peer: to } => self.in_flight.push(InFlight::Dial {
                from: peer,
                to: to.0,
            }),
            Output::HangUp { peer: to } => self.disconnect(peer, to.0, false),
            Output::SendChunkMap { peer: to, .. } => {
                let have =
                    HeldChunks::Map(self.machines[peer as usize].held(BLOB).unwrap().clone());
                self.in_flight.push(InFlight::Have {
                    from: peer,
                    to: to.0,
                    have,
                });
            }
            Output::Have { batch, .. } => {
                let recipients = self.machines[peer as usize].have_recipients(BLOB, &batch);
                let recipients: Vec<u32> = recipients.map(|to| to.0).collect();
                for to in recipients {
                    self.in_flight.push(InFlight::Have {
                        from: peer,
                        to,
                        have: HeldChunks::Chunks(batch),
                    });
                }
            }
            Output::Claims { claims, .. } => {
                let recipients = self.machines[peer as usize].claim_recipients(BLOB);
                let recipients: Vec<u32> = recipients.map(|to| to.0).collect();
                for to in recipients {
                    self.in_flight.push(InFlight::Claims {
                        from: peer,
                        to,
                        claims: claims.clone(),
                    });
                }
            }
            Output::TellClaims {
                peer: to, claims, ..
            } => self.in_flight.push(InFlight::Claims {
                from: peer,
                to: to.0,
                claims,
            }),
            Output::Fetch {
                transfer,
                chunk,
                source,
                ..
            } => {
                assert!(
                    !self.verified[peer as usize].contains(chunk),
                    "fetches a chunk that it holds"
                );
                self.in_flight.push(match source {
                    ChunkSource::Peer(to) => InFlight::Request {
                        from: peer,
                        to: to.0,
                        transfer,
                        chunk,
                    },
                    ChunkSource::Origin => InFlight::Body {
                        from: None,
                        to: peer,
                        transfer,
                        upload: None,
                        chunk,
                    },
                });
            }
            Output::Cancel { transfer } => self.cancel(peer, transfer),
            Output::Serve { upload } => self.answer(upload, None),
            Output::TellSlotFree { peer: to } => self.in_flight.push(InFlight::SlotFree {
                from: peer,
                to: to.0,
            }),
            Output::Refuse { upload, reason } => self.answer(upload, Some(reason)),
            Output::Complete { .. } => self.complete[peer as usize] = true,
            Output::Quarantine { .. } | Output::Announce | Output::AnnounceSoon => {}
            other => panic!("unexpected without a tracker: {other:?}"),
        }
    }

    /// Answers the request that was added last: machines answer at once.
    fn answer(&mut self, id: UploadId, refusal: Option<RefusalReason>) {
        let Some(InFlight::Request {
            from,
            to,
            transfer,
            chunk,
        }) = self.in_flight.pop()
        else {
            panic!("an answer without a request")
        };
        self.in_flight.push(match refusal {
            Some(reason) => InFlight::Refused {
                to: from,
                transfer,
                reason,
            },
            None => {
                assert!(
                    self.verified[to as usize].contains(chunk),
                    "serves a chunk that it has not verified"
                );
                InFlight::Body {
                    from: Some(to),
                    to: from,
                    transfer,
                    upload: Some(id),
                    chunk,
                }
            }
        });
    }

    fn cancel(&mut self, peer: u32, id: TransferId) {
        let is_of_transfer = |in_flight: &InFlight| match in_flight {
            InFlight::Request { from, transfer, .. } => (*from, *transfer) == (peer, id),
            InFlight::Refused { to, transfer, .. } | InFlight::Body { to, transfer, .. } => {
                (*to, *transfer) == (peer, id)
            }
            InFlight::Have { .. }
            | InFlight::SlotFree { .. }
            | InFlight::Claims { .. }
            | InFlight::Dial { .. } => false,
        };
        if let Some(at) = self.in_flight.iter().position(is_of_transfer)
            && let InFlight::Body {
                from: Some(from),
                upload: Some(upload),
                ..
            } = self.in_flight.swap_remove(at)
        {
            self.handle(from, Input::UploadEnded { upload });
        }
    }

    fn disconnect(&mut self, one: u32, other: u32, notify_one: bool) {
        let key = (one.min(other), one.max(other));
        let Some(at) = self.connected.iter().position(|pair| *pair == key) else {
            return;
        };
        self.connected.swap_remove(at);
        let is_between = |from: u32, to: u32| (from.min(to), from.max(to)) == key;
        self.in_flight.retain(|in_flight| match in_flight {
            InFlight::Have { from, to, .. }
            | InFlight::SlotFree { from, to }
            | InFlight::Claims { from, to, .. }
            | InFlight::Request { from, to, .. } => !is_between(*from, *to),
            InFlight::Body {
                from: Some(from),
                to,
                ..
            } => !is_between(*from, *to),
            // A refusal does not name its sender; the machine ignores it if the transfer has ended.
            InFlight::Refused { .. } | InFlight::Body { .. } | InFlight::Dial { .. } => true,
        });
        if notify_one {
            self.handle(
                one,
                Input::Disconnected {
                    peer: PeerSlot(other),
                },
            );
        }
        self.handle(
            other,
            Input::Disconnected {
                peer: PeerSlot(one),
            },
        );
    }

    fn arrive(&mut self, at: usize) {
        match self.in_flight.remove(at) {
            InFlight::Dial { from, to } => {
                let key = (from.min(to), from.max(to));
                if !self.connected.contains(&key) {
                    self.connected.push(key);
                }
                for (one, other) in [(from, to), (to, from)] {
                    let round_trip = Duration::from_millis(1);
                    self.handle(
                        one,
                        Input::Connected {
                            facts: facts(other),
                            round_trip,
                        },
                    );
                }
            }
            InFlight::Have { from, to, have } => {
                self.handle(
                    to,
                    Input::Have {
                        peer: PeerSlot(from),
                        blob: BLOB,
                        have,
                    },
                );
            }
            InFlight::Claims { from, to, claims } => {
                let (peer, blob) = (PeerSlot(from), BLOB);
                self.handle(to, Input::Claims { peer, blob, claims });
            }
            InFlight::SlotFree { from, to } => {
                let peer = PeerSlot(from);
                self.handle(to, Input::SlotFree { peer });
            }
            InFlight::Request {
                from,
                to,
                transfer,
                chunk,
            } => {
                self.uploads += 1;
                let upload = UploadId(self.uploads);
                self.in_flight.push(InFlight::Request {
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
                self.handle(to, request);
            }
            InFlight::Refused {
                to,
                transfer,
                reason,
            } => self.handle(to, Input::Refused { transfer, reason }),
            InFlight::Body {
                from,
                to,
                transfer,
                upload,
                chunk,
            } => {
                if let (Some(from), Some(upload)) = (from, upload) {
                    self.handle(from, Input::UploadEnded { upload });
                }
                assert!(
                    self.verified[to as usize].insert(chunk),
                    "chunk {chunk} was received twice"
                );
                self.handle(to, Input::Received { transfer });
            }
        }
    }

    fn fail(&mut self, at: usize, why: DownloadFailure) {
        let InFlight::Body {
            from,
            to,
            transfer,
            upload,
            ..
        } = self.in_flight[at].clone()
        else {
            return;
        };
        self.in_flight.remove(at);
        if let (Some(from), Some(upload)) = (from, upload) {
            self.handle(from, Input::UploadEnded { upload });
        }
        self.handle(to, Input::Failed { transfer, why });
    }

    /// Lets time pass and handles every deadline on the way.
    fn pass_time(&mut self, time: Duration) {
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
        let index = |index: u8, world: &Self| usize::from(index) % world.in_flight.len().max(1);
        match step {
            Step::PassTime(millis) => self.pass_time(Duration::from_millis(millis.into())),
            Step::Disconnect(one, other) => {
                let peers = self.machines.len() as u32;
                self.disconnect(u32::from(one) % peers, u32::from(other) % peers, true);
            }
            Step::Arrive(_) | Step::Fail(..) if self.in_flight.is_empty() => {}
            Step::Arrive(at) => self.arrive(index(at, self)),
            Step::Fail(at, why) => self.fail(index(at, self), why),
        }
    }

    fn check(&self) {
        for (machine, verified) in self.machines.iter().zip(&self.verified) {
            assert_eq!(
                machine.held(BLOB),
                Some(verified),
                "holds exactly the verified chunks"
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
                pending.collect::<Vec<_>>(),
                "each pending chunk has one transfer"
            );
            for slot in (0..neighbours.count()).map(PeerSlot) {
                let asked = transfers
                    .iter()
                    .filter(|transfer| transfer.source == ChunkSource::Peer(slot))
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
    }
}

#[test]
fn store_failure_at_the_last_chunk_delays_the_pull() {
    let mut world = World::new(1, 1);
    world.pass_time(Duration::ZERO);
    world.fail(0, DownloadFailure::Store);
    assert!(world.in_flight.is_empty(), "the pull is paused");
    world.pass_time(Duration::from_secs(2));
    world.arrive(0);
    assert!(world.complete[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_schedules_keep_the_invariants_and_complete(
        peers in 1_u32..6,
        chunks in 1_u32..40,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut world = World::new(peers, chunks);
        for step in steps {
            world.apply(step);
            world.check();
        }
        // From now on everything arrives in order, and time passes.
        for _ in 0..20_000 {
            if world.complete.iter().all(|complete| *complete) {
                break;
            }
            if world.in_flight.is_empty() {
                world.pass_time(Duration::from_millis(100));
            } else {
                world.arrive(0);
            }
            world.check();
        }
        prop_assert!(world.complete.iter().all(|complete| *complete), "{:?}", world.complete);
    }
}

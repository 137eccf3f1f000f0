//! The tracker in the world: its machine, the way to it, and each peer's session with it.

use core::time::Duration;

use flotilla_common::map::ChunkMap;
use flotilla_common::swarm::{self, BlobSlot, Input, PeerFacts};
use flotilla_common::time::Time;
use flotilla_common::tracker::{
    Announce, AnnounceAnswer, BlobState, Change, Config, HeldLease, Input as TrackerInput, Lease,
    LeaseAnswer, LeaseEvent, Output as TrackerOutput, PeerSlot, Progress, RegionSlot, RequestId,
    Take, TrackerMachine, ZoneSlot,
};
use rand::RngExt as _;

use crate::scenario::Scenario;
use crate::slab::{Key, Slab};
use crate::world::{Event, Node, World, mix};

/// How long a peer waits for an answer to what it asked the tracker, besides the time it may be
/// parked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a peer tries a tracker that does not answer.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How soon a lease is asked for again after the tracker did not know the peer.
const AFTER_UNKNOWN: Duration = Duration::from_millis(200);

/// What is on its way to the tracker.
#[derive(Debug)]
enum Message {
    Announce(Announce),
    Take(Take),
    Lease(Lease),
    Drop { peer: u32, blob: BlobSlot },
}

/// What a peer waits for.
#[derive(Clone, Copy, Debug)]
enum Question {
    Announce {
        peer: u32,
        number: u64,
    },
    Take {
        peer: u32,
        blob: BlobSlot,
    },
    Renew {
        peer: u32,
        blob: BlobSlot,
        chunk: u32,
    },
    Nothing {
        peer: u32,
    },
}

/// What is on its way back.
#[derive(Debug)]
enum Reply {
    Announced(AnnounceAnswer),
    Lease(LeaseAnswer),
    /// Nothing came in time.
    Silence,
}

/// An answer on its way to a peer.
#[derive(Debug)]
pub(crate) struct Answer {
    request: RequestId,
    question: Question,
    /// The tracker's epoch, as answers carry it.
    epoch: u64,
    reply: Reply,
}

/// The tracker's side.
#[derive(Debug)]
pub(crate) struct Tracking {
    machine: TrackerMachine,
    config: Config,
    rng_seed: u64,
    is_enabled: bool,
    is_up: bool,
    /// Counts restarts.
    life: u64,
    wake_at: Time,
    questions: Slab<Question>,
    messages: Slab<Message>,
    answers: Slab<Answer>,
}

/// One peer's side.
#[derive(Debug)]
pub(crate) struct Session {
    epoch: u64,
    sequence: u64,
    is_full: bool,
    is_reachable: bool,
    /// Completed blobs that an announce has said.
    told: Vec<bool>,
    /// For each blob, the request whose answer counts.
    asked: Vec<Option<RequestId>>,
    /// Counts announces: only the latest one's answer plans the next.
    round: u32,
    announces: u64,
    /// Lease requests so far, of all blobs.
    takes: u64,
}

impl Session {
    pub(crate) fn new(blobs: usize) -> Self {
        Self {
            epoch: 0,
            sequence: 0,
            is_full: true,
            is_reachable: true,
            told: vec![false; blobs],
            asked: vec![None; blobs],
            round: 0,
            announces: 0,
            takes: 0,
        }
    }
}

impl Tracking {
    pub(crate) fn new(scenario: &Scenario, rng_seed: u64) -> Self {
        let mut config = Config::default();
        if let Some(open_leases) = scenario.tracker.open_leases {
            config.lease.open_limit = open_leases;
        }
        Self {
            machine: TrackerMachine::new(config.clone(), mix(rng_seed)),
            config,
            rng_seed,
            is_enabled: scenario.tracker.enabled,
            is_up: scenario.tracker.enabled,
            life: 0,
            wake_at: Time::MAX,
            questions: Slab::new(),
            messages: Slab::new(),
            answers: Slab::new(),
        }
    }

    pub(crate) fn stop(&mut self) {
        self.is_up = false;
    }

    /// Starts again with nothing remembered.
    pub(crate) fn restart(&mut self) {
        self.life += 1;
        self.machine =
            TrackerMachine::new(self.config.clone(), mix(self.rng_seed ^ self.life << 32));
        self.is_up = self.is_enabled;
        self.wake_at = Time::MAX;
    }
}

impl World<'_> {
    /// A peer's first words; without a tracker it knows some others from earlier.
    pub(crate) fn begin_session(&mut self, peer: u32) {
        if self.tracking.is_enabled {
            return;
        }
        let count = self.nodes.len() as u32;
        let known = self.scenario.tracker.known_peers.min(count - 1);
        let mut peers: Vec<PeerFacts> = Vec::new();
        while (peers.len() as u32) < known {
            let other = self.rng.random_range(0..count);
            let facts = self.facts(other, peer);
            if other != peer && peers.iter().all(|known| known.peer != facts.peer) {
                peers.push(facts);
            }
        }
        for blob in (0..self.geometries.len() as u32).map(BlobSlot) {
            self.feed(
                peer,
                Input::Handout {
                    blob,
                    peers: peers.clone(),
                },
            );
        }
        self.feed(peer, Input::TrackerUnreachable);
    }

    /// Announces now: all wants, and what was completed since the last time.
    pub(crate) fn announce(&mut self, peer: u32) {
        if !self.tracking.is_enabled {
            return;
        }
        let node = &mut self.nodes[peer as usize];
        let unreachable = node.unreachable(self.now, None);
        let session = &mut node.session;
        session.announces += 1;
        session.round += 1;
        session.sequence = if session.is_full {
            0
        } else {
            session.sequence.wrapping_add(1)
        };
        let mut changes = Vec::new();
        for (blob, geometry) in (0_u32..).zip(&self.geometries) {
            let Some(held) = node.machine.held(BlobSlot(blob)) else {
                continue;
            };
            let progress = Progress::of(held.count(), geometry.chunks());
            let is_complete = held.is_full();
            if is_complete && session.told[blob as usize] && !session.is_full {
                continue;
            }
            session.told[blob as usize] = is_complete;
            let state = if is_complete {
                BlobState::Held(progress)
            } else {
                BlobState::Wanted(progress)
            };
            changes.push(Change {
                blob: tracker_blob(BlobSlot(blob)),
                state,
            });
        }
        let chunks = |blob: BlobSlot| self.geometries[blob.0 as usize].chunks();
        let leases = node.machine.leases().map(|(blob, chunk)| HeldLease {
            blob: tracker_blob(blob),
            chunk,
            chunks: chunks(blob),
        });
        let question = Question::Announce {
            peer,
            number: session.announces,
        };
        let announce = Announce {
            request: request(self.tracking.questions.insert(question)),
            peer: PeerSlot(peer),
            zone: ZoneSlot(self.places[peer as usize].zone),
            region: RegionSlot(self.places[peer as usize].region),
            epoch: session.epoch,
            sequence: session.sequence,
            full: session.is_full,
            changes,
            leases: leases.collect(),
            connected: node.links.connected().map(PeerSlot).collect(),
            unreachable,
            leaving: false,
        };
        session.is_full = false;
        self.send(peer, Message::Announce(announce));
    }

    pub(crate) fn on_announce_due(&mut self, peer: u32, round: u32) {
        let node = &self.nodes[peer as usize];
        if !node.alive || node.session.round != round {
            return;
        }
        if node.frozen.is_some() {
            self.queue
                .push(self.now + TRY_AGAIN, Event::AnnounceDue { peer, round });
        } else {
            self.announce(peer);
        }
    }

    pub(crate) fn lease_take(
        &mut self,
        peer: u32,
        blob: BlobSlot,
        missing: ChunkMap,
        starving: bool,
    ) {
        let request = request(
            self.tracking
                .questions
                .insert(Question::Take { peer, blob }),
        );
        let node = &mut self.nodes[peer as usize];
        node.session.asked[blob.0 as usize] = Some(request);
        let unreachable = node.unreachable(self.now, Some(blob));
        node.session.takes += 1;
        let take = Take {
            request,
            peer: PeerSlot(peer),
            blob: tracker_blob(blob),
            number: node.session.takes,
            missing,
            starving,
            unreachable,
        };
        self.send(peer, Message::Take(take));
    }

    pub(crate) fn lease_drop(&mut self, peer: u32, blob: BlobSlot) {
        if let Some(request) = self.nodes[peer as usize].session.asked[blob.0 as usize].take() {
            self.tracking.questions.remove(Key::from_bits(request.0));
            self.send(peer, Message::Drop { peer, blob });
        }
    }

    pub(crate) fn lease_renew(&mut self, peer: u32, blob: BlobSlot, chunk: u32, received: u64) {
        self.say(
            peer,
            blob,
            chunk,
            LeaseEvent::Renew { received },
            Question::Renew { peer, blob, chunk },
        );
    }

    pub(crate) fn lease_done(&mut self, peer: u32, blob: BlobSlot, chunk: u32) {
        self.say(
            peer,
            blob,
            chunk,
            LeaseEvent::Done,
            Question::Nothing { peer },
        );
    }

    pub(crate) fn lease_failed(&mut self, peer: u32, blob: BlobSlot, chunk: u32) {
        self.say(
            peer,
            blob,
            chunk,
            LeaseEvent::Failed,
            Question::Nothing { peer },
        );
    }

    fn say(
        &mut self,
        peer: u32,
        blob: BlobSlot,
        chunk: u32,
        event: LeaseEvent,
        question: Question,
    ) {
        let request = request(self.tracking.questions.insert(question));
        let lease = Lease {
            request,
            peer: PeerSlot(peer),
            blob: tracker_blob(blob),
            chunk,
            event,
        };
        self.send(peer, Message::Lease(lease));
    }

    /// A peer leaves and says so.
    pub(crate) fn say_good_bye(&mut self, peer: u32) {
        let session = &self.nodes[peer as usize].session;
        let (epoch, sequence) = (session.epoch, session.sequence.wrapping_add(1));
        let announce = Announce {
            request: request(self.tracking.questions.insert(Question::Nothing { peer })),
            peer: PeerSlot(peer),
            zone: ZoneSlot(self.places[peer as usize].zone),
            region: RegionSlot(self.places[peer as usize].region),
            epoch,
            sequence,
            full: false,
            changes: Vec::new(),
            leases: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: true,
        };
        self.send(peer, Message::Announce(announce));
    }

    fn send(&mut self, peer: u32, message: Message) {
        if !self.tracking.is_enabled {
            return;
        }
        let message = self.tracking.messages.insert(message);
        let delay = self.delay_to_region(peer, self.places[peer as usize].region);
        self.queue
            .push_after(self.now, delay, Event::ToTracker { message });
    }

    pub(crate) fn on_tracker_message(&mut self, message: Key) {
        let Some(message) = self.tracking.messages.remove(message) else {
            return;
        };
        if !self.tracking.is_up {
            self.on_unanswered(&message);
            return;
        }
        let input = match message {
            Message::Announce(announce) => TrackerInput::Announce(announce),
            Message::Take(take) => TrackerInput::Take(take),
            Message::Lease(lease) => TrackerInput::Lease(lease),
            Message::Drop { peer, blob } => TrackerInput::Drop {
                peer: PeerSlot(peer),
                blob: tracker_blob(blob),
            },
        };
        self.tracking.machine.handle(self.now, input);
        self.drain_tracker();
    }

    /// The peer waits in vain.
    fn on_unanswered(&mut self, message: &Message) {
        let request = match message {
            Message::Announce(announce) => announce.request,
            Message::Take(take) => take.request,
            Message::Lease(lease) => lease.request,
            Message::Drop { .. } => return,
        };
        if let Some(question) = self.tracking.questions.remove(Key::from_bits(request.0)) {
            let answer = Answer {
                request,
                question,
                epoch: 0,
                reply: Reply::Silence,
            };
            let answer = self.tracking.answers.insert(answer);
            self.queue
                .push(self.now + ANSWER_TIMEOUT, Event::FromTracker { answer });
        }
    }

    /// The tracker is gone: nobody who waits gets an answer.
    pub(crate) fn silence_parked(&mut self) {
        let parked: Vec<(Key, Question)> = self
            .tracking
            .questions
            .iter()
            .map(|(key, question)| (key, *question))
            .collect();
        for (key, question) in parked {
            if matches!(question, Question::Take { .. }) {
                self.tracking.questions.remove(key);
                let answer = Answer {
                    request: request(key),
                    question,
                    epoch: 0,
                    reply: Reply::Silence,
                };
                let answer = self.tracking.answers.insert(answer);
                self.queue
                    .push(self.now + ANSWER_TIMEOUT, Event::FromTracker { answer });
            }
        }
    }

    pub(crate) fn on_tracker_wake(&mut self) {
        if self.tracking.is_up && self.tracking.wake_at == self.now {
            self.tracking.wake_at = Time::MAX;
            self.tracking.machine.handle_timeout(self.now);
            self.drain_tracker();
        }
    }

    fn drain_tracker(&mut self) {
        while let Some(output) = self.tracking.machine.poll_output() {
            let (request, reply) = match output {
                TrackerOutput::Announced { request, answer } => (request, Reply::Announced(answer)),
                TrackerOutput::Lease { request, answer } => (request, Reply::Lease(answer)),
                // Slots are numbers of peers and blobs here, and never used again.
                TrackerOutput::PeerForgotten(_) | TrackerOutput::BlobForgotten(_) => continue,
            };
            let Some(question) = self.tracking.questions.remove(Key::from_bits(request.0)) else {
                continue;
            };
            let (Question::Announce { peer, .. }
            | Question::Take { peer, .. }
            | Question::Renew { peer, .. }
            | Question::Nothing { peer }) = question;
            let epoch = self.tracking.machine.epoch();
            let answer = self.tracking.answers.insert(Answer {
                request,
                question,
                epoch,
                reply,
            });
            let delay = self.delay_to_region(peer, self.places[peer as usize].region);
            self.queue
                .push_after(self.now, delay, Event::FromTracker { answer });
        }
        if let Some(at) = self.tracking.machine.poll_timeout()
            && at < self.tracking.wake_at
        {
            let at = at.max(self.now);
            self.tracking.wake_at = at;
            self.queue.push(at, Event::TrackerWake);
        }
    }

    pub(crate) fn on_tracker_answer(&mut self, answer: Key) {
        let Some(Answer {
            request,
            question,
            epoch,
            reply,
        }) = self.tracking.answers.remove(answer)
        else {
            return;
        };
        match question {
            Question::Announce { peer, number } => self.on_announced(peer, number, epoch, reply),
            Question::Take { peer, blob } => self.on_lease_answer(peer, blob, request, reply),
            Question::Renew { peer, blob, chunk } => {
                if matches!(reply, Reply::Lease(LeaseAnswer::NotHeld)) {
                    self.feed(peer, Input::LeaseLost { blob, chunk });
                }
            }
            Question::Nothing { .. } => {}
        }
    }

    fn on_announced(&mut self, peer: u32, number: u64, epoch: u64, reply: Reply) {
        let session = &mut self.nodes[peer as usize].session;
        let is_latest = session.announces == number;
        match reply {
            Reply::Announced(AnnounceAnswer::Accepted { next, handouts }) => {
                session.epoch = epoch;
                let round = session.round;
                if is_latest {
                    self.queue
                        .push(self.now + next, Event::AnnounceDue { peer, round });
                }
                self.on_reachable(peer, true);
                for (blob, peers) in handouts {
                    let peers = peers
                        .into_iter()
                        .map(|other| self.facts(other.0, peer))
                        .collect();
                    self.feed(
                        peer,
                        Input::Handout {
                            blob: BlobSlot(blob.0),
                            peers,
                        },
                    );
                }
            }
            Reply::Announced(AnnounceAnswer::Resync) => {
                session.epoch = epoch;
                session.is_full = true;
                if is_latest {
                    self.announce(peer);
                }
            }
            Reply::Announced(AnnounceAnswer::Full) | Reply::Lease(_) | Reply::Silence => {
                session.is_full = true;
                let round = session.round;
                if is_latest {
                    self.queue
                        .push(self.now + TRY_AGAIN, Event::AnnounceDue { peer, round });
                }
                self.on_reachable(peer, false);
            }
        }
    }

    fn on_lease_answer(&mut self, peer: u32, blob: BlobSlot, request: RequestId, reply: Reply) {
        let asked = &mut self.nodes[peer as usize].session.asked[blob.0 as usize];
        if *asked != Some(request) {
            return;
        }
        *asked = None;
        match reply {
            Reply::Lease(LeaseAnswer::Granted { chunk, term }) => {
                self.feed(peer, Input::LeaseGranted { blob, chunk, term });
            }
            Reply::Lease(LeaseAnswer::Wait { retry_after }) => {
                self.feed(peer, Input::LeaseWait { blob, retry_after });
            }
            Reply::Lease(LeaseAnswer::Dial { holder, .. }) => {
                let facts = self.facts(holder.0, peer);
                self.feed(
                    peer,
                    Input::Handout {
                        blob,
                        peers: vec![facts],
                    },
                );
                self.feed(
                    peer,
                    Input::LeaseWait {
                        blob,
                        retry_after: Duration::ZERO,
                    },
                );
            }
            Reply::Lease(LeaseAnswer::Unknown) => {
                self.nodes[peer as usize].session.is_full = true;
                self.announce(peer);
                self.feed(
                    peer,
                    Input::LeaseWait {
                        blob,
                        retry_after: AFTER_UNKNOWN,
                    },
                );
            }
            Reply::Lease(_) => self.feed(
                peer,
                Input::LeaseWait {
                    blob,
                    retry_after: AFTER_UNKNOWN,
                },
            ),
            Reply::Announced(_) | Reply::Silence => self.on_reachable(peer, false),
        }
    }

    fn on_reachable(&mut self, peer: u32, is_reachable: bool) {
        let session = &mut self.nodes[peer as usize].session;
        if session.is_reachable != is_reachable {
            session.is_reachable = is_reachable;
            session.asked.fill(None);
            self.feed(
                peer,
                if is_reachable {
                    Input::TrackerReachable
                } else {
                    Input::TrackerUnreachable
                },
            );
            if !is_reachable {
                let session = &mut self.nodes[peer as usize].session;
                session.is_full = true;
                let round = session.round;
                self.queue
                    .push(self.now + TRY_AGAIN, Event::AnnounceDue { peer, round });
            }
        }
    }

    /// The peers that hold a lease now, by number.
    pub(crate) fn lease_holders(&self) -> Vec<u32> {
        let holds = |node: &Node| node.alive && node.machine.leases().next().is_some();
        (0_u32..)
            .zip(&self.nodes)
            .filter(|(_, node)| holds(node))
            .map(|(number, _)| number)
            .collect()
    }
}

fn request(key: Key) -> RequestId {
    RequestId(key.to_bits())
}

fn tracker_blob(blob: swarm::BlobSlot) -> flotilla_common::tracker::BlobSlot {
    flotilla_common::tracker::BlobSlot(blob.0)
}

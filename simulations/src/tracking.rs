//! The tracker in the world: its machine, the names of its slots, and the way to it.

use flotilla_common::time::Time;
use flotilla_common::tracker::{
    Config, ExchangeId, Input, Output, RequestId, SessionInput, SlotNames, TrackerMachine,
    TrackerRequest,
};
use flotilla_common::wire::tracker::LeaseAnswer;

use crate::scenario::Scenario;
use crate::slab::{Key, Slab};
use crate::world::{Event, World, mix};

/// A request on its way to the tracker.
#[derive(Debug)]
struct Message {
    from: Asker,
    request: TrackerRequest,
}

/// A peer, and its name for the answer.
#[derive(Clone, Copy, Debug)]
struct Asker {
    peer: u32,
    exchange: ExchangeId,
}

/// An answer on its way to a peer.
#[derive(Debug)]
struct Answer {
    peer: u32,
    input: SessionInput,
}

/// The tracker, and the messages to and from it.
#[derive(Debug)]
pub(crate) struct Tracking {
    machine: TrackerMachine,
    names: SlotNames,
    config: Config,
    rng_seed: u64,
    pub(crate) is_enabled: bool,
    is_up: bool,
    restarts: u64,
    /// The time of its next `TrackerWake`.
    wake_at: Time,
    /// Peers that wait for an answer.
    askers: Slab<Asker>,
    messages: Slab<Message>,
    answers: Slab<Answer>,
}

impl Tracking {
    pub(crate) fn new(scenario: &Scenario, rng_seed: u64) -> Self {
        let mut config = Config::default();
        if let Some(open_leases) = scenario.tracker.open_leases {
            config.lease.open_limit = open_leases;
        }
        Self {
            machine: TrackerMachine::new(config.clone(), mix(rng_seed)),
            names: SlotNames::default(),
            config,
            rng_seed,
            is_enabled: scenario.tracker.enabled,
            is_up: scenario.tracker.enabled,
            restarts: 0,
            wake_at: Time::MAX,
            askers: Slab::new(),
            messages: Slab::new(),
            answers: Slab::new(),
        }
    }

    /// Messages get no answer any more, and peers that wait for one do not notice.
    pub(crate) fn stop(&mut self) {
        self.is_up = false;
        self.askers = Slab::new();
    }
}

impl World<'_> {
    /// The tracker starts again with an empty memory; connections of waiting peers break.
    pub(crate) fn restart_tracker(&mut self) {
        let tracking = &mut self.tracking;
        tracking.restarts += 1;
        let rng_seed = mix(tracking.rng_seed ^ tracking.restarts << 32);
        tracking.machine = TrackerMachine::new(tracking.config.clone(), rng_seed);
        tracking.names = SlotNames::default();
        tracking.is_up = tracking.is_enabled;
        tracking.wake_at = Time::MAX;
        let waiting: Vec<Asker> = tracking.askers.iter().map(|(_, asker)| *asker).collect();
        tracking.askers = Slab::new();
        for Asker { peer, exchange } in waiting {
            self.answer(peer, SessionInput::Failed { exchange });
        }
    }

    pub(crate) fn send_to_tracker(
        &mut self,
        peer: u32,
        exchange: ExchangeId,
        request: TrackerRequest,
    ) {
        let from = Asker { peer, exchange };
        let message = self.tracking.messages.insert(Message { from, request });
        let delay = self.delay_to_region(peer, self.places[peer as usize].region);
        self.queue
            .push_after(self.now, delay, Event::ToTracker { message });
    }

    pub(crate) fn on_tracker_message(&mut self, message: Key) {
        let Some(Message { from, request }) = self.tracking.messages.remove(message) else {
            return;
        };
        if !self.tracking.is_up {
            return;
        }
        let Asker { peer, exchange } = from;
        let tracking = &mut self.tracking;
        let id = RequestId(tracking.askers.insert(from).to_bits());
        let input = match request {
            TrackerRequest::Announce(announce) => {
                Input::Announce(tracking.names.announce(id, announce))
            }
            TrackerRequest::Lease(lease) => match tracking.names.lease(id, lease) {
                Some(input) => input,
                None => {
                    let answer = LeaseAnswer::Unknown;
                    return self.answer(peer, SessionInput::LeaseAnswered { exchange, answer });
                }
            },
        };
        if matches!(input, Input::Drop { .. }) {
            tracking.askers.remove(Key::from_bits(id.0));
            let answer = LeaseAnswer::Noted;
            self.answer(peer, SessionInput::LeaseAnswered { exchange, answer });
        }
        self.tracking.machine.handle(self.now, input);
        self.drain_tracker();
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
            let tracking = &mut self.tracking;
            match output {
                Output::Announced { request, answer } => {
                    let epoch = tracking.machine.epoch();
                    let answer = tracking.names.announce_answer(epoch, answer);
                    self.answer_request(request, |exchange| match answer {
                        Some(answer) => SessionInput::AnnounceAnswered { exchange, answer },
                        None => SessionInput::Failed { exchange },
                    });
                }
                Output::Lease { request, answer } => {
                    let answer = tracking.names.lease_answer(answer);
                    self.answer_request(request, |exchange| match answer {
                        Some(answer) => SessionInput::LeaseAnswered { exchange, answer },
                        None => SessionInput::Failed { exchange },
                    });
                }
                Output::PeerForgotten(peer) => tracking.names.release_peer(peer),
                Output::BlobForgotten(blob) => tracking.names.release_blob(blob),
            }
        }
        if let Some(at) = self.tracking.machine.poll_timeout()
            && at < self.tracking.wake_at
        {
            let at = at.max(self.now);
            self.tracking.wake_at = at;
            self.queue.push(at, Event::TrackerWake);
        }
    }

    fn answer_request(
        &mut self,
        request: RequestId,
        input: impl FnOnce(ExchangeId) -> SessionInput,
    ) {
        if let Some(asker) = self.tracking.askers.remove(Key::from_bits(request.0)) {
            self.answer(asker.peer, input(asker.exchange));
        }
    }

    fn answer(&mut self, peer: u32, input: SessionInput) {
        let answer = self.tracking.answers.insert(Answer { peer, input });
        let delay = self.delay_to_region(peer, self.places[peer as usize].region);
        self.queue
            .push_after(self.now, delay, Event::FromTracker { answer });
    }

    pub(crate) fn on_tracker_answer(&mut self, answer: Key) {
        if let Some(Answer { peer, input }) = self.tracking.answers.remove(answer) {
            self.feed_session(peer, input);
        }
    }
}

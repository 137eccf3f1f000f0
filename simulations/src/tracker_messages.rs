//! Messages between peers and the tracker.

use flotilla_common::time::Time;
use flotilla_common::tracker::{
    ExchangeId, RequestId, SessionInput, TrackerInput, TrackerOutput, TrackerRequest,
};
use flotilla_common::wire::tracker::LeaseAnswer;

use crate::event::Event;
use crate::slab::Key;
use crate::tracker::{Requester, TrackerAnswer, TrackerMessage};
use crate::world::World;

impl World<'_> {
    /// Restarts the tracker, which breaks the connections of waiting peers.
    pub(crate) fn restart_tracker(&mut self) {
        for Requester { peer, exchange } in self.tracker.restart() {
            self.answer(peer, SessionInput::Failed { exchange });
        }
    }

    pub(crate) fn send_to_tracker(
        &mut self,
        peer: u32,
        exchange: ExchangeId,
        request: TrackerRequest,
    ) {
        let from = Requester { peer, exchange };
        let message = self
            .tracker
            .messages
            .insert(TrackerMessage { from, request });
        let delay = self.delay_to_region(peer, self.locations[peer as usize].region);
        self.queue
            .push_after(self.now, delay, Event::ToTracker { message });
    }

    pub(crate) fn on_tracker_message(&mut self, message: Key) {
        let Some(TrackerMessage { from, request }) = self.tracker.messages.remove(message) else {
            return;
        };
        if !self.tracker.is_up {
            return;
        }
        let Requester { peer, exchange } = from;
        let tracker = &mut self.tracker;
        let id = RequestId(tracker.requesters.insert(from).to_bits());
        let input = match request {
            TrackerRequest::Announce(announce) => {
                TrackerInput::Announce(tracker.names.announce(id, announce))
            }
            TrackerRequest::Lease(lease) => match tracker.names.lease(id, lease) {
                Some(input) => input,
                None => {
                    tracker.requesters.remove(Key::from_bits(id.0));
                    let answer = LeaseAnswer::Unknown;
                    return self.answer(peer, SessionInput::LeaseAnswered { exchange, answer });
                }
            },
        };
        if matches!(input, TrackerInput::Drop { .. }) {
            tracker.requesters.remove(Key::from_bits(id.0));
            let answer = LeaseAnswer::Noted;
            self.answer(peer, SessionInput::LeaseAnswered { exchange, answer });
        }
        self.tracker.machine.handle(self.now, input);
        self.drain_tracker();
    }

    pub(crate) fn on_tracker_wake(&mut self) {
        if self.tracker.is_up && self.tracker.wake_at == self.now {
            self.tracker.wake_at = Time::MAX;
            self.tracker.machine.handle_timeout(self.now);
            self.drain_tracker();
        }
    }

    fn drain_tracker(&mut self) {
        while let Some(output) = self.tracker.machine.poll_output() {
            let tracker = &mut self.tracker;
            match output {
                TrackerOutput::Announced { request, answer } => {
                    let epoch = tracker.machine.epoch();
                    let answer = tracker.names.announce_answer(epoch, answer);
                    self.answer_request(request, |exchange| match answer {
                        Some(answer) => SessionInput::AnnounceAnswered { exchange, answer },
                        None => SessionInput::Failed { exchange },
                    });
                }
                TrackerOutput::Lease { request, answer } => {
                    let answer = tracker.names.lease_answer(answer);
                    self.answer_request(request, |exchange| match answer {
                        Some(answer) => SessionInput::LeaseAnswered { exchange, answer },
                        None => SessionInput::Failed { exchange },
                    });
                }
                TrackerOutput::PeerForgotten(peer) => tracker.names.release_peer(peer),
                TrackerOutput::BlobForgotten(blob) => tracker.names.release_blob(blob),
            }
        }
        if let Some(at) = self.tracker.machine.poll_timeout()
            && at < self.tracker.wake_at
        {
            let at = at.max(self.now);
            self.tracker.wake_at = at;
            self.queue.push(at, Event::TrackerWake);
        }
    }

    fn answer_request(
        &mut self,
        request: RequestId,
        input: impl FnOnce(ExchangeId) -> SessionInput,
    ) {
        if let Some(requester) = self.tracker.requesters.remove(Key::from_bits(request.0)) {
            self.answer(requester.peer, input(requester.exchange));
        }
    }

    fn answer(&mut self, peer: u32, input: SessionInput) {
        let answer = self.tracker.answers.insert(TrackerAnswer { peer, input });
        let delay = self.delay_to_region(peer, self.locations[peer as usize].region);
        self.queue
            .push_after(self.now, delay, Event::FromTracker { answer });
    }

    pub(crate) fn on_tracker_answer(&mut self, answer: Key) {
        if let Some(TrackerAnswer { peer, input }) = self.tracker.answers.remove(answer) {
            self.feed_session(peer, input);
        }
    }
}

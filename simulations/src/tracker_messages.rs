//! Messages between peers and the tracker.

use flotilla_common::time::Time;
use flotilla_common::tracker::{
    ExchangeId, RequestId, SessionInput, TrackerInput, TrackerOutput, TrackerRequest,
};
use flotilla_common::wire::tracker::LeaseAnswer;

use crate::event::Event;
use crate::slab::Key;
use crate::tracker::{TrackerAnswer, TrackerExchange, TrackerMessage};
use crate::world::World;

impl World<'_> {
    /// Restarts the tracker, which breaks the connections of waiting peers.
    pub(crate) fn restart_tracker(&mut self) {
        for broken in self.tracker.restart() {
            let exchange = broken.exchange;
            self.forget_exchange(broken.peer, exchange);
            self.answer(broken.peer, SessionInput::Failed { exchange });
        }
    }

    /// Stops the tracker: messages to it are lost, and waiting peers get no answer.
    pub(crate) fn stop_tracker(&mut self) {
        for lost in self.tracker.stop() {
            self.forget_exchange(lost.peer, lost.exchange);
        }
    }

    fn forget_exchange(&mut self, peer: u32, exchange: ExchangeId) {
        if let Some(session) = &mut self.peers[peer as usize].session {
            session.exchanges.retain(|(open, _)| *open != exchange);
        }
    }

    pub(crate) fn send_to_tracker(
        &mut self,
        peer: u32,
        exchange: ExchangeId,
        request: TrackerRequest,
    ) {
        let message = self.tracker_messages.insert(TrackerMessage {
            peer,
            exchange,
            request,
        });
        let delay = self.http_delay(peer, self.locations[peer as usize].region);
        self.queue
            .push_after(self.now, delay, Event::ToTracker { message });
    }

    pub(crate) fn on_tracker_message(&mut self, message: Key) {
        let Some(message) = self.tracker_messages.remove(message) else {
            return;
        };
        if !self.tracker.is_up {
            return;
        }
        let exchange = self.tracker.exchanges.insert(TrackerExchange {
            peer: message.peer,
            exchange: message.exchange,
            request: Some(message.request),
            is_connected: false,
        });
        if let Some(session) = &mut self.peers[message.peer as usize].session {
            session.exchanges.push((message.exchange, exchange));
        }
        if let Some(at) = self.tracker.connect(self.now, exchange) {
            self.queue.push(at, Event::TrackerServes { exchange });
        }
    }

    /// The tracker's processor has handled a request.
    pub(crate) fn on_tracker_serves(&mut self, key: Key) {
        let tracker = &mut self.tracker;
        let served = tracker.exchanges.get_mut(key);
        let Some((exchange, request)) =
            served.and_then(|it| Some((it.exchange, it.request.take()?)))
        else {
            return;
        };
        let id = RequestId(key.to_bits());
        let input = match request {
            TrackerRequest::Announce(announce) => {
                TrackerInput::Announce(tracker.names.announce(id, announce))
            }
            TrackerRequest::Lease(lease) => match tracker.names.lease(id, lease) {
                Some(input) => input,
                None => {
                    let answer = LeaseAnswer::Unknown;
                    let input = SessionInput::LeaseAnswered { exchange, answer };
                    return self.answer_exchange(key, input);
                }
            },
        };
        if matches!(input, TrackerInput::Drop { .. }) {
            let answer = LeaseAnswer::Noted;
            self.answer_exchange(key, SessionInput::LeaseAnswered { exchange, answer });
        }
        self.tracker.machine.handle(self.now, input);
        self.drain_tracker();
    }

    /// A peer gives an exchange up and closes its connection.
    pub(crate) fn cancel_exchange(&mut self, peer: u32, exchange: ExchangeId) {
        if let Some(session) = &self.peers[peer as usize].session
            && let Some(at) = session
                .exchanges
                .iter()
                .position(|(open, _)| *open == exchange)
        {
            let (_, key) = session.exchanges[at];
            self.end_exchange(key);
        }
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
        let key = Key::from_bits(request.0);
        if let Some(exchange) = self.tracker.exchanges.get(key) {
            let input = input(exchange.exchange);
            self.answer_exchange(key, input);
        }
    }

    fn answer_exchange(&mut self, key: Key, input: SessionInput) {
        if let Some(ended) = self.end_exchange(key) {
            self.answer(ended.peer, input);
        }
    }

    /// Ends an exchange; the next one gets its connection.
    fn end_exchange(&mut self, key: Key) -> Option<TrackerExchange> {
        let (ended, next) = self.tracker.end(self.now, key)?;
        if let Some((exchange, at)) = next {
            self.queue.push(at, Event::TrackerServes { exchange });
        }
        self.forget_exchange(ended.peer, ended.exchange);
        Some(ended)
    }

    fn answer(&mut self, peer: u32, input: SessionInput) {
        let answer = self.tracker_answers.insert(TrackerAnswer { peer, input });
        let delay = self.http_delay(peer, self.locations[peer as usize].region);
        self.queue
            .push_after(self.now, delay, Event::FromTracker { answer });
    }

    pub(crate) fn on_tracker_answer(&mut self, answer: Key) {
        if let Some(TrackerAnswer { peer, input }) = self.tracker_answers.remove(answer) {
            self.feed_session(peer, input);
        }
    }
}

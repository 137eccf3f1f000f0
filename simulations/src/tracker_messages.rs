//! Messages between peers and trackers.

use core::time::Duration;

use flotilla_common::time::Time;
use flotilla_common::tracker::{
    ExchangeId, RequestId, SessionInput, TrackerInput, TrackerOutput, TrackerRequest,
};
use flotilla_common::wire::tracker::{AnnounceAnswer, LeaseAnswer};

use crate::event::Event;
use crate::slab::Key;
use crate::tracker::{TrackerAnswer, TrackerExchange, TrackerMessage};
use crate::world::World;

impl World<'_> {
    pub(crate) fn forget_exchange(&mut self, peer: u32, exchange: ExchangeId) {
        if let Some(session) = &mut self.peers[peer as usize].session {
            session.exchanges.retain(|(open, ..)| *open != exchange);
        }
    }

    pub(crate) fn send_to_tracker(
        &mut self,
        peer: u32,
        tracker: u32,
        exchange: ExchangeId,
        request: TrackerRequest,
    ) {
        let message = self.tracker_messages.insert(TrackerMessage {
            peer,
            tracker,
            exchange,
            request,
        });
        self.sent_tracker_messages += 1;
        let region = self.tracker_region(tracker, peer);
        let delay = self.http_delay(peer, region);
        self.queue
            .push_after(self.now, delay, Event::ToTracker { message });
    }

    /// The region of a tracker, as seen from a peer: a tracker that all regions share is in that
    /// of the peer.
    fn tracker_region(&self, tracker: u32, peer: u32) -> u32 {
        let own = self.locations[peer as usize].region;
        self.trackers[tracker as usize].region.unwrap_or(own)
    }

    /// Whether messages between a peer and a tracker are lost.
    fn is_tracker_cut(&self, tracker: u32, peer: u32) -> bool {
        let region = self.tracker_region(tracker, peer);
        self.is_cut(region, self.locations[peer as usize].region)
    }

    pub(crate) fn on_tracker_message(&mut self, message: Key) {
        let Some(message) = self.tracker_messages.remove(message) else {
            return;
        };
        let number = message.tracker;
        if self.is_tracker_cut(number, message.peer) {
            return;
        }
        let tracker = &mut self.trackers[number as usize];
        if !tracker.is_up {
            return;
        }
        let exchange = tracker.exchanges.insert(TrackerExchange {
            peer: message.peer,
            exchange: message.exchange,
            request: Some(message.request),
            is_connected: false,
        });
        if let Some(session) = &mut self.peers[message.peer as usize].session {
            session.exchanges.push((message.exchange, number, exchange));
        }
        if let Some(at) = tracker.connect(self.now, exchange) {
            let tracker = number;
            self.queue
                .push(at, Event::TrackerServes { tracker, exchange });
        }
    }

    /// A tracker's processor has handled a request.
    pub(crate) fn on_tracker_serves(&mut self, number: u32, key: Key) {
        let tracker = &mut self.trackers[number as usize];
        if tracker.is_silent {
            tracker.held.push(key);
            return;
        }
        let served = tracker.exchanges.get_mut(key);
        let Some((exchange, request)) =
            served.and_then(|it| Some((it.exchange, it.request.take()?)))
        else {
            return;
        };
        let id = RequestId(key.to_bits());
        let (input, answer) = match request {
            TrackerRequest::Announce(announce) => {
                let announce = tracker.names.announce(id, announce);
                (Some(TrackerInput::Announce(announce)), None)
            }
            TrackerRequest::Lease(lease) => {
                let is_for_another = tracker.group.is_for_another(&lease);
                match tracker.names.lease(id, lease) {
                    None => (None, Some(LeaseAnswer::Unknown)),
                    Some(_) if is_for_another => (None, Some(LeaseAnswer::NotFirst)),
                    // The machine does not answer this one.
                    Some(input @ TrackerInput::Drop { .. }) => {
                        (Some(input), Some(LeaseAnswer::Noted))
                    }
                    Some(input) => (Some(input), None),
                }
            }
        };
        if let Some(answer) = answer {
            let input = SessionInput::LeaseAnswered { exchange, answer };
            self.answer_exchange(number, key, Duration::ZERO, input);
        }
        if let Some(input) = input {
            self.trackers[number as usize]
                .machine
                .handle(self.now, input);
            self.drain_tracker(number);
        }
    }

    /// A peer gives an exchange up and closes its connection.
    pub(crate) fn cancel_exchange(&mut self, peer: u32, exchange: ExchangeId) {
        let session = self.peers[peer as usize].session.as_ref();
        let open = session.and_then(|session| {
            let mut exchanges = session.exchanges.iter();
            exchanges.find(|(open, ..)| *open == exchange)
        });
        if let Some(&(_, tracker, key)) = open {
            self.end_exchange(tracker, key);
        }
    }

    pub(crate) fn on_tracker_wake(&mut self, number: u32) {
        let tracker = &mut self.trackers[number as usize];
        if tracker.is_up && tracker.wake_at == self.now {
            tracker.wake_at = Time::MAX;
            if tracker.is_silent {
                return;
            }
            tracker.machine.handle_timeout(self.now);
            self.drain_tracker(number);
        }
    }

    pub(crate) fn drain_tracker(&mut self, number: u32) {
        while let Some(output) = self.trackers[number as usize].machine.poll_output() {
            let tracker = &mut self.trackers[number as usize];
            match output {
                TrackerOutput::Announced { request, answer } => {
                    let epoch = tracker.machine.epoch();
                    let answer = tracker.names.announce_answer(epoch, answer);
                    let handouts = match &answer {
                        Some(AnnounceAnswer::Accepted { handouts, .. }) => handouts.len(),
                        Some(AnnounceAnswer::Resync { .. }) | None => 0,
                    };
                    let after = tracker.write_handouts(self.now, handouts);
                    self.answer_request(number, request, after, |exchange| match answer {
                        Some(answer) => SessionInput::AnnounceAnswered { exchange, answer },
                        None => SessionInput::Failed { exchange },
                    });
                }
                TrackerOutput::Lease { request, answer } => {
                    let answer = tracker.names.lease_answer(answer);
                    let after = Duration::ZERO;
                    self.answer_request(number, request, after, |exchange| match answer {
                        Some(answer) => SessionInput::LeaseAnswered { exchange, answer },
                        None => SessionInput::Failed { exchange },
                    });
                }
                TrackerOutput::OriginChanged { .. } => {}
                TrackerOutput::PeerForgotten(peer) => tracker.names.release_peer(peer),
                TrackerOutput::BlobForgotten(blob) => tracker.names.release_blob(blob),
            }
        }
        let tracker = &mut self.trackers[number as usize];
        if let Some(at) = tracker.machine.poll_timeout()
            && at < tracker.wake_at
        {
            let at = at.max(self.now);
            tracker.wake_at = at;
            let tracker = number;
            self.queue.push(at, Event::TrackerWake { tracker });
        }
        self.check_tracker(number);
    }

    fn answer_request(
        &mut self,
        tracker: u32,
        request: RequestId,
        after: Duration,
        input: impl FnOnce(ExchangeId) -> SessionInput,
    ) {
        let key = Key::from_bits(request.0);
        if let Some(exchange) = self.trackers[tracker as usize].exchanges.get(key) {
            let input = input(exchange.exchange);
            self.answer_exchange(tracker, key, after, input);
        }
    }

    /// Answers an exchange, this time from now.
    fn answer_exchange(&mut self, tracker: u32, key: Key, after: Duration, input: SessionInput) {
        if let Some(ended) = self.end_exchange(tracker, key) {
            self.answer(tracker, ended.peer, after, input);
        }
    }

    /// Ends an exchange; the next one gets its connection.
    fn end_exchange(&mut self, tracker: u32, key: Key) -> Option<TrackerExchange> {
        let (ended, next) = self.trackers[tracker as usize].end(self.now, key)?;
        if let Some((exchange, at)) = next {
            self.queue
                .push(at, Event::TrackerServes { tracker, exchange });
        }
        self.forget_exchange(ended.peer, ended.exchange);
        Some(ended)
    }

    pub(crate) fn answer(&mut self, tracker: u32, peer: u32, after: Duration, input: SessionInput) {
        let slow = self.trackers[tracker as usize].slow;
        let late = slow.map_or(Duration::ZERO, |slow| slow.draw(&mut self.latency_rng));
        let answer = self.tracker_answers.insert(TrackerAnswer {
            peer,
            tracker,
            input,
        });
        self.sent_tracker_messages += 1;
        let region = self.tracker_region(tracker, peer);
        let delay = after + late + self.http_delay(peer, region);
        self.queue
            .push_after(self.now, delay, Event::FromTracker { answer });
    }

    pub(crate) fn on_tracker_answer(&mut self, answer: Key) {
        let Some(TrackerAnswer {
            peer,
            tracker,
            input,
        }) = self.tracker_answers.remove(answer)
        else {
            return;
        };
        if !self.is_tracker_cut(tracker, peer) {
            self.feed_session(peer, input);
        }
    }
}

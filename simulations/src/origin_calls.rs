//! Calls to origins: from the request to the last byte of the answer.
//!
//! ```text
//! peer                                     origin
//!   request ──────────────────────────────▶ refuses, holds, answers 404 or 429, or
//!                                           queues, and serves after its latency
//!   ◀── head: the failover machine's request ends; other calls of the fetch are closed
//!   ◀── body: a flow; if it stalls until the source is Out, the fetch goes to the next origin
//! ```
//!
//! The peer's failover machine decides which origins are asked, in which order, and how long the
//! peer waits for each (`origins.rs`).

use core::time::Duration;

use flotilla_common::failover::{
    Input as FailoverInput, Outcome as CallOutcome, SourceId, Standing,
};
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::swarm::Input;
use flotilla_common::time::Time;

use crate::delays::Transport;
use crate::event::Event;
use crate::fetch::{FetchPurpose, SimulatedFetch};
use crate::origin_connections::OriginConnection;
use crate::origin_site::{Admission, internal_error, refused};
use crate::slab::Key;
use crate::storage_reads::{Relay, StorageRead};
use crate::world::World;

/// A call to an origin.
#[derive(Debug)]
pub(crate) struct OriginCall {
    /// The fetch that it is made for.
    pub(crate) fetch: Key,
    /// The region of the origin.
    pub(crate) region: u32,
    /// The flow of its bytes, while they flow.
    pub(crate) flow: Option<Key>,
    /// Its connection, if connections are simulated, until that is idle again.
    connection: Option<OriginConnection>,
    /// The part that concerns the origin's storage, once that was asked.
    pub(crate) read: Option<Box<StorageRead>>,
    /// Bytes of the body that were sent before the present flow.
    pub(crate) offset: u64,
    /// Whether the head of the answer has left the origin.
    is_head_sent: bool,
    /// The delay from the origin to the peer, drawn once.
    way_back: Duration,
    /// Whether all bytes have left the origin.
    is_sent: bool,
    /// Whether the origin counts it among its requests under way.
    pub(crate) is_admitted: bool,
    /// The bytes that have arrived, and when that number changed last.
    moved: u64,
    moved_at: Time,
    /// The time of its next `BodyWatched`.
    watch_at: Time,
    /// What the body's stall was reported as.
    is_slow: bool,
    is_hung: bool,
}

impl OriginCall {
    fn new(fetch: Key, region: u32, connection: Option<OriginConnection>) -> Self {
        Self {
            fetch,
            region,
            flow: None,
            connection,
            read: None,
            offset: 0,
            is_head_sent: false,
            way_back: Duration::ZERO,
            is_sent: false,
            is_admitted: false,
            moved: 0,
            moved_at: Time::ZERO,
            watch_at: Time::MAX,
            is_slow: false,
            is_hung: false,
        }
    }

    /// The origin of another region that sends the body, if one does.
    pub(crate) fn relay(&self) -> Option<Relay> {
        self.read.as_ref()?.relay
    }
}

impl World<'_> {
    /// Sends a request to the origin of a region.
    pub(crate) fn call_origin(&mut self, fetch: Key, peer: u32, region: u32) -> Key {
        let (connection, handshake) = self.connect_to_origin(peer, region);
        let call = OriginCall::new(fetch, region, connection);
        let call = self.calls.insert(call);
        if !self.is_cut(self.locations[peer as usize].region, region) {
            let delay = handshake + self.http_delay(peer, region);
            self.queue
                .push_after(self.now, delay, Event::OriginAsked { call });
        }
        call
    }

    /// The peer of a call, and the fetch that it is made for.
    pub(crate) fn fetch_of(&self, key: Key) -> Option<(&OriginCall, &SimulatedFetch)> {
        let call = self.calls.get(key)?;
        Some((call, self.fetches.get(call.fetch)?))
    }

    pub(crate) fn on_origin_asked(&mut self, key: Key) {
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let region = call.region;
        let layer =
            (!fetch.purpose.is_metadata()).then_some((fetch.blob.0, self.images.blob_count()));
        let origin = &mut self.origins[region as usize];
        match origin.admit(self.now, key, layer, &mut self.latency_rng) {
            Admission::Serves(at) => {
                if let Some(call) = self.calls.get_mut(key) {
                    call.is_admitted = true;
                }
                self.serve_call(key, at);
            }
            Admission::Holds => {}
            Admission::Answers(outcome) => self.answer_call(key, outcome),
        }
    }

    /// Sends an answer without bytes.
    pub(crate) fn answer_call(&mut self, key: Key, outcome: CallOutcome) {
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let (peer, region) = (fetch.peer, call.region);
        if !self.is_cut(self.locations[peer as usize].region, region) {
            let delay = self.http_delay(peer, region);
            let outcome = Box::new(outcome);
            let answered = Event::OriginAnswered { call: key, outcome };
            self.queue.push_after(self.now, delay, answered);
        }
    }

    /// The origin sends its answer: the head at once, and the body as a flow.
    pub(crate) fn on_origin_serves(&mut self, key: Key) {
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let (peer, region, purpose) = (fetch.peer, call.region, fetch.purpose);
        if self.is_cut(self.locations[peer as usize].region, region)
            || !self.origins[region as usize].serves(key)
        {
            return;
        }
        if purpose.is_metadata() {
            self.on_origin_serves_metadata(key, peer, region, purpose);
        } else {
            self.start_body(key);
        }
    }

    /// The bytes of an answer flow to the peer: from its origin, or through that from the origin of
    /// another region.
    pub(crate) fn start_body(&mut self, key: Key) {
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let (peer, region, blob, purpose) = (fetch.peer, call.region, fetch.blob, fetch.purpose);
        let (relay, offset) = (call.relay(), call.offset);
        let window = call.connection.and_then(|connection| connection.window);
        let bytes = purpose.bytes(self.images.geometry(blob)) - offset;
        let way_back = self.http_delay(peer, region);
        let from = relay.map_or(region, |relay| relay.region);
        let ends = (self.origin_end(from), peer);
        let middle = match relay {
            None => self.middle_from_origin(region, peer, window),
            Some(relay) => self.middle_of_relay(relay, region, peer),
        };
        let flow = self
            .network
            .start(self.now, ends, middle, bytes, key.to_bits());
        let mut is_first = false;
        if let Some(call) = self.calls.get_mut(key) {
            call.flow = Some(flow);
            call.way_back = way_back;
            is_first = !core::mem::replace(&mut call.is_head_sent, true);
            let fetch = call.fetch;
            self.record_flow_start(fetch);
        }
        if is_first {
            let outcome = Box::new(CallOutcome::Answered);
            let answered = Event::OriginAnswered { call: key, outcome };
            self.queue.push_after(self.now, way_back, answered);
        }
    }

    /// The origin sends a manifest or proofs, which have no bytes, or an error.
    fn on_origin_serves_metadata(
        &mut self,
        key: Key,
        peer: u32,
        region: u32,
        purpose: FetchPurpose,
    ) {
        self.end_admission(key);
        let is_closure = matches!(purpose, FetchPurpose::Proofs { .. });
        let outcome = if is_closure && self.fails_closure(peer, region) {
            internal_error()
        } else {
            CallOutcome::Answered
        };
        self.answer_call(key, outcome);
    }

    /// The head of an answer reaches the peer, or an error does.
    pub(crate) fn on_origin_answered(&mut self, key: Key, outcome: CallOutcome) {
        let Some((call, simulated)) = self.fetch_of(key) else {
            return;
        };
        let (fetch, region) = (call.fetch, call.region);
        let is_answered = outcome == CallOutcome::Answered;
        let is_whole = match outcome {
            CallOutcome::Answered => simulated.purpose.is_metadata(),
            CallOutcome::Failed { .. } | CallOutcome::TimedOut => false,
            CallOutcome::Missing | CallOutcome::Refused | CallOutcome::Busy { .. } => true,
        };
        if is_whole {
            self.release_connection(key);
        }
        if self.end_call(fetch, region, outcome) && is_answered {
            self.on_head(fetch, key);
        } else {
            self.close_call(key);
            self.poll_request(fetch);
        }
    }

    /// Takes the body from this call, and closes the others.
    fn on_head(&mut self, fetch: Key, key: Key) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.moved_at = now;
        let region = call.region;
        let Some(SimulatedFetch {
            peer,
            purpose,
            origin: Some(taken),
            ..
        }) = self.fetches.get_mut(fetch)
        else {
            return;
        };
        let (peer, purpose) = (*peer, *purpose);
        taken.request = None;
        taken.body = Some(key);
        let mut others = core::mem::replace(&mut taken.calls, vec![key]);
        others.retain(|call| *call != key);
        for other in others {
            self.close_call(other);
        }
        self.drain_failover(peer);
        match purpose {
            FetchPurpose::Chunk { transfer, .. } => {
                if let Ok(region) = u8::try_from(self.source_of(peer, region).0) {
                    let region = OriginRegion(region);
                    self.feed(peer, Input::OriginAnswered { transfer, region });
                }
                self.feed(peer, Input::FirstByte { transfer });
            }
            FetchPurpose::Manifest { pull } => {
                self.take_fetch(fetch);
                return self.on_manifest(peer, pull);
            }
            FetchPurpose::Proofs { pull } => {
                self.take_fetch(fetch);
                return self.on_proofs(peer, pull);
            }
            FetchPurpose::PassThrough { .. } => {}
        }
        self.watch_body(key);
    }

    pub(crate) fn on_body_watched(&mut self, key: Key) {
        if let Some(call) = self.calls.get_mut(key)
            && call.watch_at == self.now
        {
            call.watch_at = Time::MAX;
            self.watch_body(key);
        }
    }

    /// Looks at a body's progress now, and again when it would have stalled for too long.
    pub(crate) fn watch_body(&mut self, key: Key) {
        let now = self.now;
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        if fetch.body() != Some(key) || call.is_sent {
            return;
        }
        let (peer, region) = (fetch.peer, call.region);
        let source = self.source_of(peer, region);
        let config = self.peers[peer as usize].failover.config();
        let (slow_after, hung_after) = (config.slow_after, config.hung_after);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let stalled = now.saturating_since(call.moved_at);
        let mut inputs = Vec::new();
        if stalled < slow_after {
            (call.is_slow, call.is_hung) = (false, false);
        } else {
            if !core::mem::replace(&mut call.is_slow, true) {
                inputs.push(FailoverInput::Slow { source });
            }
            if stalled >= hung_after && !core::mem::replace(&mut call.is_hung, true) {
                inputs.push(FailoverInput::Hung { source });
            }
        }
        let next = if call.is_slow { hung_after } else { slow_after };
        let at = call.moved_at + next;
        if !call.is_hung && at < call.watch_at {
            call.watch_at = at;
            self.queue.push(at, Event::BodyWatched { call: key });
        }
        let is_slow = call.is_slow;
        for input in inputs {
            self.peers[peer as usize].failover.handle(now, input);
        }
        if is_slow && self.peers[peer as usize].failover.standing(source) == Standing::Out {
            self.on_body_broke(key, "no progress until the source was out");
        } else {
            self.drain_failover(peer);
        }
    }

    /// A body ends before its last byte: the fetch goes to the next origin.
    pub(crate) fn on_body_broke(&mut self, key: Key, error: &str) {
        let now = self.now;
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let (region, received, of) = (call.region, call.moved, call.fetch);
        if fetch.body() != Some(key) {
            return self.on_origin_answered(key, refused());
        }
        let Some(SimulatedFetch {
            peer,
            purpose,
            origin: Some(origin),
            ..
        }) = self.fetches.get_mut(of)
        else {
            return;
        };
        // A chunk is fetched anew, a pass-through goes on.
        if let FetchPurpose::PassThrough { from, .. } = purpose {
            *from += received;
        }
        let (peer, need) = (*peer, origin.need);
        let source = self.source_of(peer, region);
        let error = error.to_owned();
        for outcome in [CallOutcome::Missing, CallOutcome::Failed { error }] {
            let ended = FailoverInput::Ended {
                source,
                need,
                outcome,
            };
            self.peers[peer as usize].failover.handle(now, ended);
        }
        self.close_call(key);
        self.continue_at_next_origin(of);
    }

    /// Bytes of an answer's body have arrived.
    pub(crate) fn on_call_progress(&mut self, key: Key, moved: u64) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let moved = call.offset + moved;
        let has_moved = moved > call.moved;
        if has_moved {
            (call.moved, call.moved_at) = (moved, now);
        }
        if let Some((_, fetch)) = self.fetch_of(key)
            && fetch.body() == Some(key)
        {
            let (peer, blob, purpose) = (fetch.peer, fetch.blob, fetch.purpose);
            if has_moved {
                self.note_delivery(peer);
            }
            let received = moved;
            match purpose {
                FetchPurpose::Chunk { transfer, .. } => {
                    self.feed(peer, Input::Progress { transfer, received });
                }
                FetchPurpose::PassThrough { from, .. } => {
                    self.on_passing_through(peer, blob, from + received);
                }
                FetchPurpose::Manifest { .. } | FetchPurpose::Proofs { .. } => {}
            }
        }
    }

    /// The last byte of an answer's body has left the origin.
    pub(crate) fn on_call_sent(&mut self, key: Key) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.flow = None;
        call.is_sent = true;
        let (region, way_back, offset) = (call.region, call.way_back, call.offset);
        self.end_admission(key);
        if let Some((_, fetch)) = self.fetch_of(key) {
            let peer = fetch.peer;
            let bytes = fetch.purpose.bytes(self.images.geometry(fetch.blob));
            self.count_call_bytes(key, bytes - offset);
            let route = self.route_to_region(peer, region);
            let delay = way_back + self.delays.retransmissions(Transport::Http, route);
            self.queue
                .push_after(self.now, delay, Event::OriginArrived { call: key });
        }
        self.end_relay_of(key, true);
    }

    /// Ends the part of another region's origin in a call, if it has one.
    fn end_relay_of(&mut self, key: Key, is_whole: bool) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let region = call.region;
        let relay = call.read.as_mut().and_then(|read| read.relay.take());
        if let Some(relay) = relay {
            self.finish_relay(region, relay, is_whole);
        }
    }

    /// Counts bytes of a call's body that have reached the peer.
    pub(crate) fn count_call_bytes(&mut self, key: Key, bytes: u64) {
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let (of, peer, region) = (call.fetch, fetch.peer, call.region);
        let from = call.relay().map_or(region, |relay| relay.region);
        self.count_origin_bytes(of, (from, region), peer, bytes);
    }

    /// An answer was received whole: its connection is idle.
    fn release_connection(&mut self, key: Key) {
        let connection = self.calls.get_mut(key).and_then(|it| it.connection.take());
        if let Some(connection) = connection
            && let Some((call, fetch)) = self.fetch_of(key)
        {
            self.keep_origin_connection(fetch.peer, call.region, connection);
        }
    }

    /// The last byte of an answer's body reaches the peer.
    pub(crate) fn on_call_arrived(&mut self, key: Key) {
        self.release_connection(key);
        if let Some((call, fetch)) = self.fetch_of(key)
            && fetch.body() == Some(key)
        {
            self.on_arrived(call.fetch);
        }
    }

    /// Closes a call in any state. Bytes that have flowed are counted.
    pub(crate) fn close_call(&mut self, key: Key) {
        self.stop_call(key);
        let Some(mut call) = self.calls.remove(key) else {
            return;
        };
        self.abandon_read(&mut call);
        if let Some(connection) = call.connection {
            self.close_origin_connection(connection);
        }
        if let Some(fetch) = self.fetches.get_mut(call.fetch)
            && let Some(origin) = &mut fetch.origin
        {
            origin.calls.retain(|other| *other != key);
            origin.body = origin.body.filter(|body| *body != key);
        }
    }

    /// The origin does not count a call among its requests under way any longer.
    pub(crate) fn end_admission(&mut self, key: Key) {
        if let Some(call) = self.calls.get_mut(key)
            && core::mem::take(&mut call.is_admitted)
        {
            self.origins[call.region as usize].end();
        }
    }

    /// No further byte of a call arrives, and its peer is not told. Returns the peer.
    pub(crate) fn stop_call(&mut self, key: Key) -> Option<u32> {
        let call = self.calls.get_mut(key)?;
        let (fetch, flow) = (call.fetch, call.flow.take());
        self.end_admission(key);
        if let Some(moved) = flow.and_then(|flow| self.network.abort(self.now, flow)) {
            self.count_call_bytes(key, moved);
        }
        self.end_relay_of(key, false);
        Some(self.fetches.get(fetch)?.peer)
    }

    /// An origin that hung works again, and goes on with a request that it holds.
    pub(crate) fn resume_call(&mut self, key: Key) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let event = if call.is_admitted {
            Event::OriginServes { call: key }
        } else {
            Event::OriginAsked { call: key }
        };
        self.queue.push(self.now, event);
    }

    /// The calls across the border of a region, with their peers.
    pub(crate) fn calls_across(&self, region: u32) -> Vec<(Key, u32)> {
        let calls = self.calls.iter();
        let across = calls.filter_map(|(key, call)| {
            let peer = self.fetches.get(call.fetch)?.peer;
            let own = self.locations[peer as usize].region;
            (own != call.region && (own == region || call.region == region)).then_some((key, peer))
        });
        across.collect()
    }

    /// The calls to the origin of a region.
    pub(crate) fn calls_to(&self, region: u32) -> Vec<Key> {
        let calls = self.calls.iter();
        calls
            .filter(|(_, call)| call.region == region)
            .map(|(key, _)| key)
            .collect()
    }

    /// Bytes that the origin of a region has sent to peers from its own storage.
    pub(crate) fn sent_bytes(&self, region: u32) -> u64 {
        let flows = self.calls_to(region).into_iter().filter_map(|key| {
            let call = self.calls.get(key)?;
            call.flow.filter(|_| call.relay().is_none())
        });
        let under_way: u64 = flows.map(|flow| self.network.arrived(self.now, flow)).sum();
        self.origins[region as usize].sent_bytes + under_way
    }

    /// The number of a region's origin among the ends of the network.
    pub(crate) fn origin_end(&self, region: u32) -> u32 {
        self.peers.len() as u32 + region
    }

    /// The region of an origin, by its number among the ends of the network; `None` if it is a
    /// peer's.
    pub(crate) fn region_of_end(&self, end: u32) -> Option<u32> {
        end.checked_sub(self.peers.len() as u32)
    }

    /// The number of a region's origin in a peer's failover machine.
    pub(crate) fn source_of(&self, peer: u32, region: u32) -> SourceId {
        let regions = self.origins.len() as u32;
        let own = self.locations[peer as usize].region;
        SourceId((region + regions - own) % regions)
    }
}

//! Reads of an origin: from memory, from its own storage, or from the origin of another region.
//!
//! ```text
//! request for bytes ─▶ in memory: served at once
//!                      the origin's failover machine names a source, and the next one if it is late:
//!                        own storage: served, held, or failed
//!                        other region: its origin sends the body through this one to the peer
//!                      none is left: 503 with Retry-After
//! body from the own storage breaks or stalls for 2 s ─▶ goes on from another region
//! ```
//!
//! As the real origin: every request that another region serves crosses by itself, whether or not
//! others ask for the same bytes; manifests and proofs are in memory; and other regions answer from
//! their own storage only. A relayed body is one flow, through both origins' uplinks.

use core::time::Duration;

use flotilla_common::failover::{
    Input as FailoverInput, Need, Outcome as CallOutcome, Output, ProbeId, Request, SourceId,
    Standing, Step,
};
use flotilla_common::time::Time;

use crate::delays::Transport;
use crate::event::Event;
use crate::fetch::FetchPurpose;
use crate::origin_calls::OriginCall;
use crate::origin_connections::OriginConnection;
use crate::origin_site::{Admission, refused};
use crate::reads::content_of;
use crate::service::Condition;
use crate::slab::Key;
use crate::storage_site::{OWN_STORAGE, SimulatedStorage};
use crate::world::World;

/// What an origin asks of clients that no region serves, as the real one.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// A body whose source sends nothing for this long goes on from another region.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The part of a call that concerns the origin's storage.
#[derive(Debug, Default)]
pub(crate) struct StorageRead {
    /// The request to the sources, until one answers.
    request: Option<Request>,
    /// The time of its next `StorageWake`.
    wake_at: Time,
    /// Whether the own storage broke off the body, and no other region continues it yet.
    is_interrupted: bool,
    /// The other regions that may continue it, the next one first.
    resumes_at: Vec<u32>,
    /// The region whose origin sends the body.
    pub(crate) relay: Option<Relay>,
}

/// The origin of another region that sends a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relay {
    pub(crate) region: u32,
    pub(crate) connection: Option<OriginConnection>,
}

impl World<'_> {
    /// Whether an admitted call must be served by way of the storage.
    fn needs_storage(&self, key: Key) -> bool {
        let Some((call, fetch)) = self.fetch_of(key) else {
            return false;
        };
        let chunk = match fetch.purpose {
            FetchPurpose::Manifest { .. } | FetchPurpose::Proofs { .. } => return false,
            FetchPurpose::Chunk { chunk, .. } => Some(chunk),
            FetchPurpose::PassThrough { .. } => None,
        };
        let storage = self.origins[call.region as usize].storage.as_ref();
        storage.is_some_and(|storage| !storage.has_in_memory(fetch.blob.0, chunk))
    }

    /// An admitted call is served at `at`, if all goes well.
    pub(crate) fn serve_call(&mut self, key: Key, at: Time) {
        if !self.needs_storage(key) {
            return self.queue.push(at, Event::OriginServes { call: key });
        }
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let (region, need) = (call.region, content_of(fetch.blob));
        let now = self.now;
        let Some(storage) = &mut self.origins[region as usize].storage else {
            return;
        };
        let read = StorageRead {
            request: Some(storage.failover.request(now, need)),
            wake_at: Time::MAX,
            ..StorageRead::default()
        };
        if let Some(call) = self.calls.get_mut(key) {
            call.read = Some(Box::new(read));
        }
        self.poll_read(key, at);
    }

    /// Takes the next steps of a call's read. Its own storage answers at `own_at` at the earliest.
    fn poll_read(&mut self, key: Key, own_at: Time) {
        let now = self.now;
        let region = loop {
            let Some(call) = self.calls.get_mut(key) else {
                return;
            };
            let region = call.region;
            let Some(read) = &mut call.read else {
                return;
            };
            let Some(storage) = &mut self.origins[region as usize].storage else {
                return;
            };
            let Some(request) = &mut read.request else {
                return;
            };
            match request.poll(now, &mut storage.failover) {
                Step::Ask(OWN_STORAGE) => {
                    let slow = storage.slow.map(|slow| slow.draw(&mut self.latency_rng));
                    let at = own_at + slow.unwrap_or_default();
                    self.push_read_answer(at, key, None, CallOutcome::Answered);
                }
                Step::Ask(source) => self.ask_other_region(key, region, other(region, source)),
                Step::Wait(until) => {
                    if until < read.wake_at {
                        read.wake_at = until.max(now);
                        let wake = Event::StorageWake { call: key };
                        self.queue.push(read.wake_at, wake);
                    }
                    break region;
                }
                Step::Exhausted => {
                    let retry_after = RETRY_AFTER;
                    self.refuse_call(key, CallOutcome::Busy { retry_after });
                    break region;
                }
            }
        };
        self.drain_origin_failover(region);
    }

    fn push_read_answer(&mut self, at: Time, call: Key, by: Option<u32>, outcome: CallOutcome) {
        let outcome = Box::new(outcome);
        let answered = Event::ReadAnswered { call, by, outcome };
        self.queue.push(at, answered);
    }

    /// The origin cannot serve a call.
    fn refuse_call(&mut self, key: Key, outcome: CallOutcome) {
        if let Some(call) = self.calls.get_mut(key) {
            call.read = None;
        }
        self.end_admission(key);
        self.answer_call(key, outcome);
    }

    pub(crate) fn on_storage_wake(&mut self, key: Key) {
        let now = self.now;
        let read = self.calls.get_mut(key).and_then(|call| call.read.as_mut());
        if let Some(read) = read.filter(|read| read.wake_at == now) {
            read.wake_at = Time::MAX;
            self.poll_read(key, now);
        }
    }

    /// Sends a request for a call's bytes from its origin to that of another region.
    fn ask_other_region(&mut self, call: Key, own: u32, by: u32) {
        if !self.is_cut(own, by) {
            let delay = self.delay_between(own, by);
            let asked = Event::RelayAsked { call, by };
            self.queue.push_after(self.now, delay, asked);
        }
    }

    /// A request of one origin reaches another one, which answers from its own storage only.
    pub(crate) fn on_relay_asked(&mut self, key: Key, by: u32) {
        let Some((call, fetch)) = self.fetch_of(key) else {
            return;
        };
        let own = call.region;
        let layer = Some((fetch.blob.0, self.images.blob_count()));
        let origin = &mut self.origins[by as usize];
        if origin.condition == Condition::Hangs {
            return; // No answer, also after its recovery: the asking origin does not wait so long.
        }
        let storage = origin.storage.as_ref().map(|storage| storage.condition);
        let (outcome, at) = match storage.unwrap_or(Condition::Up) {
            Condition::Hangs => return,
            Condition::Refuses => (refused(), self.now),
            Condition::Up => match origin.admit(self.now, key, layer, &mut self.latency_rng) {
                Admission::Serves(at) => (CallOutcome::Answered, at),
                Admission::Answers(outcome) => (outcome, self.now),
                Admission::Holds => return,
            },
        };
        let delay = self.delay_between(own, by);
        self.push_read_answer(at + delay, key, Some(by), outcome);
    }

    /// The head of an answer of the region `by`, or of the own storage, reaches a call's origin.
    pub(crate) fn on_read_answered(&mut self, key: Key, by: Option<u32>, outcome: CallOutcome) {
        let now = self.now;
        let is_admitted = by.is_some() && outcome == CallOutcome::Answered;
        let (is_waited_for, serves) = self.end_read(key, by, outcome);
        if is_admitted
            && !is_waited_for
            && let Some(by) = by
        {
            self.origins[by as usize].end();
        }
        let Some(call) = self.calls.get_mut(key).filter(|_| is_waited_for) else {
            return;
        };
        let region = call.region;
        let Some(read) = &mut call.read else {
            return;
        };
        if !serves {
            return match read.is_interrupted {
                true => self.resume_body(key),
                false => self.poll_read(key, now),
            };
        }
        (read.request, read.is_interrupted) = (None, false);
        self.drain_origin_failover(region);
        let Some(by) = by else {
            return self.on_origin_serves(key);
        };
        let connection = self.connect_origins(region, by);
        if let Some(read) = self.calls.get_mut(key).and_then(|call| call.read.as_mut()) {
            read.relay = Some(Relay {
                region: by,
                connection,
            });
        }
        self.start_body(key);
    }

    /// Reports an answer to a call's read: whether it was waited for, and whether it serves.
    fn end_read(&mut self, key: Key, by: Option<u32>, outcome: CallOutcome) -> (bool, bool) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return (false, false);
        };
        let region = call.region;
        let storage = self.origins[region as usize].storage.as_mut();
        let (Some(read), Some(storage)) = (&mut call.read, storage) else {
            return (false, false);
        };
        let outcome = match (by, storage.condition) {
            (None, Condition::Hangs) => {
                storage.held.push(key);
                return (false, false);
            }
            (None, Condition::Refuses) => refused(),
            _ => outcome,
        };
        let serves = outcome == CallOutcome::Answered;
        let source = by.map_or(OWN_STORAGE, |by| source_of(region, by));
        let is_waited_for = match &mut read.request {
            Some(request) => request.ended(now, &mut storage.failover, source, outcome),
            None => read.is_interrupted && by.is_some(),
        };
        (is_waited_for, serves)
    }

    /// A relayed body has ended: whole, or broken off.
    pub(crate) fn finish_relay(&mut self, own: u32, relay: Relay, is_whole: bool) {
        self.origins[relay.region as usize].end();
        if let Some(connection) = relay.connection {
            let client = self.origin_end(own);
            match is_whole {
                true => self.keep_origin_connection(client, relay.region, connection),
                false => self.close_origin_connection(connection),
            }
        }
    }

    /// The peer does not wait for a call any longer.
    pub(crate) fn abandon_read(&mut self, call: &mut OriginCall) {
        let request = call.read.as_mut().and_then(|read| read.request.as_mut());
        if let Some(request) = request
            && let Some(storage) = &mut self.origins[call.region as usize].storage
        {
            request.abandon(self.now, &mut storage.failover);
            self.drain_origin_failover(call.region);
        }
    }

    /// A region's storage fails: bodies that it sends break or stall.
    pub(crate) fn interrupt_bodies(&mut self, region: u32, condition: Condition) {
        let now = self.now;
        for key in self.calls_to(region) {
            let Some(call) = self.calls.get_mut(key) else {
                continue;
            };
            let is_relayed = call.relay().is_some();
            let Some(flow) = call.flow.filter(|_| !is_relayed) else {
                continue;
            };
            if !self.needs_storage(key) {
                continue;
            }
            let moved = self.network.abort(now, flow).unwrap_or_default();
            self.count_call_bytes(key, moved);
            let others: Vec<u32> = self.usable_others(region);
            if let Some(call) = self.calls.get_mut(key) {
                call.flow = None;
                call.offset += moved;
                if let Some(read) = &mut call.read {
                    (read.is_interrupted, read.resumes_at) = (true, others);
                }
            }
            let after = match condition {
                Condition::Hangs => STALL_TIMEOUT,
                Condition::Up | Condition::Refuses => Duration::ZERO,
            };
            let stalled = Event::BodyStalled { call: key };
            self.queue.push_after(now, after, stalled);
        }
    }

    /// The other regions that answer, as far as a region's origin knows.
    fn usable_others(&self, region: u32) -> Vec<u32> {
        let regions = self.origins.len() as u32;
        let Some(storage) = &self.origins[region as usize].storage else {
            return Vec::new();
        };
        let sources = (1..regions).map(SourceId);
        sources
            .filter(|source| storage.failover.standing(*source) != Standing::Out)
            .map(|source| other(region, source))
            .collect()
    }

    /// A body stalled for too long, or broke: it goes on from the own storage if that answers
    /// again, and else from the next region.
    pub(crate) fn resume_body(&mut self, key: Key) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let region = call.region;
        let Some(read) = call.read.as_mut().filter(|read| read.is_interrupted) else {
            return;
        };
        let storage = self.origins[region as usize].storage.as_ref();
        if storage.is_none_or(|storage| storage.condition == Condition::Up) {
            read.is_interrupted = false;
            return self.start_body(key);
        }
        if !read.resumes_at.is_empty() {
            let next = read.resumes_at.remove(0);
            let stalled = Event::BodyStalled { call: key };
            self.queue.push_after(self.now, STALL_TIMEOUT, stalled);
            return self.ask_other_region(key, region, next);
        }
        if let Some(peer) = self.stop_call(key) {
            let delay = self.http_delay(peer, region);
            let broke = Event::BodyBroke { call: key };
            self.queue.push_after(self.now, delay, broke);
        }
    }

    /// A region's storage answers again.
    pub(crate) fn resume_reads(&mut self, region: u32) {
        let now = self.now;
        let Some(storage) = &mut self.origins[region as usize].storage else {
            return;
        };
        for call in core::mem::take(&mut storage.held) {
            self.push_read_answer(now, call, None, CallOutcome::Answered);
        }
    }

    /// A deadline of the failover machine of a region's origin.
    pub(crate) fn on_origin_failover_wake(&mut self, region: u32) {
        let now = self.now;
        if let Some(storage) = &mut self.origins[region as usize].storage
            && storage.wake_at == now
        {
            storage.wake_at = Time::MAX;
            storage.failover.handle_timeout(now);
            self.drain_origin_failover(region);
        }
    }

    /// The result of a probe by a region's origin.
    pub(crate) fn on_origin_probed(
        &mut self,
        region: u32,
        source: SourceId,
        probe: ProbeId,
        is_good: bool,
    ) {
        let result = is_good.then_some(()).ok_or("it is out".to_owned());
        if let Some(storage) = &mut self.origins[region as usize].storage {
            let input = FailoverInput::Probed {
                source,
                probe,
                result,
            };
            storage.failover.handle(self.now, input);
            self.drain_origin_failover(region);
        }
    }

    /// Carries out what the failover machine of a region's origin asks for.
    pub(crate) fn drain_origin_failover(&mut self, region: u32) {
        let mut has_changed = false;
        while let Some(storage) = &mut self.origins[region as usize].storage
            && let Some(output) = storage.failover.poll_output()
        {
            match output {
                Output::Probe { source, probe } => self.probe_source(region, source, probe),
                Output::Changed { .. } => has_changed = true,
                Output::UsableChanged { .. } => {}
            }
        }
        let end = self.origin_end(region);
        if let Some(storage) = &mut self.origins[region as usize].storage
            && let Some(at) = storage.failover.poll_timeout()
            && at < storage.wake_at
        {
            storage.wake_at = at.max(self.now);
            let wake = Event::FailoverWake { peer: end };
            self.queue.push(storage.wake_at, wake);
        }
        if has_changed {
            for key in self.calls_to(region) {
                self.poll_read(key, self.now);
            }
        }
    }

    /// A region's origin probes its storage, or asks another region for its standing.
    fn probe_source(&mut self, region: u32, source: SourceId, probe: ProbeId) {
        let by = other(region, source);
        let (is_good, delay) = if source == OWN_STORAGE {
            let Some(storage) = &self.origins[region as usize].storage else {
                return;
            };
            let slow = storage.slow;
            let Some(is_good) = storage.condition.answers() else {
                return;
            };
            let latency = slow.map(|slow| slow.draw(&mut self.latency_rng));
            (is_good, latency.unwrap_or_default())
        } else {
            let Some(is_good) = self.is_usable(region, by) else {
                return;
            };
            let round_trip = self.delay_between(region, by) + self.delay_between(by, region);
            (is_good, round_trip)
        };
        let probed = Event::Probed {
            peer: self.origin_end(region),
            source,
            probe,
            is_good,
        };
        self.queue.push_after(self.now, delay, probed);
    }

    /// The delay of one HTTP message between the origins of two regions.
    pub(crate) fn delay_between(&mut self, one: u32, other: u32) -> Duration {
        let route = self.region_links.between(one, other).route;
        self.delays.draw(Transport::Http, route)
    }

    /// What the origin of the region `by` tells another region's: whether it can serve; `None` if no
    /// answer comes.
    fn is_usable(&self, region: u32, by: u32) -> Option<bool> {
        let origin = &self.origins[by as usize];
        let answers = origin.condition.answers();
        let is_up = answers.filter(|_| !self.is_cut(region, by))?;
        let is_out = origin.storage.as_ref().is_some_and(|it| it.is_out());
        Some(is_up && !is_out)
    }

    /// How long a peer's probe takes because the origin's own storage does not answer, and whether
    /// the probe is good: the origin waits half a second for its storage, and then asks other
    /// regions whether they can serve.
    pub(crate) fn readiness(&mut self, region: u32) -> (bool, Duration) {
        let is_up = |storage: &SimulatedStorage| storage.condition == Condition::Up;
        let storage = &mut self.origins[region as usize].storage;
        let Some(storage) = storage.as_mut().filter(|storage| !is_up(storage)) else {
            return (true, Duration::ZERO);
        };
        let error = "storage does not answer".to_owned();
        let failed = FailoverInput::Ended {
            source: OWN_STORAGE,
            need: Need::Fact,
            outcome: CallOutcome::Failed { error },
        };
        storage.failover.handle(self.now, failed);
        self.drain_origin_failover(region);
        let regions = self.origins.len() as u32;
        let serves = |by: u32| by != region && self.is_usable(region, by) == Some(true);
        let serving: Vec<u32> = (0..regions).filter(|by| serves(*by)).collect();
        let round_trips = serving
            .iter()
            .map(|by| 2 * self.region_links.between(region, *by).route.one_way);
        match round_trips.min() {
            Some(round_trip) => (true, READINESS_TIMEOUT + round_trip),
            None => (false, READINESS_TIMEOUT),
        }
    }
}

/// How long an origin waits for its storage before it says whether it is ready.
const READINESS_TIMEOUT: Duration = Duration::from_millis(500);

/// The region of a source in the failover machine of a region's origin.
fn other(own: u32, source: SourceId) -> u32 {
    match source.0 {
        0 => own,
        number if number <= own => number - 1,
        number => number,
    }
}

/// The opposite of [`other`].
fn source_of(own: u32, region: u32) -> SourceId {
    SourceId(match () {
        () if region == own => 0,
        () if region < own => region + 1,
        () => region,
    })
}

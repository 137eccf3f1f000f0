//! Which origin a peer asks: each peer has a failover machine of its own, as peers that ship. This
//! is the driver's loop of `common/src/failover`: requests with hedges, and probes.

use core::time::Duration;

use flotilla_common::failover::{
    Failover, FailoverConfig, Input as FailoverInput, Need, Outcome as CallOutcome, Output,
    ProbeId, Request, SourceId, Step,
};
use flotilla_common::swarm::{DownloadFailure, Input};
use flotilla_common::time::Time;

use crate::event::Event;
use crate::fetch::{FetchPurpose, FetchSource, OriginFetch, SimulatedFetch};
use crate::images::BlobId;
use crate::slab::Key;
use crate::world::World;

/// A peer's machine: the origin of each region, the own region's first.
pub(crate) fn failover_machine(config: FailoverConfig, regions: u32, key: u64) -> Failover {
    let regions: Vec<u32> = (0..regions).collect();
    Failover::new(config, &regions, key)
}

impl World<'_> {
    /// Starts a fetch from the origin that the peer's failover machine names.
    pub(crate) fn fetch_from_origin(
        &mut self,
        peer: u32,
        purpose: FetchPurpose,
        need: Need,
        blob: BlobId,
    ) {
        let fetch = self.fetches.insert(SimulatedFetch {
            peer,
            purpose,
            source: FetchSource::Origin,
            blob,
            flow: None,
            moved: 0,
            way_back: Duration::ZERO,
            origin: Some(Box::new(OriginFetch {
                need,
                request: None,
                wake_at: Time::MAX,
                calls: Vec::new(),
                body: None,
                attempts_left: self.origins.len() as u32,
            })),
        });
        let simulated = &mut self.peers[peer as usize];
        match purpose {
            FetchPurpose::Chunk { transfer, .. } => {
                simulated.fetches.push((transfer, fetch));
                self.check_downloads(peer);
            }
            FetchPurpose::Manifest { .. }
            | FetchPurpose::Proofs { .. }
            | FetchPurpose::PassThrough { .. } => {
                simulated.mirror_fetches.push(fetch);
            }
        }
        self.begin_request(fetch);
    }

    /// Asks the origins for what a fetch needs.
    fn begin_request(&mut self, key: Key) {
        let fetch = self.fetches.get_mut(key);
        if let Some((peer, origin)) = fetch.and_then(SimulatedFetch::origins_mut) {
            let failover = &mut self.peers[peer as usize].failover;
            origin.request = Some(failover.request(self.now, origin.need));
            self.poll_request(key);
        }
    }

    /// After the body of an answer broke off: asks again, if that may help.
    pub(crate) fn continue_at_next_origin(&mut self, key: Key) {
        let fetch = self.fetches.get_mut(key);
        let Some((peer, origin)) = fetch.and_then(SimulatedFetch::origins_mut) else {
            return;
        };
        origin.attempts_left -= 1;
        if origin.attempts_left > 0 {
            self.begin_request(key);
        } else {
            self.fail_fetch(key);
            self.drain_failover(peer);
        }
    }

    /// Takes the next steps of a fetch's request, or reports that no origin is left.
    pub(crate) fn poll_request(&mut self, key: Key) {
        let now = self.now;
        let peer = loop {
            let fetch = self.fetches.get_mut(key);
            let Some((peer, origin)) = fetch.and_then(SimulatedFetch::origins_mut) else {
                return;
            };
            let Some(request) = &mut origin.request else {
                return;
            };
            match request.poll(now, &mut self.peers[peer as usize].failover) {
                Step::Ask(origin) => {
                    let region = self.region_of(peer, origin);
                    let call = self.call_origin(key, peer, region);
                    let fetch = self.fetches.get_mut(key);
                    if let Some((_, origin)) = fetch.and_then(SimulatedFetch::origins_mut) {
                        origin.calls.push(call);
                    }
                }
                Step::Wait(until) => {
                    if until < origin.wake_at {
                        origin.wake_at = until.max(now);
                        let wake_at = origin.wake_at;
                        self.queue.push(wake_at, Event::RequestWake { fetch: key });
                    }
                    self.close_late_calls(key);
                    break peer;
                }
                Step::Exhausted => {
                    self.fail_fetch(key);
                    break peer;
                }
            }
        };
        self.drain_failover(peer);
    }

    pub(crate) fn on_request_wake(&mut self, key: Key) {
        let fetch = self.fetches.get_mut(key);
        if let Some((_, origin)) = fetch.and_then(SimulatedFetch::origins_mut)
            && origin.wake_at == self.now
        {
            origin.wake_at = Time::MAX;
            self.poll_request(key);
        }
    }

    /// Closes the calls for whose end the request does not wait any longer.
    fn close_late_calls(&mut self, key: Key) {
        let Some(fetch) = self.fetches.get(key) else {
            return;
        };
        let Some(OriginFetch {
            request: Some(request),
            calls,
            ..
        }) = fetch.origin.as_deref()
        else {
            return;
        };
        let is_late = |call: &&Key| {
            let region = self.calls.get(**call).map(|call| call.region);
            region.is_some_and(|region| !request.waits_for(self.source_of(fetch.peer, region)))
        };
        let late: Vec<Key> = calls.iter().filter(is_late).copied().collect();
        for call in late {
            self.close_call(call);
        }
    }

    /// No origin is left that may serve a fetch.
    fn fail_fetch(&mut self, key: Key) {
        let Some(fetch) = self.take_fetch(key) else {
            return;
        };
        match fetch.purpose {
            FetchPurpose::Chunk { transfer, .. } => {
                let why = DownloadFailure::Link;
                self.feed(fetch.peer, Input::Failed { transfer, why });
            }
            FetchPurpose::Manifest { pull } => self.on_no_manifest(fetch.peer, pull),
            FetchPurpose::Proofs { pull } => self.on_no_proofs(fetch.peer, pull),
            FetchPurpose::PassThrough { from, .. } => {
                self.on_nothing_passed(fetch.peer, fetch.blob, from);
            }
        }
    }

    /// Reports the end of a call to the fetch's request. Whether the request waited for it.
    pub(crate) fn end_call(&mut self, fetch: Key, region: u32, outcome: CallOutcome) -> bool {
        let now = self.now;
        let Some(peer) = self.fetches.get(fetch).map(|fetch| fetch.peer) else {
            return false;
        };
        let source = self.source_of(peer, region);
        let request = self.fetches.get_mut(fetch);
        let request = request.and_then(|fetch| fetch.origin.as_mut()?.request.as_mut());
        let failover = &mut self.peers[peer as usize].failover;
        request.is_some_and(|request| request.ended(now, failover, source, outcome))
    }

    /// Closes the calls of a fetch that ends, in any state.
    pub(crate) fn close_calls(&mut self, key: Key) {
        let now = self.now;
        if let Some(SimulatedFetch {
            peer,
            origin: Some(origin),
            ..
        }) = self.fetches.get_mut(key)
        {
            if let Some(mut request) = origin.request.take().filter(Request::has_calls) {
                // What the machine asks for then is carried out in an event of its own, because
                // this fetch is about to end.
                let simulated = &mut self.peers[*peer as usize];
                request.abandon(now, &mut simulated.failover);
                if simulated.failover_wake_at > now {
                    simulated.failover_wake_at = now;
                    self.queue.push(now, Event::FailoverWake { peer: *peer });
                }
            }
            for call in core::mem::take(&mut origin.calls) {
                self.close_call(call);
            }
        }
    }

    /// The region of an origin, as a peer numbers them.
    fn region_of(&self, peer: u32, origin: SourceId) -> u32 {
        let regions = self.origins.len() as u32;
        (self.locations[peer as usize].region + origin.0) % regions
    }

    pub(crate) fn on_failover_wake(&mut self, peer: u32) {
        let now = self.now;
        if let Some(region) = self.region_of_end(peer) {
            return self.on_origin_failover_wake(region);
        }
        let simulated = &mut self.peers[peer as usize];
        if simulated.is_alive && simulated.failover_wake_at == now {
            simulated.failover_wake_at = Time::MAX;
            simulated.failover.handle_timeout(now);
            self.drain_failover(peer);
        }
    }

    pub(crate) fn on_probed(&mut self, peer: u32, source: SourceId, probe: ProbeId, is_good: bool) {
        if let Some(region) = self.region_of_end(peer) {
            return self.on_origin_probed(region, source, probe, is_good);
        }
        let result = if is_good {
            Ok(())
        } else {
            Err("connection refused".to_owned())
        };
        let input = FailoverInput::Probed {
            source,
            probe,
            result,
        };
        let simulated = &mut self.peers[peer as usize];
        if simulated.is_alive {
            simulated.failover.handle(self.now, input);
            self.drain_failover(peer);
        }
    }

    /// Carries out what a peer's failover machine asks for, and tells the peer's other machine
    /// whether an origin is usable.
    pub(crate) fn drain_failover(&mut self, peer: u32) {
        let mut has_changed = false;
        while let Some(output) = self.peers[peer as usize].failover.poll_output() {
            match output {
                Output::Probe { source, probe } => self.probe(peer, source, probe),
                Output::Changed { .. } => has_changed = true,
                Output::UsableChanged { is_usable } => {
                    let input = if is_usable {
                        Input::OriginUsable
                    } else {
                        Input::OriginUnusable
                    };
                    self.feed(peer, input);
                }
            }
        }
        let simulated = &mut self.peers[peer as usize];
        if let Some(at) = simulated.failover.poll_timeout()
            && at < simulated.failover_wake_at
        {
            let at = at.max(self.now);
            simulated.failover_wake_at = at;
            self.queue.push(at, Event::FailoverWake { peer });
        }
        if has_changed {
            self.wake_requests(peer);
        }
    }

    /// A standing has changed: the peer's requests and bodies look at it.
    fn wake_requests(&mut self, peer: u32) {
        let simulated = &self.peers[peer as usize];
        let chunks = simulated.fetches.iter().map(|(_, key)| key);
        let keys: Vec<Key> = chunks.chain(&simulated.mirror_fetches).copied().collect();
        for key in keys {
            self.poll_request(key);
            if let Some(body) = self.fetches.get(key).and_then(SimulatedFetch::body) {
                self.watch_body(body);
            }
        }
    }

    /// Sends a probe; its result arrives after a round trip, if there is one.
    fn probe(&mut self, peer: u32, source: SourceId, probe: ProbeId) {
        let region = self.region_of(peer, source);
        let Some(answers) = self.origins[region as usize].condition.answers() else {
            return;
        };
        if self.is_cut(self.locations[peer as usize].region, region) {
            return;
        }
        let think = self.origins[region as usize].probe_time(&mut self.latency_rng);
        let (is_ready, wait) = self.readiness(region);
        let is_good = answers && is_ready;
        let handshake = self.probe_handshake_delay(peer, region);
        let there = self.http_delay(peer, region);
        let delay = handshake + there + think + wait + self.http_delay(peer, region);
        let probed = Event::Probed {
            peer,
            source,
            probe,
            is_good,
        };
        self.queue.push_after(self.now, delay, probed);
    }
}

//! Which origin a peer asks: each peer has a failover machine of its own, as peers that ship.
//!
//! An origin that is stopped refuses requests and probes at once; none of them hangs.

use flotilla_common::failover::{
    Failover, FailoverConfig, Input as FailoverInput, Need, Outcome as CallOutcome, Output,
    ProbeId, SourceId, Step,
};
use flotilla_common::swarm::{BlobSlot, DownloadFailure, Input};
use flotilla_common::time::Time;

use crate::event::Event;
use crate::fetch::{FetchPurpose, FetchSource, SimulatedFetch};
use crate::scenario::millis;
use crate::slab::Key;
use crate::world::World;

/// A peer's machine: the origin of each region, the own region's first.
pub(crate) fn failover_machine(regions: u32, key: u64) -> Failover {
    let regions: Vec<u32> = (0..regions).collect();
    Failover::new(FailoverConfig::default(), &regions, key)
}

impl World<'_> {
    /// Starts a fetch from the origin that the peer's failover machine names.
    pub(crate) fn fetch_from_origin(
        &mut self,
        peer: u32,
        purpose: FetchPurpose,
        need: Need,
        blob: BlobSlot,
    ) {
        let now = self.now;
        let request = self.peers[peer as usize].failover.request(now, need);
        let region = self.locations[peer as usize].region;
        let fetch = self.fetches.insert(SimulatedFetch {
            peer,
            purpose,
            source: FetchSource::Origin { region },
            blob,
            flow: None,
            request: Some(request),
        });
        let simulated = &mut self.peers[peer as usize];
        match purpose {
            FetchPurpose::Chunk { transfer, .. } => simulated.fetches.push((transfer, fetch)),
            FetchPurpose::Proofs | FetchPurpose::PassThrough { .. } => {
                simulated.mirror_fetches.push(fetch);
            }
        }
        self.ask_next_origin(fetch);
    }

    /// Asks the next origin for a fetch, or reports to the peer's machine that none is left.
    fn ask_next_origin(&mut self, key: Key) {
        let now = self.now;
        let Some(SimulatedFetch {
            peer,
            request: Some(request),
            ..
        }) = self.fetches.get_mut(key)
        else {
            return;
        };
        let peer = *peer;
        let step = request.poll(now, &mut self.peers[peer as usize].failover);
        match step {
            Step::Ask(origin) => {
                let region = self.region_of(peer, origin);
                if let Some(fetch) = self.fetches.get_mut(key) {
                    fetch.source = FetchSource::Origin { region };
                }
                let delay =
                    self.delay_to_region(peer, region) + millis(self.scenario.origin.think_ms);
                self.queue
                    .push_after(now, delay, Event::Requested { fetch: key });
            }
            // The origin that was asked answers or refuses.
            Step::Wait(_) => {}
            Step::Exhausted => {
                let blob = self.fetches.get(key).map(|fetch| fetch.blob);
                match (self.take_fetch(key), blob) {
                    (Some((peer, FetchPurpose::Chunk { transfer, .. })), _) => {
                        let why = DownloadFailure::Link;
                        self.feed(peer, Input::Failed { transfer, why });
                    }
                    (Some((peer, FetchPurpose::Proofs)), _) => self.on_no_proofs(peer),
                    (Some((peer, FetchPurpose::PassThrough { .. })), Some(blob)) => {
                        self.on_nothing_passed(peer, blob);
                    }
                    (Some((_, FetchPurpose::PassThrough { .. })) | None, _) => {}
                }
            }
        }
        self.drain_failover(peer);
    }

    pub(crate) fn on_source_failed(&mut self, key: Key) {
        self.end_call(
            key,
            CallOutcome::Failed {
                error: "connection refused".to_owned(),
            },
        );
        self.ask_next_origin(key);
    }

    /// The first byte of an origin's answer arrived.
    pub(crate) fn on_origin_answered(&mut self, key: Key) {
        self.end_call(key, CallOutcome::Answered);
        if let Some(fetch) = self.fetches.get_mut(key) {
            fetch.request = None;
        }
    }

    fn end_call(&mut self, key: Key, outcome: CallOutcome) {
        let now = self.now;
        let Some(SimulatedFetch {
            peer,
            source: FetchSource::Origin { region },
            request: Some(request),
            ..
        }) = self.fetches.get_mut(key)
        else {
            return;
        };
        let (peer, region) = (*peer, *region);
        let regions = self.origins_up.len() as u32;
        let own = self.locations[peer as usize].region;
        let origin = SourceId((region + regions - own) % regions);
        request.ended(
            now,
            &mut self.peers[peer as usize].failover,
            origin,
            outcome,
        );
        self.drain_failover(peer);
    }

    /// The region of an origin, as a peer numbers them.
    fn region_of(&self, peer: u32, origin: SourceId) -> u32 {
        let regions = self.origins_up.len() as u32;
        (self.locations[peer as usize].region + origin.0) % regions
    }

    pub(crate) fn on_failover_wake(&mut self, peer: u32) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        if simulated.is_alive && simulated.failover_wake_at == now {
            simulated.failover_wake_at = Time::MAX;
            simulated.failover.handle_timeout(now);
            self.drain_failover(peer);
        }
    }

    pub(crate) fn on_probed(&mut self, peer: u32, source: SourceId, probe: ProbeId, is_good: bool) {
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
        while let Some(output) = self.peers[peer as usize].failover.poll_output() {
            match output {
                Output::Probe { source, probe } => self.probe(peer, source, probe),
                // No request waits for a change: an origin answers or refuses without delay.
                Output::Changed { .. } => {}
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
    }

    /// Sends a probe; its result arrives after a round trip.
    fn probe(&mut self, peer: u32, source: SourceId, probe: ProbeId) {
        let region = self.region_of(peer, source);
        let is_good = self.origins_up[region as usize];
        let delay = 2 * self.delay_to_region(peer, region);
        let probed = Event::Probed {
            peer,
            source,
            probe,
            is_good,
        };
        self.queue.push_after(self.now, delay, probed);
    }
}

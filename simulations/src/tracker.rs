//! A tracker in the world: its machine, the names of its slots, its queue, and its connections.
//!
//! ```text
//! message arrives ──▶ a connection is free? ──no──▶ waits for one
//!                            │ yes                      │ another exchange ends
//!                            ▼                          ▼
//!                      queue for the processor ──▶ machine ──▶ answered at once, or parked
//! ```
//!
//! Each exchange has a connection of its own from its arrival to its answer, as over HTTP/1.1.

use core::time::Duration;
use std::collections::VecDeque;

use flotilla_common::time::Time;
use flotilla_common::tracker::{
    ExchangeId, SessionInput, SlotNames, TrackerConfig, TrackerGroup, TrackerMachine,
    TrackerRequest,
};

use crate::names::tracker_url;
use crate::rng::mix;
use crate::scenario::{Scenario, micros, seconds};
use crate::service::{Latency, Server};
use crate::slab::{Key, Slab};

/// A request on its way to a tracker.
#[derive(Debug)]
pub(crate) struct TrackerMessage {
    pub(crate) peer: u32,
    /// The number of the tracker.
    pub(crate) tracker: u32,
    pub(crate) exchange: ExchangeId,
    pub(crate) request: TrackerRequest,
}

/// An exchange that a peer has begun and the tracker has not answered.
#[derive(Debug)]
pub(crate) struct TrackerExchange {
    pub(crate) peer: u32,
    pub(crate) exchange: ExchangeId,
    /// The request, until the machine has it.
    pub(crate) request: Option<TrackerRequest>,
    /// Whether the exchange has one of the tracker's connections.
    pub(crate) is_connected: bool,
}

/// An answer on its way to a peer.
#[derive(Debug)]
pub(crate) struct TrackerAnswer {
    pub(crate) peer: u32,
    /// The number of the tracker.
    pub(crate) tracker: u32,
    pub(crate) input: SessionInput,
}

/// A tracker, and the messages to and from it.
#[derive(Debug)]
pub(crate) struct SimulatedTracker {
    /// Its region; `None` if all regions share it.
    pub(crate) region: Option<u32>,
    pub(crate) machine: TrackerMachine,
    pub(crate) names: SlotNames,
    /// The trackers that it shares the blobs with.
    pub(crate) group: TrackerGroup,
    pub(crate) config: TrackerConfig,
    rng_seed: u64,
    pub(crate) is_up: bool,
    /// Whether a failure of the scenario has been about it.
    pub(crate) has_failed: bool,
    /// Whether it hangs: it accepts requests, and answers none.
    pub(crate) is_silent: bool,
    /// While it hangs, the exchanges that it would have served, in order.
    pub(crate) held: Vec<Key>,
    /// The times to the first byte while it is slow.
    pub(crate) slow: Option<Latency>,
    restarts: u64,
    /// The time of its next `TrackerWake`.
    pub(crate) wake_at: Time,
    /// What occupies the tracker's processor.
    server: Server,
    service_times: ServiceTimes,
    connections: u32,
    connections_limit: u32,
    /// Exchanges that wait for a connection, in order of arrival; some may have ended.
    backlog: VecDeque<Key>,
    pub(crate) exchanges: Slab<TrackerExchange>,
}

/// How long requests occupy a tracker's processor.
#[derive(Clone, Copy, Debug)]
struct ServiceTimes {
    announce: Duration,
    /// For each connected peer that an announce names.
    named: Duration,
    /// For each blob for which the answer names neighbours.
    handout: Duration,
    lease: Duration,
}

/// The trackers of a scenario, those of the first region first.
pub(crate) fn simulated_trackers(scenario: &Scenario, rng_seed: u64) -> Vec<SimulatedTracker> {
    let total = scenario.tracker.total(scenario.peers.regions.get());
    (0..total)
        .map(|number| SimulatedTracker::new(scenario, number, rng_seed))
        .collect()
}

impl SimulatedTracker {
    fn new(scenario: &Scenario, number: u32, rng_seed: u64) -> Self {
        let settings = &scenario.tracker;
        let rng_seed = rng_seed ^ u64::from(number) << 40;
        let url = |number| tracker_url(number, None).url;
        let urls = settings.group_of(number).map(url).collect();
        let mut config = TrackerConfig::default();
        if let Some(open_leases) = settings.open_leases {
            config.lease.open_limit = open_leases;
        }
        if let Some(handout) = settings.handout {
            config.handout = handout;
        }
        if let Some(near) = settings.near_of_16 {
            config.near_of_16 = near;
        }
        if let Some(interval_s) = settings.min_interval_s {
            config.min_interval = seconds(interval_s);
        }
        Self {
            region: settings.region(number),
            machine: TrackerMachine::new(config.clone(), mix(rng_seed)),
            names: SlotNames::default(),
            group: TrackerGroup::new(urls, Some(url(number))),
            config,
            rng_seed,
            is_up: settings.enabled,
            has_failed: false,
            is_silent: false,
            held: Vec::new(),
            slow: None,
            restarts: 0,
            wake_at: Time::MAX,
            server: Server::default(),
            service_times: ServiceTimes {
                announce: micros(settings.announce_us),
                named: micros(settings.named_us),
                handout: micros(settings.handout_us),
                lease: micros(settings.lease_us),
            },
            connections: 0,
            connections_limit: settings.connections,
            backlog: VecDeque::new(),
            exchanges: Slab::new(),
        }
    }

    /// Gives an exchange a connection, and a place in the queue for the processor. Returns when it
    /// is served; `None` if it waits for a connection.
    pub(crate) fn connect(&mut self, now: Time, key: Key) -> Option<Time> {
        let exchange = self.exchanges.get_mut(key)?;
        if self.connections >= self.connections_limit {
            self.backlog.push_back(key);
            return None;
        }
        self.connections += 1;
        exchange.is_connected = true;
        let times = self.service_times;
        let service = match &exchange.request {
            Some(TrackerRequest::Announce(announce)) => {
                times.announce + times.named * announce.connected.len() as u32
            }
            Some(TrackerRequest::Lease(_)) | None => times.lease,
        };
        Some(self.server.serve(now, service))
    }

    /// Occupies the processor with the handouts of an answer. Returns how much later the answer is
    /// sent.
    pub(crate) fn write_handouts(&mut self, now: Time, handouts: usize) -> Duration {
        let service = self.service_times.handout * handouts as u32;
        self.server.serve(now, service);
        service
    }

    /// Ends an exchange. Returns it, with the exchange that gets its connection and when that one
    /// is served.
    pub(crate) fn end(
        &mut self,
        now: Time,
        key: Key,
    ) -> Option<(TrackerExchange, Option<(Key, Time)>)> {
        let ended = self.exchanges.remove(key)?;
        let mut next = None;
        if ended.is_connected {
            self.connections -= 1;
            while let Some(waiting) = self.backlog.pop_front() {
                if let Some(at) = self.connect(now, waiting) {
                    next = Some((waiting, at));
                    break;
                }
            }
        }
        Some((ended, next))
    }

    /// Stops: from now on messages are lost, and so are the answers that peers wait for.
    /// Returns the exchanges that get no answer.
    pub(crate) fn stop(&mut self) -> Vec<TrackerExchange> {
        self.is_up = false;
        self.forget_exchanges()
    }

    /// Starts again with an empty memory. Returns the exchanges whose connections break.
    pub(crate) fn restart(&mut self) -> Vec<TrackerExchange> {
        self.restarts += 1;
        let rng_seed = mix(self.rng_seed ^ self.restarts << 32);
        self.machine = TrackerMachine::new(self.config.clone(), rng_seed);
        self.names = SlotNames::default();
        self.is_up = true;
        self.is_silent = false;
        self.wake_at = Time::MAX;
        self.forget_exchanges()
    }

    fn forget_exchanges(&mut self) -> Vec<TrackerExchange> {
        self.connections = 0;
        self.backlog.clear();
        self.held.clear();
        self.server = Server::default();
        let keys: Vec<Key> = self.exchanges.iter().map(|(key, _)| key).collect();
        keys.into_iter()
            .filter_map(|key| self.exchanges.remove(key))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn tracker(connections: u32) -> SimulatedTracker {
        let scenario = format!(
            "name = 'one'\n[image]\nlayers = ['1MiB']\n[peers]\ncount = 1\nup = '1Mbit'\ndown = '1Mbit'\n\
             [origin]\nup = '1Mbit'\n[tracker]\nlease_us = 10\nconnections = {connections}"
        );
        SimulatedTracker::new(&Scenario::parse(&scenario).unwrap(), 0, 1)
    }

    fn exchange(tracker: &mut SimulatedTracker, number: u64) -> Key {
        tracker.exchanges.insert(TrackerExchange {
            peer: 0,
            exchange: ExchangeId(number),
            request: None,
            is_connected: false,
        })
    }

    #[test]
    fn exchanges_beyond_the_connections_wait_until_one_ends() {
        let at = |micros| Time::ZERO + Duration::from_micros(micros);
        let mut tracker = tracker(2);
        let keys: Vec<Key> = (0..4).map(|it| exchange(&mut tracker, it)).collect();
        let served: Vec<_> = keys
            .iter()
            .map(|key| tracker.connect(at(0), *key))
            .collect();
        assert_eq!(served, [Some(at(10)), Some(at(20)), None, None]);
        // The third gives up before it has a connection: the fourth gets the one that is free.
        assert!(tracker.end(at(25), keys[2]).unwrap().1.is_none());
        let (_, next) = tracker.end(at(30), keys[0]).unwrap();
        assert_eq!(next, Some((keys[3], at(40))));
        assert!(tracker.end(at(50), keys[0]).is_none(), "it has ended");
    }
}

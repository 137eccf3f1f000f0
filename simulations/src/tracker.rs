//! The tracker in the world: its machine, the names of its slots, and messages under way.

use flotilla_common::time::Time;
use flotilla_common::tracker::{
    ExchangeId, SessionInput, SlotNames, TrackerConfig, TrackerMachine, TrackerRequest,
};

use crate::rng::mix;
use crate::scenario::Scenario;
use crate::slab::Slab;

/// A request on its way to the tracker.
#[derive(Debug)]
pub(crate) struct TrackerMessage {
    pub(crate) from: Requester,
    pub(crate) request: TrackerRequest,
}

/// A peer that sent a request, and its name for the answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester {
    pub(crate) peer: u32,
    pub(crate) exchange: ExchangeId,
}

/// An answer on its way to a peer.
#[derive(Debug)]
pub(crate) struct TrackerAnswer {
    pub(crate) peer: u32,
    pub(crate) input: SessionInput,
}

/// The tracker, and the messages to and from it.
#[derive(Debug)]
pub(crate) struct SimulatedTracker {
    pub(crate) machine: TrackerMachine,
    pub(crate) names: SlotNames,
    config: TrackerConfig,
    rng_seed: u64,
    pub(crate) is_enabled: bool,
    pub(crate) is_up: bool,
    restarts: u64,
    /// The time of its next `TrackerWake`.
    pub(crate) wake_at: Time,
    /// Peers that wait for an answer.
    pub(crate) requesters: Slab<Requester>,
    pub(crate) messages: Slab<TrackerMessage>,
    pub(crate) answers: Slab<TrackerAnswer>,
}

impl SimulatedTracker {
    pub(crate) fn new(scenario: &Scenario, rng_seed: u64) -> Self {
        let mut config = TrackerConfig::default();
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
            requesters: Slab::new(),
            messages: Slab::new(),
            answers: Slab::new(),
        }
    }

    /// Stops: from now on messages are lost, and so are the answers that peers wait for.
    pub(crate) fn stop(&mut self) {
        self.is_up = false;
        self.requesters = Slab::new();
    }

    /// Starts again with an empty memory. Returns the peers that waited for an answer.
    pub(crate) fn restart(&mut self) -> Vec<Requester> {
        self.restarts += 1;
        let rng_seed = mix(self.rng_seed ^ self.restarts << 32);
        self.machine = TrackerMachine::new(self.config.clone(), rng_seed);
        self.names = SlotNames::default();
        self.is_up = self.is_enabled;
        self.wake_at = Time::MAX;
        let waiting = self
            .requesters
            .iter()
            .map(|(_, requester)| *requester)
            .collect();
        self.requesters = Slab::new();
        waiting
    }
}

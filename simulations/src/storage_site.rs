//! The storage of a region's origin: its state, and the machine by which the origin decides between
//! it and other regions.
//!
//! It is simulated in scenarios in which a storage fails. In all others a storage answers within
//! the origin's own latency.

use flotilla_common::failover::{Failover, FailoverConfig, SourceId, Standing};
use flotilla_common::time::Time;

use crate::origins::failover_machine;
use crate::rng::mix;
use crate::scenario::Scenario;
use crate::service::{Condition, Latency};
use crate::slab::Key;

/// The own storage, in an origin's failover machine.
pub(crate) const OWN_STORAGE: SourceId = SourceId(0);

/// The storage of one region.
#[derive(Debug)]
pub(crate) struct SimulatedStorage {
    pub(crate) condition: Condition,
    /// While it is slow, what each call takes longer.
    pub(crate) slow: Option<Latency>,
    /// The share of the chunks that the origin has in memory while its storage fails.
    pub(crate) cached_share: f64,
    /// The own storage, then the origins of the other regions in the order of their numbers.
    pub(crate) failover: Failover,
    /// The time of the machine's next `FailoverWake`.
    pub(crate) wake_at: Time,
    /// Calls for whose bytes the storage was asked while it hung.
    pub(crate) held: Vec<Key>,
}

impl SimulatedStorage {
    /// The storage of a region; `None` if the scenario has no failure of a storage.
    pub(crate) fn new(scenario: &Scenario, region: u32, rng_seed: u64) -> Option<Box<Self>> {
        let mut failures = scenario.failures.iter();
        if !failures.any(|failure| failure.kind.is_of_storage()) {
            return None;
        }
        let (config, regions) = (FailoverConfig::of_origins(), scenario.peers.regions.get());
        let rng_seed = mix(rng_seed ^ mix(u64::from(region)));
        Some(Box::new(Self {
            condition: Condition::Up,
            slow: None,
            cached_share: 0.0,
            failover: failover_machine(config, regions, rng_seed),
            wake_at: Time::MAX,
            held: Vec::new(),
        }))
    }

    /// What other regions are told: whether the origin can serve from its own storage.
    pub(crate) fn is_out(&self) -> bool {
        let standing = self.failover.standing(OWN_STORAGE);
        matches!(standing, Standing::Out | Standing::Returning { .. })
    }

    /// Whether the origin answers a request for a chunk, or for a whole blob, without its storage.
    pub(crate) fn has_in_memory(&self, blob: u32, chunk: Option<u32>) -> bool {
        let Some(chunk) = chunk else {
            return self.cached_share >= 1.0;
        };
        // The same chunks in every run.
        let hash = mix(u64::from(blob) << 32 | u64::from(chunk));
        hash as f64 / u64::MAX as f64 <= self.cached_share
    }
}

//! `[machine]`: settings of the peers' machines, for comparisons.

use core::time::Duration;

use flotilla_common::failover::FailoverConfig;
use flotilla_common::swarm::SwarmConfig;
use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::require;

/// The machine has a bit for each neighbour of a blob.
const MAX_NEIGHBOURS: u32 = 64;

/// Settings of the peers' machines that differ from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSettings {
    /// Transfers in each direction at the median rate.
    pub slots: Option<u32>,
    /// One of so many chunk choices is in order; 0 for none.
    pub in_order_one_in: Option<u32>,
    /// Minimum time between two Have batches, in milliseconds.
    pub have_interval_ms: Option<u64>,
    /// How long before its end a transfer counts as nearly done, in milliseconds.
    pub nearly_done_ms: Option<u64>,
    /// Maximum number of neighbours with which one blob is exchanged.
    pub max_neighbours: Option<u32>,
    /// After how long without the head of an answer a peer asks the next origin, in milliseconds.
    pub hung_after_ms: Option<u64>,
}

impl MachineSettings {
    /// The settings of a machine: those of the scenario, the others as shipped.
    pub(crate) fn swarm_config(&self) -> SwarmConfig {
        let default = SwarmConfig::default();
        let millis = |value: Option<u64>, otherwise| value.map_or(otherwise, Duration::from_millis);
        SwarmConfig {
            slots: self.slots.unwrap_or(default.slots),
            in_order_one_in: self.in_order_one_in.unwrap_or(default.in_order_one_in),
            have_interval: millis(self.have_interval_ms, default.have_interval),
            nearly_done: millis(self.nearly_done_ms, default.nearly_done),
            max_neighbours: self.max_neighbours.unwrap_or(default.max_neighbours),
            ..default
        }
    }

    /// As [`Self::swarm_config`], of a peer's failover machine.
    pub(crate) fn failover_config(&self) -> FailoverConfig {
        let default = FailoverConfig::of_peers();
        FailoverConfig {
            hung_after: self
                .hung_after_ms
                .map_or(default.hung_after, Duration::from_millis),
            ..default
        }
    }

    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        require(
            self.slots.is_none_or(|slots| slots > 0),
            "machine.slots",
            "write a number of 1 or more",
        )?;
        require(
            self.max_neighbours
                .is_none_or(|count| (1..=MAX_NEIGHBOURS).contains(&count)),
            "machine.max_neighbours",
            "write a number from 1 to 64",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_run_as_shipped_unless_a_setting_differs() {
        let shipped = MachineSettings::default().swarm_config();
        assert_eq!(shipped, SwarmConfig::default());
        let settings = MachineSettings {
            slots: Some(8),
            ..MachineSettings::default()
        };
        let expected = SwarmConfig {
            slots: 8,
            ..SwarmConfig::default()
        };
        assert_eq!(settings.swarm_config(), expected);
        assert_eq!(settings.failover_config(), FailoverConfig::of_peers());
    }
}

//! `[machine]`: settings of the peers' machines, for comparisons.

use core::time::Duration;

use flotilla_common::swarm::SwarmConfig;
use serde::{Deserialize, Serialize};

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
            ..default
        }
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
    }
}

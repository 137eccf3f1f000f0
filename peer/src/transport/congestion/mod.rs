//! Congestion control of peer connections: which controller limits the bytes in flight.
//!
//! The delay-based controller in [`delay`] is the default, because it gave the best burst times in
//! `docs/benchmarks/shaped-burst.md`. CUBIC and BBR are quinn's, for networks where it does worse.

mod delay;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};

use delay::DelayBasedConfig;

/// The congestion controller of a peer's QUIC connections. It limits what this peer sends; each
/// side of a connection chooses its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CongestionControl {
    /// Keeps the queueing delay at the slowest link near a target of some milliseconds.
    #[default]
    Delay,
    /// CUBIC (RFC 9438): grows until packets are lost.
    Cubic,
    /// BBR: estimates bandwidth and round-trip time. quinn calls its implementation experimental.
    Bbr,
}

/// A text that names no congestion controller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a congestion controller; write delay, cubic or bbr")]
pub struct UnknownCongestionControl(String);

impl CongestionControl {
    /// All controllers.
    pub const ALL: [Self; 3] = [Self::Delay, Self::Cubic, Self::Bbr];

    /// The name in configuration files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }

    /// A factory that makes a controller for each network path.
    pub(super) fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Delay => Arc::new(DelayBasedConfig),
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::default()),
        }
    }
}

impl fmt::Display for CongestionControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CongestionControl {
    type Err = UnknownCongestionControl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|control| control.as_str() == text)
            .ok_or_else(|| UnknownCongestionControl(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "quinn passes std instants to controllers"
    )]

    use std::time::Instant;

    use quinn::congestion::{Bbr, Cubic};

    use super::delay::DelayBased;
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for control in CongestionControl::ALL {
            assert_eq!(control.to_string().parse(), Ok(control));
        }
        let error = "reno"
            .parse::<CongestionControl>()
            .expect_err("not a name")
            .to_string();
        assert_eq!(
            error,
            "'reno' is not a congestion controller; write delay, cubic or bbr"
        );
    }

    #[test]
    fn each_name_builds_its_controller() {
        let build = |control: CongestionControl| {
            let controller = control.factory().build(Instant::now(), 1_200);
            controller.into_any()
        };
        assert!(build(CongestionControl::Delay).is::<DelayBased>());
        assert!(build(CongestionControl::Cubic).is::<Cubic>());
        assert!(build(CongestionControl::Bbr).is::<Bbr>());
    }
}

//! `[[failures]]`: what fails, and when.

use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{WRITE_SECONDS, is_time, require, require_seconds, require_share};

/// A failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// When it happens, in simulated seconds.
    pub at_s: f64,
    /// Its kind.
    pub kind: FailureKind,
    /// The share of the possible peers that fail.
    #[serde(default = "all")]
    pub share: f64,
    /// Seconds after which the failure ends (frozen peers, trackers and origins only).
    pub for_s: Option<f64>,
    /// The peers fail at random times within so many seconds.
    #[serde(default)]
    pub over_s: f64,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Peers die without telling the tracker or their neighbours.
    KillPeers,
    /// As `kill-peers`, of the peers that hold a lease at that time.
    KillLeaseHolders,
    /// Peers stop as under SIGSTOP: their connections stay open, and no byte moves on them. With
    /// `for_s` they continue after that time.
    FreezePeers,
    /// Peers tell the tracker that they leave, and close their connections.
    LeavePeers,
    /// The tracker stops answering; messages to it are lost.
    StopTracker,
    /// The tracker restarts with an empty memory.
    RestartTracker,
    /// The first region's origin stops answering.
    StopOrigin,
}

impl Failure {
    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        require_seconds(self.at_s, "failures.at_s")?;
        require_seconds(self.over_s, "failures.over_s")?;
        require(
            self.for_s.is_none_or(is_time),
            "failures.for_s",
            WRITE_SECONDS,
        )?;
        require_share(self.share, "failures.share")
    }
}

fn all() -> f64 {
    1.0
}

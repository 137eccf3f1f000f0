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
    /// The region that it is about (origins, their storages, trackers and partitions only), from 0.
    /// All regions if not set.
    pub region: Option<u32>,
    /// The share of the possible peers that fail, of a region's trackers, or of the image's layers
    /// that a region lacks.
    #[serde(default = "all")]
    pub share: f64,
    /// Seconds after which the failure ends; never if not set. Peers that died or left and trackers
    /// that restarted do not come back; peers that restart do, at once if not set.
    pub for_s: Option<f64>,
    /// While a storage fails: the share of the chunks that the region's origin has in memory.
    #[serde(default)]
    pub cached: f64,
    /// While an origin, a storage or a tracker is slow: median time to the first byte, in
    /// milliseconds. A tracker's own service time and queue come first.
    pub p50_ms: Option<f64>,
    /// The same: 99th percentile of it; as the median if not set.
    pub p99_ms: Option<f64>,
    /// The peers fail at random times within so many seconds.
    #[serde(default)]
    pub over_s: f64,
    /// The share of its chunks that a peer which restarts still has; all of them if not set.
    pub kept_share: Option<f64>,
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
    /// Peers die as with `kill-peers`, and start again after `for_s` with `kept_share` of their
    /// chunks. Their runtimes pull again what they lack.
    RestartPeers,
    /// Trackers stop answering; messages to them are lost.
    StopTracker,
    /// Trackers restart with an empty memory.
    RestartTracker,
    /// Trackers answer with the times `p50_ms` and `p99_ms`.
    SlowTracker,
    /// Trackers hang: they accept requests, and answer none. With `for_s` they continue after that
    /// time.
    SilentTracker,
    /// A region's origin stops: connections are refused, and open ones break.
    StopOrigin,
    /// A region's origin hangs: it accepts requests, and no byte leaves it.
    HangOrigin,
    /// A region's origin answers with the times `p50_ms` and `p99_ms`.
    SlowOrigin,
    /// A region lags behind: its origin answers 404 for the last `share` of the image's layers.
    LagOrigin,
    /// The storage of a region's origin hangs: it takes calls, and answers none.
    HangStorage,
    /// The storage of a region's origin fails each call at once.
    RefuseStorage,
    /// Each call of the storage of a region's origin takes longer by the times `p50_ms` and
    /// `p99_ms`.
    SlowStorage,
    /// A region is cut off from all others: no message and no byte crosses its border.
    Partition,
}

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureSubject {
    Peers,
    Trackers,
    /// A region's origin, its storage, or its links to other regions.
    Regions,
}

impl FailureKind {
    /// Whether it is a failure of an origin's storage.
    pub(crate) fn is_of_storage(self) -> bool {
        matches!(
            self,
            Self::HangStorage | Self::RefuseStorage | Self::SlowStorage
        )
    }

    /// What fails.
    pub(crate) fn subject(self) -> FailureSubject {
        match self {
            Self::KillPeers
            | Self::KillLeaseHolders
            | Self::FreezePeers
            | Self::LeavePeers
            | Self::RestartPeers => FailureSubject::Peers,
            Self::StopTracker | Self::RestartTracker | Self::SlowTracker | Self::SilentTracker => {
                FailureSubject::Trackers
            }
            Self::StopOrigin
            | Self::HangOrigin
            | Self::SlowOrigin
            | Self::LagOrigin
            | Self::HangStorage
            | Self::RefuseStorage
            | Self::SlowStorage
            | Self::Partition => FailureSubject::Regions,
        }
    }
}

impl Failure {
    pub(super) fn check(&self, regions: u32) -> Result<(), ScenarioError> {
        require_seconds(self.at_s, "failures.at_s")?;
        require_seconds(self.over_s, "failures.over_s")?;
        require(
            self.for_s.is_none_or(is_time),
            "failures.for_s",
            WRITE_SECONDS,
        )?;
        require_share(self.share, "failures.share")?;
        require(
            self.region.is_none_or(|region| region < regions),
            "failures.region",
            "write the number of a region, from 0 to one below peers.regions",
        )?;
        let is_restart = self.kind == FailureKind::RestartPeers;
        require(
            self.kept_share
                .is_none_or(|kept| is_restart && (0.0..=1.0).contains(&kept)),
            "failures.kept_share",
            "write a share from 0 to 1 for the kind restart-peers, and for no other kind",
        )?;
        require_share(self.cached, "failures.cached")?;
        require(
            self.cached == 0.0 || self.kind.is_of_storage(),
            "failures.cached",
            "write it for failures of a storage only",
        )?;
        let is_slow = matches!(
            self.kind,
            FailureKind::SlowOrigin | FailureKind::SlowStorage | FailureKind::SlowTracker
        );
        let p50_ms = self.p50_ms.unwrap_or(0.0);
        require(
            self.p50_ms.is_some() == is_slow && (!is_slow || is_time(p50_ms) && p50_ms > 0.0),
            "failures.p50_ms",
            "write milliseconds above 0 for slow-origin, slow-storage and slow-tracker, and for no other kind",
        )?;
        require(
            self.p99_ms
                .is_none_or(|p99_ms| is_slow && is_time(p99_ms) && p99_ms >= p50_ms),
            "failures.p99_ms",
            "write milliseconds, at least as many as p50_ms, for slow-origin, slow-storage and slow-tracker only",
        )
    }

    /// The regions that it is about.
    pub(crate) fn regions(&self, regions: u32) -> impl Iterator<Item = u32> + use<> {
        let region = self.region;
        (0..regions).filter(move |it| region.is_none_or(|region| region == *it))
    }
}

fn all() -> f64 {
    1.0
}

//! `[origin]`: the origins, one per region.

use flotilla_common::units::BitRate;
use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{WRITE_RATE, is_time, require, require_millis};

/// The origins, one per region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origins {
    /// Uplink of each origin, per second.
    pub up: BitRate,
    /// Median time to the first byte, without network delays and queues, in milliseconds.
    #[serde(default = "default_p50_ms")]
    pub p50_ms: f64,
    /// 99th percentile of the same; as the median if not set. In between, the times are lognormal.
    #[serde(default)]
    pub p99_ms: Option<f64>,
    /// Time for which a request occupies the origin's processor, in microseconds. Requests are
    /// served one after the other.
    #[serde(default = "default_service_us")]
    pub service_us: f64,
    /// Maximum number of requests under way, until the last byte of the response; further ones are
    /// answered 429. The default is the origin's own.
    #[serde(default = "default_max_requests")]
    pub max_requests: u32,
    /// Whether each origin answers the first request of each peer for the proofs of the image's
    /// blobs with an error.
    #[serde(default)]
    pub fail_first_closures: bool,
    /// Whether all requests for the proofs fail.
    #[serde(default)]
    pub fail_closures: bool,
}

/// Downlink of each origin, in bytes per second: without effect, because no peer uploads.
const DOWN: f64 = 1e12;

impl Origins {
    /// Uplink and downlink, in bytes per second.
    pub(crate) fn rates(&self) -> (f64, f64) {
        (self.up.bytes_per_second(), DOWN)
    }

    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        require(self.up.0 > 0, "origin.up", WRITE_RATE)?;
        require_millis(self.p50_ms, "origin.p50_ms")?;
        require(
            self.p99_ms
                .is_none_or(|p99_ms| is_time(p99_ms) && p99_ms >= self.p50_ms && self.p50_ms > 0.0),
            "origin.p99_ms",
            "write milliseconds, at least as many as origin.p50_ms, which must be above 0",
        )?;
        require(
            is_time(self.service_us),
            "origin.service_us",
            "write microseconds, 0 or more",
        )?;
        require(
            self.max_requests > 0,
            "origin.max_requests",
            "write a number of 1 or more",
        )
    }
}

fn default_p50_ms() -> f64 {
    1.0
}

fn default_service_us() -> f64 {
    10.0
}

fn default_max_requests() -> u32 {
    4096
}

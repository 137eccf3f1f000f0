//! `[bars]`: what the outcome must keep.

use serde::{Deserialize, Serialize};

/// Upper limits of the outcome's figures: an outcome above one of them is not `ok`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bars {
    /// 99th percentile of the times to completion, divided by the greater lower bound.
    pub max_p99_over_bound: Option<f64>,
    /// Median of the times to completion, in seconds.
    pub max_p50_s: Option<f64>,
    /// Bytes from origins per region, divided by the image's bytes.
    pub max_origin_copies: Option<f64>,
    /// Bytes between regions, divided by the image's bytes.
    pub max_wan_copies: Option<f64>,
    /// Longest time in which any pull under way delivered no byte, in seconds.
    pub max_stall_s: Option<f64>,
}

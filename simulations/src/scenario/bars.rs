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
    /// Bytes from origins into any region, divided by the bytes that its peers pulled, each layer
    /// once.
    pub max_origin_copies: Option<f64>,
    /// Bytes between regions, divided by the bytes that all peers pulled, each layer once.
    pub max_wan_copies: Option<f64>,
    /// The part of these that are chunks which a living peer of the receiving region held already.
    pub max_wan_repeats: Option<f64>,
    /// Longest time in which any pull under way delivered no byte, in seconds.
    pub max_stall_s: Option<f64>,
}

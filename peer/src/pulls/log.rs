//! The log lines about finished and refused pulls.

use flotilla_common::units::ByteSize;

use super::Pulls;
use crate::status::{PullReport, PullResult, Waits};

/// The log target of all lines about pulls.
const TARGET: &str = "flotilla_peer::pull";

/// Logs a finished pull with the figures that explain its duration.
pub(super) fn finished(report: &PullReport) {
    let PullReport { sources, .. } = report;
    macro_rules! line {
        ($level:ident, $message:expr) => {
            tracing::$level!(
                target: TARGET,
                image = report.image,
                manifest = %report.manifest,
                why = report.why,
                bytes = report.bytes,
                own_store = sources.own_store,
                same_zone = sources.same_zone,
                other_zones = sources.other_zones,
                origin_leased = sources.origin_leased,
                origin_unleased = sources.origin_unleased,
                passed_through = sources.passed_through,
                seconds = report.seconds,
                first_byte_seconds = report.first_byte_seconds,
                bytes_per_second = report.bytes_per_second,
                waits = wait_list(&report.waits),
                blob_waits = wait_list(&report.blob_waits),
                bound_seconds = report.bound_seconds,
                over_bound = report.over_bound,
                "{}",
                $message
            )
        };
    }
    let size = ByteSize(report.bytes);
    match (report.result, report.is_warming) {
        (PullResult::Pulled, false) => {
            line!(info, format!("pulled {size} in {} s", report.seconds))
        }
        (PullResult::Pulled, true) => line!(info, format!("warmed {size} in {} s", report.seconds)),
        (PullResult::GivenUp, _) => line!(warn, "pull given up"),
    }
}

/// Formats waiting times, the longest first: "lease 1.2 s, first_byte 0.1 s".
fn wait_list(waits: &Waits) -> String {
    let mut longest: Vec<_> = waits.iter().collect();
    longest.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let texts: Vec<_> = longest
        .into_iter()
        .map(|(wait, seconds)| format!("{} {seconds} s", wait.name()))
        .collect();
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(", ")
    }
}

impl Pulls {
    /// Counts and logs a pull that did not begin because there is no manifest.
    pub(crate) fn refuse(&self, image: &str, why: &str) {
        self.refused.add(1);
        tracing::warn!(target: TARGET, image, why, "pull refused: the manifest is not available");
    }
}

//! The line of the log that explains a pull.

use flotilla_common::units::ByteSize;

use super::Pulls;
use crate::status::{PullReport, PullResult, Waits};

/// What lines about pulls are logged under, whoever logs them.
const TARGET: &str = "flotilla_peer::pull";

/// Writes the line.
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
                waits = words(&report.waits),
                blob_waits = words(&report.blob_waits),
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

/// "lease 1.2 s, first_byte 0.1 s", the longest first.
fn words(waits: &Waits) -> String {
    let mut longest: Vec<_> = waits.iter().collect();
    longest.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let words: Vec<_> = longest
        .into_iter()
        .map(|(wait, seconds)| format!("{} {seconds} s", wait.name()))
        .collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

impl Pulls {
    /// A manifest cannot be had, so that no pull begins.
    pub(crate) fn refuse(&self, image: &str, why: &str) {
        self.refused.add(1);
        tracing::warn!(target: TARGET, image, why, "pull refused");
    }
}

//! The metrics of the work between regions.

use core::fmt;

use flotilla_common::failover::{SourceId, Standing};
use flotilla_runtime::metrics::MetricWriter;

use super::regional::Regional;

/// Writes the metrics of all other regions.
///
/// # Errors
/// The output cannot be written.
pub(crate) fn write(regional: &Regional, figures: &mut MetricWriter<'_>) -> fmt::Result {
    let counts = regional.replicator().counts();
    let by_region = counts.by_region();
    let routes = regional.routes();
    let per_region = |value: fn(&super::counts::PerRegion) -> u64| {
        by_region
            .iter()
            .map(move |(region, counts)| (region.as_str(), value(counts)))
    };
    let unix_now = regional.unix_nanos();
    let lags = by_region.iter().map(|(region, counts)| {
        let seconds = counts.lag_nanos(unix_now) / 1_000_000_000;
        (region.as_str(), seconds)
    });
    figures.gauges(
        "region_lag_seconds",
        "Age of the oldest journal entry of a region that is not merged here; while the region cannot be asked, time since it was asked",
        "from",
        lags,
    )?;
    figures.gauges(
        "region_lag_entries",
        "Journal entries of a region that are not merged here",
        "from",
        per_region(|counts| counts.owed),
    )?;
    figures.gauges(
        "region_blocked_entries",
        "Journal entries that wait for a region that does not answer",
        "from",
        per_region(|counts| counts.blocked),
    )?;
    figures.gauges(
        "region_clock_ahead",
        "Journal entries that are not merged yet, because their stamps are more than 10 minutes ahead of this machine's clock",
        "from",
        per_region(|counts| counts.ahead),
    )?;
    figures.gauges(
        "region_follows",
        "Whether this replica follows a region (1) or not (0): one replica does, if the region is the one that is known",
        "from",
        per_region(|counts| u64::from(counts.follows)),
    )?;
    figures.gauges(
        "region_refused",
        "Whether a region is refused, because its storage is this region's or another one than before (1) or not (0)",
        "region",
        per_region(|counts| u64::from(counts.is_refused)),
    )?;
    figures.counters(
        "region_merged_entries",
        "Journal entries of a region that were merged",
        "from",
        per_region(|counts| counts.entries_done),
    )?;
    figures.counters(
        "region_copied_bytes",
        "Bytes of blobs copied from a region",
        "from",
        per_region(|counts| counts.copied_bytes),
    )?;
    let reads = counts
        .reads()
        .into_iter()
        .map(|((region, outcome), count)| {
            let from = if region == *regional.own() {
                "own".to_owned()
            } else {
                region.to_string()
            };
            ([from, outcome.to_owned()], count)
        });
    figures.counters_by_two(
        "region_reads",
        "Reads that missed memory, by the region that served them and the outcome",
        ["from", "outcome"],
        reads,
    )?;
    let (forwarded, unforwarded) = counts.all_forwarded();
    let forwarded = forwarded
        .into_iter()
        .map(|(region, count)| (region.to_string(), count))
        .chain([("none".to_owned(), unforwarded)]);
    figures.counters(
        "region_forwarded",
        "Changes forwarded to a region; none: that no region could take",
        "to",
        forwarded,
    )?;
    let standing = (0..=routes.others.len() as u32).map(|id| {
        let name = match routes.other(SourceId(id)) {
            Some(other) => other.region().to_string(),
            None => "own storage".to_owned(),
        };
        (name, percent(routes.failover.standing(SourceId(id))))
    });
    figures.gauges(
        "region_standing",
        "Share of requests that a region, or the own storage, gets: 100 while it answers, 0 while it is out",
        "of",
        standing,
    )?;
    figures.gauge(
        "region_whole",
        "Whether this region has everything that the others had when it joined (1) or not (0)",
        u64::from(regional.is_whole()),
    )?;
    figures.gauge(
        "region_clock_skew_seconds",
        "How far this machine's clock is from the storage's",
        regional.clock_check().skew_ms().unsigned_abs() / 1000,
    )?;
    figures.counter(
        "region_immutable_conflicts",
        "First pushes of immutable tags that were replaced here, because another region accepted a later one while the regions could not reach each other",
        counts.immutable_conflicts(),
    )?;
    figures.counter(
        "region_broken_closures",
        "Merged tags and indexes that name something no region has",
        counts.broken_closures(),
    )
}

const fn percent(standing: Standing) -> u64 {
    match standing {
        Standing::Fine | Standing::Suspect => 100,
        Standing::Returning { percent } => percent as u64,
        Standing::Out => 0,
    }
}

//! The charts of runs: each is a figure with a heading, a plot and a legend.

use core::fmt::Write as _;

use flotilla_common::swarm::StallReason;

use super::axis::Axis;
use super::escape;
use super::plot::Plot;
use crate::record::{ByteSource, Timeline};
use crate::results::{Curves, RunResult};

/// Columns of a heat map; more would be finer than its pixels.
const HEAT_COLUMNS: usize = 60;

/// A run in a chart that shows several, with its label and its CSS class.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) run: &'a RunResult,
    pub(super) label: &'a str,
    pub(super) class: &'a str,
}

/// The share of pulls that are complete, by the time since their start, and the lower bounds.
pub(super) fn completions(shown: &[Shown<'_>]) -> String {
    let outcomes = || shown.iter().map(|shown| &shown.run.outcome);
    let latest = outcomes()
        .flat_map(|it| [it.max_s, it.fluid_bound_s, it.pipelined_bound_s])
        .fold(0.0, f64::max);
    let x = Axis::time("time since the start of the pull", latest * 1.05);
    let mut plot = Plot::new(x, Axis::share("pulls that are complete"));
    let mut legend = Vec::new();
    for Shown { run, label, class } in shown {
        let Some(curves) = &run.curves else { continue };
        let pulls = curves.pulls.max(1) as f64;
        if let [_] = shown {
            let first = shares(&curves.first_chunks_s, curves.first_chunks, pulls);
            plot.steps(first, "c1");
            legend.push(("c1", "have the first chunk".to_owned()));
        }
        let done = shares(&curves.completions_s, curves.completed, pulls);
        plot.steps(done, class);
        if !label.is_empty() {
            legend.push((class, (*label).to_owned()));
        }
    }
    for (number, Shown { run, class, label }) in shown.iter().enumerate() {
        let outcome = &run.outcome;
        let bounds = (outcome.fluid_bound_s, outcome.pipelined_bound_s);
        let is_known = shown[..number].iter().any(|other| {
            let other = &other.run.outcome;
            (other.fluid_bound_s, other.pipelined_bound_s) == bounds
        });
        if is_known {
            continue;
        }
        let of = if is_alone(shown) {
            String::new()
        } else {
            format!("{label}: ")
        };
        plot.mark(
            bounds.0,
            &format!("{of}fluid bound {:.2} s", bounds.0),
            class,
        );
        let pipelined = format!("{of}pipelined bound {:.2} s", bounds.1);
        plot.mark(bounds.1, &pipelined, class);
    }
    let svg = plot.svg("share of pulls that are complete, by the time since their start");
    figure("Completion", "", &svg, &legend)
}

/// Whether all runs have the bounds of the first.
fn is_alone(shown: &[Shown<'_>]) -> bool {
    let bounds = |shown: &Shown<'_>| {
        let outcome = &shown.run.outcome;
        (outcome.fluid_bound_s, outcome.pipelined_bound_s)
    };
    shown
        .windows(2)
        .all(|pair| bounds(&pair[0]) == bounds(&pair[1]))
}

/// The points of a step function: thinned-out times, which stand for `count` of all `pulls`.
fn shares(times: &[f64], count: usize, pulls: f64) -> Vec<(f64, f64)> {
    let points = times.len() as f64;
    let share = |number: usize| (number + 1) as f64 / points * count as f64 / pulls;
    let points = times.iter().enumerate();
    points
        .map(|(number, time)| (*time, share(number)))
        .collect()
}

/// The rates of the origins and between regions, over time.
pub(super) fn origin_rates(timeline: &Timeline, scale: &Scale) -> String {
    let x = Axis::time("simulated time", scale.end_s);
    let y = Axis::with_prefix("rate", "bit/s", scale.origin_rate, 5);
    let mut plot = Plot::new(x, y);
    plot.buckets(
        timeline.bucket_s,
        &rate(timeline, ByteSource::is_origin),
        "c0",
    );
    let wide_area = rate(timeline, ByteSource::is_wide_area);
    plot.buckets(timeline.bucket_s, &wide_area, "c3");
    let legend = [
        ("c0", "from origins".to_owned()),
        ("c3", "between regions".to_owned()),
    ];
    let svg = plot.svg("rate of bytes from origins and between regions, over time");
    figure("Origins and wide area", "", &svg, &legend)
}

/// The bytes of each source over time, stacked.
pub(super) fn sources(timeline: &Timeline, scale: &Scale) -> String {
    let x = Axis::time("simulated time", scale.end_s);
    let y = Axis::with_prefix("rate", "bit/s", scale.rate, 5);
    let mut plot = Plot::new(x, y);
    let mut legend = Vec::new();
    let mut low = vec![0.0; buckets(timeline)];
    for series in &timeline.bytes {
        let (class, name) = match series.source {
            ByteSource::SameZone => ("c0", "peers of the same zone"),
            ByteSource::OtherZone => ("c1", "peers of other zones"),
            ByteSource::OtherRegion => ("c4", "peers of other regions"),
            ByteSource::OwnOrigin => ("c2", "own origin"),
            ByteSource::OtherOrigin => ("c3", "origins of other regions"),
        };
        let bits = series.bytes.iter().map(|it| bits_s(*it, timeline));
        let high: Vec<f64> = low.iter().zip(bits).map(|(low, bits)| low + bits).collect();
        plot.area(timeline.bucket_s, &low, &high, class);
        let sum = bytes_text(series.bytes.iter().sum());
        legend.push((class, format!("{name} ({sum})")));
        low = high;
    }
    let svg = plot.svg("rate of bytes by their source, over time, stacked");
    figure("Bytes by source", "", &svg, &legend)
}

/// How many peers wait, by reason, over time, stacked.
pub(super) fn stalls(timeline: &Timeline, scale: &Scale) -> String {
    let x = Axis::time("simulated time", scale.end_s);
    let y = Axis::new("peers that wait", "", scale.stalled, 5);
    let mut plot = Plot::new(x, y);
    let mut legend = Vec::new();
    let mut low = vec![0.0; buckets(timeline)];
    for series in &timeline.stalls {
        let (class, name) = reason(series.reason);
        let peers = series.seconds.iter().map(|it| it / timeline.bucket_s);
        let high: Vec<f64> = low.iter().zip(peers).map(|(low, it)| low + it).collect();
        plot.area(timeline.bucket_s, &low, &high, class);
        let sum: f64 = series.seconds.iter().sum();
        legend.push((class, format!("{name} ({sum:.1} s)")));
        low = high;
    }
    let svg = plot.svg("number of peers of whose wanted blobs nothing moves, by reason, over time");
    let note =
        "Peers with a free slot for which nothing moves; in brackets the sum over the peers.";
    figure("Waits by reason", note, &svg, &legend)
}

fn reason(reason: StallReason) -> (&'static str, &'static str) {
    match reason {
        StallReason::FirstByte => ("c1", "first byte of an answer"),
        StallReason::Holders => ("c0", "holders are busy"),
        StallReason::Neighbours => ("c5", "neighbours' chunk maps"),
        StallReason::Lease => ("c2", "lease"),
        StallReason::Turn => ("c4", "turn for a lease"),
        StallReason::Tracker => ("c6", "tracker"),
        StallReason::NoTracker => ("c7", "no tracker"),
        StallReason::Origin => ("c3", "no origin is usable"),
        StallReason::Quarantine => ("c8", "holders in quarantine"),
        StallReason::Store => ("c9", "own store"),
    }
}

/// The rate at which each zone receives, over time.
pub(super) fn zones(timeline: &Timeline, scale: &Scale) -> String {
    let rows = timeline.zone_bytes.len();
    let x = Axis::time("simulated time", scale.end_s);
    let mut y = Axis::new("zone", "", rows as f64, rows.min(8) as u32);
    // Labels in the middle of the rows.
    y.ticks
        .retain(|(zone, label)| *zone < rows as f64 && !label.contains('.'));
    for (zone, _) in &mut y.ticks {
        *zone += 0.5;
    }
    let mut plot = Plot::new(x, y);
    let width = buckets(timeline).div_ceil(HEAT_COLUMNS).max(1);
    for (zone, row) in timeline.zone_bytes.iter().enumerate() {
        for (column, buckets) in row.chunks(width).enumerate() {
            let bits = mean_bits_s(buckets, timeline);
            let from = (column * width) as f64 * timeline.bucket_s;
            let to = from + buckets.len() as f64 * timeline.bucket_s;
            let share = bits / scale.zone_rate;
            plot.cell((from, to), (zone as f64, zone as f64 + 1.0), share);
        }
    }
    let most = bits_text(scale.zone_rate);
    let legend = [("heat", format!("{most}; paler is slower"))];
    let svg = plot.svg("rate at which each zone receives, over time, as a heat map");
    figure(
        "Zones over time",
        "Rate at which the peers of a zone receive.",
        &svg,
        &legend,
    )
}

/// What charts of runs share, so that they can be compared.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scale {
    end_s: f64,
    /// Greatest rates, in bits per second.
    origin_rate: f64,
    rate: f64,
    zone_rate: f64,
    /// Most peers that wait.
    stalled: f64,
}

impl Scale {
    /// The scale in which all of these fit.
    pub(super) fn of<'a>(timelines: impl IntoIterator<Item = &'a Timeline>) -> Self {
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        let mut scale = Self::default();
        for timeline in timelines {
            let end_s = buckets(timeline) as f64 * timeline.bucket_s;
            scale.end_s = scale.end_s.max(end_s);
            let origin = most(&rate(timeline, ByteSource::is_origin));
            let wide_area = most(&rate(timeline, ByteSource::is_wide_area));
            scale.origin_rate = scale.origin_rate.max(origin).max(wide_area);
            scale.rate = scale.rate.max(most(&rate(timeline, |_| true)));
            let width = buckets(timeline).div_ceil(HEAT_COLUMNS).max(1);
            for row in &timeline.zone_bytes {
                let rates = row.chunks(width).map(|it| mean_bits_s(it, timeline));
                scale.zone_rate = rates.fold(scale.zone_rate, f64::max);
            }
            let mut stalled = vec![0.0; buckets(timeline)];
            for series in &timeline.stalls {
                for (sum, seconds) in stalled.iter_mut().zip(&series.seconds) {
                    *sum += seconds / timeline.bucket_s;
                }
            }
            scale.stalled = scale.stalled.max(most(&stalled));
        }
        for rate in [&mut scale.origin_rate, &mut scale.rate] {
            *rate *= 1.05;
        }
        scale.stalled *= 1.05;
        scale
    }
}

fn buckets(timeline: &Timeline) -> usize {
    let of_zones = timeline.zone_bytes.iter().map(Vec::len);
    of_zones.max().unwrap_or(0)
}

/// The rate of the sources that are chosen, per bucket, in bits per second.
fn rate(timeline: &Timeline, is_chosen: impl Fn(ByteSource) -> bool) -> Vec<f64> {
    let mut sum = vec![0.0; buckets(timeline)];
    for series in &timeline.bytes {
        if is_chosen(series.source) {
            for (sum, bytes) in sum.iter_mut().zip(&series.bytes) {
                *sum += bits_s(*bytes, timeline);
            }
        }
    }
    sum
}

fn bits_s(bytes: u64, timeline: &Timeline) -> f64 {
    bytes as f64 * 8.0 / timeline.bucket_s
}

fn mean_bits_s(buckets: &[u64], timeline: &Timeline) -> f64 {
    let bytes: u64 = buckets.iter().sum();
    bits_s(bytes, timeline) / buckets.len().max(1) as f64
}

fn bits_text(bits_s: f64) -> String {
    let (divisor, prefix) = super::axis::prefix(bits_s);
    format!("{:.1} {prefix}bit/s", bits_s / divisor)
}

fn bytes_text(bytes: u64) -> String {
    let (divisor, prefix) = super::axis::prefix(bytes as f64);
    format!("{:.1} {prefix}B", bytes as f64 / divisor)
}

/// A chart with its heading, and a legend of CSS classes and names.
pub(super) fn figure(title: &str, note: &str, svg: &str, legend: &[(&str, String)]) -> String {
    let mut items = String::new();
    for (class, name) in legend {
        let _ = write!(
            items,
            "<li><span class='key {class}'></span>{}</li>",
            escape(name)
        );
    }
    let note = if note.is_empty() {
        String::new()
    } else {
        format!("<p class=note>{}</p>", escape(note))
    };
    format!("<figure><figcaption>{title}</figcaption>{svg}<ul>{items}</ul>{note}</figure>\n")
}

/// The charts over time of a run.
pub(super) fn over_time(curves: &Curves, scale: &Scale) -> Vec<String> {
    let Some(timeline) = &curves.timeline else {
        return Vec::new();
    };
    let charts = [origin_rates, sources, stalls, zones];
    charts
        .into_iter()
        .map(|chart| chart(timeline, scale))
        .collect()
}

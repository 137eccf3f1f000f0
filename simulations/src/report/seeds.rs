//! The spread of the figures over the seeds: a strip of dots for each.

use super::axis::Axis;
use super::charts::figure;
use super::plot::Plot;
use crate::figures::{Figure, Spread};
use crate::outcome::Outcome;

/// The figures that are shown.
const SHOWN: [&str; 4] = ["p50_s", "p99_over_bound", "origin_copies", "wan_copies"];
/// Height of a strip, in SVG units.
const STRIP: f64 = 110.0;

/// A strip for each figure: a dot for each seed, in a row for each group of runs.
pub(super) fn strips(groups: &[(&str, Vec<&Outcome>)]) -> Vec<String> {
    let figures = SHOWN.iter().filter_map(|name| Figure::named(name));
    figures.map(|figure| strip(figure, groups)).collect()
}

fn strip(shown: &Figure, groups: &[(&str, Vec<&Outcome>)]) -> String {
    let values = |outcomes: &[&Outcome]| -> Vec<f64> {
        outcomes.iter().map(|outcome| shown.of(outcome)).collect()
    };
    let all = groups.iter().flat_map(|(_, outcomes)| values(outcomes));
    let all = Spread::of(all);
    let mut y = Axis::new("", "", groups.len() as f64, 1);
    y.ticks.clear();
    let x = Axis::range(shown.label, shown.unit, all.min, all.max, 6);
    let height = STRIP + 20.0 * (groups.len() as f64 - 1.0);
    let mut plot = Plot::with_height(x, y, height);
    let mut legend = Vec::new();
    for (number, (name, outcomes)) in groups.iter().enumerate() {
        let class = if number == 0 { "c0" } else { "c3" };
        let row = groups.len() as f64 - number as f64 - 0.5;
        let values = values(outcomes);
        let spread = Spread::of(values.iter().copied());
        for value in values {
            plot.dot(value, row, class);
        }
        let Spread {
            min, median, max, ..
        } = spread;
        let interval = spread.confidence.map_or_else(String::new, |it| {
            let (low, high) = (spread.mean - it, spread.mean + it);
            format!(", 95 % interval of the mean {low:.3} to {high:.3}")
        });
        let text = format!("{name}: median {median:.3}, {min:.3} to {max:.3}{interval}");
        legend.push((class, text));
    }
    let label = format!("{} of each seed", shown.label);
    figure(&label, "", &plot.svg(&label), &legend)
}

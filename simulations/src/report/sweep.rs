//! Sweeps: figures of one scenario by the value of a key that `--vary` changed.

use super::axis::Axis;
use super::charts::figure;
use super::escape;
use super::plot::Plot;
use crate::figures::{Figure, Spread};
use crate::results::{Results, Summary};
use crate::variation::VariedName;

/// The figures that are drawn.
const SHOWN: [&str; 4] = ["p99_over_bound", "origin_copies", "wan_copies", "stall_s"];

/// The runs of a scenario with the values of one key.
#[derive(Debug)]
struct Sweep<'a> {
    scenario: &'a str,
    key: &'a str,
    /// In the order in which they ran.
    values: Vec<(&'a str, &'a Summary)>,
}

/// A section with charts for each sweep among the results.
pub(super) fn sections(results: &Results) -> String {
    let mut sweeps: Vec<Sweep<'_>> = Vec::new();
    for summary in &results.summaries {
        let Some(name) = VariedName::parse(&summary.scenario) else {
            continue;
        };
        let value = (name.value, summary);
        let mut known = sweeps.iter_mut();
        match known.find(|sweep| (sweep.scenario, sweep.key) == (name.scenario, name.key)) {
            Some(sweep) => sweep.values.push(value),
            None => sweeps.push(Sweep {
                scenario: name.scenario,
                key: name.key,
                values: vec![value],
            }),
        }
    }
    let sections = sweeps.iter().filter(|sweep| sweep.values.len() > 1);
    sections.map(|sweep| section(results, sweep)).collect()
}

fn section(results: &Results, sweep: &Sweep<'_>) -> String {
    let heading = format!("{} by {}", sweep.scenario, sweep.key);
    let mut text = format!("<h2>{}</h2>\n<div class=charts>\n", escape(&heading));
    let figures = SHOWN.iter().filter_map(|name| Figure::named(name));
    text.extend(figures.filter_map(|shown| chart(results, sweep, shown)));
    text.push_str("</div>\n");
    text
}

/// A dot for each seed, and a line through the medians. Values are at equal distances.
fn chart(results: &Results, sweep: &Sweep<'_>, shown: &Figure) -> Option<String> {
    let spreads = sweep.values.iter().map(|(_, summary)| {
        let spread = summary.figures.get(shown.name)?;
        Some(*spread)
    });
    let spreads: Vec<Spread> = spreads.collect::<Option<_>>()?;
    let all = Spread::of(spreads.iter().flat_map(|spread| [spread.min, spread.max]));
    let place = |at: usize| at as f64 + 0.5;
    let mut x = Axis::new(sweep.key, "", sweep.values.len() as f64, 1);
    let labels = sweep.values.iter().map(|(value, _)| (*value).to_owned());
    x.ticks = labels
        .enumerate()
        .map(|(at, label)| (place(at), label))
        .collect();
    let y = Axis::range(shown.label, shown.unit, all.min, all.max, 6);
    let mut plot = Plot::new(x, y);
    let medians = spreads.iter().enumerate();
    plot.line(medians.map(|(at, spread)| (place(at), spread.median)), "c0");
    for (at, (_, summary)) in sweep.values.iter().enumerate() {
        for run in results.of_scenario(&summary.scenario) {
            plot.dot(place(at), shown.of(&run.outcome), "c0");
        }
    }
    let best = spreads.iter().zip(&sweep.values);
    let best = best.min_by(|(one, _), (other, _)| one.median.total_cmp(&other.median));
    let (spread, (value, _)) = best?;
    let best = format!("lowest median: {:.3} with {value}", spread.median);
    let label = format!("{} by {}", shown.label, sweep.key);
    let svg = plot.svg(&label);
    Some(figure(&escape(&label), "", &svg, &[("c0", best)]))
}

//! Two results side by side.

use core::fmt::Write as _;

use crate::figures::{FIGURES, Figure, Spread};
use crate::results::{Results, RunResult};

/// The runs of a scenario in two results.
#[derive(Clone, Debug)]
pub(crate) struct Pair<'a> {
    /// The name of the scenario, or both names.
    pub(crate) heading: String,
    pub(crate) one: Vec<&'a RunResult>,
    pub(crate) other: Vec<&'a RunResult>,
}

/// The scenarios that both results have; if they have none in common, their first ones.
pub(crate) fn pairs<'a>(one: &'a Results, other: &'a Results) -> Vec<Pair<'a>> {
    let names = |results: &'a Results| -> Vec<&'a str> {
        let summaries = results.summaries.iter();
        summaries.map(|summary| summary.scenario.as_str()).collect()
    };
    let (of_one, of_other) = (names(one), names(other));
    let mut pairs: Vec<(&str, &str)> = of_one
        .iter()
        .filter(|name| of_other.contains(name))
        .map(|name| (*name, *name))
        .collect();
    if pairs.is_empty() {
        pairs.extend(of_one.into_iter().zip(of_other).take(1));
    }
    pairs
        .into_iter()
        .map(|(left, right)| Pair {
            heading: if left == right {
                left.to_owned()
            } else {
                format!("{left} and {right}")
            },
            one: one.of_scenario(left).collect(),
            other: other.of_scenario(right).collect(),
        })
        .collect()
}

/// The medians of each figure in two results, and how they differ, as text.
pub fn comparison_table(one: &Results, other: &Results, names: [&str; 2]) -> String {
    let mut text = String::new();
    let width = names.map(str::len).into_iter().max().unwrap_or(0).max(12);
    for pair in pairs(one, other) {
        let [left, right] = names;
        let _ = writeln!(
            text,
            "{:<28}  {left:>width$}  {right:>width$}  change",
            pair.heading
        );
        for figure in FIGURES {
            let median = |runs: &[&RunResult]| {
                Spread::of(runs.iter().map(|run| figure.of(&run.outcome))).median
            };
            let (before, now) = (median(&pair.one), median(&pair.other));
            let _ = writeln!(
                text,
                "{:<28}  {before:>width$.3}  {now:>width$.3}  {}",
                label(figure),
                change(before, now)
            );
        }
    }
    text
}

/// A figure's name with its unit.
pub(crate) fn label(figure: &Figure) -> String {
    if figure.unit.is_empty() {
        figure.label.to_owned()
    } else {
        format!("{}, {}", figure.label, figure.unit)
    }
}

/// By how much a figure differs, relative to the first.
pub(crate) fn change(before: f64, now: f64) -> String {
    if before == now {
        "=".to_owned()
    } else if before == 0.0 {
        "new".to_owned()
    } else {
        format!("{:+.1} %", (now - before) / before * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;

    fn results(scenarios: &[(&str, f64)]) -> Results {
        let run = |(scenario, p50_s): &(&str, f64)| {
            let outcome = Outcome {
                scenario: (*scenario).to_owned(),
                p50_s: *p50_s,
                ..Outcome::default()
            };
            RunResult::new(outcome, false)
        };
        Results::new(scenarios.iter().map(run).collect())
    }

    #[test]
    fn common_scenarios_are_compared() {
        let (one, other) = (
            results(&[("a", 1.0), ("b", 2.0)]),
            results(&[("b", 3.0), ("c", 4.0)]),
        );
        let text = comparison_table(&one, &other, ["before", "after"]);
        assert!(text.starts_with("b "), "{text}");
        assert!(text.contains("2.000         3.000  +50.0 %"), "{text}");
        assert!(!text.contains("4.000"), "{text}");
    }

    #[test]
    fn results_without_common_scenarios_are_compared_by_their_first() {
        let text = comparison_table(&results(&[("a", 2.0)]), &results(&[("b", 1.0)]), ["x", "y"]);
        assert!(text.starts_with("a and b "), "{text}");
        assert!(text.contains("-50.0 %"), "{text}");
    }
}

//! Committed results, with which a change is compared.
//!
//! A run with the same seed gives the same figures until a change alters the trace. Then the
//! figures move a little in either direction, so medians over the seeds are compared, and small
//! moves are tolerated. A move beyond its tolerance fails the comparison, for the better too: the
//! baseline must say what the machines do today.

use core::fmt::Write as _;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::figures::{FIGURES, Figure, Spread};
use crate::outcome::Outcome;

/// Why a text is not a valid baseline.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The text is not JSON, or has an unknown key.
    #[error("parse baseline: {0}")]
    Parse(#[from] serde_json::Error),
    /// A figure is unknown.
    #[error("parse baseline: unknown figure `{0}`")]
    UnknownFigure(String),
}

/// The figures of some runs, and how far they may move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// The tolerance of each compared figure, by its name.
    pub tolerances: BTreeMap<String, Tolerance>,
    /// The figures of each run: by scenario, then by seed.
    pub runs: BTreeMap<String, BTreeMap<u64, BTreeMap<String, f64>>>,
}

/// How far the median of a figure may move: by the greater of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tolerance {
    /// As a share of the baseline's value.
    pub relative: f64,
    /// In the figure's unit.
    pub absolute: f64,
}

/// What differs from a baseline.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// The figures that moved, by scenario.
    pub moves: Vec<Move>,
    /// Scenarios and seeds without a baseline.
    pub unknown: Vec<(String, u64)>,
    /// Number of runs that were compared.
    pub compared: usize,
}

/// A figure that moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The scenario's name.
    pub scenario: String,
    /// The figure's name.
    pub figure: &'static str,
    /// Its median over the seeds in the baseline.
    pub before: f64,
    /// Its median over the same seeds now.
    pub now: f64,
    /// How far it may move.
    pub allowed: f64,
}

impl Baseline {
    /// Parses a baseline.
    ///
    /// # Errors
    /// If the text is not a baseline.
    pub fn parse(text: &str) -> Result<Self, BaselineError> {
        let baseline: Self = serde_json::from_str(text)?;
        let of_runs = baseline.runs.values().flat_map(BTreeMap::values);
        let names = of_runs.flat_map(BTreeMap::keys);
        for name in names.chain(baseline.tolerances.keys()) {
            if Figure::named(name).is_none() {
                return Err(BaselineError::UnknownFigure(name.clone()));
            }
        }
        Ok(baseline)
    }

    /// The text of the file: a line per run, so that a change of it is easy to read.
    pub fn to_json(&self) -> String {
        let mut text = "{\n  \"tolerances\": {\n".to_owned();
        let lines: Vec<String> = self
            .tolerances
            .iter()
            .map(|(name, Tolerance { relative, absolute })| {
                format!("    \"{name}\": {{\"relative\": {relative}, \"absolute\": {absolute}}}")
            })
            .collect();
        text.push_str(&lines.join(",\n"));
        text.push_str("\n  },\n  \"runs\": {\n");
        let scenarios: Vec<String> = self
            .runs
            .iter()
            .map(|(scenario, runs)| {
                let runs: Vec<String> = runs.iter().map(run_line).collect();
                let name = serde_json::Value::from(scenario.as_str());
                format!("    {name}: {{\n{}\n    }}", runs.join(",\n"))
            })
            .collect();
        text.push_str(&scenarios.join(",\n"));
        text.push_str("\n  }\n}\n");
        text
    }

    /// Replaces the figures of the scenarios that ran, and keeps the others.
    pub fn update(&mut self, outcomes: &[&Outcome]) {
        for outcome in outcomes {
            self.runs.remove(&outcome.scenario);
        }
        for outcome in outcomes {
            let figures = self.tolerances.keys().filter_map(|name| {
                let value = Figure::named(name)?.of(outcome);
                // As many digits as a reader can compare.
                Some((name.clone(), (value * 1e6).round() / 1e6))
            });
            let figures = figures.collect();
            let runs = self.runs.entry(outcome.scenario.clone()).or_default();
            runs.insert(outcome.rng_seed, figures);
        }
    }

    /// Compares outcomes with the baseline.
    pub fn compare(&self, outcomes: &[&Outcome]) -> Comparison {
        let mut comparison = Comparison::default();
        let scenarios: BTreeSet<&str> = outcomes
            .iter()
            .map(|outcome| outcome.scenario.as_str())
            .collect();
        for scenario in scenarios {
            let known = self.runs.get(scenario);
            let mut pairs = Vec::new();
            for outcome in outcomes.iter().filter(|run| run.scenario == scenario) {
                match known.and_then(|runs| runs.get(&outcome.rng_seed)) {
                    Some(before) => pairs.push((before, *outcome)),
                    None => {
                        let run = (scenario.to_owned(), outcome.rng_seed);
                        comparison.unknown.push(run);
                    }
                }
            }
            comparison.compared += pairs.len();
            let moves = FIGURES
                .iter()
                .filter_map(|figure| self.find_move(figure, &pairs));
            comparison.moves.extend(moves);
        }
        comparison
    }

    fn find_move(
        &self,
        figure: &Figure,
        pairs: &[(&BTreeMap<String, f64>, &Outcome)],
    ) -> Option<Move> {
        let tolerance = self.tolerances.get(figure.name)?;
        let (_, outcome) = pairs.first()?;
        let before = pairs
            .iter()
            .filter_map(|(before, _)| before.get(figure.name));
        let before = Spread::of(before.copied()).median;
        let now = Spread::of(pairs.iter().map(|(_, outcome)| figure.of(outcome))).median;
        // The file has six digits after the point.
        ((now - before).abs() > 1e-6).then(|| Move {
            scenario: outcome.scenario.clone(),
            figure: figure.name,
            before,
            now,
            allowed: tolerance.absolute.max(tolerance.relative * before.abs()),
        })
    }
}

fn run_line((rng_seed, figures): (&u64, &BTreeMap<String, f64>)) -> String {
    let figures: Vec<String> = figures
        .iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    format!("      \"{rng_seed}\": {{{}}}", figures.join(", "))
}

impl Move {
    /// Whether the figure moved by more than its tolerance.
    pub fn is_beyond(&self) -> bool {
        (self.now - self.before).abs() > self.allowed
    }
}

impl Comparison {
    /// Whether every run has a baseline, and no figure moved beyond its tolerance.
    pub fn is_ok(&self) -> bool {
        self.unknown.is_empty() && !self.moves.iter().any(Move::is_beyond)
    }

    /// What moved, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (scenario, rng_seed) in &self.unknown {
            let _ = writeln!(text, "{scenario} with rng seed {rng_seed} has no baseline");
        }
        if self.moves.is_empty() {
            let _ = writeln!(text, "{} runs equal the baseline", self.compared);
        }
        text.push_str(&self.moves_text());
        if !self.is_ok() {
            text.push_str("If this is meant: simulations/update-baselines, and commit the file.\n");
        }
        text
    }

    /// The figures that moved, a line each.
    pub fn moves_text(&self) -> String {
        let mut text = String::new();
        let width = self.moves.iter().map(|it| it.scenario.len()).max();
        let width = width.unwrap_or(0);
        for it in &self.moves {
            let _ = writeln!(
                text,
                "{:<width$}  {:<16}  {:>12.4} -> {:>12.4}  {}",
                it.scenario,
                it.figure,
                it.before,
                it.now,
                it.verdict()
            );
        }
        text
    }
}

impl Move {
    fn verdict(&self) -> String {
        let change = self.now - self.before;
        let share = if self.before == 0.0 {
            String::new()
        } else {
            format!("{:+.1} %, ", change / self.before * 100.0)
        };
        let verdict = match (self.is_beyond(), change > 0.0) {
            (false, _) => "tolerated",
            (true, true) => "WORSE",
            (true, false) => "BETTER",
        };
        format!("{share}{verdict} (tolerance {:.4})", self.allowed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const FILE: &str = r#"{
        "tolerances": {"p50_s": {"relative": 0.1}, "origin_copies": {"absolute": 0.2}},
        "runs": {"burst": {
            "1": {"p50_s": 10.0, "origin_copies": 1.0},
            "2": {"p50_s": 12.0, "origin_copies": 1.0}
        }}
    }"#;

    fn outcome(rng_seed: u64, p50_s: f64, origin_copies: f64) -> Outcome {
        Outcome {
            scenario: "burst".to_owned(),
            rng_seed,
            p50_s,
            origin_copies,
            ..Outcome::default()
        }
    }

    #[test]
    fn equal_runs_do_not_move() {
        let baseline = Baseline::parse(FILE).unwrap();
        let comparison = baseline.compare(&[&outcome(1, 10.0, 1.0), &outcome(2, 12.0, 1.0)]);
        assert!(comparison.is_ok());
        assert_eq!(comparison.text(), "2 runs equal the baseline\n");
    }

    #[test]
    fn medians_are_compared_with_their_tolerances() {
        let baseline = Baseline::parse(FILE).unwrap();
        let within = baseline.compare(&[&outcome(1, 12.0, 1.1), &outcome(2, 11.0, 1.1)]);
        assert!(within.is_ok(), "{}", within.text());
        assert_eq!(within.moves.len(), 2);
        let worse = baseline.compare(&[&outcome(1, 12.2, 1.0), &outcome(2, 12.1, 1.0)]);
        assert!(!worse.is_ok());
        assert!(worse.text().contains("+10.5 %, WORSE"), "{}", worse.text());
        let better = baseline.compare(&[&outcome(1, 10.0, 0.7), &outcome(2, 12.0, 0.7)]);
        assert!(!better.is_ok());
        assert!(
            better.text().contains("-30.0 %, BETTER"),
            "{}",
            better.text()
        );
    }

    #[test]
    fn run_without_baseline_fails() {
        let baseline = Baseline::parse(FILE).unwrap();
        let comparison = baseline.compare(&[&outcome(3, 10.0, 1.0)]);
        assert!(!comparison.is_ok());
        assert!(
            comparison
                .text()
                .contains("burst with rng seed 3 has no baseline")
        );
    }

    #[test]
    fn updated_baseline_is_read_back_and_equal() {
        let mut baseline = Baseline::parse(FILE).unwrap();
        let outcomes = [outcome(1, 20.123_456_7, 1.5), outcome(4, 21.0, 1.5)];
        let outcomes: Vec<&Outcome> = outcomes.iter().collect();
        baseline.update(&outcomes);
        let read = Baseline::parse(&baseline.to_json()).unwrap();
        assert_eq!(read, baseline);
        assert_eq!(read.runs["burst"].keys().collect::<Vec<_>>(), [&1, &4]);
        assert!(read.compare(&outcomes).moves.is_empty());
    }

    #[test]
    fn unknown_figures_are_errors() {
        let error = Baseline::parse(&FILE.replace("p50_s", "p51_s")).unwrap_err();
        assert_eq!(error.to_string(), "parse baseline: unknown figure `p51_s`");
    }
}

//! The results of one run or of several, as JSON files keep them, and as a table.

use core::fmt::Write as _;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::figures::{FIGURES, Figure, Spread};
use crate::outcome::{Details, Outcome};
use crate::record::Timeline;

/// Maximum number of points of a curve in [`Curves`].
const MAX_POINTS: usize = 200;

/// Why a text does not have results.
#[derive(Debug, thiserror::Error)]
#[error("not the JSON of flotilla simulate: {0}")]
pub struct ResultsError(#[from] serde_json::Error);

/// An outcome and, on request, its curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The outcome. Its details are not in the JSON.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What the reports draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curves: Option<Curves>,
}

/// The curves of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Curves {
    /// Number of pulls that started.
    pub pulls: usize,
    /// Seconds from its start to its completion of each pull that completed, ascending; of many
    /// pulls at evenly spaced ranks, the last one included.
    pub completions_s: Vec<f64>,
    /// Number of pulls that completed.
    pub completed: usize,
    /// As `completions_s`, for the first chunk of the first layer.
    pub first_chunks_s: Vec<f64>,
    /// Number of pulls that got it.
    pub first_chunks: usize,
    /// The rest, over time.
    pub timeline: Option<Timeline>,
    /// Violations and missed bars.
    pub complaints: Vec<String>,
    /// Further figures, by what they count.
    pub counts: BTreeMap<String, f64>,
}

/// The results of several runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Each run, in the order of scenarios and seeds.
    pub runs: Vec<RunResult>,
    /// The spread of each figure over the seeds of each scenario.
    pub summaries: Vec<Summary>,
    /// Whether all runs were ok.
    pub ok: bool,
}

/// The figures of a scenario over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The scenario's name.
    pub scenario: String,
    /// The spread of each figure, by its name.
    pub figures: BTreeMap<String, Spread>,
    /// Seeds whose run was not ok.
    pub failed_rng_seeds: Vec<u64>,
}

impl RunResult {
    /// The result of a run.
    pub fn new(outcome: Outcome, has_curves: bool) -> Self {
        let curves = has_curves.then(|| Curves::of(&outcome.details));
        Self { outcome, curves }
    }
}

impl Curves {
    /// The curves of a run.
    pub fn of(details: &Details) -> Self {
        Self {
            pulls: details.pulls,
            completions_s: thin_out(&details.completions_s),
            completed: details.completions_s.len(),
            first_chunks_s: thin_out(&details.first_chunks_s),
            first_chunks: details.first_chunks_s.len(),
            timeline: details.timeline.clone(),
            complaints: details.complaints.clone(),
            counts: counts(details),
        }
    }
}

impl Results {
    /// The results of runs.
    pub fn new(runs: Vec<RunResult>) -> Self {
        let mut summaries: Vec<Summary> = Vec::new();
        for run in &runs {
            let scenario = &run.outcome.scenario;
            if summaries.iter().all(|known| known.scenario != *scenario) {
                summaries.push(Summary::of(scenario, &runs));
            }
        }
        let ok = runs.iter().all(|run| run.outcome.ok);
        Self {
            runs,
            summaries,
            ok,
        }
    }

    /// Parses what `flotilla simulate --json` writes, of one run or of several.
    ///
    /// # Errors
    /// If the text is not such JSON.
    pub fn parse(text: &str) -> Result<Self, ResultsError> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        if value.get("runs").is_some() {
            Ok(serde_json::from_value(value)?)
        } else if value.get("scenario").is_some() {
            Ok(Self::new(vec![serde_json::from_value(value)?]))
        } else {
            let error = serde::de::Error::custom("neither `runs` nor `scenario`");
            Err(ResultsError(error))
        }
    }

    /// Forgets the curves, so that the JSON has only figures.
    pub fn drop_curves(&mut self) {
        for run in &mut self.runs {
            run.curves = None;
        }
    }

    /// The runs of a scenario.
    pub fn of_scenario<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a RunResult> {
        self.runs
            .iter()
            .filter(move |run| run.outcome.scenario == name)
    }

    /// A table with a row per scenario.
    pub fn table(&self) -> String {
        let width = self.summaries.iter().map(|row| row.scenario.len()).max();
        let width = width.unwrap_or(0).max(8);
        let mut text = format!("{:<width$}  runs", "scenario");
        for (_, title) in COLUMNS {
            let _ = write!(text, "  {title:<COLUMN$}");
        }
        text.push_str("  result\n");
        for row in &self.summaries {
            let count = self.of_scenario(&row.scenario).count();
            let _ = write!(text, "{:<width$}  {count:>4}", row.scenario);
            for (name, _) in COLUMNS {
                let spread = row.figures.get(*name).copied().unwrap_or_default();
                let _ = write!(text, "  {:<COLUMN$}", cell(&spread));
            }
            let _ = writeln!(text, "  {}", row.verdict());
        }
        text.push_str("Each figure: median, least to greatest, and the 95 % confidence interval of the mean.\n");
        text
    }
}

/// The figures of the table, and their titles.
const COLUMNS: &[(&str, &str)] = &[
    ("p50_s", "p50, s"),
    ("p99_over_bound", "p99 over bound"),
    ("origin_copies", "origin copies"),
    ("wan_copies", "wide-area copies"),
];
/// Width of a column, in characters.
const COLUMN: usize = 36;

/// A spread in a table.
fn cell(spread: &Spread) -> String {
    let Spread {
        median, min, max, ..
    } = spread;
    match spread.confidence {
        Some(confidence) => {
            let (low, high) = (spread.mean - confidence, spread.mean + confidence);
            format!("{median:.3} {min:.3}-{max:.3} [{low:.3} {high:.3}]")
        }
        None => format!("{median:.3}"),
    }
}

impl Summary {
    fn of(scenario: &str, runs: &[RunResult]) -> Self {
        let outcomes: Vec<&Outcome> = runs
            .iter()
            .map(|run| &run.outcome)
            .filter(|outcome| outcome.scenario == scenario)
            .collect();
        let spread = |figure: &Figure| {
            let spread = Spread::of(outcomes.iter().map(|outcome| figure.of(outcome)));
            (figure.name.to_owned(), spread)
        };
        let failed = outcomes.iter().filter(|outcome| !outcome.ok);
        Self {
            scenario: scenario.to_owned(),
            figures: FIGURES.iter().map(spread).collect(),
            failed_rng_seeds: failed.map(|outcome| outcome.rng_seed).collect(),
        }
    }

    fn verdict(&self) -> String {
        if self.failed_rng_seeds.is_empty() {
            return "ok".to_owned();
        }
        let seeds: Vec<String> = self.failed_rng_seeds.iter().map(u64::to_string).collect();
        format!("failed with rng seed {}", seeds.join(", "))
    }
}

fn counts(details: &Details) -> BTreeMap<String, f64> {
    let counts = [
        ("copies across zones", details.cross_zone_copies),
        ("chunks served by peers", details.served as f64),
        ("requests refused as busy", details.refused_busy as f64),
        ("chunks fetched without a lease", details.unleased as f64),
        ("transfers that failed", details.failures as f64),
        ("corrupt chunks detected", details.corrupt as f64),
    ];
    let named = counts.into_iter();
    named
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

/// At most [`MAX_POINTS`] of ascending values, at evenly spaced ranks, and the last one.
fn thin_out(values: &[f64]) -> Vec<f64> {
    if values.len() <= MAX_POINTS {
        return values.to_vec();
    }
    let rank = |point: usize| point * values.len() / MAX_POINTS - 1;
    (1..=MAX_POINTS).map(|point| values[rank(point)]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn result(scenario: &str, rng_seed: u64, p50_s: f64) -> RunResult {
        let outcome = Outcome {
            scenario: scenario.to_owned(),
            rng_seed,
            p50_s,
            ok: rng_seed != 3,
            ..Outcome::default()
        };
        RunResult::new(outcome, rng_seed == 1)
    }

    #[test]
    fn json_of_one_run_and_of_several_is_read_back() {
        let one = result("burst", 1, 2.0);
        let text = serde_json::to_string(&one).unwrap();
        assert!(text.starts_with("{\"scenario\":\"burst\""), "{text}");
        assert_eq!(
            Results::parse(&text).unwrap().runs,
            std::slice::from_ref(&one)
        );
        let several = Results::new(vec![one, result("burst", 2, 4.0)]);
        let text = serde_json::to_string(&several).unwrap();
        assert_eq!(Results::parse(&text).unwrap(), several);
        assert!(Results::parse("{}").is_err());
    }

    #[test]
    fn table_has_a_row_per_scenario_with_its_failed_seeds() {
        let results = Results::new(vec![
            result("burst", 1, 2.0),
            result("burst", 3, 4.0),
            result("churn", 1, 5.0),
        ]);
        assert!(!results.ok);
        let table = results.table();
        let rows: Vec<&str> = table.lines().collect();
        assert!(
            rows[1].starts_with("burst        2  3.000 2.000-4.000 ["),
            "{}",
            rows[1]
        );
        assert!(rows[1].ends_with("failed with rng seed 3"), "{}", rows[1]);
        assert!(rows[2].ends_with("ok"), "{}", rows[2]);
    }

    #[test]
    fn long_curves_keep_their_shape_and_their_end() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        let points = thin_out(&values);
        assert_eq!(points.len(), 200);
        assert_eq!((points[0], points[199]), (5.0, 1000.0));
    }
}

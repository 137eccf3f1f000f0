//! The figures of an outcome by name, and their spread over several seeds.

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

/// A figure of an [`Outcome`]; lower is better, or it is neutral.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name in JSON: the field of [`Outcome`].
    pub name: &'static str,
    /// Its name in tables and reports.
    pub label: &'static str,
    /// Its unit; empty for a ratio or a count.
    pub unit: &'static str,
    get: fn(&Outcome) -> f64,
}

impl Figure {
    /// Its value in an outcome.
    pub fn of(&self, outcome: &Outcome) -> f64 {
        (self.get)(outcome)
    }

    /// The figure with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FIGURES.iter().find(|figure| figure.name == name)
    }
}

const fn figure(
    name: &'static str,
    label: &'static str,
    unit: &'static str,
    get: fn(&Outcome) -> f64,
) -> Figure {
    Figure {
        name,
        label,
        unit,
        get,
    }
}

/// Every figure that may differ between seeds.
pub const FIGURES: &[Figure] = &[
    figure("p50_s", "median pull", "s", |outcome| outcome.p50_s),
    figure("p99_s", "99th percentile pull", "s", |outcome| {
        outcome.p99_s
    }),
    figure("max_s", "longest pull", "s", |outcome| outcome.max_s),
    figure(
        "first_byte_p99_s",
        "first chunk, 99th percentile",
        "s",
        |outcome| outcome.first_byte_p99_s,
    ),
    figure("p99_over_bound", "p99 over bound", "", |outcome| {
        outcome.p99_over_bound
    }),
    figure("origin_copies", "origin copies per region", "", |outcome| {
        outcome.origin_copies
    }),
    figure("wan_copies", "wide-area copies", "", |outcome| {
        outcome.wan_copies
    }),
    figure("wan_repeats", "wide-area repeats", "", |outcome| {
        outcome.wan_repeats
    }),
    figure("stall_s", "longest stall", "s", |outcome| outcome.stall_s),
    figure("stranded", "stranded peers", "", |outcome| {
        outcome.stranded.into()
    }),
    figure("simulated_s", "simulated time", "s", |outcome| {
        outcome.simulated_s
    }),
    figure("events", "events", "", |outcome| outcome.events as f64),
    figure("tracker_messages", "tracker messages", "", |outcome| {
        outcome.tracker_messages as f64
    }),
];

/// How a figure spreads over the seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Number of values.
    pub count: usize,
    /// Least value.
    pub min: f64,
    /// Median: of an even number of values the mean of the middle two.
    pub median: f64,
    /// Greatest value.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Half the width of the 95 % confidence interval of the mean, by Student's t distribution;
    /// `None` for a single value.
    pub confidence: Option<f64>,
}

impl Spread {
    /// The spread of some values; all zero if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let confidence = (count > 1).then(|| {
            let squares: f64 = values
                .iter()
                .map(|value| (value - mean) * (value - mean))
                .sum();
            let freedom = count - 1;
            let deviation = (squares / freedom as f64).sqrt();
            student_t(freedom) * deviation / (count as f64).sqrt()
        });
        Self {
            count,
            min: *min,
            median: (values[(count - 1) / 2] + values[count / 2]) / 2.0,
            max: *max,
            mean,
            confidence,
        }
    }
}

/// The 97.5th percentile of Student's t distribution with so many degrees of freedom; above 30 an
/// approximation that is right to 0.3 %.
fn student_t(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    match freedom.checked_sub(1).and_then(|at| TABLE.get(at)) {
        Some(quantile) => *quantile,
        None => 1.96 + 2.4 / freedom as f64,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn spread_of_known_values() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert_eq!(spread.mean, 2.5);
        // Deviation 1.2910, t 3.182, four values.
        assert!((spread.confidence.unwrap() - 2.0540).abs() < 1e-3);
    }

    #[test]
    fn single_value_has_no_confidence_interval() {
        assert_eq!(Spread::of([7.0]).confidence, None);
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn student_t_is_continuous_at_the_end_of_the_table() {
        assert!((student_t(31) - 2.0395).abs() < 0.003);
        assert!((student_t(120) - 1.9799).abs() < 0.003);
    }

    #[test]
    fn figures_are_named_as_in_json() {
        let json = serde_json::to_value(Outcome::default()).unwrap();
        for figure in FIGURES {
            assert!(json.get(figure.name).is_some(), "{}", figure.name);
        }
    }
}

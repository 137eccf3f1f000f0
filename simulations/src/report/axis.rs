//! Axes: their titles with units, and round numbers along them.

/// An axis from `start` to `end`.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// Title, with the unit.
    pub(super) title: String,
    /// The least value; zero except in [`Self::range`].
    pub(super) start: f64,
    /// The greatest value, above `start`.
    pub(super) end: f64,
    /// Labelled values.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis whose labels are values in `unit`.
    pub(super) fn new(title: &str, unit: &str, end: f64, max_ticks: u32) -> Self {
        Self::scaled(title, unit, end, max_ticks, 1.0)
    }

    /// As [`Self::new`], in thousands, millions and so on of the unit.
    pub(super) fn with_prefix(title: &str, unit: &str, end: f64, max_ticks: u32) -> Self {
        let (divisor, prefix) = prefix(end);
        Self::scaled(title, &format!("{prefix}{unit}"), end, max_ticks, divisor)
    }

    /// An axis of time.
    pub(super) fn time(title: &str, end_s: f64) -> Self {
        Self::new(title, "s", end_s, 8)
    }

    /// Shares from 0 to 100 %.
    pub(super) fn share(title: &str) -> Self {
        Self::scaled(title, "%", 1.0, 5, 0.01)
    }

    /// An axis around values from `min` to `max`, with some space at both ends.
    pub(super) fn range(title: &str, unit: &str, min: f64, max: f64, max_ticks: u32) -> Self {
        let margin = ((max - min) * 0.1).max(max.abs() * 0.01).max(1e-3);
        let start = (min - margin).max(0.0);
        let end = max + margin;
        Self {
            title: with_unit(title, unit),
            start,
            end,
            ticks: ticks(start, end, max_ticks),
        }
    }

    fn scaled(title: &str, unit: &str, end: f64, max_ticks: u32, divisor: f64) -> Self {
        let end = if end > 0.0 { end } else { divisor };
        let ticks = ticks(0.0, end / divisor, max_ticks);
        Self {
            title: with_unit(title, unit),
            start: 0.0,
            end,
            ticks: ticks
                .into_iter()
                .map(|(value, label)| (value * divisor, label))
                .collect(),
        }
    }
}

fn with_unit(title: &str, unit: &str) -> String {
    if unit.is_empty() {
        title.to_owned()
    } else {
        format!("{title}, {unit}")
    }
}

/// The divisor and the prefix with which a value is from 1 to 1000.
pub(super) fn prefix(value: f64) -> (f64, &'static str) {
    match value {
        value if value >= 1e12 => (1e12, "T"),
        value if value >= 1e9 => (1e9, "G"),
        value if value >= 1e6 => (1e6, "M"),
        value if value >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    }
}

/// Round values from `start` up to `end` with their labels: `max_ticks` and one at most.
fn ticks(start: f64, end: f64, max_ticks: u32) -> Vec<(f64, String)> {
    // The step is `mantissa` over `10^decimals`, or times the other power.
    let mut decimals = 9_usize;
    let mut unit = 1e-9;
    loop {
        for mantissa in [1.0, 2.0, 5.0] {
            let step = unit * mantissa;
            if end - start <= step * f64::from(max_ticks) * (1.0 + 1e-9) {
                let first = (start / step * (1.0 - 1e-9)).ceil() as u64;
                let last = (end / step * (1.0 + 1e-9)) as u64;
                return (first..=last)
                    .map(|number| {
                        let value = number as f64 * step;
                        (value, format!("{value:.decimals$}"))
                    })
                    .collect();
            }
        }
        unit *= 10.0;
        decimals = decimals.saturating_sub(1);
        if unit > 1e18 {
            return vec![(0.0, "0".to_owned())];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(end: f64) -> Vec<String> {
        ticks(0.0, end, 10)
            .into_iter()
            .map(|(_, label)| label)
            .collect()
    }

    #[test]
    fn labels_are_round_and_within_the_plot() {
        assert_eq!(labels(9.79)[..3], ["0", "1", "2"]);
        assert_eq!(labels(45.0)[..3], ["0", "5", "10"]);
        assert_eq!(labels(0.5)[..3], ["0.00", "0.05", "0.10"]);
        assert_eq!(labels(1.0).last().map(String::as_str), Some("1.0"));
        for end in [0.004, 0.11, 1.3, 21.0, 130.0, 9000.0, 3e10] {
            let ticks = ticks(0.0, end, 8);
            assert!((4..=9).contains(&ticks.len()), "{end}: {ticks:?}");
            assert!(ticks.iter().all(|(value, _)| *value <= end * 1.0001));
        }
    }

    #[test]
    fn range_has_round_labels_within_its_ends() {
        let axis = Axis::range("p99 over bound", "", 1.093, 1.112, 8);
        assert!(axis.start < 1.093 && axis.end > 1.112, "{axis:?}");
        assert!((3..=9).contains(&axis.ticks.len()), "{axis:?}");
        assert!(
            axis.ticks.iter().any(|(_, label)| label == "1.10"),
            "{axis:?}"
        );
        let lone = Axis::range("copies", "", 0.0, 0.0, 8);
        assert!(lone.start == 0.0 && lone.end > 0.0, "{lone:?}");
    }

    #[test]
    fn large_values_get_a_prefix() {
        let axis = Axis::with_prefix("rate", "bit/s", 3.2e9, 5);
        assert_eq!(axis.title, "rate, Gbit/s");
        assert_eq!(axis.ticks[1], (1e9, "1".to_owned()));
        assert_eq!(Axis::share("peers").ticks[1].1, "20");
    }
}

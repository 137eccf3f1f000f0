//! The table of figures.

use core::fmt::Write as _;

use super::escape;
use crate::figures::{FIGURES, Spread};
use crate::outcome::Outcome;
use crate::pairing::{change, label};
use crate::results::RunResult;

/// A table with a column for each group of runs: the medians over its seeds, and of two groups how
/// the second differs.
pub(super) fn table(groups: &[(&str, Vec<&RunResult>)]) -> String {
    let mut head = "<th></th>".to_owned();
    for (name, _) in groups {
        let _ = write!(head, "<th>{}</th>", escape(name));
    }
    if let [_, _] = groups {
        head.push_str("<th>change</th>");
    }
    let mut rows = String::new();
    for figure in FIGURES {
        let of = |outcome: &Outcome| figure.of(outcome);
        row(&mut rows, &label(figure), groups, |run| {
            Some(of(&run.outcome))
        });
    }
    row(&mut rows, "fluid bound, s", groups, |run| {
        Some(run.outcome.fluid_bound_s)
    });
    row(&mut rows, "pipelined bound, s", groups, |run| {
        Some(run.outcome.pipelined_bound_s)
    });
    row(&mut rows, "peers", groups, |run| {
        Some(run.outcome.peers.into())
    });
    let counts = groups.iter().flat_map(|(_, runs)| runs);
    let names = counts
        .filter_map(|run| run.curves.as_ref())
        .flat_map(|curves| curves.counts.keys());
    let names: std::collections::BTreeSet<&String> = names.collect();
    for name in names {
        row(&mut rows, name, groups, |run| {
            run.curves.as_ref()?.counts.get(name).copied()
        });
    }
    format!("<div class=wide><table><tr>{head}</tr>\n{rows}</table></div>\n")
}

fn row(
    rows: &mut String,
    label: &str,
    groups: &[(&str, Vec<&RunResult>)],
    value: impl Fn(&RunResult) -> Option<f64>,
) {
    let _ = write!(rows, "<tr><th>{}</th>", escape(label));
    let mut medians = Vec::new();
    for (_, runs) in groups {
        let values: Vec<f64> = runs.iter().filter_map(|run| value(run)).collect();
        if values.is_empty() {
            rows.push_str("<td></td>");
            continue;
        }
        let median = Spread::of(values).median;
        medians.push(median);
        let _ = write!(rows, "<td>{}</td>", number(median));
    }
    if let ([_, _], [before, now]) = (groups, &medians[..]) {
        let _ = write!(rows, "<td>{}</td>", change(*before, *now));
    }
    rows.push_str("</tr>\n");
}

/// Whole numbers without digits after the point.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

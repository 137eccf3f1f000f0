//! The report of a run: one HTML page without external resources.

use core::fmt::Write as _;

use crate::outcome::Outcome;

/// The position of the plot in its SVG, in SVG units: left edge (with room for labels), width, top
/// and bottom.
const LEFT: f64 = 48.0;
const WIDTH: f64 = 672.0;
const TOP: f64 = 20.0;
const HEIGHT: f64 = 280.0;

/// Renders the page: the verdict, the share of started and complete peers over time, and a table of
/// figures.
pub fn report(outcome: &Outcome) -> String {
    let name = escape(&outcome.scenario);
    let verdict = if outcome.ok { "ok" } else { "not ok" };
    let mut rows = String::new();
    for (label, value) in figures(outcome) {
        let _ = writeln!(rows, "<tr><th>{label}</th><td>{value}</td></tr>");
    }
    let complaints: String = outcome
        .details
        .complaints
        .iter()
        .map(|complaint| format!("<p class=bad>{}</p>\n", escape(complaint)))
        .collect();
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>{name}</title>\n<style>{STYLE}</style>\n\
         <h1>{name}: {verdict}</h1>\n{complaints}{curve}\n<table>\n{rows}</table>\n</html>\n",
        curve = curve(outcome)
    )
}

const STYLE: &str = ":root{color-scheme:light dark;--ground:#fff;--ink:#222;--label:#555;--grid:#ddd;--bound:#c60;\
    --first:#7ab;--done:#06c;--bad:#b00}\
    @media(prefers-color-scheme:dark){:root{--ground:#16181b;--ink:#ddd;--label:#aaa;--grid:#3a3d41;--bound:#e93;\
    --done:#5af;--bad:#f77}}\
    body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color:var(--ink);\
    background:var(--ground)}table{border-collapse:collapse}th{text-align:left;padding-right:2em;font-weight:500}\
    td{text-align:right;font-variant-numeric:tabular-nums}.bad{color:var(--bad)}svg{width:100%}\
    text{font-size:12px;fill:var(--label)}.grid{stroke:var(--grid)}.bound{stroke:var(--bound);stroke-dasharray:4 3}\
    .over{paint-order:stroke;stroke:var(--ground);stroke-width:6px}path{fill:none;stroke-width:2px}\
    .first{stroke:var(--first);color:var(--first)}.done{stroke:var(--done);color:var(--done)}";

fn figures(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let seconds = |value: f64| format!("{value:.3} s");
    let details = &outcome.details;
    vec![
        ("peers", outcome.peers.to_string()),
        ("median", seconds(outcome.p50_s)),
        ("99th percentile", seconds(outcome.p99_s)),
        ("last", seconds(outcome.max_s)),
        (
            "first chunk, 99th percentile",
            seconds(outcome.first_byte_p99_s),
        ),
        ("fluid bound", seconds(outcome.fluid_bound_s)),
        ("pipelined bound", seconds(outcome.pipelined_bound_s)),
        (
            "99th percentile over bound",
            format!("{:.3}", outcome.p99_over_bound),
        ),
        (
            "copies from the origin",
            format!("{:.3}", outcome.origin_copies),
        ),
        (
            "copies across zones",
            format!("{:.2}", details.cross_zone_copies),
        ),
        ("bytes between regions", outcome.wan_bytes.to_string()),
        ("stranded", outcome.stranded.to_string()),
        ("chunks served by peers", details.served.to_string()),
        ("requests refused as busy", details.refused_busy.to_string()),
        (
            "chunks fetched without a lease",
            details.unleased.to_string(),
        ),
        ("transfers failed", details.failures.to_string()),
        ("corrupt chunks detected", details.corrupt.to_string()),
        ("events", outcome.events.to_string()),
        ("rng seed", outcome.rng_seed.to_string()),
        ("trace", outcome.trace_hash.clone()),
    ]
}

/// The shares of peers that have their first chunk and that are complete, over time, with both
/// lower bounds.
fn curve(outcome: &Outcome) -> String {
    let details = &outcome.details;
    let bounds = [
        ("fluid bound", outcome.fluid_bound_s, 40.0),
        ("pipelined bound", outcome.pipelined_bound_s, 56.0),
    ];
    let longest = bounds
        .iter()
        .map(|(_, seconds, _)| *seconds)
        .fold(outcome.max_s, f64::max)
        .max(1e-9);
    let end = longest * 1.05;
    let grid: String = [0.0, 0.25, 0.5, 0.75, 1.0]
        .into_iter()
        .map(grid_line)
        .collect();
    let marks: String = bounds
        .into_iter()
        .map(|(label, seconds, height)| mark(label, seconds, end, height))
        .collect();
    let first = steps(&details.first_chunks_s, outcome.peers, end);
    let done = steps(&details.completions_s, outcome.peers, end);
    let times: String = ticks(end)
        .into_iter()
        .map(|seconds| time(seconds, end))
        .collect();
    let width = LEFT + WIDTH;
    format!(
        "<svg viewBox='0 0 {width} {}' role=img aria-label='share of peers that have their first chunk and that are complete, over time'>\
         {grid}{times}{marks}<path class=first d='{first}'/><path class=done d='{done}'/></svg>\n\
         <p>Of all peers <span class=first>&#9644;</span> have their first chunk, \
         <span class=done>&#9644;</span> are complete</p>",
        HEIGHT + 24.0
    )
}

fn x(seconds: f64, end: f64) -> f64 {
    LEFT + seconds / end * WIDTH
}

fn y(share: f64) -> f64 {
    HEIGHT - share * (HEIGHT - TOP)
}

/// A horizontal line at a share of the peers, with its label.
fn grid_line(share: f64) -> String {
    let at = y(share);
    let right = LEFT + WIDTH;
    format!(
        "<line x1='{LEFT}' x2='{right}' y1='{at:.1}' y2='{at:.1}' class=grid />\
         <text x='{:.1}' y='{:.1}' text-anchor='end'>{:.0} %</text>",
        LEFT - 6.0,
        at + 4.0,
        share * 100.0
    )
}

/// Round times from zero up to `end`, in seconds: eleven at most.
fn ticks(end: f64) -> Vec<f64> {
    let mut step_ms = 1_u32;
    // 1, 2, 5, 10, and so on.
    for factor in [4, 5, 4].into_iter().cycle().take(30) {
        if end * 1000.0 <= 10.0 * f64::from(step_ms) {
            break;
        }
        step_ms = step_ms.saturating_mul(factor) / 2;
    }
    let seconds = (0_u32..).map(|number| f64::from(number) * f64::from(step_ms) / 1000.0);
    seconds
        .take_while(|seconds| *seconds <= end)
        .take(11)
        .collect()
}

/// A time below the plot.
fn time(seconds: f64, end: f64) -> String {
    let at = x(seconds, end);
    let bottom = HEIGHT + 18.0;
    format!("<text x='{at:.1}' y='{bottom}' text-anchor='middle'>{seconds} s</text>")
}

/// A lower bound: a vertical line, with its label to the left, drawn over the other lines.
fn mark(label: &str, seconds: f64, end: f64, height: f64) -> String {
    let at = x(seconds, end);
    format!(
        "<line x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{HEIGHT}' class=bound />\
         <text x='{:.1}' y='{height}' text-anchor='end' class=over>\
         {label} {seconds:.2} s</text>",
        at - 5.0
    )
}

/// The path of a step function that rises at each of the ascending `times`, in seconds.
fn steps(times: &[f64], peers: u32, end: f64) -> String {
    let mut path = format!("M{LEFT} {HEIGHT}");
    for (count, seconds) in (1_u32..).zip(times) {
        let share = f64::from(count) / f64::from(peers.max(1));
        let _ = write!(path, "H{:.1}V{:.1}", x(*seconds, end), y(share));
    }
    let _ = write!(path, "H{:.1}", LEFT + WIDTH);
    path
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use crate::{Scenario, run};

    #[test]
    fn report_escapes_text_and_has_no_external_resources() {
        let scenario = Scenario::parse(
            "name = '<one>'\n[image]\nlayers = ['1MiB']\n[peers]\ncount = 2\nup = '10Mbit'\ndown = '10Mbit'\n[origin]\nup = '10Mbit'",
        )
        .unwrap();
        let page = super::report(&run(&scenario, 1));
        assert!(page.contains("&lt;one&gt;: ok"));
        assert!(page.contains("<svg"));
        assert!(!page.contains("http"));
    }

    #[test]
    fn axis_times_are_round_and_within_the_plot() {
        assert_eq!(
            super::ticks(9.79),
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
        );
        assert_eq!(
            super::ticks(45.0),
            [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0]
        );
        for end in [0.004, 0.11, 1.3, 21.0, 130.0, 9000.0] {
            let ticks = super::ticks(end);
            assert!(
                (5..=11).contains(&ticks.len()) && ticks.iter().all(|at| *at <= end),
                "{end}: {ticks:?}"
            );
        }
    }
}

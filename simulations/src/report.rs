//! A run as one HTML page without anything from elsewhere.

use core::fmt::Write as _;

use crate::outcome::Outcome;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;

/// The page: what came of it, the figures, and when how many peers were done.
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

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;color:#222}\
    table{border-collapse:collapse}th{text-align:left;padding-right:2em;font-weight:500}\
    td{text-align:right;font-variant-numeric:tabular-nums}.bad{color:#b00}svg{width:100%}text{font-size:12px;fill:#555}";

fn figures(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let seconds = |value: f64| format!("{value:.3} s");
    let details = &outcome.details;
    vec![
        ("peers", outcome.peers.to_string()),
        ("median", seconds(outcome.p50_s)),
        ("99th percentile", seconds(outcome.p99_s)),
        ("last", seconds(outcome.max_s)),
        ("first chunk, 99th percentile", seconds(outcome.first_byte_p99_s)),
        ("fluid bound", seconds(outcome.fluid_bound_s)),
        ("pipelined bound", seconds(outcome.pipelined_bound_s)),
        ("99th percentile over bound", format!("{:.3}", outcome.p99_over_bound)),
        ("copies from the origin", format!("{:.3}", outcome.origin_copies)),
        ("copies across zones", format!("{:.2}", details.cross_zone_copies)),
        ("bytes between regions", outcome.wan_bytes.to_string()),
        ("stranded", outcome.stranded.to_string()),
        ("chunks served by peers", details.served.to_string()),
        ("requests refused as busy", details.refused_busy.to_string()),
        ("chunks fetched without a lease", details.unleased.to_string()),
        ("transfers failed", details.failures.to_string()),
        ("corrupt chunks found out", details.corrupt.to_string()),
        ("events", outcome.events.to_string()),
        ("seed of the generator", outcome.rng_seed.to_string()),
        ("trace", outcome.trace_hash.clone()),
    ]
}

/// The share of peers that are done, over time, with both bounds.
fn curve(outcome: &Outcome) -> String {
    let times = &outcome.details.completions_s;
    let end = outcome.max_s.max(outcome.pipelined_bound_s).max(outcome.fluid_bound_s).max(1e-9) * 1.05;
    let x = |seconds: f64| seconds / end * WIDTH;
    let y = |share: f64| HEIGHT - share * (HEIGHT - 20.0);
    let mut path = format!("M0 {HEIGHT}");
    for (done, seconds) in times.iter().enumerate() {
        let share = (done + 1) as f64 / f64::from(outcome.peers.max(1));
        let _ = write!(path, "H{:.1}V{:.1}", x(*seconds), y(share));
    }
    let mut marks = String::new();
    for (label, seconds, height) in
        [("fluid bound", outcome.fluid_bound_s, 34.0), ("pipelined bound", outcome.pipelined_bound_s, 52.0)]
    {
        let at = x(seconds);
        let _ = write!(
            marks,
            "<line x1='{at:.1}' x2='{at:.1}' y1='20' y2='{HEIGHT}' stroke='#c60' stroke-dasharray='4 3'/>\
             <text x='{:.1}' y='{height}' text-anchor='end'>{label} {seconds:.2} s</text>",
            at - 4.0
        );
    }
    let bottom = HEIGHT + 16.0;
    format!(
        "<svg viewBox='0 0 {WIDTH} {}' role=img aria-label='share of peers that are done, over time'>{marks}\
         <path d='{path}' fill=none stroke='#06c' stroke-width=2 />\
         <text x=0 y={bottom}>0 s</text><text x={WIDTH} y={bottom} text-anchor=end>{end:.2} s</text></svg>",
        HEIGHT + 20.0
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use crate::{Scenario, run};

    #[test]
    fn a_report_stands_alone_and_escapes() {
        let scenario = Scenario::parse(
            "name = '<one>'\n[image]\nlayers = ['1MiB']\n[peers]\ncount = 2\nup = '10Mbit'\ndown = '10Mbit'\n[origin]\nup = '10Mbit'",
        )
        .unwrap();
        let page = super::report(&run(&scenario, 1));
        assert!(page.contains("&lt;one&gt;: ok"));
        assert!(page.contains("<svg"));
        assert!(!page.contains("http"));
    }
}

//! Reports: HTML pages without external resources, of one run, of several seeds, or of two results
//! side by side.
//!
//! A page has no scripts, follows the reader's choice of light or dark, and is laid out from 400
//! pixels on.

mod axis;
mod charts;
mod plot;
mod seeds;
mod sweep;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use self::charts::{Scale, Shown};
use crate::outcome::Outcome;
use crate::pairing::pairs;
use crate::results::{Results, RunResult};

/// The page of results: charts of each sweep, and for each scenario the verdict, charts and a table
/// of figures.
pub fn report(results: &Results) -> String {
    let title = match &results.summaries[..] {
        [summary] => summary.scenario.clone(),
        summaries => format!("{} scenarios", summaries.len()),
    };
    let sections: Vec<String> = results
        .summaries
        .iter()
        .map(|summary| {
            let runs: Vec<&RunResult> = results.of_scenario(&summary.scenario).collect();
            section(&summary.scenario, &[("", runs)])
        })
        .collect();
    page(&title, &(sweep::sections(results) + &sections.concat()))
}

/// The page of two results side by side: of the scenarios that both have, or, if they have none in
/// common, of their first ones.
pub fn compare_report(one: &Results, other: &Results, names: [&str; 2]) -> String {
    let sections: Vec<String> = pairs(one, other)
        .into_iter()
        .map(|pair| {
            section(
                &pair.heading,
                &[(names[0], pair.one), (names[1], pair.other)],
            )
        })
        .collect();
    let title = format!("{} and {}", names[0], names[1]);
    page(&title, &sections.concat())
}

/// A scenario with one group of runs, or two to compare.
fn section(heading: &str, groups: &[(&str, Vec<&RunResult>)]) -> String {
    let all = || groups.iter().flat_map(|(_, runs)| runs.iter().copied());
    let is_ok = all().all(|run| run.outcome.ok);
    let verdict = if is_ok { "ok" } else { "not ok" };
    let has_seeds = groups.iter().any(|(_, runs)| runs.len() > 1);
    let mut text = format!("<h2>{}: {verdict}</h2>\n", escape(heading));
    let complaints: BTreeSet<&str> = all()
        .filter_map(|run| run.curves.as_ref())
        .flat_map(|curves| curves.complaints.iter().map(String::as_str))
        .collect();
    for complaint in complaints {
        text.push_str(&format!("<p class=bad>{}</p>\n", escape(complaint)));
    }
    text.push_str("<div class=charts>\n");
    text.push_str(&charts::completions(&shown(groups)));
    if has_seeds {
        let outcomes: Vec<(&str, Vec<&Outcome>)> = groups
            .iter()
            .map(|(name, runs)| {
                let name = if name.is_empty() { "seeds" } else { *name };
                (name, runs.iter().map(|run| &run.outcome).collect())
            })
            .collect();
        text.push_str(&seeds::strips(&outcomes).concat());
    }
    text.push_str("</div>\n");
    text.push_str(&over_time(groups));
    let named: Vec<(&str, Vec<&RunResult>)> = groups
        .iter()
        .map(|(name, runs)| {
            let name = match (name.is_empty(), runs.len()) {
                (false, _) => *name,
                (true, 1) => "value",
                (true, _) => "median over the seeds",
            };
            (name, runs.clone())
        })
        .collect();
    text.push_str(&table::table(&named));
    text.push_str(&provenance(&all().collect::<Vec<_>>()));
    text
}

/// The runs in the chart of completions: those of one group each as a line, or the groups in two
/// colours.
fn shown<'a>(groups: &[(&'a str, Vec<&'a RunResult>)]) -> Vec<Shown<'a>> {
    let mut shown = Vec::new();
    for (number, (name, runs)) in groups.iter().enumerate() {
        let class = if number == 0 { "c0" } else { "c3" };
        for (at, run) in runs.iter().enumerate() {
            let label = match (at, name.is_empty()) {
                (0, true) if runs.len() == 1 => "are complete",
                (0, true) => "are complete, a line for each seed",
                (0, false) => name,
                _ => "",
            };
            shown.push(Shown { run, label, class });
        }
    }
    shown
}

/// The charts over time of the first run of each group, in a column each.
fn over_time(groups: &[(&str, Vec<&RunResult>)]) -> String {
    let firsts: Vec<(&str, &RunResult)> = groups
        .iter()
        .filter_map(|(name, runs)| Some((*name, *runs.first()?)))
        .collect();
    let curves = || firsts.iter().filter_map(|(_, run)| run.curves.as_ref());
    let scale = Scale::of(curves().filter_map(|curves| curves.timeline.as_ref()));
    let charts: Vec<Vec<String>> = curves()
        .map(|curves| charts::over_time(curves, &scale))
        .collect();
    if charts.iter().all(Vec::is_empty) {
        let hint = "Curves over time: run with --curves, so that the JSON has them.";
        return format!("<p class=note>{hint}</p>\n");
    }
    let seeds: Vec<String> = firsts
        .iter()
        .map(|(name, run)| {
            let seed = run.outcome.rng_seed;
            match name.is_empty() {
                true => format!("rng seed {seed}"),
                false => format!("{name} with rng seed {seed}"),
            }
        })
        .collect();
    let seeds = escape(&seeds.join(" (left), "));
    let mut text = format!("<h3>Over time: {seeds}</h3>\n");
    let is_pair = charts.len() == 2;
    let class = if is_pair { "charts pair" } else { "charts" };
    text.push_str(&format!("<div class='{class}'>\n"));
    let most = charts.iter().map(Vec::len).max().unwrap_or(0);
    for at in 0..most {
        for column in &charts {
            text.push_str(column.get(at).map_or("<figure></figure>", String::as_str));
        }
    }
    text.push_str("</div>\n");
    text
}

/// Which runs the section shows.
fn provenance(runs: &[&RunResult]) -> String {
    let traces: Vec<String> = runs
        .iter()
        .map(|run| {
            format!(
                "rng seed {}: {}",
                run.outcome.rng_seed, run.outcome.trace_hash
            )
        })
        .collect();
    format!("<p class=note>Traces: {}</p>\n", escape(&traces.join(", ")))
}

fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\
         <meta name=viewport content='width=device-width'><title>{title}</title>\n\
         <style>{STYLE}</style>\n<h1>{title}</h1>\n{body}</html>\n"
    )
}

const STYLE: &str = ":root{color-scheme:light dark;--ground:#fff;--ink:#222;--label:#555;--grid:#ddd;\
    --bad:#b00;--c0:#0b62a8;--c1:#4fa8dd;--c2:#d98a00;--c3:#c8440b;--c4:#b0609a;--c5:#0a8a66;--c6:#7a5bb5;\
    --c7:#777;--c8:#9a7a10;--c9:#333}\
    @media(prefers-color-scheme:dark){:root{--ground:#16181b;--ink:#ddd;--label:#aaa;--grid:#3a3d41;\
    --bad:#f77;--c0:#4f9fe8;--c1:#9ad0f5;--c2:#f0b03a;--c3:#f2784b;--c4:#d991c5;--c5:#3cc79c;--c6:#ac92e0;\
    --c7:#999;--c8:#d0b040;--c9:#eee}}\
    body{font:15px/1.5 system-ui,sans-serif;max-width:1500px;margin:1.5em auto;padding:0 1em;\
    color:var(--ink);background:var(--ground)}\
    h1{font-size:1.6em;margin:.5em 0}h2{font-size:1.3em}h3{font-size:1.1em;font-weight:500}\
    h1,h2,h3{overflow-wrap:anywhere}\
    .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1em 2em}\
    .pair{grid-template-columns:1fr}@media(min-width:800px){.pair{grid-template-columns:1fr 1fr}}\
    figure{margin:0;min-width:0;max-width:720px}figcaption{font-weight:600}\
    svg{width:100%;height:auto;display:block}text{font-size:13px;fill:var(--label)}\
    .title{fill:var(--ink)}.grid{stroke:var(--grid)}.bound{stroke:currentColor;stroke-dasharray:4 3}\
    .over{fill:var(--ink);paint-order:stroke;stroke:var(--ground);stroke-width:5px}\
    .line{fill:none;stroke:currentColor;stroke-width:2px}.area{fill:currentColor}\
    .heat{fill:var(--c0)}circle{fill:currentColor;fill-opacity:.6}\
    ul{list-style:none;margin:.3em 0;padding:0;display:flex;flex-wrap:wrap;gap:0 1.2em;font-size:13px}\
    .key{display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em;\
    background:currentColor}.key.heat{background:var(--c0)}\
    .c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}\
    .c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}.c8{color:var(--c8)}.c9{color:var(--c9)}\
    .wide{overflow-x:auto}table{border-collapse:collapse;margin-top:1em}\
    th{text-align:left;padding-right:2em;font-weight:500}\
    td{text-align:right;font-variant-numeric:tabular-nums;padding-right:1em}\
    tr:first-child th:not(:first-child){text-align:right;padding-right:1em}\
    .bad{color:var(--bad)}.note{color:var(--label);font-size:13px;overflow-wrap:anywhere}";

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
}

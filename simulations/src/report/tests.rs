#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use crate::{Results, RunOptions, RunResult, Scenario, compare_report, report, run_with};

fn results(name: &str, rng_seeds: &[u64]) -> Results {
    let scenario = Scenario::parse(&format!(
        "name = '{name}'\n[image]\nlayers = ['1MiB']\n[peers]\ncount = 4\nzones = 2\nup = '10Mbit'\n\
         down = '10Mbit'\n[origin]\nup = '10Mbit'"
    ))
    .unwrap();
    let options = RunOptions {
        has_timeline: true,
        ..RunOptions::default()
    };
    let runs = rng_seeds
        .iter()
        .map(|rng_seed| RunResult::new(run_with(&scenario, *rng_seed, &options), true));
    Results::new(runs.collect())
}

/// Every tag that is opened is closed, apart from those that HTML closes by itself.
fn assert_balanced(page: &str) {
    for tag in ["svg", "figure", "div", "table", "ul", "text", "li", "h2"] {
        let opened =
            page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn report_escapes_text_and_has_no_external_resources() {
    let page = report(&results("<one>", &[1]));
    assert!(page.contains("<h2>&lt;one&gt;: ok</h2>"));
    for chart in [
        "Completion",
        "Origins and wide area",
        "Bytes by source",
        "Waits by reason",
        "Zones over time",
    ] {
        assert!(
            page.contains(&format!("<figcaption>{chart}</figcaption>")),
            "{chart}"
        );
    }
    assert!(!page.contains("http"));
    assert!(!page.contains("<script"));
    assert!(!page.contains("NaN"));
    assert_balanced(&page);
}

#[test]
fn sweep_is_drawn_before_its_scenarios() {
    let mut runs = Vec::new();
    for value in ["1", "2", "3"] {
        runs.extend(results(&format!("burst, machine.slots = {value}"), &[1, 2]).runs);
    }
    let page = report(&Results::new(runs));
    let sweep = page.find("<h2>burst by machine.slots</h2>").unwrap();
    assert!(sweep < page.find("<h2>burst, machine.slots = 1: ok</h2>").unwrap());
    assert!(page.contains("p99 over bound by machine.slots</figcaption>"));
    assert!(page.contains("lowest median: "));
    assert_balanced(&page);
    assert!(!report(&results("burst, machine.slots = 1", &[1, 2])).contains(" by machine.slots"));
}

#[test]
fn several_seeds_are_shown_with_their_spread() {
    let page = report(&results("burst", &[1, 2, 3]));
    assert!(page.contains("p99 over bound of each seed"));
    assert!(page.contains("95 % interval of the mean"));
    assert!(page.contains("median over the seeds"));
    assert_balanced(&page);
}

#[test]
fn two_results_are_shown_side_by_side() {
    let (one, other) = (results("burst", &[1]), results("burst", &[2]));
    let page = compare_report(&one, &other, ["before", "after"]);
    assert!(page.contains("<th>before</th><th>after</th><th>change</th>"));
    assert_eq!(
        page.matches("<figcaption>Bytes by source</figcaption>")
            .count(),
        2
    );
    assert_eq!(
        page.matches("<figcaption>Completion</figcaption>").count(),
        1
    );
    assert_balanced(&page);
}

#[test]
fn results_without_curves_are_shown_with_a_hint() {
    let mut results = results("burst", &[1]);
    results.runs[0].curves = None;
    let page = report(&results);
    assert!(page.contains("run with --curves"));
    assert_balanced(&page);
}

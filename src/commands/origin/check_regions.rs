//! `flotilla origin check --regions`: compares a region with the others of its policy.

use std::fmt::Write as _;
use std::sync::Arc;

use flotilla_common::units::Period;
use flotilla_origin::check::regions::{Owed, RegionReport, RegionsReport, check_regions};
use flotilla_origin::storage::Storage;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::Identity;

use super::check::render_findings;
use crate::command::{CommandError, print_outcome};

/// Compares the regions, and prints how they differ.
///
/// # Errors
/// The storage cannot be read; [`CommandError::CriteriaNotMet`] if something is wrong that
/// replication does not mend.
pub(super) async fn run(
    storage: Arc<dyn Storage>,
    identity: Option<&Identity>,
    deep: bool,
    json: bool,
) -> Result<(), CommandError> {
    let action = "compare the regions";
    let identity = identity.ok_or_else(|| {
        CommandError::failed(
            action,
            "other regions answer only a certificate of a region",
        )
    })?;
    let report = check_regions(storage, identity, Clock::system(), deep).await;
    let report = report.map_err(|error| CommandError::failed(action, error))?;
    print_outcome(&report, json, render, report.is_complete())
}

fn render(report: &RegionsReport) -> String {
    let mut text = String::new();
    let own = &report.region;
    for region in &report.regions {
        render_region(&mut text, own.as_str(), region);
    }
    if let Some(compared) = report.compared {
        let _ = writeln!(text, "{compared:>12} keys compared");
        let _ = writeln!(text, "{:>12} not yet replicated", report.pending.count);
        render_findings(&mut text, &report.pending);
        let _ = writeln!(text, "{:>12} missing or different", report.damage.count);
        render_findings(&mut text, &report.damage);
    }
    let is_unasked = report
        .regions
        .iter()
        .any(|region| !region.problems.is_empty());
    text.push_str(match (report.is_complete(), is_unasked) {
        (true, _) => "the regions agree, except for what is not yet replicated\n",
        (false, true) => "incomplete: see the problems above\n",
        (false, false) => "damaged: push the affected images again\n",
    });
    text
}

fn render_region(text: &mut String, own: &str, region: &RegionReport) {
    let name = &region.region;
    let _ = writeln!(text, "region {name}, {}", region.url);
    if let Some(ahead_s) = region.clock_ahead_s {
        let storage = match region.storage_usable {
            Some(true) => "usable",
            _ => "out",
        };
        let _ = writeln!(text, "  storage {storage}, clock {ahead_s:+.1} s");
    }
    let whole = |is_whole| if is_whole { "whole" } else { "not whole yet" };
    let mut towards = |from: &str, to: &str, owed: Option<&Owed>, is_whole: Option<bool>| {
        if let (Some(owed), Some(is_whole)) = (owed, is_whole) {
            let _ = writeln!(text, "  {from} to {to}: {}, {}", lag(owed), whole(is_whole));
        }
    };
    let name = name.as_str();
    towards(name, own, region.owes.as_ref(), Some(region.whole_from_it));
    towards(own, name, Some(&region.owed), region.whole);
    for problem in &region.problems {
        let _ = writeln!(text, "  problem: {problem}");
    }
}

fn lag(owed: &Owed) -> String {
    let oldest = owed.oldest_s.map(|age_s| {
        let age = Period(std::time::Duration::from_secs(age_s));
        format!(", the oldest {age}")
    });
    let sweep = if owed.sweep { ", a sweep" } else { "" };
    match owed.entries {
        0 => format!("nothing owed{sweep}"),
        entries => format!(
            "{entries} entries owed{}{sweep}",
            oldest.unwrap_or_default()
        ),
    }
}

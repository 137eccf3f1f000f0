//! `flotilla origin check`: whether a storage holds what was acknowledged.

use std::fmt::Write as _;

use clap::Args;
use flotilla_common::units::ByteSize;
use flotilla_origin::check::{Findings, Report, check};
use flotilla_origin::storage::{self, missing_credentials};

use crate::cli::{CommandError, block_on, conclude};

/// Findings that are printed for people; `--json` has up to 1000.
const SHOWN: usize = 50;

/// The arguments of `flotilla origin check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Only reads; origins may run meanwhile. Exit status 1 if something that was acknowledged is not whole. What a push that was
cut short left over is no damage.

Examples:
  flotilla origin check --storage file:///var/lib/flotilla/origin
  flotilla origin check --storage s3://bucket/prefix --deep --json | jq .damage")]
pub(super) struct CheckArgs {
    /// The storage, as its origins are given it
    #[arg(long, value_name = "URL", env = "FLOTILLA_STORAGE")]
    storage: String,
    /// Read and hash the bytes of every blob, too
    #[arg(long)]
    deep: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Checks, and prints what was found.
///
/// # Errors
/// If the storage cannot be read; [`CommandError::NotOk`] if something is wrong.
pub(super) fn run(args: &CheckArgs) -> Result<(), CommandError> {
    block_on(async {
        let storage = storage::open_existing(&args.storage);
        let storage = storage.map_err(|error| CommandError::failed("open the storage", error))?;
        let checked = check(storage, args.deep).await;
        let report = checked.map_err(|error| {
            let cure = missing_credentials(&error.to_string()).map(|cure| format!("; {cure}"));
            CommandError::failed(
                "check the storage",
                format!("{error}{}", cure.unwrap_or_default()),
            )
        })?;
        conclude(&report, args.json, rendered, report.is_sound())
    })
}

fn rendered(report: &Report) -> String {
    let mut text = String::new();
    for (kind, count) in &report.objects {
        let _ = writeln!(text, "{count:>12} {kind}");
    }
    if report.hashed_bytes > 0 {
        let _ = writeln!(
            text,
            "{:>12} hashed",
            ByteSize(report.hashed_bytes).to_string()
        );
    }
    let _ = writeln!(text, "{:>12} left over, harmless", report.leftovers.count);
    list(&mut text, &report.leftovers);
    let _ = writeln!(text, "{:>12} damaged", report.damage.count);
    list(&mut text, &report.damage);
    let is_empty = report.objects.values().all(|count| *count == 0);
    text.push_str(match (report.is_sound(), is_empty) {
        (true, _) => "sound\n",
        (false, true) => {
            "NOT SOUND: there is nothing at all; is --storage what its origins are given?\n"
        }
        (false, false) => "NOT SOUND: push the images again that these belong to\n",
    });
    text
}

fn list(text: &mut String, findings: &Findings) {
    for finding in findings.shown.iter().take(SHOWN) {
        let _ = writeln!(text, "             {}: {}", finding.key, finding.problem);
    }
    let rest = findings.count.saturating_sub(SHOWN as u64);
    if rest > 0 {
        let _ = writeln!(text, "             and {rest} more (--json)");
    }
}

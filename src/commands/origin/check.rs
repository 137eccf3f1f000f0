//! `flotilla origin check`: verifies that a storage has all acknowledged data.

use std::fmt::Write as _;

use clap::Args;
use flotilla_common::units::ByteSize;
use flotilla_origin::check::{Findings, Report, check};
use flotilla_origin::storage::{self, missing_credentials};

use super::check_regions;
use crate::command::{CommandError, block_on, print_outcome};
use crate::commands::tls::{TlsArgs, WithoutTls};

/// Findings that the text output lists; `--json` lists up to 1000.
const MAX_LISTED: usize = 50;

/// The arguments of `flotilla origin check`.
#[derive(Debug, Args)]
#[command(after_help = "\
It only reads; origins may run meanwhile. The exit status is 1 if acknowledged data is missing or damaged. Remains of
interrupted pushes are not damage.
With --regions it is also 1 if a region does not answer, or if regions differ in what replication will not bring.

Examples:
  flotilla origin check --storage file:///var/lib/flotilla/origin
  flotilla origin check --storage s3://bucket/prefix --deep --json | jq .damage
  flotilla origin check --storage s3://bucket-eu/prefix --regions --deep \\
      --tls-cert pki/origin.pem --tls-key pki/origin.key --tls-ca pki/ca.pem")]
pub(super) struct CheckArgs {
    /// The storage, as in the origins' configuration
    #[arg(long, value_name = "URL", env = "FLOTILLA_STORAGE")]
    storage: String,
    /// Also read every blob and verify its digest; with --regions, compare every key
    #[arg(long)]
    deep: bool,
    /// Compare with the other regions instead: ids, policies, standing and lag; with --deep every
    /// key, and the blobs of every manifest. Needs a certificate of the storage's region
    #[arg(long)]
    regions: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Checks the storage and prints the findings.
///
/// # Errors
/// If the storage cannot be read; [`CommandError::CriteriaNotMet`] if data is missing or damaged.
pub(super) fn run(args: &CheckArgs) -> Result<(), CommandError> {
    block_on(async {
        let storage = storage::open_existing(&args.storage);
        let storage = storage.map_err(|error| CommandError::failed("open the storage", error))?;
        if args.regions {
            let identity = args.tls.identity(WithoutTls::RefuseRegion)?;
            return check_regions::run(storage, identity.as_ref(), args.deep, args.json).await;
        }
        let checked = check(storage, args.deep).await;
        let report = checked.map_err(|error| {
            let fix = missing_credentials(&error.to_string()).map(|fix| format!("; {fix}"));
            CommandError::failed(
                "check the storage",
                format!("{error}{}", fix.unwrap_or_default()),
            )
        })?;
        print_outcome(&report, args.json, render, report.is_complete())
    })
}

fn render(report: &Report) -> String {
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
    let _ = writeln!(text, "{:>12} leftovers, harmless", report.leftovers.count);
    render_findings(&mut text, &report.leftovers);
    let _ = writeln!(text, "{:>12} missing or damaged", report.damage.count);
    render_findings(&mut text, &report.damage);
    let is_empty = report.objects.values().all(|count| *count == 0);
    text.push_str(match (report.is_complete(), is_empty) {
        (true, _) => "complete\n",
        (false, true) => {
            "damaged: the storage is empty; is --storage the same as in the origins' configuration?\n"
        }
        (false, false) => "damaged; push the affected images again\n",
    });
    text
}

pub(super) fn render_findings(text: &mut String, findings: &Findings) {
    for finding in findings.shown.iter().take(MAX_LISTED) {
        let _ = writeln!(text, "             {}: {}", finding.key, finding.problem);
    }
    let rest = findings.count.saturating_sub(MAX_LISTED as u64);
    if rest > 0 {
        let _ = writeln!(text, "             and {rest} more (--json)");
    }
}

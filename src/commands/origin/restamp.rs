//! `flotilla origin restamp`: ends stamps in the future, after a clock ran ahead.

use std::fmt::Write as _;

use clap::Args;
use flotilla_common::name::RegionName;
use flotilla_common::units::Period;
use flotilla_origin::maintenance::{Restamped, Restamping, restamp, wait_until_unused};
use flotilla_runtime::clock::Clock;

use super::repair::{StorageArgs, repair_error};
use crate::command::{CommandError, block_on, print_outcome};

/// Keys that the text output lists; `--json` lists up to 1000.
const MAX_LISTED: usize = 50;

/// The arguments of `flotilla origin restamp`.
#[derive(Debug, Args)]
#[command(after_help = "\
For tags and manifests that were changed while the clock of a machine ran ahead. Until their time comes, no other region
merges them, and changes of them are refused (503). Each gets the time at which the storage wrote it. Stop all
replicas of the region before, and correct the clocks. If it is interrupted, run it again.

Examples:
  flotilla origin restamp --storage s3://bucket-eu/prefix --region eu-1 --dry-run
  flotilla origin restamp --storage s3://bucket-eu/prefix --region eu-1")]
pub(super) struct RestampArgs {
    #[command(flatten)]
    storage: StorageArgs,
    /// The region of the storage
    #[arg(long, value_name = "NAME")]
    region: RegionName,
    /// Only print what would change; origins may run meanwhile
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Restamps a storage, and prints what was changed.
///
/// # Errors
/// An origin uses the storage; the storage fails.
pub(super) fn run(args: &RestampArgs) -> Result<(), CommandError> {
    block_on(async {
        let action = "restamp the storage";
        let storage = args.storage.open()?;
        let asked = Restamping {
            region: args.region.clone(),
            now: Clock::system().unix_nanos(),
            dry_run: true,
        };
        let mut done = restamp(storage.clone(), &asked).await;
        if !args.dry_run && done.as_ref().is_ok_and(|done| !done.is_nothing()) {
            let unused = wait_until_unused(&*storage).await;
            unused.map_err(|error| repair_error(action, &error))?;
            let asked = Restamping {
                now: Clock::system().unix_nanos(),
                dry_run: false,
                ..asked
            };
            done = restamp(storage, &asked).await;
        }
        let done = done.map_err(|error| repair_error(action, &error))?;
        print_outcome(&done, args.json, |done| render(done, args.dry_run), true)
    })
}

fn render(done: &Restamped, is_dry_run: bool) -> String {
    let mut text = String::new();
    for key in done.shown.iter().take(MAX_LISTED) {
        let ahead = Period(std::time::Duration::from_secs(key.ahead_s));
        let _ = writeln!(text, "             {}: {ahead} in the future", key.key);
    }
    let more = (done.manifests + done.tags).saturating_sub(MAX_LISTED as u64);
    if more > 0 {
        let _ = writeln!(text, "             and {more} more");
    }
    for (number, what) in [
        (done.manifests, "manifests"),
        (done.tags, "tags"),
        (done.referrers, "entries of lists of referrers"),
        (done.entries, "journal entries"),
    ] {
        let _ = writeln!(text, "{number:>12} {what}");
    }
    if done.soon > 0 {
        let _ = writeln!(
            text,
            "{:>12} less than 12 minutes in the future: left alone, their time comes by itself",
            done.soon
        );
    }
    text.push_str(match (done.is_nothing(), is_dry_run) {
        (true, _) => "nothing to restamp\n",
        (false, true) => "nothing was written: stop all replicas of the region, then run this without --dry-run\n",
        (false, false) => "restamped: start the replicas of the region again\n",
    });
    text
}

//! `flotilla origin format`: shows the identity of a storage, or renews it after a restore.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use flotilla_common::name::RegionName;
use flotilla_common::storage_id::StorageId;
use flotilla_common::units::Period;
use flotilla_origin::maintenance::{
    Renewed, Renewing, StorageIds, renew, storage_ids, wait_until_unused,
};
use flotilla_runtime::clock::Clock;

use super::repair::{StorageArgs, repair_error};
use crate::command::{CommandError, block_on, print_outcome};

/// The arguments of `flotilla origin format`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each storage has an id, by which other regions know it. A storage that was restored from a backup needs another one before
an origin starts on it (docs/regions.md, \"Restored from a backup\").

Examples:
  flotilla origin format show --storage s3://bucket-eu/prefix
  flotilla origin format renew --storage s3://bucket-eu/prefix --region eu-1 --replace ID --age 3d --dry-run
  flotilla origin format renew --storage s3://bucket-eu/prefix --region eu-1 --replace ID --age 3d")]
pub(super) struct FormatArgs {
    #[command(subcommand)]
    command: FormatCommand,
}

#[derive(Debug, Subcommand)]
enum FormatCommand {
    /// Print the id of a storage, and those that it had before
    Show(ShowArgs),
    /// Give a storage that was restored from a backup another id
    Renew(RenewArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    storage: StorageArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RenewArgs {
    #[command(flatten)]
    storage: StorageArgs,
    /// The region of the storage
    #[arg(long, value_name = "NAME")]
    region: RegionName,
    /// The id that the storage has (`flotilla origin format show`)
    #[arg(long, value_name = "ID")]
    replace: StorageId,
    /// How old the backup may be at most: 6h, 3d. Of one that is older than deletes are remembered,
    /// manifests and tags that other regions keep are removed; they are copied from there again
    #[arg(long, value_name = "PERIOD")]
    age: Period,
    /// Only print what would change
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `flotilla origin format`.
///
/// # Errors
/// An origin uses the storage, or it is another one than named; the storage fails.
pub(super) fn run(args: &FormatArgs) -> Result<(), CommandError> {
    match &args.command {
        FormatCommand::Show(args) => block_on(show(args)),
        FormatCommand::Renew(args) => block_on(renew_storage(args)),
    }
}

async fn show(args: &ShowArgs) -> Result<(), CommandError> {
    let storage = args.storage.open()?;
    let ids = storage_ids(&*storage).await;
    let ids = ids.map_err(|error| repair_error("read the id of the storage", &error))?;
    print_outcome(&ids, args.json, render_ids, true)
}

async fn renew_storage(args: &RenewArgs) -> Result<(), CommandError> {
    let action = "renew the storage";
    let storage = args.storage.open()?;
    if !args.dry_run {
        let unused = wait_until_unused(&*storage).await;
        unused.map_err(|error| repair_error(action, &error))?;
    }
    let asked = Renewing {
        region: args.region.clone(),
        replace: args.replace,
        age: args.age.0,
        now: Clock::system().unix_nanos(),
        dry_run: args.dry_run,
    };
    let done = renew(storage, &asked).await;
    let done = done.map_err(|error| repair_error(action, &error))?;
    print_outcome(&done, args.json, |done| render(done, args.dry_run), true)
}

fn render_ids(ids: &StorageIds) -> String {
    let mut text = format!("storage id {}\n", ids.storage_id);
    for id in &ids.replaced {
        let _ = writeln!(text, "replaced   {id}");
    }
    text
}

fn render(done: &Renewed, is_dry_run: bool) -> String {
    let (new, old) = (&done.storage_id, &done.replaced);
    if done.is_repeated {
        return format!(
            "nothing to do: the storage has replaced {old}, and has the id {new} now\n"
        );
    }
    let mut text = String::new();
    for (number, what) in [
        (
            done.swept_regions,
            "other regions, whose keys are copied again",
        ),
        (
            done.removed,
            "manifests, tags and referrers removed: other regions keep them",
        ),
        (done.kept, "of these stay: only this region keeps them"),
        (done.entries, "journal entries removed"),
    ] {
        if number > 0 {
            let _ = writeln!(text, "{number:>12} {what}");
        }
    }
    if is_dry_run {
        text.push_str("nothing was written: run this without --dry-run\n");
    } else {
        let _ = writeln!(
            text,
            "the storage has the id {new} in place of {old}; start the replicas of the region"
        );
    }
    text
}

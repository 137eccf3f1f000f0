//! `flotilla origin policy`: shows, sets and checks the policy of a region's storage.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use flotilla_origin::policy::{self, Policy, StoredPolicy, changes, check_replacement};
use flotilla_origin::storage::{Storage, missing_credentials};

use super::repair::{StorageArgs, open};
use crate::command::{CommandError, block_on, print_json, print_text};

/// The arguments of `flotilla origin policy`.
#[derive(Debug, Args)]
#[command(after_help = "\
The policy lists the regions, and what each repository needs of them (docs/regions.md). Each region has a copy of it in its
own storage: set the same file in each.

Examples:
  flotilla origin policy check policy.toml
  flotilla origin policy set policy.toml --storage s3://bucket-eu/prefix
  flotilla origin policy show --storage s3://bucket-eu/prefix")]
pub(super) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Print the policy in a storage
    Show(ShowArgs),
    /// Store a policy, after checking it; print what changes
    Set(SetArgs),
    /// Check a policy file, and print what it would change
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    storage: StorageArgs,
    /// Print one JSON object, with all defaults filled in; null if there is no policy
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// The policy, TOML
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    storage: StorageArgs,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The policy, TOML
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Also print what would change in this storage
    #[arg(long, value_name = "URL")]
    storage: Option<String>,
    /// Print the policy as one JSON object, with all defaults filled in
    #[arg(long)]
    json: bool,
}

/// Runs `flotilla origin policy`.
///
/// # Errors
/// A policy is not valid or may not replace the stored one; the storage fails.
pub(super) fn run(args: &PolicyArgs) -> Result<(), CommandError> {
    match &args.command {
        PolicyCommand::Show(args) => block_on(show(args)),
        PolicyCommand::Set(args) => block_on(set(args)),
        PolicyCommand::Check(args) => block_on(check(args)),
    }
}

async fn show(args: &ShowArgs) -> Result<(), CommandError> {
    let storage = args.storage.open()?;
    let Some(stored) = read_stored(&*storage).await? else {
        return if args.json {
            print_json(&None::<Policy>)
        } else {
            print_text("# no policy: this storage belongs to a single region\n")
        };
    };
    let invalid = |error| CommandError::failed("parse the stored policy", error);
    if args.json {
        return print_json(&stored.parse().map_err(invalid)?);
    }
    print_text(stored.text().map_err(invalid)?)?;
    stored.parse().map(drop).map_err(invalid)
}

async fn set(args: &SetArgs) -> Result<(), CommandError> {
    let (text, new) = read_file(&args.file)?;
    let storage = args.storage.open()?;
    let stored = read_stored(&*storage).await?;
    if stored
        .as_ref()
        .is_some_and(|stored| stored.text() == Ok(text.as_str()))
    {
        return print_text("unchanged: the storage has this policy already\n");
    }
    let replaced = describe_replacement(stored.as_ref(), &new)?;
    policy::set(&*storage, &text, stored.as_ref())
        .await
        .map_err(|error| storage_error("set the policy", &error))?;
    print_text(format_args!(
        "{replaced}stored: every replica of this region has read it within 2 minutes. Set the same file in the storage of \
         each region.\n"
    ))
}

async fn check(args: &CheckArgs) -> Result<(), CommandError> {
    let (_, new) = read_file(&args.file)?;
    let mut text = String::new();
    if let Some(url) = &args.storage {
        let storage = open(url)?;
        let stored = read_stored(&*storage).await?;
        text = describe_replacement(stored.as_ref(), &new)?;
    }
    if args.json {
        return print_json(&new);
    }
    let (regions, rules) = (new.regions().len(), new.rules().len());
    print_text(format_args!(
        "{text}valid; regions: {regions}, rules: {rules}\n"
    ))
}

/// The text of a policy file, and the policy.
fn read_file(file: &Path) -> Result<(String, Policy), CommandError> {
    let action = || format!("read the policy '{}'", file.display());
    let text =
        std::fs::read_to_string(file).map_err(|error| CommandError::failed(action(), error))?;
    let policy = Policy::parse(&text).map_err(|error| CommandError::failed(action(), error))?;
    Ok((text, policy))
}

async fn read_stored(storage: &dyn Storage) -> Result<Option<StoredPolicy>, CommandError> {
    let stored = policy::read(storage).await;
    stored.map_err(|error| storage_error("read the stored policy", &error))
}

/// What changes if `new` replaces the stored policy, a line for each change.
fn describe_replacement(
    stored: Option<&StoredPolicy>,
    new: &Policy,
) -> Result<String, CommandError> {
    let mut text = String::new();
    let old = match stored.map(StoredPolicy::parse) {
        None => Policy::none(),
        Some(Ok(old)) => old,
        Some(Err(error)) => {
            let _ = writeln!(
                text,
                "the stored policy is not valid, replicas ignore it: {error}"
            );
            Policy::none()
        }
    };
    check_replacement(&old, new)
        .map_err(|error| CommandError::failed("replace the stored policy", error))?;
    for change in changes(&old, new) {
        let _ = writeln!(text, "{change}");
    }
    Ok(text)
}

fn storage_error(action: &str, error: &impl std::fmt::Display) -> CommandError {
    let error = error.to_string();
    let fix = missing_credentials(&error).map(|fix| format!("; {fix}"));
    CommandError::failed(action, format!("{error}{}", fix.unwrap_or_default()))
}

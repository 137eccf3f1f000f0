//! `flotilla peer status`: what is being pulled, from whom, how fast, how far, and why it waits.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;
use flotilla_peer::status::Status;

use super::{MirrorArg, render};
use crate::cli::{CommandError, block_on, print_json, print_text};

/// Between two looks of `--watch`.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// The arguments of `flotilla peer status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla peer status                          the peer on this machine, once
  flotilla peer status --watch                  again every second, until Ctrl-C
  flotilla peer status --json | jq .connected   for scripts: sizes are bytes, times seconds")]
pub struct StatusArgs {
    #[command(flatten)]
    mirror: MirrorArg,
    /// Print one JSON object (with --watch one per line)
    #[arg(long)]
    json: bool,
    /// Look again every second
    #[arg(long)]
    watch: bool,
}

/// Prints the status.
///
/// # Errors
/// If no peer answers.
pub fn run(args: &StatusArgs) -> Result<(), CommandError> {
    block_on(async {
        loop {
            show(args).await?;
            if !args.watch {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
}

async fn show(args: &StatusArgs) -> Result<(), CommandError> {
    let status: Status = args.mirror.get("/flotilla/status").await?;
    if args.json {
        return print_json(&status);
    }
    let clear = if args.watch && stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    print_text(format!("{clear}{}", render::status(&status)))
}

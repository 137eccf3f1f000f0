//! `flotilla peer status`: a peer's pulls, with their sources, rates and progress, and why they
//! wait.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;
use flotilla_peer::status::Status;

use super::mirror::MirrorArg;
use super::status_text;
use crate::command::{CommandError, block_on, print_json, print_text};

/// Time between two updates with `--watch`.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// Terminal control sequence that clears the screen and moves the cursor to its top left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// The arguments of `flotilla peer status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla peer status                          the peer on this machine, once
  flotilla peer status --watch                  again every second, until Ctrl-C
  flotilla peer status --json | jq .connected   for scripts: sizes are bytes, times are seconds")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    mirror: MirrorArg,
    /// Print one JSON object; with --watch, one per line
    #[arg(long)]
    json: bool,
    /// Repeat every second
    #[arg(long)]
    watch: bool,
}

/// Prints the status.
///
/// # Errors
/// If no peer answers.
pub(super) fn run(args: &StatusArgs) -> Result<(), CommandError> {
    block_on(async {
        loop {
            print(args).await?;
            if !args.watch {
                return Ok(());
            }
            tokio::time::sleep(REFRESH_INTERVAL).await;
        }
    })
}

async fn print(args: &StatusArgs) -> Result<(), CommandError> {
    let status: Status = args.mirror.get("/flotilla/status").await?;
    if args.json {
        return print_json(&status);
    }
    let clear = if args.watch && stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    print_text(format!("{clear}{}", status_text::render(&status)))
}

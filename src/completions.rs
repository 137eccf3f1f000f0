//! `flotilla completions`: what a shell needs to complete commands and flags.

use std::io::{Write as _, stdout};

use clap::{Args, Command};
use clap_complete::Shell;

use crate::cli::CommandError;

/// The arguments of `flotilla completions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla completions bash > /etc/bash_completion.d/flotilla
  flotilla completions zsh > /usr/local/share/zsh/site-functions/_flotilla
  flotilla completions fish > ~/.config/fish/completions/flotilla.fish")]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script for `command`.
///
/// # Errors
/// If stdout cannot be written.
pub fn run(args: &CompletionsArgs, mut command: Command) -> Result<(), CommandError> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    stdout()
        .write_all(&script)
        .map_err(|error| CommandError::failed("print the script", error))
}

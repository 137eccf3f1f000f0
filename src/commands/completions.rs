//! `flotilla completions`: a shell's completion script for commands and flags.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::command::{CommandError, print_text};

/// The arguments of `flotilla completions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla completions bash > /etc/bash_completion.d/flotilla
  flotilla completions zsh > /usr/local/share/zsh/site-functions/_flotilla
  flotilla completions fish > ~/.config/fish/completions/flotilla.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script for `command`.
///
/// # Errors
/// As [`print_text`].
pub fn run(args: &CompletionsArgs, mut command: Command) -> Result<(), CommandError> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print_text(String::from_utf8_lossy(&script))
}

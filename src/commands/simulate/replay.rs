//! `flotilla simulate replay`: recordings of real services, repeated.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use flotilla_common::recording::{Replayed, replay};

use crate::command::{CommandError, print_text};

/// The arguments of `flotilla simulate replay`.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// What `flotilla peer --record DIR` or `flotilla tracker --record DIR` wrote
    #[arg(required = true, value_name = "FILE.recording")]
    recordings: Vec<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// If a recording cannot be read; [`CommandError::CriteriaNotMet`] if a machine makes other outputs
/// than the recorded ones.
pub(super) fn run(args: &ReplayArgs) -> Result<(), CommandError> {
    let mut is_repeated = true;
    for path in &args.recordings {
        let file = path.display();
        let recording = fs::read(path)
            .map_err(|error| CommandError::failed(format!("read recording {file}"), error))?;
        let line = match replay(&recording) {
            Ok(Replayed {
                machine,
                inputs,
                outputs,
                until,
            }) => format!(
                "{file}: {machine}, {inputs} inputs until {until:?}, {outputs} outputs as recorded\n"
            ),
            Err(error) => {
                is_repeated = false;
                format!("{file}: {error}\n")
            }
        };
        print_text(line)?;
    }
    if is_repeated {
        Ok(())
    } else {
        Err(CommandError::CriteriaNotMet)
    }
}

//! The report of a command that writes files.

use std::fmt;
use std::path::PathBuf;

/// The files that were written, each with its purpose, and the operator's next step. Its `Display`
/// is the output of `flotilla pki`.
#[derive(Debug)]
pub struct PkiReport {
    pub(super) files: Vec<(PathBuf, &'static str)>,
    pub(super) next_step: String,
}

impl fmt::Display for PkiReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self
            .files
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect();
        let width = paths.iter().map(String::len).max().unwrap_or(0);
        for (path, (_, purpose)) in paths.iter().zip(&self.files) {
            writeln!(f, "{path:width$}  {purpose}")?;
        }
        writeln!(f, "\n{}", self.next_step)
    }
}

//! Bytes so far, on stderr while a person waits: a line that changes on a terminal, nothing
//! elsewhere.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// Bytes of something whose whole is not known. Clones show the same.
#[derive(Clone, Debug)]
pub(super) struct Bytes(Option<ProgressBar>);

impl Bytes {
    /// Shows `what` and its bytes, unless `is_quiet` or nobody looks.
    pub(super) fn start(is_quiet: bool, what: &str) -> Self {
        if is_quiet || !stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) =
            ProgressStyle::with_template("{msg}  {binary_bytes}  {binary_bytes_per_sec}  {elapsed}")
        {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Self(Some(bar))
    }

    /// So many by now.
    pub(super) fn at(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
        }
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

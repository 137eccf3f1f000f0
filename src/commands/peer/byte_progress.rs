//! A progress line on stderr for a download of unknown size; only on terminals.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// Bytes received so far. Clones share the line.
#[derive(Clone, Debug)]
pub(super) struct ByteProgress(Option<ProgressBar>);

impl ByteProgress {
    /// Shows `label` and its bytes, unless `is_quiet` or stderr is not a terminal.
    pub(super) fn start(is_quiet: bool, label: &str) -> Self {
        if is_quiet || !stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) =
            ProgressStyle::with_template("{msg}  {binary_bytes}  {binary_bytes_per_sec}  {elapsed}")
        {
            bar.set_style(style);
        }
        bar.set_message(label.to_owned());
        Self(Some(bar))
    }

    /// Sets the number of bytes so far.
    pub(super) fn set_bytes(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
        }
    }

    /// Removes the line.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

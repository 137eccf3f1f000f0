//! The last events of a run, in words.

use std::collections::VecDeque;

use flotilla_common::time::Time;

/// A ring of described events.
#[derive(Debug)]
pub(super) struct EventLog {
    limit: usize,
    lines: VecDeque<(Time, String)>,
}

impl EventLog {
    /// Keeps the last `limit` events.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            lines: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, at: Time, text: String) {
        if self.lines.len() == self.limit {
            self.lines.pop_front();
        }
        self.lines.push_back((at, text));
    }

    /// One line per event, with its time in seconds.
    pub(super) fn into_lines(self) -> Vec<String> {
        let line = |(at, text): (Time, String)| format!("{:.9} s  {text}", at.as_secs_f64());
        self.lines.into_iter().map(line).collect()
    }
}

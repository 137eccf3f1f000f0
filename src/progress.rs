//! Progress of concurrent pulls on stderr: bars on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flotilla_common::units::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The least time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// The progress of several pulls.
#[derive(Clone, Debug)]
pub struct Progress(Output);

#[derive(Clone, Debug)]
enum Output {
    Bars(MultiProgress),
    Lines(Arc<Lines>),
    None,
}

/// Plain lines with the sum of all pulls.
#[derive(Debug)]
struct Lines {
    total: AtomicU64,
    done: AtomicU64,
    started: Instant,
    last_line: Mutex<Instant>,
}

/// The progress of one pull.
#[derive(Clone, Debug)]
pub struct PullProgress(PullOutput);

#[derive(Clone, Debug)]
enum PullOutput {
    Bar(ProgressBar),
    Lines(Arc<Lines>),
    None,
}

impl Progress {
    /// Shows bars if stderr is a terminal, otherwise lines; nothing if `is_quiet`.
    pub fn new(is_quiet: bool) -> Self {
        Self(if is_quiet {
            Output::None
        } else if stderr().is_terminal() {
            Output::Bars(MultiProgress::new())
        } else {
            let now = Instant::now();
            Output::Lines(Arc::new(Lines {
                total: AtomicU64::new(0),
                done: AtomicU64::new(0),
                started: now,
                last_line: Mutex::new(now),
            }))
        })
    }

    /// Adds a pull of `bytes` bytes.
    pub fn add_pull(&self, name: &str, bytes: u64) -> PullProgress {
        PullProgress(match &self.0 {
            Output::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(bytes));
                bar.set_style(bar_style());
                bar.set_prefix(name.to_owned());
                PullOutput::Bar(bar)
            }
            Output::Lines(lines) => {
                lines.total.fetch_add(bytes, Ordering::Relaxed);
                PullOutput::Lines(Arc::clone(lines))
            }
            Output::None => PullOutput::None,
        })
    }
}

impl PullProgress {
    /// Counts `bytes` more received bytes.
    pub fn add_bytes(&self, bytes: u64) {
        match &self.0 {
            PullOutput::Bar(bar) => bar.inc(bytes),
            PullOutput::Lines(lines) => lines.add_bytes(bytes),
            PullOutput::None => {}
        }
    }

    /// Marks the pull as finished.
    pub fn finish(&self, ok: bool) {
        if let PullOutput::Bar(bar) = &self.0 {
            if ok { bar.finish() } else { bar.abandon() }
        }
    }
}

impl Lines {
    fn add_bytes(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut last_line = self
            .last_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last_line.elapsed() >= LINE_INTERVAL {
            *last_line = Instant::now();
            eprintln!(
                "  {:>4.0} s  {} of {}",
                self.started.elapsed().as_secs_f64(),
                ByteSize(done),
                ByteSize(self.total.load(Ordering::Relaxed))
            );
        }
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix:>10} [{bar:40}] {bytes:>11} of {total_bytes} {binary_bytes_per_sec}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("=> ")
}

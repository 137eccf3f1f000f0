//! Progress of many pulls: bars on a terminal, plain lines elsewhere, always on stderr.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flotilla_common::units::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows how far each pull is.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Bars(MultiProgress),
    Lines(Arc<Lines>),
    Silent,
}

/// The plain form: one line for the whole fleet every now and then.
#[derive(Debug)]
struct Lines {
    total: AtomicU64,
    done: AtomicU64,
    started: Instant,
    printed: Mutex<Instant>,
}

/// One pull's share of the progress.
#[derive(Clone, Debug)]
pub(crate) struct PullProgress(Option<Pull>);

#[derive(Clone, Debug)]
enum Pull {
    Bar(ProgressBar),
    Lines(Arc<Lines>),
}

impl Progress {
    /// Bars if stderr is a terminal, lines if it is not, nothing if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self(if quiet {
            Kind::Silent
        } else if stderr().is_terminal() {
            Kind::Bars(MultiProgress::new())
        } else {
            let now = Instant::now();
            let (total, done) = (AtomicU64::new(0), AtomicU64::new(0));
            Kind::Lines(Arc::new(Lines {
                total,
                done,
                started: now,
                printed: Mutex::new(now),
            }))
        })
    }

    /// Adds a pull of `bytes` bytes.
    pub(crate) fn pull(&self, name: &str, bytes: u64) -> PullProgress {
        PullProgress(match &self.0 {
            Kind::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(bytes));
                bar.set_style(bar_style());
                bar.set_prefix(name.to_owned());
                Some(Pull::Bar(bar))
            }
            Kind::Lines(lines) => {
                lines.total.fetch_add(bytes, Ordering::Relaxed);
                Some(Pull::Lines(Arc::clone(lines)))
            }
            Kind::Silent => None,
        })
    }
}

impl PullProgress {
    /// So many more bytes arrived.
    pub(crate) fn add(&self, bytes: u64) {
        match &self.0 {
            Some(Pull::Bar(bar)) => bar.inc(bytes),
            Some(Pull::Lines(lines)) => lines.add(bytes),
            None => {}
        }
    }

    /// The pull is over.
    pub(crate) fn finish(&self, ok: bool) {
        if let Some(Pull::Bar(bar)) = &self.0 {
            if ok { bar.finish() } else { bar.abandon() }
        }
    }
}

impl Lines {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        if printed.elapsed() >= LINE_EVERY {
            *printed = Instant::now();
            let (total, elapsed) = (self.total.load(Ordering::Relaxed), self.started.elapsed());
            eprintln!(
                "  {:>4.0} s  {} of {}",
                elapsed.as_secs_f64(),
                ByteSize(done),
                ByteSize(total)
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

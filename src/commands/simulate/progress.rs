//! The progress of simulations on stderr: bars on a terminal; elsewhere a line for each of several
//! runs when it ends.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use flotilla_simulations::{Job, Outcome, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Steps of a bar.
const STEPS: u64 = 1000;
/// How often a bar is drawn if nothing changes.
const TICK: Duration = Duration::from_millis(500);

/// The progress of all runs.
pub(super) struct RunsProgress {
    bars: Option<MultiProgress>,
    runs: usize,
}

/// The progress of one run.
pub(super) struct RunProgress {
    bar: Option<ProgressBar>,
    prints_line: bool,
}

impl RunsProgress {
    /// Of `runs` runs.
    pub(super) fn new(runs: usize) -> Self {
        let bars = stderr().is_terminal().then(MultiProgress::new);
        Self { bars, runs }
    }

    /// A run begins.
    pub(super) fn add_run(&self, job: &Job<'_>) -> RunProgress {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(STEPS));
            bar.set_style(style());
            bar.set_prefix(format!("{} {}", job.scenario.name, job.rng_seed));
            bar.enable_steady_tick(TICK);
            bar
        });
        RunProgress {
            bar,
            prints_line: self.bars.is_none() && self.runs > 1,
        }
    }
}

impl RunProgress {
    /// The run goes on.
    pub(super) fn update(&self, progress: Progress) {
        if let Some(bar) = &self.bar {
            bar.set_position((progress.share * STEPS as f64) as u64);
            bar.set_message(format!(
                "{:.2} s simulated, {} million events",
                progress.simulated_s,
                progress.events / 1_000_000
            ));
        }
    }

    /// The run is over.
    pub(super) fn finish(&self, outcome: &Outcome) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else if self.prints_line {
            eprintln!(
                "{} with rng seed {}: {:.2} s simulated in {:.1} s{}",
                outcome.scenario,
                outcome.rng_seed,
                outcome.simulated_s,
                outcome.wall_s,
                if outcome.ok { "" } else { ", failed" }
            );
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:>24} [{bar:30}] {percent:>3} %  {msg}, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

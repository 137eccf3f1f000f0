//! Checks the invariants of every run, and collects violations.
//!
//! - Nothing unverified is accepted: a peer holds and serves exactly the chunks that reached it
//!   whole and uncorrupted.
//! - No peer is stranded: every peer that is alive at the end is complete.
//! - The scenario's bars are kept.

use crate::scenario::Bars;

/// Complaints that are kept; further ones are dropped.
const MAX_COMPLAINTS: usize = 20;

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    complaints: Vec<String>,
}

impl Oracle {
    pub(crate) fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(what());
        }
    }

    /// Checks the end of a run.
    pub(crate) fn judge(
        &mut self,
        bars: &Bars,
        stranded: u32,
        p99_over_bound: f64,
        origin_copies: f64,
    ) {
        if stranded > 0 {
            self.complain(|| format!("{stranded} peers are stranded"));
        }
        self.keep(bars.max_p99_over_bound, p99_over_bound, "p99 over bound");
        self.keep(bars.max_origin_copies, origin_copies, "origin copies");
    }

    fn keep(&mut self, bar: Option<f64>, value: f64, name: &str) {
        if let Some(bar) = bar.filter(|bar| value > *bar) {
            self.complain(|| format!("{name} is {value:.4}, above its bar of {bar}"));
        }
    }

    pub(crate) fn take_complaints(&mut self) -> Vec<String> {
        core::mem::take(&mut self.complaints)
    }
}

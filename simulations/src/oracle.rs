//! Checks the invariants of every run, and collects violations.
//!
//! - Nothing unverified is accepted: a peer holds and serves exactly the chunks that reached it
//!   whole and uncorrupted.
//! - Peers keep their limits of connections, neighbours, uploads and downloads (`peer_oracle.rs`).
//! - Trackers stay within their limits, and keep their leases (`tracker_oracle.rs`).
//! - No peer is stranded: every peer that is alive at the end is complete.
//! - The scenario's bars are kept.

use crate::outcome::MissedBar;
use crate::scenario::Bars;

/// Complaints that are kept; further ones are dropped.
const MAX_COMPLAINTS: usize = 20;

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    complaints: Vec<String>,
    missed_bars: Vec<MissedBar>,
}

/// The figures of a run that have bars.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BarFigures {
    pub(crate) stranded: u32,
    pub(crate) p99_over_bound: f64,
    pub(crate) p50_s: f64,
    /// The origin copies of the region that has most of them.
    pub(crate) most_origin_copies: f64,
    pub(crate) wan_copies: f64,
    pub(crate) wan_repeats: f64,
    pub(crate) stall_s: f64,
}

impl Oracle {
    pub(crate) fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(what());
        }
    }

    /// Checks the end of a run.
    pub(crate) fn judge(&mut self, bars: &Bars, figures: BarFigures) {
        let BarFigures {
            stranded,
            p99_over_bound,
            p50_s,
            most_origin_copies,
            wan_copies,
            wan_repeats,
            stall_s,
        } = figures;
        self.keep(Some(0.0), f64::from(stranded), "max_stranded");
        self.keep(
            bars.max_p99_over_bound,
            p99_over_bound,
            "max_p99_over_bound",
        );
        self.keep(bars.max_p50_s, p50_s, "max_p50_s");
        self.keep(
            bars.max_origin_copies,
            most_origin_copies,
            "max_origin_copies",
        );
        self.keep(bars.max_wan_copies, wan_copies, "max_wan_copies");
        self.keep(bars.max_wan_repeats, wan_repeats, "max_wan_repeats");
        self.keep(bars.max_stall_s, stall_s, "max_stall_s");
    }

    fn keep(&mut self, limit: Option<f64>, figure: f64, bar: &'static str) {
        if let Some(limit) = limit.filter(|limit| figure > *limit) {
            self.complain(|| format!("bar {bar} = {limit} is missed: {figure:.4}"));
            self.missed_bars.push(MissedBar { bar, limit, figure });
        }
    }

    pub(crate) fn take_missed_bars(&mut self) -> Vec<MissedBar> {
        core::mem::take(&mut self.missed_bars)
    }

    /// Whether anything was violated so far.
    pub(crate) fn has_complaints(&self) -> bool {
        !self.complaints.is_empty()
    }

    pub(crate) fn take_complaints(&mut self) -> Vec<String> {
        core::mem::take(&mut self.complaints)
    }
}

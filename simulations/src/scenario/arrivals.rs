//! `[arrivals]`: when peers start, if not all at once.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::check::{is_time, require, require_seconds, require_share};
use super::{Peers, ScenarioError, SetImage};

/// When peers start, how long they live, and how they end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Arrivals {
    /// Peers start as a Poisson process, so many per second on average.
    pub per_s: Option<f64>,
    /// Times in which more peers start.
    pub peaks: Vec<Peak>,
    /// A recorded trace of starts: the path of a CSV file, relative to the scenario's file.
    pub trace: Option<String>,
    /// Mean time from a peer's start to its end, in seconds, exponentially distributed; without it
    /// peers live until the run ends.
    pub lifetime_s: Option<f64>,
    /// Share of the peers that tell the tracker and their neighbours before they end.
    pub warned_share: f64,
    /// The rows of the trace.
    #[serde(skip)]
    pub(crate) recorded: Vec<RecordedStart>,
}

/// A time in which peers start more often.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    /// Its start, in simulated seconds.
    pub at_s: f64,
    /// Its length, in seconds.
    pub for_s: f64,
    /// By how much it multiplies the number of starts per second.
    pub factor: f64,
}

/// A row of a trace of starts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct RecordedStart {
    /// When the peer starts, in simulated seconds.
    pub(crate) start_s: f64,
    /// When it ends, without a warning; it lives until the run ends if not set.
    #[serde(default)]
    pub(crate) stop_s: Option<f64>,
    /// The only image that it pulls; chosen as for other peers if not set.
    #[serde(default)]
    pub(crate) image: Option<String>,
}

impl RecordedStart {
    /// Reads the rows of a trace.
    pub(super) fn read_all(path: &Path) -> Result<Vec<Self>, csv::Error> {
        let mut builder = csv::ReaderBuilder::new();
        let mut reader = builder.trim(csv::Trim::All).from_path(path)?;
        reader.deserialize().collect()
    }
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            per_s: None,
            peaks: Vec::new(),
            trace: None,
            lifetime_s: None,
            warned_share: 1.0,
            recorded: Vec::new(),
        }
    }
}

impl Arrivals {
    /// Whether peers start over time instead of within `peers.start_spread_s`.
    pub(crate) fn are_over_time(&self) -> bool {
        self.per_s.is_some() || self.trace.is_some()
    }

    pub(super) fn check(&self, peers: &Peers, images: &[SetImage]) -> Result<(), ScenarioError> {
        require(
            self.per_s.is_none_or(|per_s| (1e-6..=1e6).contains(&per_s)),
            "arrivals.per_s",
            "write peers per second, above 0",
        )?;
        for peak in &self.peaks {
            require_seconds(peak.at_s, "arrivals.peaks.at_s")?;
            require_seconds(peak.for_s, "arrivals.peaks.for_s")?;
            require(
                (1e-3..=1e6).contains(&peak.factor),
                "arrivals.peaks.factor",
                "write a factor above 0, such as 100",
            )?;
        }
        require(
            self.peaks.is_empty() || self.per_s.is_some(),
            "arrivals.peaks",
            "set arrivals.per_s, which peaks multiply",
        )?;
        require(
            self.lifetime_s
                .is_none_or(|lifetime_s| is_time(lifetime_s) && lifetime_s > 0.0),
            "arrivals.lifetime_s",
            "write seconds above 0",
        )?;
        require_share(self.warned_share, "arrivals.warned_share")?;
        require(
            self.trace.is_none() || self.per_s.is_none() && self.lifetime_s.is_none(),
            "arrivals.trace",
            "remove arrivals.per_s and arrivals.lifetime_s: the trace says when peers start and stop",
        )?;
        require(
            !self.are_over_time() || peers.start_spread_s == 0.0,
            "peers.start_spread_s",
            "remove it: [arrivals] says when peers start",
        )?;
        self.check_trace(peers, images)
    }

    fn check_trace(&self, peers: &Peers, images: &[SetImage]) -> Result<(), ScenarioError> {
        if self.trace.is_none() {
            return Ok(());
        }
        let rows = self.recorded.len();
        require(
            rows as u64 + u64::from(peers.seeders) == u64::from(peers.count),
            "peers.count",
            &format!("write {rows}, the number of rows of arrivals.trace, plus peers.seeders"),
        )?;
        for row in &self.recorded {
            require_seconds(row.start_s, "arrivals.trace, column start_s")?;
            require(
                row.stop_s
                    .is_none_or(|stop_s| is_time(stop_s) && stop_s >= row.start_s),
                "arrivals.trace, column stop_s",
                "write seconds, at least start_s",
            )?;
            let is_known = |name: &String| images.iter().any(|image| image.name == *name);
            require(
                row.image.as_ref().is_none_or(is_known),
                "arrivals.trace, column image",
                "write the name of one of the [[images]], or leave it empty",
            )?;
        }
        Ok(())
    }
}

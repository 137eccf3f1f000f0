//! Scenarios, as TOML files: a file per table, which also checks the table's values.
//!
//! Unknown keys are errors, so a misspelt key is not silently ignored. `scenarios/` has examples.

mod arrivals;
mod bars;
mod check;
mod failure;
mod image;
mod images;
mod links;
mod machine;
mod origin;
mod peers;
mod tracker;

use core::time::Duration;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use check::{is_time, require};

use crate::variation::Variation;

pub(crate) use arrivals::RecordedStart;
pub use arrivals::{Arrivals, Peak};
pub use bars::Bars;
pub(crate) use failure::FailureSubject;
pub use failure::{Failure, FailureKind};
pub use image::ImageSpec;
pub use images::{BaseImage, Pulls, SetImage};
pub use links::{LinkBetween, Links};
pub use machine::MachineSettings;
pub use origin::Origins;
pub(crate) use peers::Fault;
pub use peers::{HostClass, Peers};
pub use tracker::Tracker;

/// Why a scenario cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The scenario's file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The trace of starts cannot be read, or is not as expected.
    #[error(
        "read the trace {}, which `arrivals.trace` names: {error}; it is a CSV file with a header and \
         the columns start_s and, if you like, stop_s and image",
        path.display()
    )]
    Trace {
        /// The trace's file.
        path: PathBuf,
        /// Why.
        error: csv::Error,
    },
    /// The text is not valid TOML, or has an unknown key or value.
    #[error("parse scenario: {0}")]
    Parse(#[from] toml::de::Error),
    /// A value is out of range.
    #[error("scenario key `{key}`: {cure}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// How to fix it.
        cure: String,
    },
}

/// A simulated world: peers, links, an image and failures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in results.
    pub name: String,
    /// The run ends after so many simulated seconds; peers that are not complete by then are
    /// stranded.
    #[serde(default = "default_time_limit_s")]
    pub time_limit_s: f64,
    /// The image that all peers pull.
    #[serde(default)]
    pub image: ImageSpec,
    /// Instead of `image`: what the images of a set begin with.
    #[serde(default)]
    pub bases: Vec<BaseImage>,
    /// Instead of `image`: a set of images.
    #[serde(default)]
    pub images: Vec<SetImage>,
    /// Which images of the set each peer pulls.
    #[serde(default)]
    pub pulls: Pulls,
    /// The peers.
    pub peers: Peers,
    /// When they start, if not all at once.
    #[serde(default)]
    pub arrivals: Arrivals,
    /// The origins.
    pub origin: Origins,
    /// The delays between them.
    #[serde(default)]
    pub links: Links,
    /// The tracker.
    #[serde(default)]
    pub tracker: Tracker,
    /// Settings of the peers' machines, for comparisons.
    #[serde(default)]
    pub machine: MachineSettings,
    /// Failures, and when they happen.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// The bars that the outcome must keep.
    #[serde(default)]
    pub bars: Bars,
}

impl Scenario {
    /// Parses a scenario. One that names a trace of starts can only be [read](Self::read).
    ///
    /// # Errors
    /// The text is not valid TOML, a key is unknown, or a value is out of range; the message names
    /// it.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Reads a scenario from a file, and the trace of starts that it names.
    ///
    /// # Errors
    /// As [`Self::parse`]; or a file cannot be read.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        Self::with_trace(toml::from_str(&fs::read_to_string(path)?)?, path)
    }

    /// Reads a scenario from a file as often as the variation has values, each time with one of
    /// them, which the name says.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_varied(path: &Path, variation: &Variation) -> Result<Vec<Self>, ScenarioError> {
        let table: toml::Table = toml::from_str(&fs::read_to_string(path)?)?;
        let varied = variation.apply(&table).into_iter();
        varied
            .map(|table| Self::with_trace(table.try_into()?, path))
            .collect()
    }

    /// Reads the trace that a scenario of the file `path` names, and checks the scenario.
    fn with_trace(mut scenario: Self, path: &Path) -> Result<Self, ScenarioError> {
        if let Some(trace) = &scenario.arrivals.trace {
            let path = path.with_file_name(trace);
            let rows = RecordedStart::read_all(&path);
            scenario.arrivals.recorded =
                rows.map_err(|error| ScenarioError::Trace { path, error })?;
        }
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        require(
            is_time(self.time_limit_s) && self.time_limit_s > 0.0,
            "time_limit_s",
            "write seconds above zero",
        )?;
        let has_image = self.image != ImageSpec::default();
        require(
            !has_image || self.images.is_empty(),
            "image",
            "remove it, or the [[images]]: a scenario has one image or a set",
        )?;
        if self.images.is_empty() {
            self.image.check()?;
        }
        images::check(&self.bases, &self.images, &self.pulls)?;
        self.arrivals.check(&self.peers, &self.images)?;
        self.peers.check()?;
        self.origin.check()?;
        let regions = self.peers.regions.get();
        self.links.check(regions, self.peers.zones.get())?;
        self.tracker.check()?;
        self.machine.check()?;
        let mut failures = self.failures.iter();
        failures.try_for_each(|failure| {
            failure.check(regions)?;
            require(
                failure.region.is_none()
                    || failure.kind.subject() != FailureSubject::Trackers
                    || self.tracker.per_region,
                "failures.region",
                "leave it out for trackers that all regions share, or set tracker.per_region",
            )
        })
    }
}

/// A time of a scenario, in seconds.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A delay of a scenario, in milliseconds.
pub(crate) fn millis(millis: f64) -> Duration {
    Duration::from_nanos((millis * 1e6) as u64)
}

/// A service time of a scenario, in microseconds.
pub(crate) fn micros(micros: f64) -> Duration {
    Duration::from_nanos((micros * 1e3) as u64)
}

fn default_time_limit_s() -> f64 {
    3600.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const SMALL: &str = r#"
        name = "small"
        [image]
        layers = ["64MiB", 1000]
        [peers]
        count = 16
        up = "50Mbit"
        down = "50Mbit"
        [origin]
        up = "50Mbit"
    "#;

    #[test]
    fn missing_keys_have_defaults() {
        let scenario = Scenario::parse(SMALL).unwrap();
        assert_eq!(scenario.image.bytes(), (64 << 20) + 1000);
        assert_eq!(scenario.peers.zones.get(), 1);
        assert!(scenario.tracker.enabled);
        assert!(scenario.failures.is_empty());
    }

    #[test]
    fn errors_name_the_key_and_the_fix() {
        let error = |from: &str, to: &str| {
            Scenario::parse(&SMALL.replace(from, to))
                .unwrap_err()
                .to_string()
        };
        assert!(error("count = 16", "count = 0").contains("`peers.count`: write a number from 1"));
        assert!(error("count = 16", "cuont = 16").contains("cuont"));
        assert!(error("\"64MiB\"", "\"64 elephants\"").contains("use a number and B, KiB, MiB"));
        assert!(error("\"64MiB\", 1000", "").contains("`image.layers`"));
        assert!(error("count = 16", "count = 16\nslow_share = 2").contains("`peers.slow_share`"));
        assert!(error("count = 16", "count = 16\nzones = 0").contains("zones"));
        let odd_chunk = error("[peers]", "chunk = \"3MiB\"\n[peers]");
        assert!(odd_chunk.contains("`image.chunk`: write a power of two"));
        let all_near = error("[peers]", "[tracker]\nnear_of_16 = 17\n[peers]");
        assert!(all_near.contains("`tracker.near_of_16`"));
        let lazy = error("[peers]", "[pulls]\nlazy_share = 2\n[peers]");
        assert!(lazy.contains("`pulls.lazy_share`"));
    }
}

//! Sets of runs, as TOML files: which scenarios with which seeds.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::rng_seeds::{RngSeeds, RngSeedsError};

/// Why a text is not a valid set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The text is not valid TOML, or has an unknown key.
    #[error("parse set: {0}")]
    Parse(#[from] toml::de::Error),
    /// The seeds of a scenario cannot be read.
    #[error("set key `{scenario}`: {source}")]
    RngSeeds {
        /// The scenario.
        scenario: String,
        /// The cause.
        source: RngSeedsError,
    },
}

/// Scenarios and their seeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSet(Vec<(String, RngSeeds)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rng_seeds: toml::Table,
}

impl RunSet {
    /// Parses a set: in its table `rng_seeds`, a line with the name and the seeds of each scenario.
    ///
    /// # Errors
    /// The text is not valid TOML, a key is unknown, or a list of seeds is not one.
    pub fn parse(text: &str) -> Result<Self, SetError> {
        let file: File = toml::from_str(text)?;
        let parse = |(scenario, seeds): (String, toml::Value)| {
            let text = seeds.as_str().unwrap_or_default();
            match text.parse() {
                Ok(seeds) => Ok((scenario, seeds)),
                Err(source) => Err(SetError::RngSeeds { scenario, source }),
            }
        };
        let runs = file.rng_seeds.into_iter().map(parse);
        Ok(Self(runs.collect::<Result<_, _>>()?))
    }

    /// The name and the seeds of each scenario, by name.
    pub fn runs(&self) -> impl Iterator<Item = (&str, &RngSeeds)> {
        self.0.iter().map(|(name, seeds)| (name.as_str(), seeds))
    }

    /// The file of a scenario: in the folder `scenarios` beside the set's file.
    pub fn scenario_path(set: &Path, name: &str) -> PathBuf {
        set.with_file_name("scenarios").join(format!("{name}.toml"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn set_names_scenarios_and_seeds() {
        let set = RunSet::parse("[rng_seeds]\nburst-16 = '1..3'\nchurn = '5'").unwrap();
        let runs: Vec<(&str, &[u64])> = set
            .runs()
            .map(|(name, seeds)| (name, seeds.as_slice()))
            .collect();
        assert_eq!(runs, [("burst-16", &[1, 2, 3][..]), ("churn", &[5])]);
        let path = RunSet::scenario_path(Path::new("simulations/quick.toml"), "churn");
        assert_eq!(path, Path::new("simulations/scenarios/churn.toml"));
    }

    #[test]
    fn errors_name_the_scenario() {
        let error = RunSet::parse("[rng_seeds]\nchurn = 5").unwrap_err();
        assert!(error.to_string().contains("`churn`"), "{error}");
    }
}

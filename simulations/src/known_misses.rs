//! The bars that today's machines miss, with their figures: `known-misses.toml`.
//!
//! A bar is never lowered to fit the machines. A missed one is listed, and a test fails if a listed
//! bar is met (it is to be taken off the list) or an unlisted one is missed.

use core::fmt::Write as _;

use serde::Deserialize;

use crate::outcome::{MissedBar, Outcome};

/// By how much, as a share, a figure may differ from the listed one.
const TOLERANCE: f64 = 0.01;

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownMisses {
    /// One entry for each scenario and bar.
    #[serde(default, rename = "miss")]
    pub misses: Vec<KnownMiss>,
}

/// A bar of a scenario, and the rng seeds that miss it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownMiss {
    /// The scenario's name.
    pub scenario: String,
    /// The bar's key, as in [`MissedBar::bar`].
    pub bar: String,
    /// The bar.
    pub limit: f64,
    /// The rng seeds that miss it.
    pub rng_seeds: Vec<u64>,
    /// The figure of each of these seeds, in the same order.
    pub figures: Vec<f64>,
}

impl KnownMisses {
    /// Parses the list.
    ///
    /// # Errors
    /// The text is not valid TOML, or has an unknown key.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The list that these runs give. The runs of one scenario must follow each other.
    pub fn of(outcomes: &[Outcome]) -> Self {
        let mut misses: Vec<KnownMiss> = Vec::new();
        for outcome in outcomes {
            for missed in &outcome.details.missed_bars {
                let MissedBar { bar, limit, figure } = *missed;
                let is_same =
                    |miss: &KnownMiss| miss.scenario == outcome.scenario && miss.bar == bar;
                let at = misses.iter().position(is_same).unwrap_or_else(|| {
                    misses.push(KnownMiss {
                        scenario: outcome.scenario.clone(),
                        bar: bar.to_owned(),
                        limit,
                        rng_seeds: Vec::new(),
                        figures: Vec::new(),
                    });
                    misses.len() - 1
                });
                misses[at].rng_seeds.push(outcome.rng_seed);
                misses[at].figures.push((figure * 1e4).round() / 1e4);
            }
        }
        Self { misses }
    }

    /// Replaces the entries of the scenarios that ran by those that the runs give. The list is in
    /// order of the scenarios' names.
    pub fn update(&mut self, outcomes: &[Outcome]) {
        let has_run = |miss: &KnownMiss| outcomes.iter().any(|it| it.scenario == miss.scenario);
        self.misses.retain(|miss| !has_run(miss));
        self.misses.extend(Self::of(outcomes).misses);
        self.misses
            .sort_by(|one, other| one.scenario.cmp(&other.scenario));
    }

    /// The list as TOML.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Bars that the machines miss today, written by the example `all-scenarios`. No bar is lowered to fit them:\n\
             # the list is there to become empty.\n",
        );
        for miss in &self.misses {
            let KnownMiss {
                scenario,
                bar,
                limit,
                rng_seeds,
                figures,
            } = miss;
            let _ = write!(
                text,
                "\n[[miss]]\nscenario = \"{scenario}\"\nbar = \"{bar}\"\nlimit = {limit:?}\nrng_seeds = {rng_seeds:?}\nfigures = {figures:?}\n"
            );
        }
        text
    }

    /// Where a run differs from the list: one message for each listed bar that it meets, each
    /// unlisted one that it misses, and each figure that moved.
    pub fn differences(&self, outcome: &Outcome) -> Vec<String> {
        let run = format!("{} with rng seed {}", outcome.scenario, outcome.rng_seed);
        let mut differences = Vec::new();
        for missed in &outcome.details.missed_bars {
            let MissedBar { bar, limit, figure } = missed;
            match self.listed_figure(outcome, bar) {
                None => differences.push(format!(
                    "{run} misses {bar} = {limit} with {figure:.4}: mend it, or list it"
                )),
                Some(listed) if (figure - listed).abs() > TOLERANCE * listed.abs() => {
                    differences.push(format!(
                        "{run} misses {bar} = {limit} with {figure:.4}, and {listed} is listed"
                    ));
                }
                Some(_) => {}
            }
        }
        let is_met = |miss: &&KnownMiss| {
            let mut missed = outcome.details.missed_bars.iter();
            miss.scenario == outcome.scenario
                && miss.rng_seeds.contains(&outcome.rng_seed)
                && !missed.any(|missed| missed.bar == miss.bar)
        };
        let met = self.misses.iter().filter(is_met);
        differences.extend(met.map(|KnownMiss { bar, limit, .. }| {
            format!("{run} meets {bar} = {limit}, which is listed as missed: take it off")
        }));
        differences
    }

    fn listed_figure(&self, outcome: &Outcome, bar: &str) -> Option<f64> {
        let mut misses = self.misses.iter();
        let miss = misses.find(|miss| miss.scenario == outcome.scenario && miss.bar == bar)?;
        let seeds = miss.rng_seeds.iter();
        let mut figures = seeds.zip(&miss.figures);
        let (_, figure) = figures.find(|(seed, _)| **seed == outcome.rng_seed)?;
        Some(*figure)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::{Scenario, run};

    fn outcome(max_origin_copies: f64) -> Outcome {
        let scenario = format!(
            "name = 'one'\n[image]\nlayers = ['1MiB']\n[peers]\ncount = 2\nup = '10Mbit'\ndown = '10Mbit'\n\
             [origin]\nup = '10Mbit'\n[bars]\nmax_origin_copies = {max_origin_copies}"
        );
        run(&Scenario::parse(&scenario).unwrap(), 1)
    }

    #[test]
    fn list_written_from_runs_equals_them() {
        let missed = outcome(0.5);
        let list = KnownMisses::of(core::slice::from_ref(&missed));
        assert_eq!(list.misses.len(), 1);
        let parsed = KnownMisses::parse(&list.to_toml()).unwrap();
        assert_eq!(parsed, list);
        assert_eq!(list.differences(&missed), Vec::<String>::new());
    }

    #[test]
    fn unlisted_misses_listed_successes_and_moved_figures_are_differences() {
        let (missed, met) = (outcome(0.5), outcome(2.0));
        let mut list = KnownMisses::of(core::slice::from_ref(&missed));
        assert!(list.differences(&met)[0].contains("take it off"));
        assert!(KnownMisses::default().differences(&missed)[0].contains("mend it"));
        list.misses[0].figures[0] *= 1.1;
        assert!(list.differences(&missed)[0].contains("is listed"));
    }
}

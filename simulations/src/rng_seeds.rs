//! A list of seeds, as `--rng-seeds` takes it.

use core::str::FromStr;

/// Maximum number of seeds of a list.
const MAX_SEEDS: u64 = 10_000;

/// Seeds of the random number generator: ranges with both ends included, and single numbers, such
/// as `1..16` or `1..4,9`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RngSeeds(Vec<u64>);

/// Why a text is not a list of seeds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of seeds: write such as 1..16 (both ends included) or 1,2,5; at most 10000")]
pub struct RngSeedsError;

impl RngSeeds {
    /// The seeds, in the order of the list.
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }
}

impl FromStr for RngSeeds {
    type Err = RngSeedsError;

    fn from_str(text: &str) -> Result<Self, RngSeedsError> {
        let mut seeds: Vec<u64> = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once("..").unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u64>().map_err(|_| RngSeedsError);
            let (first, last) = (number(first)?, number(last)?);
            if last < first || last - first >= MAX_SEEDS {
                return Err(RngSeedsError);
            }
            for seed in first..=last {
                if !seeds.contains(&seed) {
                    seeds.push(seed);
                }
            }
            if seeds.len() as u64 > MAX_SEEDS {
                return Err(RngSeedsError);
            }
        }
        Ok(Self(seeds))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn seeds(text: &str) -> Vec<u64> {
        text.parse::<RngSeeds>().unwrap().0
    }

    #[test]
    fn ranges_include_both_ends() {
        assert_eq!(seeds("1..4"), [1, 2, 3, 4]);
        assert_eq!(seeds("7"), [7]);
        assert_eq!(seeds("1..3, 9,2"), [1, 2, 3, 9]);
    }

    #[test]
    fn other_texts_are_errors() {
        for text in [
            "",
            "4..1",
            "1..",
            "a",
            "1...3",
            "0..10000",
            "1..9999,20000..20002",
        ] {
            assert_eq!(text.parse::<RngSeeds>(), Err(RngSeedsError), "{text}");
        }
    }
}

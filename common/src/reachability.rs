//! Whether an origin answers, as one peer knows it, and when an origin that does not is probed.
//!
//! ```text
//!             answered                      failed
//! Unknown ───────────────▶ Answers ◀──────────────────▶ Silent {error, probe_at}
//!    └──────────────────────────── failed ───────────────▶ │  ▲
//!                                                          └──┘ a probe failed: the next one twice as late
//! ```
//!
//! The requests of pulls show whether an origin answers. Probes are only for the time without such
//! requests, so an origin that answers, or was never asked, is not probed. Pauses between probes
//! double up to [`LONGEST_PAUSE`], each shortened by up to a quarter at random, so that the probes
//! of a fleet's peers do not coincide.

use core::time::Duration;

use rand::{Rng, RngExt as _};

use crate::time::Time;

/// Pause between the first failure and the first probe.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two probes.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The state of one origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// It was never asked.
    #[default]
    Unknown,
    /// The last request was answered.
    Answers,
    /// The last request failed.
    Silent(Silent),
}

/// An origin that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    error: String,
    pause: Duration,
    probe_at: Time,
}

impl Reachability {
    /// A request was answered. True if the origin was silent before.
    pub fn answered(&mut self) -> bool {
        matches!(core::mem::replace(self, Self::Answers), Self::Silent(_))
    }

    /// A request failed. Failures of a silent origin do not delay its next probe.
    pub fn failed(&mut self, now: Time, error: String, rng: &mut impl Rng) {
        match self {
            Self::Silent(silent) => silent.error = error,
            Self::Unknown | Self::Answers => *self = Self::silent(now, error, FIRST_PAUSE, rng),
        }
    }

    /// A probe failed: the next one comes later. No effect if a request was answered meanwhile.
    pub fn probe_failed(&mut self, now: Time, error: String, rng: &mut impl Rng) {
        if let Self::Silent(silent) = self {
            *self = Self::silent(now, error, (silent.pause * 2).min(LONGEST_PAUSE), rng);
        }
    }

    fn silent(now: Time, error: String, pause: Duration, rng: &mut impl Rng) -> Self {
        let probe_at = now + pause.mul_f64(rng.random_range(0.75..=1.0));
        Self::Silent(Silent {
            error,
            pause,
            probe_at,
        })
    }

    /// When the origin is to be probed.
    pub fn probe_at(&self) -> Option<Time> {
        match self {
            Self::Silent(silent) => Some(silent.probe_at),
            Self::Unknown | Self::Answers => None,
        }
    }

    /// Whether the origin answers; `None` if it was never asked.
    pub fn is_answering(&self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Answers => Some(true),
            Self::Silent(_) => Some(false),
        }
    }

    /// The last error, if the origin is silent.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Silent(silent) => Some(&silent.error),
            Self::Unknown | Self::Answers => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_pcg::Pcg32;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error() -> String {
        "no answer".to_owned()
    }

    #[test]
    fn answering_or_unknown_origin_is_not_probed() {
        let mut origin = Reachability::default();
        assert_eq!((origin.is_answering(), origin.probe_at()), (None, None));
        assert!(!origin.answered(), "it was not silent before");
        assert_eq!(
            (origin.is_answering(), origin.probe_at()),
            (Some(true), None)
        );
    }

    #[test]
    fn probes_of_a_silent_origin_back_off_until_it_answers() {
        let mut rng = Pcg32::seed_from_u64(1);
        let mut origin = Reachability::default();
        let mut now = Time::ZERO + SECOND;
        origin.failed(now, error(), &mut rng);
        assert_eq!(
            (origin.is_answering(), origin.error()),
            (Some(false), Some("no answer"))
        );
        for pause_s in [1, 2, 4, 8, 16, 30, 30, 30] {
            let probe_at = origin.probe_at().expect("it is silent");
            let pause = probe_at.saturating_since(now);
            let longest = Duration::from_secs(pause_s);
            assert!(
                pause <= longest && pause >= longest.mul_f64(0.74),
                "{pause:?} of {longest:?}"
            );
            now = probe_at;
            origin.probe_failed(now, error(), &mut rng);
        }
        assert!(origin.answered(), "it was silent before");
        assert_eq!(
            (origin.is_answering(), origin.error(), origin.probe_at()),
            (Some(true), None, None)
        );
        origin.failed(now, error(), &mut rng);
        assert!(
            origin.probe_at().expect("silent again") <= now + SECOND,
            "the back-off starts again"
        );
    }

    #[test]
    fn failed_requests_do_not_delay_the_probe() {
        let mut rng = Pcg32::seed_from_u64(1);
        let mut origin = Reachability::default();
        origin.failed(Time::ZERO, error(), &mut rng);
        let probe_at = origin.probe_at();
        for tenths in 1..100 {
            origin.failed(
                Time::ZERO + SECOND * tenths / 10,
                "again".to_owned(),
                &mut rng,
            );
        }
        assert_eq!(
            (origin.probe_at(), origin.error()),
            (probe_at, Some("again"))
        );
    }

    #[test]
    fn failed_probe_after_an_answer_has_no_effect() {
        let mut rng = Pcg32::seed_from_u64(1);
        let mut origin = Reachability::default();
        origin.failed(Time::ZERO, error(), &mut rng);
        origin.answered();
        origin.probe_failed(Time::ZERO + SECOND, error(), &mut rng);
        assert_eq!(origin, Reachability::Answers);
    }
}

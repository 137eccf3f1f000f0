//! What a peer knows of an origin: nothing yet, that it answers, or that it does not; and when one
//! that does not is asked whether it is back.
//!
//! ```text
//!             answered                      failed
//! Unknown ───────────────▶ Answers ◀──────────────────▶ Silent {trouble, probe_at}
//!    └──────────────────────────── failed ───────────────▶ │  ▲
//!                                                          └──┘ a probe failed: the next one twice as late
//! ```
//!
//! Requests of pulls tell how it is; a probe is only for the time in which there are none. So an
//! origin that answers, or was never asked, is never probed. Pauses between probes double up to
//! [`LONGEST_PAUSE`], each shortened by up to a quarter at random, so that the peers of a fleet do
//! not come together.

use core::time::Duration;

use rand::{Rng, RngExt as _};

use crate::time::Time;

/// From the first failure to the first probe.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Between two probes at most.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is known of one origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// It was never asked.
    #[default]
    Unknown,
    /// It answered last time.
    Answers,
    /// It did not.
    Silent(Silent),
}

/// An origin that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    trouble: String,
    pause: Duration,
    probe_at: Time,
}

impl Reachability {
    /// It answered, whatever it was asked. Whether that is news: it did not answer before.
    pub fn answered(&mut self) -> bool {
        matches!(core::mem::replace(self, Self::Answers), Self::Silent(_))
    }

    /// A request went wrong. Failures of a silent one do not put its probe off.
    pub fn failed(&mut self, now: Time, trouble: String, rng: &mut impl Rng) {
        match self {
            Self::Silent(silent) => silent.trouble = trouble,
            Self::Unknown | Self::Answers => *self = Self::silent(now, trouble, FIRST_PAUSE, rng),
        }
    }

    /// A probe went wrong: the next one comes later. Without effect on one that answers: somebody
    /// else heard it meanwhile.
    pub fn probe_failed(&mut self, now: Time, trouble: String, rng: &mut impl Rng) {
        if let Self::Silent(silent) = self {
            *self = Self::silent(now, trouble, (silent.pause * 2).min(LONGEST_PAUSE), rng);
        }
    }

    fn silent(now: Time, trouble: String, pause: Duration, rng: &mut impl Rng) -> Self {
        let probe_at = now + pause.mul_f64(rng.random_range(0.75..=1.0));
        Self::Silent(Silent {
            trouble,
            pause,
            probe_at,
        })
    }

    /// When it wants to be probed.
    pub fn probe_at(&self) -> Option<Time> {
        match self {
            Self::Silent(silent) => Some(silent.probe_at),
            Self::Unknown | Self::Answers => None,
        }
    }

    /// Whether it answers; `None` if it was never asked.
    pub fn is_answering(&self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Answers => Some(true),
            Self::Silent(_) => Some(false),
        }
    }

    /// What went wrong last, if it does not answer.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::Silent(silent) => Some(&silent.trouble),
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

    fn trouble() -> String {
        "no answer".to_owned()
    }

    #[test]
    fn who_answers_or_was_never_asked_is_not_probed() {
        let mut origin = Reachability::default();
        assert_eq!((origin.is_answering(), origin.probe_at()), (None, None));
        assert!(!origin.answered(), "no news: nobody had missed it");
        assert_eq!(
            (origin.is_answering(), origin.probe_at()),
            (Some(true), None)
        );
    }

    #[test]
    fn a_silent_one_is_probed_ever_later_until_it_answers() {
        let mut rng = Pcg32::seed_from_u64(1);
        let mut origin = Reachability::default();
        let mut now = Time::ZERO + SECOND;
        origin.failed(now, trouble(), &mut rng);
        assert_eq!(
            (origin.is_answering(), origin.trouble()),
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
            origin.probe_failed(now, trouble(), &mut rng);
        }
        assert!(origin.answered(), "that is news");
        assert_eq!(
            (origin.is_answering(), origin.trouble(), origin.probe_at()),
            (Some(true), None, None)
        );
        origin.failed(now, trouble(), &mut rng);
        assert!(
            origin.probe_at().expect("silent again") <= now + SECOND,
            "the pauses begin anew"
        );
    }

    #[test]
    fn failures_of_pulls_put_no_probe_off() {
        let mut rng = Pcg32::seed_from_u64(1);
        let mut origin = Reachability::default();
        origin.failed(Time::ZERO, trouble(), &mut rng);
        let probe_at = origin.probe_at();
        for tenths in 1..100 {
            origin.failed(
                Time::ZERO + SECOND * tenths / 10,
                "again".to_owned(),
                &mut rng,
            );
        }
        assert_eq!(
            (origin.probe_at(), origin.trouble()),
            (probe_at, Some("again"))
        );
    }

    #[test]
    fn a_probe_that_fails_after_an_answer_came_changes_nothing() {
        let mut rng = Pcg32::seed_from_u64(1);
        let mut origin = Reachability::default();
        origin.failed(Time::ZERO, trouble(), &mut rng);
        origin.answered();
        origin.probe_failed(Time::ZERO + SECOND, trouble(), &mut rng);
        assert_eq!(origin, Reachability::Answers);
    }
}

//! The life of a record: a pure machine that both blob records and `rb` run.
//!
//! ```text
//! live --condemn--> condemned --kill--> dead          (final for a generation)
//!   ^                  |                  |
//!   +-----rescue-------+     revive, rb only (names a new generation)
//! ```
//! Each step is a compare-and-swap on the version in which the state was seen.

use bincode::{Decode, Encode};

/// Whether a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(crate) enum State {
    /// In use.
    Live,
    /// Found unused by a mark; still served, and rescued by whoever needs it.
    Condemned,
    /// Gone: its data may be deleted at any time.
    Dead,
}

/// What can happen to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Somebody relies on it: a HEAD, a mount, a manifest that names it.
    Rescue,
    /// A mark did not find it, or its repository deletes it.
    Condemn,
    /// It was seen condemned for long enough, and a second mark did not find it.
    Kill,
}

impl State {
    /// Whether its bytes may be served.
    pub(crate) const fn is_served(self) -> bool {
        matches!(self, Self::Live | Self::Condemned)
    }

    /// The state after a step; `None` where the step is not allowed or changes nothing.
    pub(crate) const fn after(self, step: Step) -> Option<Self> {
        match (self, step) {
            (Self::Live, Step::Condemn) => Some(Self::Condemned),
            (Self::Condemned, Step::Rescue) => Some(Self::Live),
            (Self::Condemned, Step::Kill) => Some(Self::Dead),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_is_final_and_live_never_dies_at_once() {
        for step in [Step::Rescue, Step::Condemn, Step::Kill] {
            assert_eq!(State::Dead.after(step), None);
        }
        assert_eq!(State::Live.after(Step::Kill), None);
        assert_eq!(State::Live.after(Step::Rescue), None, "nothing to write");
        assert!(State::Condemned.is_served() && !State::Dead.is_served());
    }
}

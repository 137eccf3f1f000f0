//! The life of a record: a pure machine that both blob records and `rb` run.
//!
//! ```text
//! live --condemn--> condemned --kill--> dead          (final for a generation)
//!   ^                  |                  |
//!   +-----rescue-------+     revive, rb only (names a generation that lives)
//! ```
//! Each step is a compare-and-swap on the version in which the state was seen. Condemning and
//! killing are the collector's; a repository that deletes a blob kills its own `rb`.

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

/// What has to happen before somebody may rely on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rescue {
    /// Nothing.
    NotNeeded,
    /// A swap to live.
    SwapToLive,
    /// It is too late.
    Impossible,
}

impl State {
    /// Whether its bytes may be served.
    pub(crate) const fn is_served(self) -> bool {
        matches!(self, Self::Live | Self::Condemned)
    }

    /// What it takes to rely on it: for a HEAD, a mount, a manifest that names it.
    pub(crate) const fn rescue(self) -> Rescue {
        match self {
            Self::Live => Rescue::NotNeeded,
            Self::Condemned => Rescue::SwapToLive,
            Self::Dead => Rescue::Impossible,
        }
    }
}

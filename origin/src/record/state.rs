//! The life of a record: a pure state machine, for blob records and memberships (`rb`).
//!
//! ```text
//! live --condemn--> condemned --kill--> dead          (final for a generation)
//!   ^                  |                  |
//!   +-----rescue-------+     revive, rb only (names a generation that is live)
//! ```
//! Each step is a compare-and-swap on the version in which the state was read. Only the collector
//! condemns and kills; a repository that deletes a blob kills its own membership.

use bincode::{Decode, Encode};

/// The state of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(crate) enum RecordState {
    /// In use.
    Live,
    /// Found unused by the collector; still served, and rescued by a request that relies on it.
    Condemned,
    /// Deleted: its data may be removed at any time.
    Dead,
}

/// What a request must do before it may rely on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rescue {
    /// Nothing.
    NotNeeded,
    /// A swap to live.
    SwapToLive,
    /// Nothing helps: the record is dead.
    Impossible,
}

impl RecordState {
    /// Whether its bytes may be served.
    pub(crate) const fn is_served(self) -> bool {
        matches!(self, Self::Live | Self::Condemned)
    }

    /// What a HEAD, a mount or a manifest that names the blob must do before it relies on it.
    pub(crate) const fn rescue(self) -> Rescue {
        match self {
            Self::Live => Rescue::NotNeeded,
            Self::Condemned => Rescue::SwapToLive,
            Self::Dead => Rescue::Impossible,
        }
    }
}

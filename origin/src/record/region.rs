//! `region/<name>`: what this region knows of another one. `lease/<job>`: which replica does a job.

use bincode::{Decode, Encode};
use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{FactKey, FactKind};

/// How far this region has walked all keys of the other one. Times are wall clocks, in nanoseconds
/// since 1970; they only pace the sweeps.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum SweepState {
    /// The next sweep begins at `from`.
    Waiting {
        /// When.
        from: u64,
        /// Its number: 0 for the first, 1 for the second, then more.
        round: u64,
    },
    /// Pages of keys are being merged.
    Walking {
        /// As in [`Self::Waiting`].
        round: u64,
        /// When the sweep began.
        began: u64,
        /// The sweep that the source said is owed; it gets the number back.
        owed: Option<u128>,
        /// The keys that are walked now.
        kind: FactKind,
        /// The last key that was walked.
        after: Option<FactKey>,
        /// Keys that another region must answer for first.
        unfinished: Vec<FactKey>,
    },
    /// All pages are merged; some keys wait for a region that does not answer.
    Finishing {
        /// As in [`Self::Waiting`].
        round: u64,
        /// When the last page was merged.
        since: u64,
        /// As in [`Self::Walking`].
        owed: Option<u128>,
        /// The keys.
        unfinished: Vec<FactKey>,
    },
}

/// What a region knows of another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RegionRecord {
    /// The other region's bucket, as first seen.
    pub(crate) storage_id: StorageId,
    /// Whether everything that the other region had is here.
    pub(crate) is_whole: bool,
    /// The choice of repositories with which the last sweep began.
    pub(crate) selection: u64,
    pub(crate) sweep: SweepState,
    pub(crate) nonce: u128,
}

/// The replica that does a job.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LeaseRecord {
    /// Identifies the holder's process; `None` if it gave the lease up.
    pub(crate) holder: Option<u128>,
    /// Grows with each renewal, so that each has another version.
    pub(crate) round: u64,
    pub(crate) nonce: u128,
}

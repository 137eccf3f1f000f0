//! `region/<name>`: what this region knows of another one. `lease/<job>`: which replica does a job.

use bincode::{Decode, Encode};
use flotilla_common::name::RegionName;
use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{FactKey, FactKind};

/// Keys that another region must answer for first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Unfinished {
    pub(crate) keys: Vec<FactKey>,
    /// Whether there were more keys than are kept here.
    pub(crate) is_cut: bool,
    /// When they are tried again.
    pub(crate) retry_at: u64,
    /// Since when there have been so many that the walk waits for them.
    pub(crate) full_since: Option<u64>,
}

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
        /// Keys that the last sweep left unfinished.
        unfinished: Unfinished,
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
        /// Keys that wait for another region.
        unfinished: Unfinished,
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
        unfinished: Unfinished,
    },
}

/// What of the policy a sweep depends on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Selection {
    /// A hash of the choice of repositories that this region keeps.
    pub(crate) repositories: u64,
    /// All regions, sorted.
    pub(crate) regions: Vec<RegionName>,
}

impl Selection {
    /// Whether a region that was whole by an `earlier` policy may lack something by this one: it
    /// keeps other repositories, or a region has left, which gave some changes only to others.
    pub(crate) fn may_lack_after(&self, earlier: &Self) -> bool {
        let has_left = |region: &RegionName| self.regions.binary_search(region).is_err();
        self.repositories != earlier.repositories || earlier.regions.iter().any(has_left)
    }
}

/// What a region knows of another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RegionRecord {
    /// The other region's bucket, as first seen, or as it was renewed since.
    pub(crate) storage_id: StorageId,
    /// The ids that the bucket had before it was renewed; an origin that uses one is refused.
    pub(crate) retired: Vec<StorageId>,
    /// Whether everything that the other region had is here.
    pub(crate) is_whole: bool,
    /// The policy by which it was decided when to sweep.
    pub(crate) selection: Selection,
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

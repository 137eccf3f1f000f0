//! Repairs of a storage that an operator asks for, while no origin uses it: [`restamp`] after a
//! clock ran ahead, [`renew`] after the storage was restored from an old copy.
//!
//! A repair that is stopped at any call is repeated from its start, and does what is left. All
//! writes are compare-and-swaps on the version that was read, or creates of new keys, so an origin
//! that runs in spite of the rule loses nothing; the repair then ends with an error.

mod in_use;
mod renew;
mod restamp;

use flotilla_common::name::RegionName;
use flotilla_common::storage_id::StorageId;

use crate::format::FormatError;
use crate::layout;
use crate::policy::{self, Policy, PolicyError};
use crate::storage::{Storage, StorageError};

pub use in_use::wait_until_unused;
pub use renew::{Renewed, Renewing, StorageIds, renew, storage_ids};
pub use restamp::{MAX_SHOWN, Restamped, RestampedKey, Restamping, restamp};

/// Why a repair ended.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The storage failed; the same command goes on where it stopped.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The storage has no valid `format` object.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The stored policy is not valid.
    #[error("the policy in the storage: {0}; set a valid one (`flotilla origin policy set`)")]
    Policy(#[from] PolicyError),
    /// The policy does not list the region of the storage.
    #[error(
        "the policy in the storage has no [[region]] for {region}, it has {listed}; correct --region"
    )]
    Region {
        /// The region that was named.
        region: RegionName,
        /// Those of the policy.
        listed: String,
    },
    /// The storage is the one of another region: it has a record of the region that was named.
    #[error(
        "this storage knows {0} as another region, so it is not that region's storage; correct --region or --storage"
    )]
    NotOwn(RegionName),
    /// An origin uses the storage.
    #[error(
        "an origin uses this storage: {0} was renewed a moment ago; stop all replicas of the region, then repeat this command"
    )]
    InUse(String),
    /// Another process changed an object meanwhile.
    #[error(
        "{0} was changed by another process meanwhile; stop all replicas of the region, then repeat this command"
    )]
    Changed(String),
    /// The storage has another id than the one to be replaced.
    #[error(
        "the storage has the id {present}, not {asked}: it may be another storage than you mean; `flotilla origin format show` prints the id"
    )]
    OtherStorage {
        /// The id that was named.
        asked: StorageId,
        /// The id of the storage.
        present: StorageId,
    },
}

impl RepairError {
    /// A conflict is another process's write.
    fn of(error: StorageError) -> Self {
        match error {
            StorageError::Conflict { key, .. } => Self::Changed(key),
            error => Self::Storage(error),
        }
    }
}

/// The policy of a storage, which must list `own`; a policy of a single region if there is none.
/// The storage must be that of `own`: what other regions keep is decided by that name.
async fn read_policy(storage: &dyn Storage, own: &RegionName) -> Result<Policy, RepairError> {
    if storage.read(&layout::region(own)).await?.is_some() {
        return Err(RepairError::NotOwn(own.clone()));
    }
    let Some(stored) = policy::read(storage).await? else {
        return Ok(Policy::none());
    };
    let policy = stored.parse()?;
    if policy.region(own).is_none() {
        let listed = policy.regions().iter().map(|region| region.name.as_str());
        return Err(RepairError::Region {
            region: own.clone(),
            listed: listed.collect::<Vec<_>>().join(", "),
        });
    }
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::open;

    /// With the name of another region, a repair would take for replicated what only this one has.
    #[tokio::test]
    async fn storage_of_another_region_is_refused() {
        let storage = open("memory:///", 0).expect("storage");
        let (own, other): (RegionName, RegionName) = (
            "eu-1".parse().expect("a name"),
            "us-1".parse().expect("a name"),
        );
        let record = layout::region(&other);
        storage
            .create(&record, "x".into())
            .await
            .expect("no faults");
        assert!(read_policy(&*storage, &own).await.is_ok());
        let refused = read_policy(&*storage, &other).await;
        assert!(matches!(refused, Err(RepairError::NotOwn(region)) if region == other));
    }
}

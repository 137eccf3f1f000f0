//! Gives a storage that was restored from an old copy another id.
//!
//! With its old id, other regions take it for the storage that they have followed all along: no
//! region owes it what it lost since the copy was made, and it would answer 404 for it. And a copy
//! that is older than tombstones are kept brings back what was deleted since.
//!
//! ```text
//! what this region knows of each other one: not whole, sweep all its keys
//! if the copy may be older than tombstones: remove the manifests, tags and referrers that other
//!   regions keep, and the journals          their blobs stay, so that no bytes are copied again
//! swap `format`: a new id and secret, the old id among those that it replaces
//! ```
//! The new id is last: a storage that has it is ready. Other regions accept it because it names the
//! id that they know, which they retire (`regions::storage_pins`).

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::FactKind;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::{RepairError, read_policy};
use crate::format::{self, FormatError, StorageIdentity};
use crate::layout;
use crate::policy::Policy;
use crate::record::SweepState;
use crate::regions::sweep::{region_records, write_region};
use crate::regions::sweep_state::SweepTimes;
use crate::storage::{Key, PAGE_LEN, Prefix, Storage, entries};

/// Objects removed concurrently.
const REMOVED_AT_ONCE: usize = 16;
/// Subtracted from the time for which tombstones are kept, beside the horizon: more than the clocks
/// of two regions differ.
const MARGIN: Duration = Duration::from_hours(1);

/// What to renew.
#[derive(Clone, Debug)]
pub struct Renewing {
    /// The region of the storage.
    pub region: RegionName,
    /// The id that is to be replaced.
    pub replace: StorageId,
    /// How old the copy may be, at most.
    pub age: Duration,
    /// The time now, in nanoseconds since 1970.
    pub now: u64,
    /// Only look.
    pub dry_run: bool,
}

/// The outcome of [`renew`]; with `dry_run`, of what it would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Renewed {
    /// The id of the storage: the new one, or the present one if nothing was written.
    pub storage_id: String,
    /// The id that it had before.
    pub replaced: String,
    /// Whether an earlier call had done everything.
    pub is_repeated: bool,
    /// The other regions whose keys are swept.
    pub swept_regions: u64,
    /// Manifests, tags and referrers that were removed, because other regions keep them.
    pub removed: u64,
    /// Manifests, tags and referrers that stay.
    pub kept: u64,
    /// Journal entries that were removed.
    pub entries: u64,
}

/// The ids of a storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StorageIds {
    /// The present one.
    pub storage_id: String,
    /// Those that it had before, oldest first.
    pub replaced: Vec<String>,
}

/// Reads the ids of a storage.
///
/// # Errors
/// The storage's; it is not the storage of an origin.
pub async fn storage_ids(storage: &dyn Storage) -> Result<StorageIds, RepairError> {
    let identity = format::read_identity(storage).await?;
    let replaced = identity.replaced.iter();
    Ok(StorageIds {
        storage_id: identity.storage_id.to_string(),
        replaced: replaced.map(StorageId::to_string).collect(),
    })
}

/// Gives a storage another id, and prepares it for the return among other regions.
///
/// # Errors
/// [`RepairError`]. Completed steps stay; a repeated call does the remaining ones.
pub async fn renew(storage: Arc<dyn Storage>, asked: &Renewing) -> Result<Renewed, RepairError> {
    let identity = format::read_identity(&*storage).await?;
    let mut done = Renewed {
        storage_id: identity.storage_id.to_string(),
        replaced: asked.replace.to_string(),
        is_repeated: identity.replaced.contains(&asked.replace),
        swept_regions: 0,
        removed: 0,
        kept: 0,
        entries: 0,
    };
    if done.is_repeated {
        return Ok(done);
    }
    if identity.storage_id != asked.replace {
        return Err(RepairError::OtherStorage {
            asked: asked.replace,
            present: identity.storage_id,
        });
    }
    let policy = read_policy(&*storage, &asked.region).await?;
    done.swept_regions = sweep_all(&*storage, asked).await?;
    if asked.age >= oldest_mergeable(&identity) {
        remove_facts(&*storage, asked, &policy, &mut done).await?;
    }
    if !asked.dry_run {
        let renewed = format::renew(&*storage, &identity).await;
        let storage_id = renewed.map_err(|error| match error {
            FormatError::Storage(error) => RepairError::of(error),
            error => error.into(),
        })?;
        done.storage_id = storage_id.to_string();
    }
    Ok(done)
}

/// The age from which on a tombstone that is younger than the copy may be gone in other regions.
fn oldest_mergeable(identity: &StorageIdentity) -> Duration {
    let keep = identity.tombstones.saturating_sub(identity.horizon);
    keep.saturating_sub(MARGIN)
}

/// Forgets how far the other regions were swept: everything that they were told is done since the
/// copy is missing here. Returns their number.
async fn sweep_all(storage: &dyn Storage, asked: &Renewing) -> Result<u64, RepairError> {
    let mut number = 0;
    for (key, object, mut record) in region_records(storage).await? {
        number += 1;
        record.is_whole = false;
        record.sweep = SweepState::first(asked.now, &SweepTimes::default());
        if !asked.dry_run {
            let written = write_region(storage, &key, Some(&object), record).await;
            written.map_err(RepairError::of)?;
        }
    }
    Ok(number)
}

/// Removes what other regions keep as well: they have whatever of it still exists, and the sweeps
/// bring it back. The journals name what was owed when the copy was made.
async fn remove_facts(
    storage: &dyn Storage,
    asked: &Renewing,
    policy: &Policy,
    done: &mut Renewed,
) -> Result<(), RepairError> {
    let kept_elsewhere = |key: &Key| {
        let (_, rest) = key.as_str().split_once('/')?;
        let (repository, _) = rest.split_once("/_/")?;
        let repository = repository.parse().ok()?;
        let rule = policy.rule_for(&repository);
        rule.others(&asked.region).next()
    };
    let facts = [FactKind::Tags, FactKind::Manifests].map(layout::facts);
    for prefix in facts.into_iter().chain([layout::all_referrers()]) {
        let (removed, kept) = remove(storage, asked, prefix, |key| {
            policy.exists() && kept_elsewhere(key).is_some()
        })
        .await?;
        done.removed += removed;
        done.kept += kept;
    }
    let (removed, _) = remove(storage, asked, layout::journals(), |_| true).await?;
    done.entries = removed;
    Ok(())
}

/// Removes the objects under a prefix that are `chosen`. Returns how many were, and were not.
async fn remove(
    storage: &dyn Storage,
    asked: &Renewing,
    prefix: Prefix,
    chosen: impl Fn(&Key) -> bool,
) -> Result<(u64, u64), RepairError> {
    let (mut removed, mut kept) = (0, 0);
    let listed = entries(storage, prefix, None);
    let mut batches = core::pin::pin!(listed.try_chunks(PAGE_LEN));
    while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
        let (gone, stays): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|entry| chosen(&entry.key));
        removed += gone.len() as u64;
        kept += stays.len() as u64;
        if !asked.dry_run {
            let deletes = gone
                .into_iter()
                .map(|entry| async move { storage.delete(&entry.key).await });
            let deletes = stream::iter(deletes).buffer_unordered(REMOVED_AT_ONCE);
            deletes.try_collect::<()>().await?;
        }
    }
    Ok((removed, kept))
}

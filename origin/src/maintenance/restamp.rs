//! Ends stamps in the future.
//!
//! A replica whose clock ran ahead stamped what it wrote with times that have not come. No region
//! merges such a value before its time, and no change replaces it. [`restamp`] gives each the time
//! at which it was written, by the storage's clock, so that it takes its place among the changes
//! that other regions made before and after it.
//!
//! ```text
//! the sweeps of all other regions begin anew     what this region took for older than its own
//! each manifest, then each tag from the future:  values, and dropped, comes again
//!   a journal entry for each other region  ──▶   swap it to its new stamp
//! each referrer: the stamp of its manifest
//! each journal entry from the future: a new one with the same keys  ──▶  delete it
//! ```
//! The entry comes before the swap, as for every change. It names no stamp that was seen: the one
//! that the writer saw may itself lie in the future, and would never be reached. The old entries
//! stay until the end, because they say above which stamp a value must stay.

use core::pin::pin;
use core::time::Duration;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::name::RegionName;
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{EntryId, FactKey, FactKind};
use futures_util::TryStreamExt;
use serde::Serialize;

use super::{RepairError, read_policy};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{
    JournalRecord, ManifestRecord, Pointer, ReferrerValue, TagValue, decode, encode,
};
use crate::regions::sweep::{region_records, write_region};
use crate::regions::sweep_state::SweepTimes;
use crate::registry::MAX_AHEAD;
use crate::storage::{Key, Object, Prefix, Storage, StorageError, entries};

/// Keys that a report names.
pub const MAX_SHOWN: usize = 1_000;
/// Objects that are read concurrently.
const READS_AT_ONCE: usize = 32;
/// How far the clocks of this machine and of another region may differ. A stamp that is less ahead
/// than [`MAX_AHEAD`] and this may be merged by another region at any moment.
const MARGIN: Duration = Duration::from_mins(2);

/// What to restamp.
#[derive(Clone, Debug)]
pub struct Restamping {
    /// The region of the storage.
    pub region: RegionName,
    /// The time now, in nanoseconds since 1970, by a clock that is right.
    pub now: u64,
    /// Only look.
    pub dry_run: bool,
}

/// The outcome of [`restamp`]; with `dry_run`, of what it would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restamped {
    /// Manifests, deleted ones included.
    pub manifests: u64,
    /// Tags, deleted ones included.
    pub tags: u64,
    /// Entries of lists of referrers.
    pub referrers: u64,
    /// Journal entries that were written anew.
    pub entries: u64,
    /// Manifests and tags that lie less than 12 minutes in the future: their time comes by itself.
    pub soon: u64,
    /// The first 1,000 manifests and tags.
    pub shown: Vec<RestampedKey>,
}

impl Restamped {
    /// Whether nothing lies in the future.
    pub const fn is_nothing(&self) -> bool {
        self.manifests == 0 && self.tags == 0 && self.referrers == 0 && self.entries == 0
    }
}

/// One manifest or tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestampedKey {
    /// The object.
    pub key: String,
    /// How far its stamp was ahead, in seconds.
    pub ahead_s: u64,
    /// Its new stamp, in seconds since 1970.
    pub stamp_unix_s: u64,
}

/// Gives everything that is stamped in the future the time at which it was written.
///
/// # Errors
/// [`RepairError`]. Completed steps stay; a repeated call does the remaining ones.
pub async fn restamp(
    storage: Arc<dyn Storage>,
    asked: &Restamping,
) -> Result<Restamped, RepairError> {
    let policy = read_policy(&*storage, &asked.region).await?;
    let others = policy.others(&asked.region);
    let mut job = Job {
        owed_to: others.map(|region| region.name.clone()).collect(),
        bound: asked.now.saturating_add(nanos(MAX_AHEAD + MARGIN)),
        now: asked.now,
        writes: !asked.dry_run,
        seen: HashMap::new(),
        sweeps_begin_anew: false,
        done: Restamped::default(),
        storage,
    };
    let from_the_future = job.entries_from_the_future().await?;
    job.manifests().await?;
    job.tags().await?;
    job.referrers().await?;
    for (region, key, record) in from_the_future {
        job.replace_entry(&region, &key, record).await?;
    }
    Ok(job.done)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

struct Job {
    storage: Arc<dyn Storage>,
    owed_to: Vec<RegionName>,
    now: u64,
    /// Stamps above it are changed.
    bound: u64,
    writes: bool,
    /// The highest stamp before the future that a writer of each key saw.
    seen: HashMap<FactKey, u64>,
    sweeps_begin_anew: bool,
    done: Restamped,
}

/// An object with a stamp in the future.
struct Ahead<R> {
    key: Key,
    object: Object,
    record: R,
}

impl Job {
    /// The journal entries whose writers had a clock in the future. They are the last of each
    /// journal.
    async fn entries_from_the_future(
        &mut self,
    ) -> Result<Vec<(RegionName, Key, JournalRecord)>, RepairError> {
        let mut found = Vec::new();
        let mut regions: BTreeSet<RegionName> = self.owed_to.iter().cloned().collect();
        let records = region_records(&*self.storage).await?;
        // Regions that have left the policy may return.
        let known = records
            .iter()
            .filter_map(|(key, ..)| key.last_segment().parse().ok());
        regions.extend(known);
        for region in regions {
            let after = EntryId {
                created: self.bound,
                nonce: u128::MAX,
            };
            let after = layout::journal_entry(&region, after);
            let storage = Arc::clone(&self.storage);
            let listed = entries(&*storage, layout::journal(&region), Some(after));
            let mut listed = pin!(listed);
            while let Some(entry) = listed.try_next().await? {
                if let Some(object) = storage.read(&entry.key).await? {
                    let record: JournalRecord = decode(&entry.key, &object.body)?;
                    self.note_seen(&record);
                    found.push((region.clone(), entry.key, record));
                }
            }
        }
        Ok(found)
    }

    fn note_seen(&mut self, record: &JournalRecord) {
        for (key, seen) in &record.keys {
            if let Some(seen) = seen
                && seen.clock <= self.bound
            {
                let highest = self.seen.entry(key.clone()).or_default();
                *highest = seen.clock.max(*highest);
            }
        }
    }

    /// Everything under a prefix with a stamp in the future.
    async fn ahead<R: Send>(
        &mut self,
        prefix: Prefix,
        read: impl Fn(&Key, &Object) -> Result<(R, u64), StorageError> + Copy + Send + Sync,
        mut each: impl AsyncFnMut(&mut Self, Ahead<R>) -> Result<(), RepairError>,
    ) -> Result<(), RepairError> {
        let storage = Arc::clone(&self.storage);
        let reads = entries(&*storage, prefix, None).map_ok(|entry| {
            let storage = Arc::clone(&storage);
            async move {
                let object = storage.read(&entry.key).await?;
                let Some(object) = object else {
                    return Ok(None);
                };
                let (record, clock) = read(&entry.key, &object)?;
                let key = entry.key;
                Ok(Some((
                    Ahead {
                        key,
                        object,
                        record,
                    },
                    clock,
                )))
            }
        });
        let mut reads = pin!(reads.try_buffered(READS_AT_ONCE));
        while let Some(found) = reads.try_next().await? {
            let Some((ahead, clock)) = found else {
                continue;
            };
            if clock > self.bound {
                each(self, ahead).await?;
            } else if clock > self.now.saturating_add(nanos(MARGIN)) {
                self.done.soon += 1;
            }
        }
        Ok(())
    }

    async fn manifests(&mut self) -> Result<(), RepairError> {
        let prefix = layout::facts(FactKind::Manifests);
        let read = |key: &Key, object: &Object| {
            let record = ManifestRecord::of(key, &object.body)?;
            let clock = record.stamp.clock;
            Ok((record, clock))
        };
        self.ahead(prefix, read, async |job, ahead| {
            job.done.manifests += 1;
            let Some(stamp) = job
                .owe(&ahead.key, &ahead.object, &ahead.record.stamp)
                .await?
            else {
                return Ok(());
            };
            let next = ManifestRecord {
                stamp,
                nonce: nonce(),
                ..ahead.record
            };
            let body = next.body(&ahead.key)?;
            job.swap(&ahead.key, &ahead.object, body).await
        })
        .await
    }

    async fn tags(&mut self) -> Result<(), RepairError> {
        let prefix = layout::facts(FactKind::Tags);
        let read = |key: &Key, object: &Object| {
            let pointer = Pointer::<TagValue>::of(key, &object.body)?;
            let clock = pointer.stamp.clock;
            Ok((pointer, clock))
        };
        self.ahead(prefix, read, async |job, ahead| {
            job.done.tags += 1;
            let Some(stamp) = job
                .owe(&ahead.key, &ahead.object, &ahead.record.stamp)
                .await?
            else {
                return Ok(());
            };
            let next = Pointer {
                stamp,
                nonce: nonce(),
                ..ahead.record
            };
            let body = next.body(&ahead.key)?.into();
            job.swap(&ahead.key, &ahead.object, body).await
        })
        .await
    }

    /// A referrer has the stamp and the turn of its manifest, which has its new stamp by now.
    async fn referrers(&mut self) -> Result<(), RepairError> {
        let read = |key: &Key, object: &Object| {
            let pointer = Pointer::<ReferrerValue>::of(key, &object.body)?;
            let clock = pointer.stamp.clock;
            Ok((pointer, clock))
        };
        self.ahead(layout::all_referrers(), read, async |job, ahead| {
            job.done.referrers += 1;
            if !job.writes {
                return Ok(());
            }
            let Some((repository, digest)) = layout::referring_manifest(&ahead.key) else {
                return Ok(());
            };
            let manifest = layout::manifest(&repository, &digest);
            let present = job.storage.read(&manifest).await?;
            let record = present.map(|object| ManifestRecord::of(&manifest, &object.body));
            let written = Stamp {
                clock: job.written_at(&ahead.object),
                region: ahead.record.stamp.region.clone(),
            };
            let next = match record.transpose()? {
                Some(record) => Pointer {
                    value: ahead.record.value.filter(|_| record.state.is_served()),
                    stamp: record.stamp,
                    turn: record.turn,
                    nonce: nonce(),
                },
                None => Pointer {
                    value: None,
                    stamp: written,
                    turn: 0,
                    nonce: nonce(),
                },
            };
            let body = next.body(&ahead.key)?.into();
            job.swap(&ahead.key, &ahead.object, body).await
        })
        .await
    }

    /// When an object was written, by the storage's clock. A directory has the clock of a machine,
    /// which may have been the one that ran ahead.
    fn written_at(&self, object: &Object) -> u64 {
        let modified = object
            .modified
            .map(|time| time.unix_ms().saturating_mul(1_000_000));
        modified.filter(|at| *at <= self.now).unwrap_or(self.now)
    }

    /// Notes a manifest or tag, and owes it to the other regions. Returns its new stamp; `None` if
    /// nothing is to be written.
    async fn owe(
        &mut self,
        key: &Key,
        object: &Object,
        present: &Stamp,
    ) -> Result<Option<Stamp>, RepairError> {
        let fact = layout::fact_key(key);
        let seen = fact.as_ref().and_then(|fact| self.seen.get(fact));
        let least = seen.map_or(0, |seen| seen.saturating_add(2));
        let clock = self.written_at(object).max(least);
        if self.done.shown.len() < MAX_SHOWN {
            self.done.shown.push(RestampedKey {
                key: key.to_string(),
                ahead_s: present.clock.saturating_sub(self.now) / 1_000_000_000,
                stamp_unix_s: clock / 1_000_000_000,
            });
        }
        let (true, Some(fact)) = (self.writes, fact) else {
            return Ok(None);
        };
        self.sweep_all_again().await?;
        for region in self.owed_to.clone() {
            self.write_entry(&region, vec![(fact.clone(), None)])
                .await?;
        }
        Ok(Some(Stamp {
            clock,
            region: present.region.clone(),
        }))
    }

    /// Lets this region look at all keys of the others again, once.
    ///
    /// While a value had a stamp in the future, a later change from another region was taken for
    /// older, and its entry is gone. And a sweep may itself wait for a time in the future.
    async fn sweep_all_again(&mut self) -> Result<(), RepairError> {
        if core::mem::replace(&mut self.sweeps_begin_anew, true) {
            return Ok(());
        }
        let times = SweepTimes::default();
        for (key, object, mut record) in region_records(&*self.storage).await? {
            record.sweep = record.sweep.again(self.now, &times);
            let written = write_region(&*self.storage, &key, Some(&object), record);
            written.await.map_err(RepairError::of)?;
        }
        Ok(())
    }

    /// Writes an entry from the future again as one of now.
    async fn replace_entry(
        &mut self,
        region: &RegionName,
        key: &Key,
        record: JournalRecord,
    ) -> Result<(), RepairError> {
        self.done.entries += 1;
        if !self.writes {
            return Ok(());
        }
        let bound = self.bound;
        let keys = record.keys.into_iter().map(|(key, seen)| {
            let seen = seen.filter(|seen| seen.clock <= bound);
            (key, seen)
        });
        self.write_entry(region, keys.collect()).await?;
        Ok(self.storage.delete(key).await?)
    }

    async fn write_entry(
        &self,
        region: &RegionName,
        keys: Vec<(FactKey, Option<Stamp>)>,
    ) -> Result<(), RepairError> {
        let nonce = nonce();
        let created = self.now;
        let key = layout::journal_entry(region, EntryId { created, nonce });
        let body = encode(&key, &JournalRecord { keys, nonce })?.into();
        let created = self.storage.create(&key, body).await;
        created.map(drop).map_err(RepairError::of)
    }

    async fn swap(&self, key: &Key, seen: &Object, body: Bytes) -> Result<(), RepairError> {
        let swapped = self.storage.swap(key, &seen.version, body).await;
        swapped.map(drop).map_err(RepairError::of)
    }
}

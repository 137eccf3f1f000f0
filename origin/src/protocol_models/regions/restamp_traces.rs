//! Stamps in the future, which the shipped repair ends (trace F12).

use core::ops::Range;
use core::time::Duration;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_common::digest::Digest;
use tokio::time::advance;

use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::backfill_traces::{Joining, Sweeps};
use super::follower::{Age, Follower, Follows, settle};
use super::properties::{held, owed, referrer_agrees, regions_are_equal};
use super::world::{
    Region, SUBJECT, delete_manifest, delete_tag, image, index, owed_to, put, tag, tag_key,
    warm_replica,
};
use crate::maintenance::{self, Restamping};
use crate::registry::ChangeRules;
use crate::storage::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageResult, Version,
};

const BOTH: &[Region] = &[Region::A, Region::B];
const SECOND: Duration = Duration::from_secs(1);

/// The rules that a repair keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restamps {
    /// As shipped.
    Shipped,
    /// Violates "a value gets the time at which it was written": it gets that of the repair.
    WithNow,
    /// Violates "the sweeps of other regions begin anew".
    WithoutSweeps,
    /// Violates "entries from the future are written anew".
    WithoutEntries,
    /// Violates "the entry comes before the swap".
    SwapsFirst,
}

/// A storage that leaves out or delays what one rule demands.
#[derive(Debug)]
struct BrokenStorage {
    inner: ModelStorage,
    restamps: Restamps,
    delayed: Mutex<Vec<(Key, Bytes)>>,
}

#[async_trait]
impl Storage for BrokenStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        if self.restamps == Restamps::SwapsFirst {
            self.delayed
                .lock()
                .expect("no panic")
                .push((key.clone(), body));
            return Ok(Version::new("delayed"));
        }
        self.inner.create(key, body).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        if self.restamps == Restamps::WithoutSweeps && key.as_str().starts_with("region/") {
            return Ok(seen.clone());
        }
        let swapped = self.inner.swap(key, seen, body).await;
        let delayed = core::mem::take(&mut *self.delayed.lock().expect("no panic"));
        for (key, body) in delayed {
            // A write that has begun applies in spite of a stop; so the stop comes at this read.
            self.inner.read(&key).await?;
            self.inner.create(&key, body).await?;
        }
        swapped
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.inner.read(key).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        self.inner.read_range(key, range).await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        let page = self.inner.list(prefix, after, limit).await?;
        let is_journal = prefix.as_str().starts_with("journal/");
        match self.restamps == Restamps::WithoutEntries && is_journal {
            true => Ok(Page::default()),
            false => Ok(page),
        }
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        self.inner.begin_write(key).await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.inner.delete(key).await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        self.inner.remove(key, seen).await
    }

    fn is_remote(&self) -> bool {
        false
    }

    async fn presigned_get(&self, _: &Key, _: Duration) -> StorageResult<Option<String>> {
        Ok(None)
    }
}

async fn restamp(model: &ModelStorage, now: u64, restamps: Restamps) {
    let storage = BrokenStorage {
        inner: Region::A.storage(model),
        restamps,
        delayed: Mutex::default(),
    };
    let asked = Restamping {
        region: Region::A.name(),
        now,
        dry_run: false,
    };
    let done = maintenance::restamp(Arc::new(storage), &asked).await;
    done.expect("no faults");
}

/// What happened at B while the clock of A was wrong, and whether A owed B anything then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    /// A client of B moved the tag after those of A did. A has heard of it.
    TagMoved,
    /// Nothing, and A was a single region when its clients pushed.
    Joined,
}

/// A replica of A whose clock is an hour ahead pushes an image and moves a tag twice. The repair
/// may be stopped at any call, and is repeated.
async fn explore_clock_ahead(restamps: Restamps, meanwhile: Meanwhile) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let ahead = warm_replica(&model, Region::A).await;
        warm_replica(&model, Region::B).await;
        advance(Duration::from_hours(1)).await;
        if restamps != Restamps::WithNow {
            model.correct_clock();
        }
        let to_b = owed_to(&[Region::B]);
        // All of these have the same clock, which is right. Those that are created later are
        // behind by a few seconds.
        let right = Region::A.replica(&model).await;
        let client = Region::B.replica(&model).await;
        let mut sweeping = Joining::new(&model, Region::A, &[Region::B], Sweeps::Shipped).await;
        let mut other = Joining::new(&model, Region::B, &[Region::A], Sweeps::Shipped).await;
        let pushed = put(&right, &index(0), &[tag()], &to_b).await;
        pushed.expect("a push");
        // First B, so that A finds keys there, and sweeps twice.
        other.run(None).await;
        sweeping.run(None).await;
        let rules = match meanwhile {
            Meanwhile::TagMoved => to_b,
            Meanwhile::Joined => ChangeRules::default(),
        };
        for manifest in [index(1), index(2)] {
            advance(SECOND).await;
            let pushed = put(&ahead, &manifest, &[tag()], &rules).await;
            pushed.expect("a push");
        }
        put(&ahead, &image(), &[], &rules).await.expect("a push");
        advance(SECOND).await;
        if meanwhile == Meanwhile::TagMoved {
            let moved = put(&client, &index(3), &[tag()], &owed_to(&[Region::A])).await;
            moved.expect("a push");
        }
        settle(&model, BOTH, Follows::Shipped).await;
        advance(SECOND).await;

        // Manifests are read concurrently, in an order that does not matter. Stops beside the one
        // tag stand for those beside each of them.
        model.keep_private(&["b/", "a/rm/", "a/ref/"]);
        let now = right.unix_nanos();
        let (crashing, repaired) = (model.clone(), model.clone());
        let repair = async move { restamp(&repaired, now, restamps).await };
        let settling = model.clone();
        let last = match meanwhile {
            Meanwhile::TagMoved => index(3),
            Meanwhile::Joined => index(2),
        };
        Scenario {
            actors: vec![Box::pin(async move { crashing.until_crash(repair).await })],
            settle: Some(Box::pin(async move {
                restamp(&settling, now, restamps).await;
                while sweeping.step().await {}
                // An entry from the future is young for long, so H does not end it.
                for (region, source) in [(Region::B, Region::A), (Region::A, Region::B)] {
                    let follower =
                        Follower::new(&settling, region, &[source], Follows::Shipped).await;
                    follower.follow(Age::Young).await;
                }
                if !owed(&settling, Region::A, Region::B).is_empty() {
                    return Err("an entry is never dropped".to_owned());
                }
                regions_are_equal(&settling, BOTH)?;
                let value = held(&settling, Region::A).remove(&tag_key());
                if value.and_then(|value| value.names) != Some(Digest::sha256(&last)) {
                    return Err("an acknowledged push is lost".to_owned());
                }
                referrer_agrees(&settling, Region::A, SUBJECT, &image())?;
                // Changes are possible again.
                let registry = Region::A.replica(&settling).await;
                let rules = owed_to(&[Region::B]);
                let deleted = delete_tag(&registry, &rules).await;
                deleted.map_err(|error| error.to_string())?;
                let deleted = delete_manifest(&registry, &image(), &rules).await;
                deleted.map_err(|error| error.to_string())?;
                referrer_agrees(&settling, Region::A, SUBJECT, &image())?;
                settle(&settling, BOTH, Follows::Shipped).await;
                Ok(())
            })),
            check: Box::new(|model| regions_are_equal(model, BOTH)),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn restamped_values_take_their_place_among_the_changes_of_all_regions() {
    for meanwhile in [Meanwhile::TagMoved, Meanwhile::Joined] {
        explore_clock_ahead(Restamps::Shipped, meanwhile)
            .await
            .assert_holds(10);
    }
    for (restamps, meanwhile, expected) in [
        (
            Restamps::WithNow,
            Meanwhile::TagMoved,
            "an acknowledged push is lost",
        ),
        (
            Restamps::WithoutSweeps,
            Meanwhile::TagMoved,
            "the regions differ",
        ),
        (
            Restamps::WithoutEntries,
            Meanwhile::TagMoved,
            "an entry is never dropped",
        ),
        (
            Restamps::SwapsFirst,
            Meanwhile::Joined,
            "the regions differ",
        ),
    ] {
        explore_clock_ahead(restamps, meanwhile)
            .await
            .assert_violated(expected);
    }
}

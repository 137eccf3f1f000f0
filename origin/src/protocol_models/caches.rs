//! Caches of several replicas: one replica writes, invalidates at the others and acknowledges;
//! readers at another replica start at any point.
//!
//! Every replica runs the shipped cache. A broken twin takes one of its [`Rules`] out.

use core::time::Duration;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use flotilla_runtime::clock::Clock;

use super::explorer::{Explored, Scenario, explore};
use super::storage_model::{Faults, ModelStorage};
use crate::cache::{Cache, CacheLimits, Effect, Rules, ShippedRules};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::storage::{Key, Storage, StorageError};

const KEY: &str = "tag/app/_/v1";

/// Violates "an invalidation advances the epoch": the value is dropped, and a fill that ends later
/// keeps the value that it read before.
struct InvalidatesWithoutEpoch;

impl Rules for InvalidatesWithoutEpoch {
    fn invalidation_advances_epoch(&self) -> bool {
        false
    }
}

/// Violates "a fill older than the time-to-live is not joined".
struct JoinsOldFills;

impl Rules for JoinsOldFills {
    fn may_join(&self, _: Duration, _: Duration) -> bool {
        true
    }
}

/// Violates "absence is not taken from a read that started before the reader asked".
struct AcceptsEarlierAbsence;

impl Rules for AcceptsEarlierAbsence {
    fn accepts_earlier_absence(&self) -> bool {
        true
    }
}

/// Whether a writer invalidates at the other replica before it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invalidation {
    /// As shipped.
    Sent,
    /// Violates "a change is acknowledged after every replica has invalidated its key".
    NotSent,
}

type ReplicaCache<R> = Cache<&'static str, u64, R>;

/// Passes only where a scenario advances the clock.
const TIME_TO_LIVE: Duration = Duration::from_hours(1);

fn cache<R: Rules>(rules: R) -> ReplicaCache<R> {
    let limits = CacheLimits {
        time_to_live: TIME_TO_LIVE,
        term: None,
        refresh_after: None,
        bytes: 1 << 20,
        // A hung fill outlives the time-to-live.
        fill_timeout: TIME_TO_LIVE * 24,
    };
    Cache::with_rules(rules, limits, Clock::tokio(), |_, _| 1)
}

async fn read<R: Rules>(cache: &ReplicaCache<R>, model: &ModelStorage) -> Option<u64> {
    let fill = || {
        let model = model.clone();
        async move {
            let key: Key = KEY.parse().expect("a key");
            let object = model.read(&key).await?;
            model.pause("the answer of the read arrives").await;
            Ok(object.map(|object| {
                String::from_utf8_lossy(&object.body)
                    .parse()
                    .expect("a number")
            }))
        }
    };
    cache
        .get(&KEY, fill)
        .await
        .expect("reads have no faults")
        .map(|cached| cached.value)
}

async fn explore_writes<R: Rules>(rules: impl Fn() -> R, invalidation: Invalidation) -> Explored {
    let scenario = async |model: ModelStorage| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "1".into()).await.expect("a value");
        let (own, other) = (cache(ShippedRules), cache(rules()));
        let acknowledged = Arc::new(AtomicU64::new(1));
        let stale = Arc::new(Mutex::new(None));
        let writer = {
            let (model, other, acknowledged) =
                (model.clone(), other.clone(), Arc::clone(&acknowledged));
            async move {
                for value in 2_u64..=3 {
                    let seen = model
                        .read(&key)
                        .await
                        .expect("no faults")
                        .expect("a value")
                        .version;
                    let writer = ConditionalWriter { storage: &model };
                    let write = async {
                        let outcome = writer
                            .write(&key, Some(&seen), value.to_string().into())
                            .await?;
                        assert!(
                            matches!(outcome, WriteOutcome::Written),
                            "there is no other writer"
                        );
                        Ok::<_, StorageError>((Effect::Stored(value), ()))
                    };
                    own.write(&KEY, write).await.expect("writes have no faults");
                    model.pause("the invalidation arrives").await;
                    if invalidation == Invalidation::Sent {
                        other.invalidate(&KEY);
                    }
                    acknowledged.store(value, Ordering::SeqCst);
                }
            }
        };
        let reader = |name: &'static str| {
            let (model, other, stale) = (model.clone(), other.clone(), Arc::clone(&stale));
            let acknowledged = Arc::clone(&acknowledged);
            async move {
                model.pause(name).await;
                let least = acknowledged.load(Ordering::SeqCst);
                let value = read(&other, &model).await.expect("it is never deleted");
                if value < least {
                    *stale.lock().expect("no panic") = Some((value, least));
                }
            }
        };
        let first = reader("the first reader starts");
        let second = reader("the second reader starts");
        let check = move |_: &ModelStorage| match *stale.lock().expect("no panic") {
            Some((value, least)) => Err(format!("read {value} after {least} was acknowledged")),
            None => Ok(()),
        };
        Scenario::new(
            vec![Box::pin(writer), Box::pin(first), Box::pin(second)],
            Box::new(check),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn acknowledged_write_is_seen_by_later_reads() {
    explore_writes(|| ShippedRules, Invalidation::Sent)
        .await
        .assert_holds(1000);
}

#[tokio::test(start_paused = true)]
async fn without_invalidation_the_other_replica_is_stale() {
    explore_writes(|| ShippedRules, Invalidation::NotSent)
        .await
        .assert_violated("was acknowledged");
}

/// A fill that read before the write and ends after the invalidation keeps the old value.
#[tokio::test(start_paused = true)]
async fn without_epochs_a_late_fill_keeps_the_old_value() {
    explore_writes(|| InvalidatesWithoutEpoch, Invalidation::Sent)
        .await
        .assert_violated("was acknowledged");
}

/// What a delete does when it finds a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FoundTombstone {
    /// As shipped: it invalidates at the other replicas before it answers 404.
    InvalidatesFirst,
    /// Violates that: it relies on the writer of the tombstone to invalidate.
    AnswersAtOnce,
}

/// The value of a tombstone.
const GONE: u64 = 0;

/// A delete by a replica that may crash at any point, a second delete of the same key at another
/// replica, and reads at a third one.
async fn explore_deletes(found: FoundTombstone) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "1".into()).await.expect("a value");
        let third = cache(ShippedRules);
        let is_gone = Arc::new(AtomicBool::new(false));
        let stale = Arc::new(AtomicBool::new(false));
        assert_eq!(read(&third, &model).await, Some(1), "it is in memory there");
        let first = {
            let (model, third, is_gone) = (model.clone(), third.clone(), Arc::clone(&is_gone));
            let (dying, key) = (model.clone(), key.clone());
            let delete = async move {
                let seen = model
                    .read(&key)
                    .await
                    .expect("no faults")
                    .expect("a value")
                    .version;
                let writer = ConditionalWriter { storage: &model };
                let outcome = writer
                    .write(&key, Some(&seen), GONE.to_string().into())
                    .await;
                assert!(
                    matches!(outcome, Ok(WriteOutcome::Written)),
                    "there is no other writer"
                );
                model.pause("the invalidation arrives").await;
                third.invalidate(&KEY);
                is_gone.store(true, Ordering::SeqCst);
            };
            async move { dying.until_crash(delete).await }
        };
        let second = {
            let (model, third, is_gone) = (model.clone(), third.clone(), Arc::clone(&is_gone));
            async move {
                let object = model.read(&key).await.expect("no faults").expect("a value");
                if object.body != GONE.to_string() {
                    return;
                }
                if found == FoundTombstone::InvalidatesFirst {
                    model.pause("the second invalidation arrives").await;
                    third.invalidate(&KEY);
                }
                is_gone.store(true, Ordering::SeqCst);
            }
        };
        let reader = {
            let stale = Arc::clone(&stale);
            async move {
                model.pause("the reader starts").await;
                let was_gone = is_gone.load(Ordering::SeqCst);
                let value = read(&third, &model).await;
                stale.store(was_gone && value != Some(GONE), Ordering::SeqCst);
            }
        };
        let check = move |_: &ModelStorage| match stale.load(Ordering::SeqCst) {
            true => Err("read after a delete was answered".to_owned()),
            false => Ok(()),
        };
        Scenario::new(
            vec![Box::pin(first), Box::pin(second), Box::pin(reader)],
            Box::new(check),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn deleted_key_is_served_by_no_replica() {
    explore_deletes(FoundTombstone::InvalidatesFirst)
        .await
        .assert_holds(50);
}

/// The writer of the tombstone crashed before it invalidated at the third replica.
#[tokio::test(start_paused = true)]
async fn delete_that_trusts_a_found_tombstone_leaves_the_key_served() {
    explore_deletes(FoundTombstone::AnswersAtOnce)
        .await
        .assert_violated("after a delete was answered");
}

/// A replica that is not listed, so it gets no invalidations, and whose reads may hang: its answers
/// are at most one time-to-live old.
async fn explore_unlisted<R: Rules>(rules: impl Fn() -> R) -> Explored {
    let scenario = async |model: ModelStorage| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "1".into()).await.expect("a value");
        let cache = cache(rules());
        let is_over = Arc::new(AtomicBool::new(false));
        let stale = Arc::new(AtomicBool::new(false));
        let writer = {
            let (model, is_over) = (model.clone(), Arc::clone(&is_over));
            async move {
                let seen = model
                    .read(&key)
                    .await
                    .expect("no faults")
                    .expect("a value")
                    .version;
                let outcome = ConditionalWriter { storage: &model }
                    .write(&key, Some(&seen), "2".into())
                    .await;
                assert!(
                    matches!(outcome, Ok(WriteOutcome::Written)),
                    "there is no other writer"
                );
                model.pause("a time-to-live passes").await;
                tokio::time::advance(TIME_TO_LIVE).await;
                is_over.store(true, Ordering::SeqCst);
            }
        };
        let reader = |name: &'static str| {
            let (model, cache) = (model.clone(), cache.clone());
            let (is_over, stale) = (Arc::clone(&is_over), Arc::clone(&stale));
            async move {
                model.pause(name).await;
                let least = if is_over.load(Ordering::SeqCst) { 2 } else { 1 };
                let value = read(&cache, &model).await.expect("it is never deleted");
                stale.fetch_or(value < least, Ordering::SeqCst);
            }
        };
        let first = reader("the first reader starts");
        let second = reader("the second reader starts");
        let check = move |_: &ModelStorage| match stale.load(Ordering::SeqCst) {
            true => Err("the value read is older than a time-to-live".to_owned()),
            false => Ok(()),
        };
        Scenario::new(
            vec![Box::pin(writer), Box::pin(first), Box::pin(second)],
            Box::new(check),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn unlisted_replica_is_stale_for_at_most_a_time_to_live() {
    explore_unlisted(|| ShippedRules).await.assert_holds(100);
}

/// A read that has hung since before the write is still running when its time-to-live is over.
#[tokio::test(start_paused = true)]
async fn joining_an_old_fill_exceeds_the_time_to_live() {
    explore_unlisted(|| JoinsOldFills)
        .await
        .assert_violated("older than a time-to-live");
}

/// A key that is created through one replica and read at another. A creation sends no invalidation,
/// since absence is never kept.
async fn explore_creation<R: Rules>(rules: impl Fn() -> R) -> Explored {
    let scenario = async |model: ModelStorage| {
        let key: Key = KEY.parse().expect("a key");
        let other = cache(rules());
        let is_there = Arc::new(AtomicBool::new(false));
        let is_missing = Arc::new(AtomicBool::new(false));
        let writer = {
            let (model, is_there) = (model.clone(), Arc::clone(&is_there));
            async move {
                let outcome = ConditionalWriter { storage: &model }
                    .write(&key, None, "1".into())
                    .await;
                assert!(
                    matches!(outcome, Ok(WriteOutcome::Written)),
                    "there is no other writer"
                );
                is_there.store(true, Ordering::SeqCst);
            }
        };
        let reader = |name: &'static str| {
            let (model, other) = (model.clone(), other.clone());
            let (is_there, is_missing) = (Arc::clone(&is_there), Arc::clone(&is_missing));
            async move {
                model.pause(name).await;
                let was_there = is_there.load(Ordering::SeqCst);
                let value = read(&other, &model).await;
                is_missing.fetch_or(was_there && value.is_none(), Ordering::SeqCst);
            }
        };
        let first = reader("the first reader starts");
        let second = reader("the second reader starts");
        let check = move |_: &ModelStorage| match is_missing.load(Ordering::SeqCst) {
            true => Err("an acknowledged value was reported absent".to_owned()),
            false => Ok(()),
        };
        Scenario::new(
            vec![Box::pin(writer), Box::pin(first), Box::pin(second)],
            Box::new(check),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn created_key_is_seen_by_later_reads() {
    explore_creation(|| ShippedRules).await.assert_holds(20);
}

/// A read that found nothing, and ends after the creation.
#[tokio::test(start_paused = true)]
async fn earlier_absence_hides_an_acknowledged_value() {
    explore_creation(|| AcceptsEarlierAbsence)
        .await
        .assert_violated("reported absent");
}

//! Caches of two replicas: one writes, tells the other and acknowledges; a reader at the other
//! begins whenever it likes.

use core::time::Duration;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use flotilla_runtime::clock::Clock;

use super::explorer::{Explored, Scenario, explore};
use super::model::{Faults, Model};
use crate::cache::{Cache, Limits, Rule};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::storage::{Key, Storage};

const KEY: &str = "tag/app/_/v1";

/// What a writer does between its swap and its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    /// As shipped: bump the epoch, drop the value, detach fills.
    Invalidation,
    /// Nothing: as without any message.
    Nothing,
    /// Breaks "an invalidation bumps the epoch": the old value is dropped, and a fill that comes
    /// later keeps its own.
    DroppingOnly,
}

type Values = Cache<&'static str, u64>;

/// Long enough to pass only where a story says so.
const TIME_TO_LIVE: Duration = Duration::from_hours(1);

fn cache() -> Values {
    let limits = Limits {
        time_to_live: TIME_TO_LIVE,
        refresh_after: None,
        bytes: 1 << 20,
        fill_timeout: TIME_TO_LIVE,
    };
    Cache::new(limits, |_, _| 1)
}

fn cache_without(rule: Option<Rule>) -> Values {
    match rule {
        Some(rule) => cache().without(rule),
        None => cache(),
    }
}

async fn read(cache: &Values, model: &Model) -> Option<u64> {
    let fill = || {
        let model = model.clone();
        async move {
            let key: Key = KEY.parse().expect("a key");
            let object = model.read(&key).await?;
            model.point("what was read arrives").await;
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

async fn explored(telling: Telling, reads: usize) -> Explored {
    let scenario = async |model: Model| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "1".into()).await.expect("a value");
        let (own, other) = (cache(), cache());
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
                    let (epoch, started) = (own.epoch(&KEY), Clock::system().now());
                    let settler = ConditionalWriter { storage: &model };
                    let settled = settler
                        .write(&key, Some(&seen), value.to_string().into())
                        .await;
                    assert!(
                        matches!(settled, Ok(WriteOutcome::Written)),
                        "nobody else writes"
                    );
                    own.wrote(&KEY, epoch, started, value);
                    model.point("the message arrives").await;
                    match telling {
                        Telling::Invalidation => other.invalidate(&KEY),
                        Telling::DroppingOnly => other.drop_only(&KEY),
                        Telling::Nothing => {}
                    }
                    acknowledged.store(value, Ordering::SeqCst);
                }
            }
        };
        let reader = |name: &'static str| {
            let (model, other, stale) = (model.clone(), other.clone(), Arc::clone(&stale));
            let acknowledged = Arc::clone(&acknowledged);
            async move {
                for _ in 0..reads {
                    model.point(name).await;
                    let least = acknowledged.load(Ordering::SeqCst);
                    let value = read(&other, &model).await.expect("it is never deleted");
                    if value < least {
                        *stale.lock().expect("no panic") = Some((value, least));
                    }
                }
            }
        };
        let (first, second) = (
            reader("the first reader begins"),
            reader("the second reader begins"),
        );
        let check = move |_: &Model| match *stale.lock().expect("no panic") {
            Some((value, least)) => Err(format!("read {value} after {least} was acknowledged")),
            None => Ok(()),
        };
        Scenario {
            actors: vec![Box::pin(writer), Box::pin(first), Box::pin(second)],
            check: Box::new(check),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test]
async fn a_read_that_begins_after_an_acknowledged_write_returns_it() {
    explored(Telling::Invalidation, 1).await.assert_holds(1000);
}

#[tokio::test]
async fn without_a_message_the_other_replica_is_stale() {
    explored(Telling::Nothing, 1)
        .await
        .assert_broken("was acknowledged");
}

/// A fill that read before the write and ends after the invalidation would keep the old value.
#[tokio::test]
async fn without_epochs_a_late_fill_keeps_what_was_before() {
    explored(Telling::DroppingOnly, 1)
        .await
        .assert_broken("was acknowledged");
}

/// What a delete does that finds a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// As shipped: it tells the other replicas before it says that there is nothing.
    TellsFirst,
    /// Breaks that: who wrote the tombstone has told them, or will.
    SaysAtOnce,
}

/// What a tombstone reads as.
const GONE: u64 = 0;

/// A delete whose replica may die anywhere, another one of the same thing at a second replica, and
/// reads at a third.
async fn explored_deletes(finding: Finding) -> Explored {
    let scenario = async move |model: Model| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "1".into()).await.expect("a value");
        let (third, is_gone) = (cache(), Arc::new(AtomicBool::new(false)));
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
                let settler = ConditionalWriter { storage: &model };
                let settled = settler
                    .write(&key, Some(&seen), GONE.to_string().into())
                    .await;
                assert!(
                    matches!(settled, Ok(WriteOutcome::Written)),
                    "nobody else writes"
                );
                model.point("the message arrives").await;
                third.invalidate(&KEY);
                is_gone.store(true, Ordering::SeqCst);
            };
            async move { dying.mortal(delete).await }
        };
        let second = {
            let (model, third, is_gone) = (model.clone(), third.clone(), Arc::clone(&is_gone));
            async move {
                let object = model.read(&key).await.expect("no faults").expect("a value");
                if object.body != GONE.to_string() {
                    return;
                }
                if finding == Finding::TellsFirst {
                    model.point("the second message arrives").await;
                    third.invalidate(&KEY);
                }
                is_gone.store(true, Ordering::SeqCst);
            }
        };
        let reader = {
            let stale = Arc::clone(&stale);
            async move {
                model.point("the reader begins").await;
                let was_gone = is_gone.load(Ordering::SeqCst);
                let value = read(&third, &model).await;
                stale.store(was_gone && value != Some(GONE), Ordering::SeqCst);
            }
        };
        let check = move |_: &Model| match stale.load(Ordering::SeqCst) {
            true => Err("it was read after a client heard that it is gone".to_owned()),
            false => Ok(()),
        };
        Scenario {
            actors: vec![Box::pin(first), Box::pin(second), Box::pin(reader)],
            check: Box::new(check),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test]
async fn what_a_delete_did_not_find_is_served_nowhere() {
    explored_deletes(Finding::TellsFirst).await.assert_holds(50);
}

/// Who wrote the tombstone died before it told anybody.
#[tokio::test]
async fn a_delete_that_tells_nobody_what_it_found_leaves_it_served_elsewhere() {
    explored_deletes(Finding::SaysAtOnce)
        .await
        .assert_broken("heard that it is gone");
}

/// A replica that nobody tells, and whose reads may hang: what it answers is at most one
/// time-to-live old.
async fn explored_unlisted(without: Option<Rule>) -> Explored {
    let scenario = async move |model: Model| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "1".into()).await.expect("a value");
        let cache = cache_without(without);
        let (is_over, stale) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let writer = {
            let (model, cache, is_over) = (model.clone(), cache.clone(), Arc::clone(&is_over));
            async move {
                let seen = model
                    .read(&key)
                    .await
                    .expect("no faults")
                    .expect("a value")
                    .version;
                let settled = ConditionalWriter { storage: &model }
                    .write(&key, Some(&seen), "2".into())
                    .await;
                assert!(
                    matches!(settled, Ok(WriteOutcome::Written)),
                    "nobody else writes"
                );
                model.point("a time-to-live passes").await;
                cache.let_pass(TIME_TO_LIVE);
                is_over.store(true, Ordering::SeqCst);
            }
        };
        let reader = |name: &'static str| {
            let (model, cache) = (model.clone(), cache.clone());
            let (is_over, stale) = (Arc::clone(&is_over), Arc::clone(&stale));
            async move {
                model.point(name).await;
                let least = if is_over.load(Ordering::SeqCst) { 2 } else { 1 };
                let value = read(&cache, &model).await.expect("it is never deleted");
                stale.fetch_or(value < least, Ordering::SeqCst);
            }
        };
        let (first, second) = (
            reader("the first reader begins"),
            reader("the second reader begins"),
        );
        let check = move |_: &Model| match stale.load(Ordering::SeqCst) {
            true => Err("what was read is older than a time-to-live".to_owned()),
            false => Ok(()),
        };
        Scenario {
            actors: vec![Box::pin(writer), Box::pin(first), Box::pin(second)],
            check: Box::new(check),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test]
async fn a_replica_that_nobody_tells_is_stale_for_a_time_to_live_at_most() {
    explored_unlisted(None).await.assert_holds(100);
}

/// A read that hangs from before the write on is still there when its time-to-live is over.
#[tokio::test]
async fn a_hung_fill_joined_late_is_older_than_any_time_to_live() {
    explored_unlisted(Some(Rule::OldFillsAreLeft))
        .await
        .assert_broken("older than a time-to-live");
}

/// What is created through one replica and asked for at another: nobody is told, since absence is
/// never kept.
async fn explored_appearance(without: Option<Rule>) -> Explored {
    let scenario = async move |model: Model| {
        let key: Key = KEY.parse().expect("a key");
        let other = cache_without(without);
        let (is_there, is_missing) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let writer = {
            let (model, is_there) = (model.clone(), Arc::clone(&is_there));
            async move {
                let settled = ConditionalWriter { storage: &model }
                    .write(&key, None, "1".into())
                    .await;
                assert!(
                    matches!(settled, Ok(WriteOutcome::Written)),
                    "nobody else writes"
                );
                is_there.store(true, Ordering::SeqCst);
            }
        };
        let reader = |name: &'static str| {
            let (model, other) = (model.clone(), other.clone());
            let (is_there, is_missing) = (Arc::clone(&is_there), Arc::clone(&is_missing));
            async move {
                model.point(name).await;
                let was_there = is_there.load(Ordering::SeqCst);
                let value = read(&other, &model).await;
                is_missing.fetch_or(was_there && value.is_none(), Ordering::SeqCst);
            }
        };
        let (first, second) = (
            reader("the first reader begins"),
            reader("the second reader begins"),
        );
        let check = move |_: &Model| match is_missing.load(Ordering::SeqCst) {
            true => Err("what was acknowledged is said to be absent".to_owned()),
            false => Ok(()),
        };
        Scenario {
            actors: vec![Box::pin(writer), Box::pin(first), Box::pin(second)],
            check: Box::new(check),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test]
async fn what_appears_is_there_for_every_read_that_begins_later() {
    explored_appearance(None).await.assert_holds(20);
}

/// A read that found nothing, and arrives after what it did not find.
#[tokio::test]
async fn absence_from_a_read_that_began_before_denies_what_was_acknowledged() {
    explored_appearance(Some(Rule::AbsenceIsReadAnew))
        .await
        .assert_broken("said to be absent");
}

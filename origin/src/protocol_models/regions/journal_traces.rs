//! Entries of the journal: when they are written, when their keys are reached, and when they are
//! dropped (traces R1 to R4, F3a, F7).

use core::time::Duration;

use bytes::Bytes;
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{EntryId, FactKey};
use tokio::time::advance;

use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Age, Follower, Follows, settle, settling};
use super::properties::{Requests, differences_are_owed, owed, regions_are_equal, tags_are_whole};
use super::world::{Region, index, manifest_key, owed_to, put, tag, tag_key};
use crate::config::Limits;
use crate::format::Horizons;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{JournalRecord, Pointer, TagValue, encode};
use crate::registry::{ChangeRules, Registry};
use crate::storage::Storage;

/// The behaviour of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    /// As shipped.
    Shipped,
    /// Violates "no key is written before its entry".
    EntryAfter,
}

/// Only the follower uses B. The mark of a trim is never written.
const FOLLOWER_ALONE_IN_B: &[&str] = &["b/", "a/trimmed/"];

/// Writes an entry that B is owed, by hand.
async fn write_entry(model: &ModelStorage, created: u64, keys: Vec<(FactKey, Option<Stamp>)>) {
    let nonce = nonce();
    let key = layout::journal_entry(&Region::B.name(), EntryId { created, nonce });
    let body = encode(&key, &JournalRecord { keys, nonce }).expect("a body");
    let created = Region::A.storage(model).create(&key, body.into()).await;
    created.expect("a new key");
}

async fn push(
    model: &ModelStorage,
    registry: &Registry,
    manifest: &Bytes,
    writes: Writes,
) -> Option<Stamp> {
    let rules = match writes {
        Writes::Shipped => owed_to(&[Region::B]),
        Writes::EntryAfter => ChangeRules::default(),
    };
    let stamp = put(registry, manifest, &[tag()], &rules).await.ok()?;
    if writes == Writes::EntryAfter {
        let keys = vec![(manifest_key(manifest), None), (tag_key(), None)];
        write_entry(model, stamp.clock, keys).await;
    }
    Some(stamp)
}

/// How the writer's request may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Answered,
    /// Its replica crashes. A write that is pending then still applies.
    Crashed,
    /// A write takes longer than the timeout, so the request is refused; the write applies later.
    TimedOut,
}

async fn explore_move(follows: Follows, writes: Writes, ends: Ends) -> Explored {
    explore_order(follows, writes, ends, &[]).await
}

/// A tag that A and B have moves in A while B follows. The clock of the writer is behind the tag's
/// stamp. Before it lists its journal, B copies the keys of an order.
async fn explore_order(
    follows: Follows,
    writes: Writes,
    ends: Ends,
    order: &[FactKey],
) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let ahead = Region::A.replica(&model).await;
        advance(Duration::from_secs(1)).await;
        let rules = owed_to(&[Region::B]);
        let pushed = put(&ahead, &index(0), &[tag()], &rules).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        follower.follow(Age::Young).await;
        let registry = Region::A.replica(&model).await;
        model.keep_private(FOLLOWER_ALONE_IN_B);
        let requests = Requests::default();
        let write = {
            let (model, requests) = (model.clone(), requests.clone());
            async move {
                let stamp = push(&model, &registry, &index(1), writes).await;
                requests.pushed(tag_key(), stamp);
            }
        };
        let fails = model.clone();
        let write = async move {
            match ends {
                Ends::Crashed => fails.until_crash(write).await,
                Ends::Answered | Ends::TimedOut => write.await,
            }
        };
        let timeout = model.clone();
        let time = async move {
            if ends == Ends::TimedOut {
                timeout.pause("the timeout of a write passes").await;
                advance(Limits::default().storage_timeout * 3).await;
            }
        };
        let order = order.to_vec();
        let follow = async move {
            follower.take(&order).await;
            follower.follow(Age::Young).await;
        };
        let settle = {
            let model = model.clone();
            async move {
                differences_are_owed(&model, Region::A, Region::B)?;
                settle(&model, &[Region::A, Region::B], follows).await;
                Ok(())
            }
        };
        Scenario {
            actors: vec![Box::pin(write), Box::pin(follow), Box::pin(time)],
            settle: Some(Box::pin(settle)),
            check: Box::new(move |model| {
                requests.are_kept(model, &[Region::A, Region::B])?;
                regions_are_equal(model, &[Region::A, Region::B])?;
                tags_are_whole(model, Region::B)
            }),
        }
    };
    explore(Faults::NONE, scenario).await
}

/// R1, R2.
#[tokio::test(start_paused = true)]
async fn entries_are_kept_until_their_writes_are_seen() {
    let explored = explore_move(Follows::Shipped, Writes::Shipped, Ends::Answered).await;
    explored.assert_holds(20);
}

/// R1: the follower reads the old tag and drops the entry; then the tag is swapped.
#[tokio::test(start_paused = true)]
async fn dropping_unreached_entries_loses_pushes() {
    explore_move(Follows::DropsUnreached, Writes::Shipped, Ends::Answered)
        .await
        .assert_violated("neither merged nor owed");
}

/// R2: the present stamp is above the entry's clock, although the entry's write has not applied.
#[tokio::test(start_paused = true)]
async fn comparing_stamps_with_the_clock_of_entries_loses_pushes() {
    explore_move(Follows::ComparesClocks, Writes::Shipped, Ends::Answered)
        .await
        .assert_violated("neither merged nor owed");
}

/// R3: the writer gives up, and its write applies later.
#[tokio::test(start_paused = true)]
async fn late_writes_of_refused_pushes_are_copied() {
    explore_move(Follows::Shipped, Writes::Shipped, Ends::TimedOut)
        .await
        .assert_holds(100);
    explore_move(Follows::DropsUnreached, Writes::Shipped, Ends::TimedOut)
        .await
        .assert_violated("neither merged nor owed");
}

/// R4.
#[tokio::test(start_paused = true)]
async fn changes_of_crashed_replicas_are_owed() {
    explore_move(Follows::Shipped, Writes::Shipped, Ends::Crashed)
        .await
        .assert_holds(100);
    explore_move(Follows::Shipped, Writes::EntryAfter, Ends::Crashed)
        .await
        .assert_violated("neither merged nor owed");
}

/// What B copied for an order ends the entry of the push that it copied, and of no later one.
#[tokio::test(start_paused = true)]
async fn orders_end_only_the_entries_of_what_they_copied() {
    let order = [manifest_key(&index(1)), tag_key()];
    for ends in [Ends::Answered, Ends::TimedOut] {
        explore_order(Follows::Shipped, Writes::Shipped, ends, &order)
            .await
            .assert_holds(20);
        explore_order(Follows::EndsAtOrders, Writes::Shipped, ends, &order)
            .await
            .assert_violated("neither merged nor owed");
    }
}

/// F7: a replica dies between the two tags of one push.
async fn explore_two_tags(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        model.keep_private(FOLLOWER_ALONE_IN_B);
        let write = async move {
            let tags = [tag(), "v2".parse().expect("a tag")];
            let _ = put(&registry, &index(1), &tags, &owed_to(&[Region::B])).await;
        };
        let crashing = model.clone();
        Scenario {
            actors: vec![Box::pin(async move { crashing.until_crash(write).await })],
            settle: settling(&model, &[Region::A, Region::B], follows),
            check: Box::new(move |model| {
                if !owed(model, Region::A, Region::B).is_empty() {
                    return Err("an entry is never dropped".to_owned());
                }
                regions_are_equal(model, &[Region::A, Region::B])
            }),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn expired_entries_are_dropped_after_what_was_reached_is_merged() {
    explore_two_tags(Follows::Shipped).await.assert_holds(5);
    explore_two_tags(Follows::AllOrNothing)
        .await
        .assert_violated("the regions differ");
}

/// How a machine deletes a tag with an old stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// Names the entry by the wall clock.
    WallClock,
    /// Violates that: names it by the stamp of the delete.
    Stamp,
}

/// F3a: a delete whose stamp is as old as the tag.
async fn explore_old_stamp(names: Names) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        let pushed = put(&registry, &index(1), &[tag()], &owed_to(&[Region::B])).await;
        let pushed = pushed.expect("a push");
        follower.follow(Age::Young).await;
        let horizon = Horizons::default().horizon;
        advance(horizon * 30).await;
        let horizon = horizon.as_nanos() as u64;
        let now = pushed.clock + horizon * 30;
        model.keep_private(FOLLOWER_ALONE_IN_B);
        let retention = {
            let model = model.clone();
            async move {
                let stamp = Stamp {
                    clock: pushed.clock + 1,
                    ..pushed.clone()
                };
                let created = match names {
                    Names::WallClock => now,
                    Names::Stamp => stamp.clock,
                };
                write_entry(&model, created, vec![(tag_key(), Some(pushed))]).await;
                let storage = Region::A.storage(&model);
                let key = layout::fact(&tag_key());
                let present = storage.read(&key).await.expect("no faults");
                let present = present.expect("a tag");
                let tombstone = Pointer::<TagValue> {
                    stamp,
                    turn: 0,
                    value: None,
                    nonce: nonce(),
                };
                let body = tombstone.body(&key).expect("a body").into();
                let swapped = storage.swap(&key, &present.version, body).await;
                swapped.expect("the only writer");
            }
        };
        let follow = async move {
            // As the shipped follower: an entry expires H after it was created.
            let oldest = registry.owed_to(&Region::B.name()).await;
            let oldest = oldest.expect("no faults").oldest;
            let age = match oldest {
                Some(created) if now - created > horizon => Age::Expired,
                _ => Age::Young,
            };
            follower.follow(age).await;
        };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(retention), Box::pin(follow)],
            settle: Some(Box::pin(async move {
                differences_are_owed(&settling, Region::A, Region::B)
            })),
            check: Box::new(|_| Ok(())),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn entries_are_named_by_the_wall_clock() {
    explore_old_stamp(Names::WallClock).await.assert_holds(10);
    explore_old_stamp(Names::Stamp)
        .await
        .assert_violated("neither merged nor owed");
}

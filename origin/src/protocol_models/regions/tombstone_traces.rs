//! When tombstones are removed (traces R15, R16, F3b). The remover is the least one that the rules
//! allow; the decision is the shipped one.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{RegionState, StorageStanding};
use tokio::sync::Notify;
use tokio::time::advance;

use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Age, Follower, Follows, settle};
use super::properties::held;
use super::world::{Region, delete_tag, index, owed_to, put, tag, tag_key};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{Pointer, TagValue};
use crate::regions::tombstones::{Tombstone, may_remove, merged_before};
use crate::registry::Registry;
use crate::storage::Storage;

const KEEP: Duration = Duration::from_hours(24 * 30);
const AWAY: Duration = Duration::from_hours(24 * 40);

/// The behaviour of a remover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removes {
    /// As shipped.
    Shipped,
    /// Violates "everything written before is merged everywhere": removes by age alone.
    ByAge,
    /// Violates "age is counted from the write": counts it from the stamp.
    ByStamp,
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// Removes the tag's tombstone in a region, if it may. `now` is the time of all clocks; `owing` are
/// replicas of all regions, with the regions that each may owe something.
async fn remove(
    model: &ModelStorage,
    region: Region,
    owing: &[(Arc<Registry>, Vec<Region>)],
    now: u64,
    removes: Removes,
) {
    let mut states = Vec::new();
    for (registry, others) in owing {
        let mut owed = Vec::new();
        for other in others {
            owed.push(registry.owed_to(&other.name()).await.expect("no faults"));
        }
        states.push(RegionState {
            region: registry.region().clone(),
            storage_id: StorageId::from_bytes([0; 16]),
            replaced: Vec::new(),
            clock: now,
            standing: StorageStanding::Usable,
            is_whole: true,
            owed,
        });
    }
    let storage = region.storage(model);
    let key = layout::fact(&tag_key());
    let Some(present) = storage.read(&key).await.expect("no faults") else {
        return;
    };
    let pointer = Pointer::<TagValue>::of(&key, &present.body).expect("a tag");
    if pointer.value.is_some() {
        return;
    }
    let modified = present.modified.expect("the model's clock").unix_ms() * 1_000_000;
    let stamp = pointer.stamp.clock;
    let tombstone = match removes {
        Removes::Shipped | Removes::ByAge => Tombstone { stamp, modified },
        Removes::ByStamp => Tombstone {
            stamp,
            modified: stamp,
        },
    };
    let merged = match removes {
        Removes::Shipped | Removes::ByStamp => merged_before(states.iter().map(Some)),
        Removes::ByAge => Some(u64::MAX),
    };
    if may_remove(tombstone, merged, now, KEEP) {
        let _ = storage.remove(&key, &present.version).await;
    }
}

fn deleted_tag_stays_deleted(model: &ModelStorage, regions: &[Region]) -> Result<(), String> {
    for region in regions {
        let value = held(model, *region).remove(&tag_key());
        if value.is_some_and(|value| value.state.is_served()) {
            return Err(format!("a deleted tag is live in {region:?}"));
        }
    }
    Ok(())
}

/// Follows and sweeps in all directions.
async fn settle_and_sweep(model: &ModelStorage, regions: &[Region]) {
    settle(model, regions, Follows::Shipped).await;
    for region in regions {
        let others = regions.iter().filter(|other| *other != region);
        let others: Vec<Region> = others.copied().collect();
        let follower = Follower::new(model, *region, &others, Follows::Shipped).await;
        follower.sweep().await;
    }
}

/// R15: A and B delete a tag; C was away for 40 days, and follows again while A and B
/// remove tombstones.
async fn explore_away(removes: Removes) -> Explored {
    const ALL: &[Region] = &[Region::A, Region::B, Region::C];
    let scenario = async move |model: ModelStorage| {
        let mut replicas = Vec::new();
        for region in ALL {
            let others = ALL.iter().filter(|other| *other != region);
            replicas.push((
                region.replica(&model).await,
                others.copied().collect::<Vec<_>>(),
            ));
        }
        let rules = owed_to(&[Region::B, Region::C]);
        let pushed = put(&replicas[0].0, &index(1), &[tag()], &rules).await;
        let pushed = pushed.expect("a push");
        settle(&model, ALL, Follows::Shipped).await;
        delete_tag(&replicas[0].0, &rules).await.expect("a delete");
        let of_b = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        of_b.follow(Age::Young).await;
        advance(AWAY).await;
        let now = pushed.clock + nanos(AWAY);
        let of_c = Follower::new(&model, Region::C, &[Region::A], Follows::Shipped).await;
        model.keep_private(&["b/", "c/", "a/trimmed/", "a/rm/"]);
        let remover = {
            let model = model.clone();
            async move {
                for region in [Region::A, Region::B] {
                    remove(&model, region, &replicas, now, removes).await;
                }
            }
        };
        let follow = async move {
            of_c.follow(Age::Expired).await;
        };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(remover), Box::pin(follow)],
            settle: Some(Box::pin(async move {
                settle_and_sweep(&settling, ALL).await;
                Ok(())
            })),
            check: Box::new(|model| deleted_tag_stays_deleted(model, ALL)),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn tombstones_outlast_regions_that_are_away() {
    explore_away(Removes::Shipped).await.assert_holds(5);
    explore_away(Removes::ByAge)
        .await
        .assert_violated("a deleted tag is live");
}

/// F3b: retention has deleted an old tag a moment ago; B has not heard of it.
async fn explore_old_stamp(removes: Removes) -> Explored {
    const BOTH: &[Region] = &[Region::A, Region::B];
    let scenario = async move |model: ModelStorage| {
        let mut replicas = Vec::new();
        for region in BOTH {
            let others = BOTH.iter().filter(|other| *other != region);
            replicas.push((
                region.replica(&model).await,
                others.copied().collect::<Vec<_>>(),
            ));
        }
        let registry = Arc::clone(&replicas[0].0);
        let rules = owed_to(&[Region::B]);
        let pushed = put(&registry, &index(1), &[tag()], &rules).await;
        let pushed = pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        follower.follow(Age::Young).await;
        advance(AWAY).await;
        let now = pushed.clock + nanos(AWAY);
        // A delete writes the entry; then the tombstone gets the stamp that retention gives it.
        delete_tag(&registry, &rules).await.expect("a delete");
        let storage = Region::A.storage(&model);
        let key = layout::fact(&tag_key());
        let present = storage.read(&key).await.expect("no faults");
        let present = present.expect("a tombstone");
        let mut stamp = pushed;
        stamp.clock += 1;
        let tombstone = Pointer::<TagValue> {
            stamp,
            turn: 0,
            value: None,
            nonce: nonce(),
        };
        let body = tombstone.body(&key).expect("a body").into();
        let swapped = storage.swap(&key, &present.version, body).await;
        swapped.expect("the only writer");
        model.keep_private(&["b/", "a/trimmed/", "a/rm/"]);
        let remover = {
            let model = model.clone();
            async move { remove(&model, Region::A, &replicas, now, removes).await }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(remover), Box::pin(follow)],
            settle: Some(Box::pin(async move {
                settle_and_sweep(&settling, BOTH).await;
                Ok(())
            })),
            check: Box::new(|model| deleted_tag_stays_deleted(model, BOTH)),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn tombstones_age_from_their_write() {
    explore_old_stamp(Removes::Shipped).await.assert_holds(5);
    explore_old_stamp(Removes::ByStamp)
        .await
        .assert_violated("a deleted tag is live");
}

/// How long a follower may hold what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasts {
    /// No operation lasts longer than H, which is far below 30 days.
    Horizon,
    /// Violates that.
    ForEver,
}

/// R16: a follower of B has read a live tag. The tag is deleted, the other follower of B merges
/// that, and after 40 days B removes its tombstone.
async fn explore_slow_follower(lasts: Lasts) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let owing = [
            (Arc::clone(&registry), vec![Region::B]),
            (Region::B.replica(&model).await, vec![Region::A]),
        ];
        let rules = owed_to(&[Region::B]);
        let pushed = put(&registry, &index(1), &[tag()], &rules).await;
        let now = pushed.expect("a push").clock + nanos(AWAY);
        // So that the order of the entries is the same in each run.
        advance(Duration::from_secs(1)).await;
        let slow = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        let quick = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        let private = &[
            "a/rm/",
            "b/rm/",
            "a/journal/",
            "b/journal/",
            "a/trimmed/",
            "b/trimmed/",
        ];
        model.keep_private(private);
        let is_over = Arc::new(Notify::new());
        let slow = {
            let is_over = Arc::clone(&is_over);
            async move {
                tokio::select! {
                    _ = slow.follow(Age::Young) => {}
                    () = is_over.notified() => {}
                }
            }
        };
        let others = {
            let model = model.clone();
            async move {
                delete_tag(&registry, &rules).await.expect("a delete");
                quick.follow(Age::Young).await;
                model.pause("40 days pass").await;
                if lasts == Lasts::Horizon {
                    is_over.notify_one();
                    tokio::task::yield_now().await;
                    model.drop_abandoned_writes();
                }
                remove(&model, Region::B, &owing, now, Removes::Shipped).await;
            }
        };
        Scenario::new(
            vec![Box::pin(slow), Box::pin(others)],
            Box::new(|model| deleted_tag_stays_deleted(model, &[Region::B])),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn tombstones_outlast_every_operation() {
    explore_slow_follower(Lasts::Horizon).await.assert_holds(50);
    explore_slow_follower(Lasts::ForEver)
        .await
        .assert_violated("a deleted tag is live");
}

//! A storage that was restored from an old copy, by the shipped repair and the shipped acceptance
//! in other regions (trace F17).

use core::time::Duration;

use flotilla_common::wire::region::FactKey;
use tokio::time::advance;

use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::backfill_traces::{Joining, Sweeps, TIMES, record};
use super::follower::{Age, Follower, Follows};
use super::properties::held;
use super::world::{Region, index, manifest_key, owed_to, put, tag, tag_key};
use crate::format;
use crate::layout;
use crate::maintenance::{self, Renewing};
use crate::record::{RegionRecord, SweepState};
use crate::regions::sweep::{region_records, write_region};
use crate::registry::ChangeRules;
use crate::storage::Storage;

const DAY: Duration = Duration::from_hours(24);
/// Longer than tombstones are kept.
const OLD: Duration = Duration::from_hours(40 * 24);

/// How a storage that is 40 days old comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returns {
    /// As shipped: renewed as what it is.
    Renewed,
    /// Violates "a restored storage gets another id": the origin is started as it is.
    AsItIs,
    /// Violates "what other regions keep is removed from an old copy": renewed as a young one.
    WithItsKeys,
    /// Violates "the new id is last".
    IdFirst,
}

async fn renewing(model: &ModelStorage, age: Duration) -> Renewing {
    let storage = Region::A.storage(model);
    let identity = format::read_identity(&storage).await.expect("a format");
    let registry = Region::A.replica(model).await;
    Renewing {
        region: Region::A.name(),
        replace: identity.storage_id,
        age,
        now: registry.unix_nanos(),
        dry_run: false,
    }
}

/// Renews the storage of A.
async fn renew(model: &ModelStorage, asked: &Renewing, returns: Returns) {
    let storage = Region::A.storage(model);
    if returns == Returns::AsItIs {
        return;
    }
    if returns == Returns::IdFirst {
        let identity = format::read_identity(&storage).await.expect("a format");
        if identity.storage_id == asked.replace {
            let renewed = format::renew(&storage, &identity).await;
            renewed.expect("the only writer");
            forget_sweeps(&storage, asked.now).await;
        }
        return;
    }
    let renewed = maintenance::renew(std::sync::Arc::new(storage), asked).await;
    renewed.expect("no faults");
}

/// Lets a region sweep all others again.
async fn forget_sweeps(storage: &ModelStorage, now: u64) {
    for (key, object, record) in region_records(storage).await.expect("no faults") {
        let again = RegionRecord {
            is_whole: false,
            sweep: SweepState::first(now, &TIMES),
            ..record
        };
        let written = write_region(storage, &key, Some(&object), again).await;
        written.expect("the only writer");
    }
}

/// Sweeps once more, as each month.
async fn sweep(model: &ModelStorage, region: Region, source: Region) {
    let follower = Follower::new(model, region, &[source], Follows::Shipped).await;
    follower.follow(Age::Young).await;
    follower.sweep().await;
}

/// A tag of A was copied to B and deleted there, and both removed its tombstone. A also merged a
/// push of B. Then A's storage is lost, and comes back as it was before. The repair may be stopped
/// at any call, and is repeated.
async fn explore_return(returns: Returns) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let pushed = put(&registry, &index(1), &[tag()], &owed_to(&[Region::B])).await;
        pushed.expect("a push");
        sweep(&model, Region::B, Region::A).await;
        let mut whole = Joining::new(&model, Region::A, &[Region::B], Sweeps::Shipped).await;
        whole.run(None).await;
        let copy = Region::A.storage(&model).objects("");
        let is_deleted = returns != Returns::IdFirst;
        if is_deleted {
            let deleted = layout::fact(&tag_key());
            let removed = Region::B.storage(&model).delete(&deleted).await;
            removed.expect("no faults");
        }
        // Its entry was merged by A, and dropped.
        let registry = Region::B.replica(&model).await;
        let pushed = put(&registry, &index(2), &[], &ChangeRules::default()).await;
        pushed.expect("a push");

        let storage = Region::A.storage(&model);
        storage.restore(&copy);
        model.keep_private(&["b/"]);
        let age = match returns {
            Returns::WithItsKeys => DAY,
            _ => OLD,
        };
        let asked = renewing(&model, age).await;
        let (crashing, repaired) = (model.clone(), model.clone());
        let first = asked.clone();
        let repair = async move { renew(&repaired, &first, returns).await };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(async move { crashing.until_crash(repair).await })],
            settle: Some(Box::pin(async move {
                renew(&settling, &asked, returns).await;
                let from = Region::B.name();
                let known = record(&Region::A.storage(&settling), &from).await;
                let is_whole = known.is_some_and(|known| known.is_whole);
                let has_push = held(&settling, Region::A).contains_key(&manifest_key(&index(2)));
                if is_whole && !has_push {
                    return Err("A takes itself for whole and lacks a push".to_owned());
                }
                let mut joining =
                    Joining::new(&settling, Region::A, &[Region::B], Sweeps::Shipped).await;
                advance(Duration::from_mins(6)).await;
                joining.run(None).await;
                sweep(&settling, Region::B, Region::A).await;
                sweep(&settling, Region::A, Region::B).await;
                Ok(())
            })),
            check: Box::new(move |model| {
                for region in [Region::A, Region::B] {
                    let held = held(model, region);
                    if is_deleted && held.contains_key(&tag_key()) {
                        return Err(format!("a deleted tag is live in {region:?}"));
                    }
                    let keys = [manifest_key(&index(1)), manifest_key(&index(2))];
                    if !keys.iter().all(|key: &FactKey| held.contains_key(key)) {
                        return Err(format!("a push is lost in {region:?}"));
                    }
                }
                Ok(())
            }),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn restored_storages_bring_nothing_back_and_lack_nothing() {
    explore_return(Returns::Renewed).await.assert_holds(10);
    explore_return(Returns::AsItIs)
        .await
        .assert_violated("takes itself for whole");
    explore_return(Returns::WithItsKeys)
        .await
        .assert_violated("a deleted tag is live");
    explore_return(Returns::IdFirst)
        .await
        .assert_violated("takes itself for whole");
}

/// How another region accepts the new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepts {
    /// As shipped: all sweeps begin anew, then the id is recorded.
    SweepsFirst,
    /// Violates that.
    IdFirst,
}

async fn accept(model: &ModelStorage, accepts: Accepts) {
    let storage = Region::C.storage(model);
    let others = [Region::A, Region::B];
    let joining = Joining::new(model, Region::C, &others, Sweeps::Shipped).await;
    if accepts == Accepts::IdFirst {
        let from = Region::A.name();
        let found = joining.source.state().await.expect("no faults").storage_id;
        let key = layout::region(&from);
        let present = storage.read(&key).await.expect("no faults");
        let known = record(&storage, &from).await.expect("a record");
        if known.storage_id != found {
            let next = RegionRecord {
                storage_id: found,
                ..known
            };
            let written = write_region(&storage, &key, present.as_ref(), next).await;
            written.expect("the only writer");
            forget_sweeps(&storage, Region::C.replica(model).await.unix_nanos()).await;
        }
        return;
    }
    let accepted = joining.sweeper.check_storage_id(&*joining.source).await;
    accepted.expect("it is renewed");
}

/// A push to A was acknowledged after B had merged it, and C had not. A's storage comes back from a
/// copy without it. B's journal owes C nothing.
async fn explore_acceptance(accepts: Accepts) -> Explored {
    let scenario = async move |model: ModelStorage| {
        for others in [[Region::B, Region::A], [Region::A, Region::B]] {
            let mut joining = Joining::new(&model, Region::C, &others, Sweeps::Shipped).await;
            joining.run(None).await;
        }
        let copy = Region::A.storage(&model).objects("");
        let registry = Region::A.replica(&model).await;
        let rules = owed_to(&[Region::B, Region::C]);
        let pushed = put(&registry, &index(1), &[tag()], &rules).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        follower.follow(Age::Young).await;
        Region::A.storage(&model).restore(&copy);
        let asked = renewing(&model, DAY).await;
        renew(&model, &asked, Returns::Renewed).await;

        model.keep_private(&["a/", "b/"]);
        let (crashing, accepting) = (model.clone(), model.clone());
        let first = async move { accept(&accepting, accepts).await };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(async move { crashing.until_crash(first).await })],
            settle: Some(Box::pin(async move {
                accept(&settling, accepts).await;
                let others = [Region::B, Region::A];
                let mut joining =
                    Joining::new(&settling, Region::C, &others, Sweeps::Shipped).await;
                joining.run(None).await;
                Ok(())
            })),
            check: Box::new(
                |model| match held(model, Region::C).contains_key(&tag_key()) {
                    true => Ok(()),
                    false => Err("C takes itself for whole and lacks a push".to_owned()),
                },
            ),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn regions_sweep_each_other_when_one_has_a_renewed_storage() {
    explore_acceptance(Accepts::SweepsFirst)
        .await
        .assert_holds(5);
    explore_acceptance(Accepts::IdFirst)
        .await
        .assert_violated("C takes itself for whole");
}

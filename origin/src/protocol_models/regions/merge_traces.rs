//! Merges of tags: which value stays (traces R5, R20, R27, F2, F10, F15).

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::stamp::Stamp;
use tokio::time::advance;

use super::super::blob_collection::repository;
use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Age, Follower, Follows, settling};
use super::properties::{Requests, agreed, held, owed, regions_are_equal, tags_are_whole};
use super::world::{Region, delete_manifest, delete_tag, index, owed_to, put, tag, tag_key};
use crate::regions::entry::EntryOutcome;
use crate::regions::source::Unreachable;
use crate::registry::{ChangeRules, RegistryError, UnseenValue};

const BOTH: &[Region] = &[Region::A, Region::B];

/// The keys other than B's tag: no two actors use the same manifest, or the same journal.
const ONLY_TAG_OF_B: &[&str] = &["a/", "b/rm/", "b/journal/", "b/trimmed/"];

/// R5: B's follower has read a tag of A, and a client of B moves B's tag meanwhile.
async fn explore_concurrent_move(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let pushed = put(&registry, &index(1), &[tag()], &owed_to(&[Region::B])).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        let registry = Region::B.replica(&model).await;
        model.keep_private(ONLY_TAG_OF_B);
        let requests = Requests::default();
        let client = {
            let requests = requests.clone();
            async move {
                let stamp = put(&registry, &index(2), &[tag()], &owed_to(&[Region::A])).await;
                requests.pushed(tag_key(), stamp.ok());
            }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario {
            actors: vec![Box::pin(client), Box::pin(follow)],
            settle: settling(&model, BOTH, Follows::Shipped),
            check: agreed(requests, BOTH),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn merges_never_replace_later_changes() {
    explore_concurrent_move(Follows::Shipped)
        .await
        .assert_holds(5);
    explore_concurrent_move(Follows::Overwrites)
        .await
        .assert_violated("an acknowledged push");
}

/// Two followers of B, one of which may be slow, while A moves the tag.
async fn explore_two_followers(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let pushed = put(&registry, &index(1), &[tag()], &owed_to(&[Region::B])).await;
        pushed.expect("a push");
        let followers = [
            Follower::new(&model, Region::B, &[Region::A], follows).await,
            Follower::new(&model, Region::B, &[Region::A], follows).await,
        ];
        model.keep_private(&["a/rm/", "a/journal/", "a/trimmed/", "b/rm/"]);
        let requests = Requests::default();
        let client = {
            let requests = requests.clone();
            async move {
                let stamp = put(&registry, &index(2), &[tag()], &owed_to(&[Region::B])).await;
                requests.pushed(tag_key(), stamp.ok());
            }
        };
        let [first, second] = followers.map(|follower| async move {
            follower.follow(Age::Young).await;
        });
        Scenario {
            actors: vec![Box::pin(client), Box::pin(first), Box::pin(second)],
            settle: settling(&model, BOTH, Follows::Shipped),
            check: agreed(requests, BOTH),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn slow_followers_never_take_tags_back() {
    explore_two_followers(Follows::Shipped)
        .await
        .assert_holds(100);
}

/// R20: a replica of A whose clock is an hour ahead moves a tag; a client of B moves it, too.
async fn explore_clock_ahead(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let ahead = Region::A.replica(&model).await;
        advance(Duration::from_hours(1)).await;
        let pushed = put(&ahead, &index(1), &[tag()], &owed_to(&[Region::B])).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        let registry = Region::B.replica(&model).await;
        model.keep_private(ONLY_TAG_OF_B);
        let requests = Requests::default();
        let client = {
            let requests = requests.clone();
            async move {
                let stamp = put(&registry, &index(2), &[tag()], &owed_to(&[Region::A])).await;
                // 503: a swap of the follower came first. The client pushes again.
                let stamp = match stamp {
                    Err(RegistryError::Contended) => {
                        put(&registry, &index(2), &[tag()], &owed_to(&[Region::A])).await
                    }
                    answered => answered,
                };
                requests.pushed(tag_key(), stamp.ok());
            }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario::new(
            vec![Box::pin(client), Box::pin(follow)],
            Box::new(move |model| {
                requests.are_kept(model, &[Region::B])?;
                let value = held(model, Region::B).remove(&tag_key());
                match value.and_then(|value| value.names) == Some(Digest::sha256(&index(2))) {
                    true => Ok(()),
                    false => Err("a clock of A decides over pushes to B".to_owned()),
                }
            }),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn stamps_from_the_future_are_not_merged() {
    explore_clock_ahead(Follows::Shipped).await.assert_holds(3);
    explore_clock_ahead(Follows::MergesAhead)
        .await
        .assert_violated("a clock of A decides");
}

/// A replica whose clock is right refuses a push that no region would merge.
#[tokio::test(start_paused = true)]
async fn values_from_the_future_are_not_replaced_by_others_from_the_future() {
    let model = ModelStorage::default();
    let ahead = Region::A.replica(&model).await;
    advance(Duration::from_hours(1)).await;
    let pushed = put(&ahead, &index(1), &[tag()], &owed_to(&[Region::B])).await;
    pushed.expect("a push");
    let right = Region::A.replica(&model).await;
    let refused = put(&right, &index(2), &[tag()], &owed_to(&[Region::B])).await;
    assert!(matches!(refused, Err(RegistryError::StampAhead(_))));
}

/// F2: a client of A deletes the manifest of a tag that it moved. B has the tag's old value.
async fn explore_dangling_tag(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let rules = owed_to(&[Region::B]);
        let pushed = put(&registry, &index(0), &[tag()], &rules).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        follower.follow(Age::Young).await;
        let pushed = put(&registry, &index(1), &[tag()], &rules).await;
        pushed.expect("a push");
        // So that the order of the entries is the same in each run.
        advance(Duration::from_secs(1)).await;
        model.keep_private(&["b/", "a/trimmed/"]);
        let client = async move {
            let deleted = delete_manifest(&registry, &index(1), &rules).await;
            deleted.expect("a delete");
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario {
            actors: vec![Box::pin(client), Box::pin(follow)],
            settle: settling(&model, BOTH, follows),
            check: Box::new(move |model| {
                if !owed(model, Region::A, Region::B).is_empty() {
                    return Err("an entry is never dropped".to_owned());
                }
                regions_are_equal(model, BOTH)
            }),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn closures_that_are_broken_everywhere_block_nothing() {
    explore_dangling_tag(Follows::Shipped)
        .await
        .assert_holds(10);
    explore_dangling_tag(Follows::BlocksOnBroken)
        .await
        .assert_violated("an entry is never dropped");
}

/// F2: while a region does not answer, it may have what the others lack.
#[tokio::test(start_paused = true)]
async fn closures_that_an_unreachable_region_may_have_keep_the_old_tag() {
    let model = ModelStorage::default();
    let registry = Region::A.replica(&model).await;
    let rules = owed_to(&[Region::B]);
    let pushed = put(&registry, &index(0), &[tag()], &rules).await;
    pushed.expect("a push");
    let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
    follower.follow(Age::Young).await;
    let pushed = put(&registry, &index(1), &[tag()], &rules).await;
    pushed.expect("a push");
    let deleted = delete_manifest(&registry, &index(1), &rules).await;
    deleted.expect("a delete");
    let sources = vec![
        Region::A.source(&model, Region::B).await,
        Arc::new(Unreachable::new(Region::C.name(), "it is away".to_owned())) as _,
    ];
    let registry = Region::B.replica(&model).await;
    let follower = Follower::of(&model, Region::B, registry, sources, Follows::Shipped);
    for age in [Age::Young, Age::Expired] {
        let outcomes = follower.follow(age).await;
        let is_blocked = |outcome: &EntryOutcome| matches!(outcome, EntryOutcome::Blocked(_));
        assert!(outcomes.iter().any(is_blocked), "{outcomes:?}");
        tags_are_whole(&model, Region::B).expect("the old tag stays");
        assert!(owed(&model, Region::A, Region::B).contains(&tag_key()));
    }
}

/// F10: B's policy leaves out a repository that B has copies of, and A deletes a tag.
async fn explore_left_out(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let rules = owed_to(&[Region::B]);
        let pushed = put(&registry, &index(1), &[tag()], &rules).await;
        pushed.expect("a push");
        let mut follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        follower.follow(Age::Young).await;
        follower.is_selected = false;
        model.keep_private(&["b/", "a/trimmed/"]);
        let requests = Requests::default();
        let client = {
            let requests = requests.clone();
            async move {
                let stamp = delete_tag(&registry, &rules).await;
                requests.deleted(tag_key(), stamp.ok());
            }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(client), Box::pin(follow)],
            settle: Some(Box::pin(async move {
                let sources = &[Region::A];
                let mut last = Follower::new(&settling, Region::B, sources, follows).await;
                last.is_selected = false;
                last.follow(Age::Young).await;
                Ok(())
            })),
            check: Box::new(move |model| requests.are_kept(model, BOTH)),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn tombstones_are_merged_in_repositories_that_the_policy_leaves_out() {
    explore_left_out(Follows::Shipped).await.assert_holds(5);
    explore_left_out(Follows::LeavesOutTombstones)
        .await
        .assert_violated("an acknowledged delete");
}

/// F15: A's clock is ahead of B's, and a client has pushed a tag at A. It deletes the tag at B,
/// which has not copied it. `is_told` says whether B asks A for the stamp of the tag.
async fn explore_delete_of_owed_tag(is_told: bool) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        advance(Duration::from_secs(60)).await;
        let pushed = put(&registry, &index(1), &[tag()], &owed_to(&[Region::B])).await;
        let pushed = pushed.expect("a push");
        let registry = Region::B.replica(&model).await;
        let sources = &[Region::A];
        let follower = Follower::new(&model, Region::B, sources, Follows::Shipped).await;
        model.keep_private(ONLY_TAG_OF_B);
        let rules = ChangeRules {
            unseen: Some(UnseenValue {
                stamp: Stamp {
                    clock: if is_told { pushed.clock } else { 1 },
                    region: pushed.region,
                },
                subject: None,
            }),
            ..owed_to(&[Region::A])
        };
        let requests = Requests::default();
        let client = {
            let requests = requests.clone();
            async move {
                let stamp = delete_tag(&registry, &rules).await;
                requests.deleted(tag_key(), stamp.ok());
            }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario {
            actors: vec![Box::pin(client), Box::pin(follow)],
            settle: settling(&model, BOTH, Follows::Shipped),
            check: agreed(requests, BOTH),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn deletes_are_later_than_what_another_region_owes() {
    explore_delete_of_owed_tag(true).await.assert_holds(5);
    explore_delete_of_owed_tag(false)
        .await
        .assert_violated("an acknowledged delete");
}

/// A change of a tag: its stamp, and the manifest unless it is a delete.
type Change = (u64, Region, Option<u32>);

/// Two first pushes, a delete of the first, and a push after it.
const CHANGES: [Change; 4] = [
    (10, Region::A, Some(1)),
    (12, Region::B, Some(2)),
    (11, Region::A, None),
    (15, Region::C, Some(3)),
];

/// All orders of four changes.
fn orders() -> Vec<[Change; 4]> {
    let mut orders = Vec::new();
    for code in 0..256_usize {
        let at = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6];
        if (0..4).all(|index| at.contains(&index)) {
            orders.push(at.map(|index| CHANGES[index]));
        }
    }
    orders
}

/// R27: whatever order a region hears of changes in, it comes to the same value.
#[tokio::test(start_paused = true)]
async fn regions_converge_in_all_orders_of_merges() {
    assert_eq!(orders().len(), 24);
    for order in orders() {
        let model = ModelStorage::default();
        let registry = Region::B.replica(&model).await;
        for (clock, region, manifest) in order {
            let stamp = Stamp {
                clock,
                region: region.name(),
            };
            let digest = manifest.map(|number| Digest::sha256(&index(number)));
            let (repository, tag) = (repository(), tag());
            let merged = registry.merge_tag(&repository, &tag, &stamp, digest);
            merged.await.expect("no faults");
        }
        let value = held(&model, Region::B).remove(&tag_key()).expect("a tag");
        let last = Some(Digest::sha256(&index(3)));
        assert_eq!((value.stamp.clock, value.names), (15, last), "{order:?}");
    }
}

/// R27: the earliest of two live values of an immutable tag. Whether a delete comes before or after
/// the other push decides what stays.
#[test]
fn regions_diverge_if_the_earliest_push_wins() {
    let merge = |present: Change, change: Change| {
        let is_conflict = present.2.is_some() && change.2.is_some();
        if (present.0 < change.0) == is_conflict {
            present
        } else {
            change
        }
    };
    let values = orders().into_iter().map(|order| {
        let [first, rest @ ..] = order;
        rest.into_iter().fold(first, merge)
    });
    let mut clocks: Vec<u64> = values.map(|(clock, ..)| clock).collect();
    clocks.sort_unstable();
    clocks.dedup();
    assert!(clocks.len() > 1, "{clocks:?}");
}

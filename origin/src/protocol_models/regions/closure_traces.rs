//! Closures: what a name needs comes before it, and what a push takes back is regional (traces R6,
//! R7, R8, C4, F1, F4).

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::wire::region::EntryId;
use tokio::time::advance;

use super::super::blob_collection::{push, repository};
use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Age, Follower, Follows, settle, settling};
use super::properties::{
    Requests, is_whole, manifest_state, referrer_agrees, regions_are_equal, tags_are_whole,
};
use super::world::{
    CONFIG, LIVENESS, Region, SUBJECT, change_state, image, index, kill_blobs, manifest_key,
    owed_to, put, tag, tag_key, warm_replica,
};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{JournalRecord, ManifestRecord, ManifestState, Pointer, ReferrerValue, encode};
use crate::registry::{ChangeRules, Registry, RegistryError};
use crate::storage::{Key, Storage};

const BOTH: &[Region] = &[Region::A, Region::B];

/// R6: B copies an image, and the replica may crash at any step.
async fn explore_crash(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = warm_replica(&model, Region::A).await;
        let pushed = put(&registry, &image(), &[tag()], &owed_to(&[Region::B])).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        model.keep_private(&["a/"]);
        let crashing = model.clone();
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario::new(
            vec![Box::pin(async move { crashing.until_crash(follow).await })],
            Box::new(|model| tags_are_whole(model, Region::B)),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn closures_are_whole_before_their_names_appear() {
    explore_crash(Follows::Shipped).await.assert_holds(10);
    explore_crash(Follows::TagFirst)
        .await
        .assert_violated("B serves");
}

/// R7: B has the blob of an image of A, and the blob dies in B while the image is merged.
async fn explore_dying_blob(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = warm_replica(&model, Region::A).await;
        let stamp = put(&registry, &image(), &[tag()], &owed_to(&[Region::B])).await;
        let requests = Requests::default();
        requests.pushed(tag_key(), stamp.clone().ok());
        requests.pushed(manifest_key(&image()), stamp.ok());
        let registry = warm_replica(&model, Region::B).await;
        kill_blobs(&model, Region::B).await;
        let sources = vec![Region::A.source(&model, Region::B).await];
        let follower = Follower::of(&model, Region::B, registry, sources, follows);
        model.keep_private(&["a/", "b/upload/"]);
        let time = {
            let model = model.clone();
            async move {
                model.pause("L passes").await;
                advance(LIVENESS * 2).await;
            }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario {
            actors: vec![Box::pin(follow), Box::pin(time)],
            settle: settling(&model, BOTH, Follows::Shipped),
            check: Box::new(move |model| requests.are_kept(model, BOTH)),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn replicated_manifests_are_never_buried() {
    explore_dying_blob(Follows::Shipped).await.assert_holds(5);
    explore_dying_blob(Follows::BuriesReplicated)
        .await
        .assert_violated("an acknowledged push");
}

/// What a replica does with a manifest whose second check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refuses {
    /// As shipped: evicts it, and its referrer with the next turn.
    Shipped,
    /// Violates "a failed check evicts, and replicates nothing": deletes it with a new stamp.
    Deletes,
    /// Violates "a referrer follows its manifest by stamp and turn": buries the referrer of the
    /// same stamp, whatever its turn.
    BuriesReferrer,
}

/// Deletes a manifest, whatever its state, in A and for B.
async fn bury(model: &ModelStorage) {
    let storage = Region::A.storage(model);
    let key = layout::fact(&manifest_key(&image()));
    let Some(present) = storage.read(&key).await.expect("no faults") else {
        return;
    };
    let record = ManifestRecord::of(&key, &present.body).expect("a manifest");
    let seen = record.stamp.clone();
    let mut tombstone = ManifestRecord {
        state: ManifestState::Deleted,
        content: None,
        turn: 0,
        nonce: nonce(),
        ..record
    };
    tombstone.stamp.clock += 2;
    let entry = JournalRecord {
        keys: vec![(manifest_key(&image()), Some(seen))],
        nonce: nonce(),
    };
    let id = EntryId {
        created: tombstone.stamp.clock,
        nonce: entry.nonce,
    };
    let entry_key = layout::journal_entry(&Region::B.name(), id);
    let body = encode(&entry_key, &entry).expect("a body").into();
    storage.create(&entry_key, body).await.expect("a new key");
    let body = tombstone.body(&key).expect("a body");
    let _ = storage.swap(&key, &present.version, body).await;
}

/// Buries the referrer of the image, whatever its turn.
async fn bury_referrer(model: &ModelStorage) {
    let storage = Region::A.storage(model);
    let (subject, digest) = (Digest::sha256(SUBJECT), Digest::sha256(&image()));
    let key: Key = layout::referrer(&repository(), &subject, &digest);
    let Some(present) = storage.read(&key).await.expect("no faults") else {
        return;
    };
    let entry = Pointer::<ReferrerValue>::of(&key, &present.body).expect("a referrer");
    let tombstone = Pointer::<ReferrerValue> {
        value: None,
        nonce: nonce(),
        ..entry
    };
    let body = tombstone.body(&key).expect("a body").into();
    let _ = storage.swap(&key, &present.version, body).await;
}

/// A client pushes the image to A, where its blob is alive for the first check only.
async fn push_with_dying_blob(
    model: &ModelStorage,
    registry: &Registry,
    refuses: Refuses,
) -> Result<(), RegistryError> {
    let pushed = put(registry, &image(), &[], &owed_to(&[Region::B])).await;
    if let Err(RegistryError::ManifestBlobUnknown(_)) = &pushed {
        match refuses {
            Refuses::Shipped => {}
            Refuses::Deletes => bury(model).await,
            Refuses::BuriesReferrer => bury_referrer(model).await,
        }
    }
    pushed.map(drop)
}

/// R8: A takes back a manifest whose blob has died, while B copies it. Then the client pushes both
/// again.
async fn explore_taken_back(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = warm_replica(&model, Region::A).await;
        kill_blobs(&model, Region::A).await;
        let follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        model.keep_private(&["b/", "a/rb/", "a/blob/", "a/trimmed/", "a/ref/"]);
        let write = {
            let (model, registry) = (model.clone(), Arc::clone(&registry));
            async move {
                let pushed = push_with_dying_blob(&model, &registry, Refuses::Shipped).await;
                assert!(pushed.is_err(), "the blob is dead");
            }
        };
        // After the first check of the push, which is answered from memory.
        let time = async { advance(LIVENESS * 2).await };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(write), Box::pin(time), Box::pin(follow)],
            settle: Some(Box::pin(async move {
                let registry = Region::A.replica(&settling).await;
                push(&registry, CONFIG).await.expect("a push");
                let rules = owed_to(&[Region::B]);
                let pushed = put(&registry, &image(), &[tag()], &rules).await;
                pushed.expect("a push");
                settle(&settling, BOTH, follows).await;
                Ok(())
            })),
            check: Box::new(|model| {
                tags_are_whole(model, Region::A)?;
                tags_are_whole(model, Region::B)
            }),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn manifests_that_were_taken_back_are_whole_once_they_are_named() {
    explore_taken_back(Follows::Shipped).await.assert_holds(20);
    explore_taken_back(Follows::WithoutBlobs)
        .await
        .assert_violated("B serves");
}

/// F4, C4: B has the image, and its push was acknowledged. A refuses the same image, since its blob
/// dies in A, while A's follower merges B's.
///
/// `private` are the keys whose calls are performed at once, to keep the exploration small.
async fn explore_refused_push(refuses: Refuses, private: &'static [&'static str]) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let requests = Requests::default();
        let registry = warm_replica(&model, Region::B).await;
        let stamp = put(&registry, &image(), &[], &owed_to(&[Region::A])).await;
        requests.pushed(manifest_key(&image()), stamp.ok());
        let registry = warm_replica(&model, Region::A).await;
        kill_blobs(&model, Region::A).await;
        let follower = Follower::new(&model, Region::A, &[Region::B], Follows::Shipped).await;
        model.keep_private(private);
        let write = {
            let model = model.clone();
            async move {
                // Refused, unless the follower has brought the blob.
                let _ = push_with_dying_blob(&model, &registry, refuses).await;
            }
        };
        // After the first check of the push, which is answered from memory.
        let time = async { advance(LIVENESS * 2).await };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario {
            actors: vec![Box::pin(write), Box::pin(time), Box::pin(follow)],
            settle: settling(&model, BOTH, Follows::Shipped),
            check: Box::new(move |model| {
                requests.are_kept(model, BOTH)?;
                is_whole(model, Region::A, &Digest::sha256(&image()))?;
                referrer_agrees(model, Region::A, SUBJECT, &image())?;
                regions_are_equal(model, BOTH)
            }),
        }
    };
    explore(Faults::NONE, scenario).await
}

/// The orders of calls for the manifest and for the repository's membership of the blob.
const BLOB: &[&str] = &["b/", "a/journal/", "a/upload/", "a/blob/", "a/ref/"];
/// The orders of calls for the manifest and for its referrer.
const REFERRER: &[&str] = &["b/", "a/journal/", "a/upload/", "a/blob/", "a/rb/"];

#[tokio::test(start_paused = true)]
async fn refused_pushes_take_nothing_from_other_regions() {
    for private in [BLOB, REFERRER] {
        explore_refused_push(Refuses::Shipped, private)
            .await
            .assert_holds(100);
    }
}

#[tokio::test(start_paused = true)]
async fn deleting_refused_pushes_deletes_acknowledged_ones() {
    explore_refused_push(Refuses::Deletes, BLOB)
        .await
        .assert_violated("an acknowledged push");
}

/// C4.
#[tokio::test(start_paused = true)]
async fn late_burials_of_referrers_lose_to_revivals() {
    explore_refused_push(Refuses::BuriesReferrer, REFERRER)
        .await
        .assert_violated("there and not listed");
}

/// What a push makes of a swap that it lost to another live manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loses {
    /// As shipped: writes again if only the state of the version that it saw has changed.
    Shipped,
    /// Violates that: any live manifest is as good.
    AcceptsAnyWinner,
}

/// F1: a condemned manifest of A is pushed again, while an index that names it rescues it. B has
/// evicted it.
async fn explore_rescue(loses: Loses) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let rules = owed_to(&[Region::B]);
        let pushed = put(&registry, &index(1), &[], &rules).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        follower.follow(Age::Young).await;
        let key = layout::fact(&manifest_key(&index(1)));
        change_state(&Region::A.storage(&model), &key, ManifestState::Condemned).await;
        change_state(&Region::B.storage(&model), &key, ManifestState::Evicted).await;
        model.keep_private(&["b/", "a/trimmed/"]);
        let requests = Requests::default();
        let rescue = {
            let (model, key) = (model.clone(), key.clone());
            async move { change_state(&Region::A.storage(&model), &key, ManifestState::Live).await }
        };
        let client = {
            let (model, requests) = (model.clone(), requests.clone());
            async move {
                let stamp = match loses {
                    Loses::Shipped => put(&registry, &index(1), &[], &rules).await.ok(),
                    Loses::AcceptsAnyWinner => {
                        put_accepting_any_winner(&model, &registry, &rules, &key).await
                    }
                };
                requests.pushed(manifest_key(&index(1)), stamp);
            }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario {
            actors: vec![Box::pin(client), Box::pin(rescue), Box::pin(follow)],
            settle: settling(&model, BOTH, Follows::Shipped),
            check: Box::new(move |model| requests.are_kept(model, BOTH)),
        }
    };
    explore(Faults::NONE, scenario).await
}

/// A push that reads, journals and swaps, and is answered with 201 if any live manifest is there.
async fn put_accepting_any_winner(
    model: &ModelStorage,
    registry: &Registry,
    rules: &ChangeRules,
    key: &Key,
) -> Option<flotilla_common::stamp::Stamp> {
    let storage = Region::A.storage(model);
    let present = storage.read(key).await.expect("no faults")?;
    let record = ManifestRecord::of(key, &present.body).expect("a manifest");
    let entry = JournalRecord {
        keys: vec![(manifest_key(&index(1)), Some(record.stamp.clone()))],
        nonce: nonce(),
    };
    let id = EntryId {
        created: record.stamp.clock + 1,
        nonce: entry.nonce,
    };
    let entry_key = layout::journal_entry(rules.owed_to.first()?, id);
    let body = encode(&entry_key, &entry).expect("a body").into();
    storage.create(&entry_key, body).await.expect("a new key");
    let mut next = record.clone();
    next.stamp.clock += 2;
    next.stamp.region = registry.region().clone();
    (next.state, next.nonce) = (ManifestState::Live, nonce());
    let body = next.body(key).expect("a body");
    if storage.swap(key, &present.version, body).await.is_ok() {
        return Some(next.stamp);
    }
    let winner = storage.read(key).await.expect("no faults")?;
    let winner = ManifestRecord::of(key, &winner.body).expect("a manifest");
    (winner.state == ManifestState::Live).then_some(winner.stamp)
}

#[tokio::test(start_paused = true)]
async fn pushes_over_rescued_manifests_are_replicated() {
    explore_rescue(Loses::Shipped).await.assert_holds(20);
    explore_rescue(Loses::AcceptsAnyWinner)
        .await
        .assert_violated("an acknowledged push");
}

/// By what a manifest counts as a referrer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    /// As shipped: the entry of an evicted manifest does not count.
    Shipped,
    /// Violates that: by its entry alone.
    ByEntry,
}

/// A replica refuses the push of an artifact that was there before, and may crash at any step.
async fn explore_crash_of_eviction(lists: Lists) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = warm_replica(&model, Region::A).await;
        let pushed = put(&registry, &image(), &[], &owed_to(&[])).await;
        pushed.expect("a push");
        kill_blobs(&model, Region::A).await;
        model.keep_private(&["a/journal/", "a/upload/", "a/blob/", "a/rb/"]);
        let crashing = model.clone();
        let write = {
            let model = model.clone();
            async move {
                let pushed = push_with_dying_blob(&model, &registry, Refuses::Shipped).await;
                assert!(pushed.is_err(), "the blob is dead");
            }
        };
        // After the first check of the push, which is answered from memory.
        let time = async { advance(LIVENESS * 2).await };
        let settling = model.clone();
        Scenario {
            actors: vec![
                Box::pin(async move { crashing.until_crash(write).await }),
                Box::pin(time),
            ],
            settle: Some(Box::pin(async move {
                let is_listed = match lists {
                    Lists::ByEntry => {
                        return referrer_agrees(&settling, Region::A, SUBJECT, &image());
                    }
                    Lists::Shipped => {
                        let registry = Region::A.replica(&settling).await;
                        let subject = Digest::sha256(SUBJECT);
                        let page = registry.referrers(&repository(), &subject, None, 10).await;
                        !page.expect("no faults").descriptors.is_empty()
                    }
                };
                let state = manifest_state(&settling, Region::A, &image());
                match (state.is_some_and(ManifestState::is_served), is_listed) {
                    (true, false) => Err("a manifest is there and not listed".to_owned()),
                    (false, true) => Err("a manifest is listed and not there".to_owned()),
                    _ => Ok(()),
                }
            })),
            check: Box::new(|_| Ok(())),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn evictions_that_crash_leave_no_referrer() {
    explore_crash_of_eviction(Lists::Shipped)
        .await
        .assert_holds(5);
    explore_crash_of_eviction(Lists::ByEntry)
        .await
        .assert_violated("listed and not there");
}

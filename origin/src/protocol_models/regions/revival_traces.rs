//! Manifests that a region evicts, since a push of them was refused, and that come back.

use core::time::Duration;

use tokio::time::advance;

use super::super::blob_collection::push;
use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Age, Follower, Follows, settle, settling};
use super::properties::{Requests, agreed, tags_are_whole};
use super::world::{
    CONFIG, LIVENESS, Region, change_state, delete_manifest, image, index, index_of, kill_blobs,
    manifest_key, owed_to, put, tag, tag_key, warm_replica,
};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{ManifestRecord, ManifestState};
use crate::storage::Storage;

const BOTH: &[Region] = &[Region::A, Region::B];

/// The order of all calls but those for the manifest in A is the same in each run.
const ONLY_MANIFEST_OF_A: &[&str] = &[
    "b/",
    "a/journal/",
    "a/trimmed/",
    "a/upload/",
    "a/blob/",
    "a/rb/",
    "a/ref/",
];

/// A client pushes an image to A. Its blob is dead at the second check, so the manifest is evicted;
/// and it is back at the third, since another client has pushed it. B looks at the entry meanwhile.
async fn explore_back_in_time(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = warm_replica(&model, Region::A).await;
        kill_blobs(&model, Region::A).await;
        let pushing = Region::A.replica(&model).await;
        let follower = Follower::new(&model, Region::B, &[Region::A], follows).await;
        model.keep_private(ONLY_MANIFEST_OF_A);
        let requests = Requests::default();
        let client = {
            let requests = requests.clone();
            async move {
                let stamp = put(&registry, &image(), &[], &owed_to(&[Region::B])).await;
                requests.pushed(manifest_key(&image()), stamp.ok());
            }
        };
        // After the first check of the push, which is answered from memory.
        let time = async { advance(LIVENESS * 2).await };
        let bring = {
            let model = model.clone();
            async move {
                model.pause("a client pushes the blob again").await;
                push(&pushing, CONFIG).await.expect("a push");
            }
        };
        let follow = {
            let model = model.clone();
            async move {
                model.pause("the follower looks").await;
                follower.follow(Age::Young).await;
            }
        };
        Scenario {
            actors: vec![
                Box::pin(client),
                Box::pin(time),
                Box::pin(bring),
                Box::pin(follow),
            ],
            settle: settling(&model, BOTH, Follows::Shipped),
            check: Box::new(move |model| requests.are_kept(model, BOTH)),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn evicted_manifests_end_no_entry() {
    explore_back_in_time(Follows::Shipped)
        .await
        .assert_holds(50);
    explore_back_in_time(Follows::EndsAtEvicted)
        .await
        .assert_violated("an acknowledged push");
}

/// Leaves a manifest of A as a refused push does: evicted, with a stamp that no other region has.
/// Its entry has expired.
async fn refuse(model: &ModelStorage, manifest: &[u8]) {
    let storage = Region::A.storage(model);
    let key = layout::fact(&manifest_key(manifest));
    let present = storage.read(&key).await.expect("no faults");
    let present = present.expect("a manifest");
    let record = ManifestRecord::of(&key, &present.body).expect("a manifest");
    let mut evicted = ManifestRecord {
        turn: 1,
        state: ManifestState::Evicted,
        content: None,
        nonce: nonce(),
        ..record
    };
    // The replica that refused the push had a clock ahead of the others.
    evicted.stamp.clock += Duration::from_mins(1).as_nanos() as u64;
    evicted.stamp.region = Region::A.name();
    let body = evicted.body(&key).expect("a body");
    let swapped = storage.swap(&key, &present.version, body).await;
    swapped.expect("the only writer");
}

/// B has a manifest that A refused a while ago, with a higher stamp. A client of B pushes an index
/// of it, so A needs it again; its replica may crash. Then a client of B deletes the manifest.
async fn explore_revival(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let child = index(1);
        let registry = Region::B.replica(&model).await;
        let rules = owed_to(&[Region::A]);
        let pushed = put(&registry, &child, &[], &rules).await;
        pushed.expect("a push");
        let before = Follower::new(&model, Region::A, &[Region::B], Follows::Shipped).await;
        before.follow(Age::Young).await;
        refuse(&model, &child).await;
        let pushed = put(&registry, &index_of(&child), &[tag()], &rules).await;
        pushed.expect("a push");
        let follower = Follower::new(&model, Region::A, &[Region::B], follows).await;
        model.keep_private(&["b/", "a/trimmed/"]);
        let crashing = model.clone();
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        let requests = Requests::default();
        let settling = {
            let (model, requests) = (model.clone(), requests.clone());
            async move {
                settle(&model, BOTH, follows).await;
                let deleted = delete_manifest(&registry, &child, &rules).await;
                requests.deleted(manifest_key(&child), deleted.ok());
                settle(&model, BOTH, Follows::Shipped).await;
                Ok(())
            }
        };
        Scenario {
            actors: vec![Box::pin(async move { crashing.until_crash(follow).await })],
            settle: Some(Box::pin(settling)),
            check: agreed(requests, BOTH),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn manifests_that_come_back_with_a_higher_stamp_are_owed() {
    explore_revival(Follows::Shipped).await.assert_holds(10);
    explore_revival(Follows::RevivesSilently)
        .await
        .assert_violated("an acknowledged delete");
}

/// A replica of A evicts an image whose push it refuses, and crashes before it looks again; a
/// follower of A, which has brought the blob meanwhile, relies on the manifest and merges a tag.
async fn explore_crash_after_eviction(follows: Follows) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = warm_replica(&model, Region::B).await;
        let requests = Requests::default();
        let stamp = put(&registry, &image(), &[tag()], &owed_to(&[Region::A])).await;
        requests.pushed(tag_key(), stamp.ok());
        let registry = warm_replica(&model, Region::A).await;
        let pushed = put(&registry, &image(), &[], &owed_to(&[])).await;
        pushed.expect("a push");
        kill_blobs(&model, Region::A).await;
        let follower = Follower::new(&model, Region::A, &[Region::B], Follows::Shipped).await;
        model.keep_private(&[
            "b/",
            "a/journal/",
            "a/upload/",
            "a/blob/",
            "a/rb/",
            "a/ref/",
        ]);
        let evict = {
            let model = model.clone();
            async move {
                let storage = Region::A.storage(&model);
                let key = layout::fact(&manifest_key(&image()));
                change_state(&storage, &key, ManifestState::Evicted).await;
            }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(evict), Box::pin(follow)],
            settle: Some(Box::pin(async move {
                settle(&settling, BOTH, follows).await;
                let sources = &[Region::B];
                let sweeping = Follower::new(&settling, Region::A, sources, follows).await;
                sweeping.sweep().await;
                Ok(())
            })),
            check: Box::new(move |model| {
                requests.are_kept(model, BOTH)?;
                tags_are_whole(model, Region::A)
            }),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn sweeps_bring_back_what_tags_name() {
    explore_crash_after_eviction(Follows::Shipped)
        .await
        .assert_holds(5);
    explore_crash_after_eviction(Follows::TrustsTags)
        .await
        .assert_violated("without its manifest");
}

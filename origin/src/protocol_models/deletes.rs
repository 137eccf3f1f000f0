//! Deletes and re-creation. A tombstone replaces the object that it deletes, and a delete must not
//! remove a manifest, referrer, tag or membership that was acknowledged after it.
//!
//! A manifest and its entry in the referrers of its subject are two keys. In whatever order their
//! writes apply, the two agree after all requests were answered.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::name::{Reference, Tag};

use super::blob_collection::{push, replica, repository};
use super::explorer::{Explored, Scenario, explore};
use super::storage_model::{Faults, ModelStorage};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{
    ManifestRecord, ManifestState, MembershipRecord, Pointer, ReferrerValue, Stamp, TagValue,
    decode,
};
use crate::registry::{ChangeRules, Need, Registry, RegistryError};
use crate::storage::{Key, Storage};

const CONFIG: &[u8] = b"{}";
const SUBJECT: &[u8] = b"subject";

/// A manifest that refers to the subject.
fn artifact() -> Bytes {
    let config = serde_json::json!({"mediaType": "x/y", "digest": Digest::sha256(CONFIG), "size": CONFIG.len()});
    let subject = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": Digest::sha256(SUBJECT), "size": SUBJECT.len()});
    let (kind, layers) = (OCI_MANIFEST, serde_json::json!([]));
    serde_json::json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers, "subject": subject})
        .to_string()
        .into()
}

fn tag() -> Tag {
    "v1".parse().expect("a tag")
}

async fn put(registry: &Registry, tags: &[Tag]) -> Result<(), RegistryError> {
    let reference = Reference::Digest(Digest::sha256(&artifact()));
    registry
        .put_manifest(
            &repository(),
            &reference,
            tags,
            Some(OCI_MANIFEST),
            artifact(),
            &ChangeRules::default(),
        )
        .await
        .map(drop)
}

/// The request of one client, at its own replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Put,
    Delete,
    /// Repeats the delete until it is answered with 404, like a client that lost the response.
    DeleteUntilMissing,
    /// Violates "the referrer follows the manifest's clock": replaces any referrer by a tombstone.
    DeleteAnyReferrer,
}

async fn send(
    request: Request,
    registry: &Registry,
    model: &ModelStorage,
) -> Result<(), RegistryError> {
    let reference = Reference::Digest(Digest::sha256(&artifact()));
    match request {
        Request::Put => put(registry, &[]).await,
        Request::Delete => registry
            .delete_manifest(&repository(), &reference, &ChangeRules::default())
            .await
            .map(drop),
        Request::DeleteUntilMissing => loop {
            if let Err(RegistryError::ManifestUnknown) = registry
                .delete_manifest(&repository(), &reference, &ChangeRules::default())
                .await
                .map(drop)
            {
                return Ok(());
            }
        },
        Request::DeleteAnyReferrer => {
            write_tombstone(model, &manifest_key()).await;
            write_tombstone(model, &referrer_key()).await;
            Ok(())
        }
    }
}

fn manifest_key() -> Key {
    layout::manifest(&repository(), &Digest::sha256(&artifact()))
}

fn referrer_key() -> Key {
    layout::referrer(
        &repository(),
        &Digest::sha256(SUBJECT),
        &Digest::sha256(&artifact()),
    )
}

/// Replaces any object by a tombstone that names no subject.
async fn write_tombstone(model: &ModelStorage, key: &Key) {
    let Some(present) = model.read(key).await.expect("no faults") else {
        return;
    };
    let after = |stamp: Stamp| Stamp {
        clock: stamp.clock + 1,
        ..stamp
    };
    let body = if key.as_str().starts_with("rm/") {
        let stamp = after(
            ManifestRecord::of(key, &present.body)
                .expect("a manifest")
                .stamp,
        );
        let tombstone = ManifestRecord {
            stamp,
            turn: 0,
            state: ManifestState::Deleted,
            content: None,
            subject: None,
            nonce: nonce(),
        };
        tombstone.body(key).expect("a body")
    } else {
        let stamp = after(
            Pointer::<ReferrerValue>::of(key, &present.body)
                .expect("a referrer")
                .stamp,
        );
        Pointer::<ReferrerValue> {
            stamp,
            turn: 0,
            value: None,
            nonce: nonce(),
        }
        .body(key)
        .expect("a body")
        .into()
    };
    let _ = model.swap(key, &present.version, body).await;
}

/// Whether a key holds a live object.
fn is_live(model: &ModelStorage, key: &Key) -> bool {
    let Some((_, body)) = model.objects(key.as_str()).pop() else {
        return false;
    };
    match key.as_str().split('/').next() {
        Some("rm") => ManifestRecord::of(key, &body)
            .expect("a manifest")
            .content
            .is_some(),
        Some("rb") => decode::<MembershipRecord>(key, &body)
            .expect("a membership")
            .state
            .is_served(),
        Some("tag") => Pointer::<TagValue>::of(key, &body)
            .expect("a tag")
            .value
            .is_some(),
        _ => Pointer::<ReferrerValue>::of(key, &body)
            .expect("a referrer")
            .value
            .is_some(),
    }
}

/// A replica whose caches hold the membership of the config blob.
async fn warm_replica(model: &ModelStorage) -> Arc<Registry> {
    let registry = replica(model).await;
    push(&registry, CONFIG).await.expect("a push");
    registry
        .blob(&repository(), &Digest::sha256(CONFIG), Need::Live)
        .await
        .expect("a HEAD")
        .expect("a blob");
    registry
}

/// Clients that change one artifact, which exists at first or not. The replica of the first client
/// may crash.
async fn explore_artifact(
    requests: &'static [Request],
    exists: bool,
    first_may_crash: bool,
    faults: Faults,
) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let mut replicas = Vec::new();
        for _ in requests {
            replicas.push(warm_replica(&model).await);
        }
        if exists {
            put(&replicas[0], &[]).await.expect("an artifact");
        }
        let unanswered = Arc::new(Mutex::new(requests.len()));
        let actors =
            requests
                .iter()
                .zip(replicas)
                .enumerate()
                .map(|(index, (request, registry))| {
                    let (model, unanswered) = (model.clone(), Arc::clone(&unanswered));
                    let actor = {
                        let model = model.clone();
                        async move {
                            let answered = send(*request, &registry, &model).await;
                            if matches!(answered, Ok(()) | Err(RegistryError::ManifestUnknown)) {
                                *unanswered.lock().expect("no panic") -= 1;
                            }
                        }
                    };
                    if first_may_crash && index == 0 {
                        return Box::pin(async move { model.until_crash(actor).await }) as _;
                    }
                    Box::pin(actor) as _
                });
        let actors = actors.collect();
        let check = move |model: &ModelStorage| {
            let (manifest, referrer) = (
                is_live(model, &manifest_key()),
                is_live(model, &referrer_key()),
            );
            let unanswered = *unanswered.lock().expect("no panic");
            // A request that was not answered may leave the two keys inconsistent.
            match (manifest, referrer) {
                (true, false) if unanswered == 0 => Err("a live manifest is not listed".to_owned()),
                (false, true)
                    if unanswered == 0 || requests.last() == Some(&Request::DeleteUntilMissing) =>
                {
                    Err("a deleted manifest is listed".to_owned())
                }
                _ => Ok(()),
            }
        };
        Scenario::new(actors, Box::new(check))
    };
    explore(faults, scenario).await
}

#[tokio::test]
async fn manifest_and_referrer_agree_after_concurrent_delete_and_put() {
    for exists in [true, false] {
        explore_artifact(
            &[Request::Delete, Request::Put],
            exists,
            false,
            Faults::NONE,
        )
        .await
        .assert_holds(10);
    }
    explore_artifact(
        &[Request::Delete, Request::Put],
        true,
        false,
        Faults::of(1, "ref/"),
    )
    .await
    .assert_holds(100);
    explore_artifact(
        &[Request::Put, Request::Put],
        false,
        false,
        Faults::of(1, "r"),
    )
    .await
    .assert_holds(100);
}

/// A delete that reads before the new push and writes after it.
#[tokio::test]
async fn deleting_any_referrer_unlists_recreated_manifest() {
    let requests = &[Request::DeleteAnyReferrer, Request::Put];
    explore_artifact(requests, true, false, Faults::NONE)
        .await
        .assert_violated("live manifest is not listed");
}

#[tokio::test]
async fn interrupted_delete_is_completed_by_the_next() {
    explore_artifact(
        &[Request::Delete, Request::DeleteUntilMissing],
        true,
        true,
        Faults::NONE,
    )
    .await
    .assert_holds(20);
}

/// A tombstone must name the subject, so that a later delete finds the referrer.
#[tokio::test]
async fn tombstone_without_subject_leaves_deleted_manifest_listed() {
    let requests = &[Request::DeleteAnyReferrer, Request::DeleteUntilMissing];
    explore_artifact(requests, true, true, Faults::NONE)
        .await
        .assert_violated("deleted manifest is listed");
}

/// The behaviour of a delete that finds a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// Swaps the version that it read, or answers 404.
    Shipped,
    /// Violates "not removed while an older request can still arrive": removes the tombstone.
    RemovesTombstone,
}

async fn delete(registry: &Registry, kind: &str) -> Result<(), RegistryError> {
    let reference = match kind {
        "rb/" => {
            return registry
                .delete_blob(&repository(), &Digest::sha256(CONFIG))
                .await;
        }
        "tag/" => Reference::Tag(tag()),
        _ => Reference::Digest(Digest::sha256(&artifact())),
    };
    registry
        .delete_manifest(&repository(), &reference, &ChangeRules::default())
        .await
        .map(drop)
}

/// Deletes one object of each kind, then re-creates all while another actor handles the tombstone
/// of one of them.
async fn explore_tombstone(kind: &'static str, variant: Variant) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let [first, second] = [warm_replica(&model).await, warm_replica(&model).await];
        let third = replica(&model).await;
        put(&first, &[tag()]).await.expect("an artifact");
        for reference in [
            Reference::Tag(tag()),
            Reference::Digest(Digest::sha256(&artifact())),
        ] {
            first
                .delete_manifest(&repository(), &reference, &ChangeRules::default())
                .await
                .expect("a delete");
        }
        first
            .delete_blob(&repository(), &Digest::sha256(CONFIG))
            .await
            .expect("a delete");
        let (key, _) = model.objects(kind).pop().expect("a tombstone");
        assert!(!is_live(&model, &key), "{key}");
        let is_recreated = Arc::new(Mutex::new(false));
        let is_deleted = Arc::new(Mutex::new(false));
        let recreate = {
            let is_recreated = Arc::clone(&is_recreated);
            async move {
                let succeeded =
                    push(&second, CONFIG).await.is_ok() && put(&second, &[tag()]).await.is_ok();
                *is_recreated.lock().expect("no panic") = succeeded;
            }
        };
        let handle_tombstone = {
            let (model, key, is_deleted) = (model.clone(), key.clone(), Arc::clone(&is_deleted));
            async move {
                match variant {
                    Variant::Shipped => {
                        let deleted = delete(&third, kind).await;
                        *is_deleted.lock().expect("no panic") = !matches!(
                            deleted,
                            Err(RegistryError::ManifestUnknown | RegistryError::BlobUnknown)
                        );
                    }
                    Variant::RemovesTombstone => {
                        model.read(&key).await.expect("no faults");
                        if !is_live(&model, &key) {
                            model.delete(&key).await.expect("no faults");
                        }
                    }
                }
            }
        };
        let check = move |model: &ModelStorage| {
            let is_present = is_live(model, &key) || *is_deleted.lock().expect("no panic");
            let is_lost = *is_recreated.lock().expect("no panic") && !is_present;
            if is_lost {
                Err(format!("{key} was acknowledged and is missing"))
            } else {
                Ok(())
            }
        };
        Scenario::new(
            vec![Box::pin(recreate), Box::pin(handle_tombstone)],
            Box::new(check),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn removing_tombstones_loses_recreated_objects() {
    for kind in ["rb/", "rm/", "ref/", "tag/"] {
        explore_tombstone(kind, Variant::Shipped)
            .await
            .assert_holds(10);
        explore_tombstone(kind, Variant::RemovesTombstone)
            .await
            .assert_violated("is missing");
    }
}

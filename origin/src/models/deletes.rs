//! Deletes and what comes again: a tombstone takes the place of what it buries, and nothing is
//! taken out from under a manifest, a referrer, a tag or a claim that was acknowledged after it.
//!
//! A manifest and its entry among the referrers of its subject are two keys. Whatever order their
//! writes come in, the two agree once all who changed them were answered.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::name::{Reference, Tag};

use super::blobs::{push, replica, repository};
use super::explorer::{Explored, Scenario, explore};
use super::model::{Faults, Model};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{
    ManifestRecord, MembershipRecord, Pointer, ReferrerValue, Stamp, TagValue, decode,
};
use crate::registry::{Need, Registry, RegistryError};
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
        )
        .await
        .map(drop)
}

/// What one client asks for, at a replica of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Put,
    Delete,
    /// As a client does that heard nothing: until it hears that there is nothing.
    DeleteToTheEnd,
    /// Breaks "the referrer follows the manifest's clock": it buries whatever referrer it finds.
    DeleteWhateverIsListed,
}

async fn act(act: Act, registry: &Registry, model: &Model) -> Result<(), RegistryError> {
    let reference = Reference::Digest(Digest::sha256(&artifact()));
    match act {
        Act::Put => put(registry, &[]).await,
        Act::Delete => registry.delete_manifest(&repository(), &reference).await,
        Act::DeleteToTheEnd => loop {
            if let Err(RegistryError::ManifestUnknown) =
                registry.delete_manifest(&repository(), &reference).await
            {
                return Ok(());
            }
        },
        Act::DeleteWhateverIsListed => {
            bury(model, &manifest_key()).await;
            bury(model, &referrer_key()).await;
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

/// Swaps whatever is there for a tombstone that names nothing.
async fn bury(model: &Model, key: &Key) {
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
            content: None,
            buried_subject: None,
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
            value: None,
            nonce: nonce(),
        }
        .body(key)
        .expect("a body")
        .into()
    };
    let _ = model.swap(key, &present.version, body).await;
}

/// Whether what is at a key lives.
fn is_live(model: &Model, key: &Key) -> bool {
    let Some((_, body)) = model.objects(key.as_str()).pop() else {
        return false;
    };
    match key.as_str().split('/').next() {
        Some("rm") => ManifestRecord::of(key, &body)
            .expect("a manifest")
            .content
            .is_some(),
        Some("rb") => decode::<MembershipRecord>(key, &body)
            .expect("a claim")
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

/// A replica whose caches know the repository's configuration.
async fn warm_replica(model: &Model) -> Arc<Registry> {
    let registry = replica(model).await;
    push(&registry, CONFIG).await.expect("a push");
    registry
        .blob(&repository(), &Digest::sha256(CONFIG), Need::Live)
        .await
        .expect("a HEAD")
        .expect("a blob");
    registry
}

/// Clients that change one artifact, which is there at first or not. The first one's replica may
/// die.
async fn explored(
    acts: &'static [Act],
    is_there: bool,
    first_is_mortal: bool,
    faults: Faults,
) -> Explored {
    let scenario = async move |model: Model| {
        let mut replicas = Vec::new();
        for _ in acts {
            replicas.push(warm_replica(&model).await);
        }
        if is_there {
            put(&replicas[0], &[]).await.expect("an artifact");
        }
        let unanswered = Arc::new(Mutex::new(acts.len()));
        let actors = acts
            .iter()
            .zip(replicas)
            .enumerate()
            .map(|(index, (what, registry))| {
                let (model, unanswered) = (model.clone(), Arc::clone(&unanswered));
                let actor = {
                    let model = model.clone();
                    async move {
                        let answered = act(*what, &registry, &model).await;
                        if matches!(answered, Ok(()) | Err(RegistryError::ManifestUnknown)) {
                            *unanswered.lock().expect("no panic") -= 1;
                        }
                    }
                };
                if first_is_mortal && index == 0 {
                    return Box::pin(async move { model.mortal(actor).await }) as _;
                }
                Box::pin(actor) as _
            });
        let actors = actors.collect();
        let check = move |model: &Model| {
            let (manifest, referrer) = (
                is_live(model, &manifest_key()),
                is_live(model, &referrer_key()),
            );
            let unanswered = *unanswered.lock().expect("no panic");
            // One that was not answered may have left the two as they were when it ended.
            match (manifest, referrer) {
                (true, false) if unanswered == 0 => {
                    Err("a manifest is there and not listed".to_owned())
                }
                (false, true) if unanswered == 0 || acts.last() == Some(&Act::DeleteToTheEnd) => {
                    Err("a manifest that was deleted is listed".to_owned())
                }
                _ => Ok(()),
            }
        };
        Scenario {
            actors,
            check: Box::new(check),
        }
    };
    explore(faults, scenario).await
}

#[tokio::test]
async fn a_manifest_that_comes_again_while_it_is_deleted_is_listed_if_it_is_there() {
    for is_there in [true, false] {
        explored(&[Act::Delete, Act::Put], is_there, false, Faults::NONE)
            .await
            .assert_holds(10);
    }
    explored(&[Act::Delete, Act::Put], true, false, Faults::of(1, "ref/"))
        .await
        .assert_holds(100);
    explored(&[Act::Put, Act::Put], false, false, Faults::of(1, "r"))
        .await
        .assert_holds(100);
}

/// A delete that is decided before and writes after it.
#[tokio::test]
async fn a_delete_that_buries_whatever_is_listed_takes_out_what_came_again() {
    let acts = &[Act::DeleteWhateverIsListed, Act::Put];
    explored(acts, true, false, Faults::NONE)
        .await
        .assert_broken("there and not listed");
}

#[tokio::test]
async fn a_delete_whose_replica_dies_is_ended_by_the_next_one() {
    explored(
        &[Act::Delete, Act::DeleteToTheEnd],
        true,
        true,
        Faults::NONE,
    )
    .await
    .assert_holds(20);
}

/// Who finds the tombstone has to know which list the manifest was in.
#[tokio::test]
async fn a_tombstone_that_names_no_subject_leaves_the_dead_listed() {
    let acts = &[Act::DeleteWhateverIsListed, Act::DeleteToTheEnd];
    explored(acts, true, true, Faults::NONE)
        .await
        .assert_broken("deleted is listed");
}

/// What becomes of a key whose tombstone somebody finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finder {
    /// As shipped: a delete, which swaps what it saw or finds that there is nothing.
    Deletes,
    /// Breaks "not removed while anything older can still arrive": it takes the tombstone away.
    Removes,
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
    registry.delete_manifest(&repository(), &reference).await
}

/// Everything that can be deleted is, and comes again while somebody is at the tombstone of one of
/// them.
async fn explored_tombstone(kind: &'static str, finder: Finder) -> Explored {
    let scenario = async move |model: Model| {
        let [first, second] = [warm_replica(&model).await, warm_replica(&model).await];
        let third = replica(&model).await;
        put(&first, &[tag()]).await.expect("an artifact");
        for reference in [
            Reference::Tag(tag()),
            Reference::Digest(Digest::sha256(&artifact())),
        ] {
            first
                .delete_manifest(&repository(), &reference)
                .await
                .expect("a delete");
        }
        first
            .delete_blob(&repository(), &Digest::sha256(CONFIG))
            .await
            .expect("a delete");
        let (key, _) = model.objects(kind).pop().expect("a tombstone");
        assert!(!is_live(&model, &key), "{key}");
        let (came_again, is_deleted) = (Arc::new(Mutex::new(false)), Arc::new(Mutex::new(false)));
        let comes = {
            let came_again = Arc::clone(&came_again);
            async move {
                let came =
                    push(&second, CONFIG).await.is_ok() && put(&second, &[tag()]).await.is_ok();
                *came_again.lock().expect("no panic") = came;
            }
        };
        let finds = {
            let (model, key, is_deleted) = (model.clone(), key.clone(), Arc::clone(&is_deleted));
            async move {
                match finder {
                    Finder::Deletes => {
                        let deleted = delete(&third, kind).await;
                        *is_deleted.lock().expect("no panic") = !matches!(
                            deleted,
                            Err(RegistryError::ManifestUnknown | RegistryError::BlobUnknown)
                        );
                    }
                    Finder::Removes => {
                        model.read(&key).await.expect("no faults");
                        if !is_live(&model, &key) {
                            model.delete(&key).await.expect("no faults");
                        }
                    }
                }
            }
        };
        let check = move |model: &Model| {
            let is_there = is_live(model, &key) || *is_deleted.lock().expect("no panic");
            let is_lost = *came_again.lock().expect("no panic") && !is_there;
            if is_lost {
                Err(format!("{key} was acknowledged and is not there"))
            } else {
                Ok(())
            }
        };
        Scenario {
            actors: vec![Box::pin(comes), Box::pin(finds)],
            check: Box::new(check),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test]
async fn what_comes_again_over_its_tombstone_is_lost_if_tombstones_are_taken_away() {
    for kind in ["rb/", "rm/", "ref/", "tag/"] {
        explored_tombstone(kind, Finder::Deletes)
            .await
            .assert_holds(10);
        explored_tombstone(kind, Finder::Removes)
            .await
            .assert_broken("is not there");
    }
}

//! The life of a blob: a push of a manifest against a collector. What is acknowledged names no dead
//! blob.
//!
//! The collector is the least that the rules allow: it condemns what a mark did not find, observes
//! that, and after a second mark, begun later, kills the version that it observed.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::SealKey;
use flotilla_runtime::clock::Clock;
use futures_util::{StreamExt, stream};

use super::explorer::{Explored, Scenario, explore};
use super::model::{Faults, Model};
use crate::config::Limits;
use crate::format::{Horizons, agree};
use crate::nonce::nonce;
use crate::record::{BlobRecord, ManifestRecord, State, decode, encode};
use crate::registry::{Body, Need, Registry, RegistryError};
use crate::replicas::{Invalidator, Replicas, Secret};
use crate::storage::{Key, Object, Prefix, Storage};

const LAYER: &[u8] = b"layer";

pub(super) fn repository() -> RepositoryName {
    "app".parse().expect("a name")
}

/// A replica that has seen nothing yet.
pub(super) async fn replica(model: &Model) -> Arc<Registry> {
    replica_with(model, Horizons::default()).await
}

async fn replica_with(model: &Model, horizons: Horizons) -> Arc<Registry> {
    let format = agree(model, horizons).await.expect("a format");
    let key = SealKey::from_secret("eu-1".parse().expect("a name"), &[7; 32]);
    // Nobody is told, and making one takes longer than all the rest.
    static NOBODY: OnceLock<Arc<Invalidator>> = OnceLock::new();
    let nobody =
        || Arc::new(Invalidator::new(Replicas::none(), Secret::of(&format)).expect("a client"));
    let invalidator = Arc::clone(NOBODY.get_or_init(nobody));
    Arc::new(Registry::new(
        Arc::new(model.clone()),
        format,
        key,
        Limits::default(),
        invalidator,
        Clock::tokio(),
    ))
}

/// Pushes a blob.
pub(super) async fn push(registry: &Registry, blob: &'static [u8]) -> Result<(), RegistryError> {
    let (ticket, progress) = registry.begin_upload(&repository(), false);
    let body = Body {
        bytes: stream::iter([Ok(blob.into())]).boxed(),
        len: None,
        offset: None,
    };
    let digest = Digest::sha256(blob);
    registry
        .finish(&repository(), ticket, Some(progress.known), digest, body)
        .await
}

/// How a collector kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    /// By a swap of the version that it observed before its second mark.
    WhatItObserved,
    /// Breaks that: whatever is there, as a paused worker would that does not look.
    WhateverIsThere,
    /// Breaks "a second mark, begun after it was observed": it kills what it has condemned.
    AfterOneMark,
    /// Breaks "observed before": its window begins with its attempt, whenever that takes effect.
    HoweverLate,
}

/// Whether a manifest names the layer; a tombstone names nothing.
async fn is_marked(model: &Model) -> bool {
    let prefix = Prefix::new("rm/").expect("a prefix");
    let page = model.list(&prefix, None, 99).await.expect("no faults");
    for entry in page.entries {
        let Some(object) = model.read(&entry.key).await.expect("no faults") else {
            continue;
        };
        if ManifestRecord::of(&entry.key, &object.body)
            .expect("a manifest")
            .content
            .is_some()
        {
            return true;
        }
    }
    false
}

async fn swap(model: &Model, key: &Key, seen: &Object, state: State) -> Option<Object> {
    let mut record: BlobRecord = decode(key, &seen.body).expect("a record");
    (record.state, record.nonce) = (state, nonce());
    let body = Bytes::from(encode(key, &record).expect("a record"));
    let version = model.swap(key, &seen.version, body.clone()).await.ok()?;
    Some(Object { body, version })
}

async fn collect(model: Model, key: Key, kill: Kill) {
    if is_marked(&model).await {
        return;
    }
    let Some(found) = model.read(&key).await.expect("no faults") else {
        return;
    };
    let attempted = swap(&model, &key, &found, State::Condemned).await;
    let observed = match (attempted, kill) {
        (Some(condemned), _) => Some(condemned),
        (None, Kill::HoweverLate) => None,
        // What came of it is read, and what is not there now is another time's work.
        (None, _) => match is_condemned(&model, &key).await {
            None => return,
            condemned => condemned,
        },
    };
    // W passes here.
    if kill != Kill::AfterOneMark && is_marked(&model).await {
        return;
    }
    let victim = match kill {
        Kill::WhatItObserved | Kill::AfterOneMark => observed,
        Kill::WhateverIsThere => model.read(&key).await.expect("no faults"),
        Kill::HoweverLate => is_condemned(&model, &key).await,
    };
    if let Some(victim) = victim {
        swap(&model, &key, &victim, State::Dead).await;
    }
}

/// The record, if it is condemned.
async fn is_condemned(model: &Model, key: &Key) -> Option<Object> {
    let present = model.read(key).await.expect("no faults")?;
    let record: BlobRecord = decode(key, &present.body).expect("a record");
    (record.state == State::Condemned).then_some(present)
}

fn manifest() -> Bytes {
    let digest = Digest::sha256(LAYER);
    let blob = serde_json::json!({"mediaType": "x/y", "digest": digest, "size": LAYER.len()});
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []})
        .to_string()
        .into()
}

async fn explored(kill: Kill, horizons: Horizons) -> Explored {
    explored_with(kill, horizons, Faults::NONE).await
}

async fn explored_with(kill: Kill, horizons: Horizons, faults: Faults) -> Explored {
    let scenario = async |model: Model| {
        let registry = replica_with(&model, horizons).await;
        push(&registry, LAYER).await.expect("a push");
        let digest = Digest::sha256(LAYER);
        registry
            .blob(&repository(), &digest, Need::Live)
            .await
            .expect("a HEAD")
            .expect("a blob");
        let (key, _) = model.objects("blob/").pop().expect("a record");
        let pushed = Arc::new(Mutex::new(false));
        let (acknowledged, by_digest) = (Arc::clone(&pushed), Digest::sha256(&manifest()));
        let push = async move {
            let reference = flotilla_common::name::Reference::Digest(by_digest);
            let repository = repository();
            let put =
                registry.put_manifest(&repository, &reference, &[], Some(OCI_MANIFEST), manifest());
            if put.await.is_ok() {
                *acknowledged.lock().expect("no panic") = true;
            }
        };
        let collector = collect(model.clone(), key.clone(), kill);
        let check = move |model: &Model| {
            let (_, body) = model.objects(key.as_str()).pop().ok_or("no record")?;
            let record: BlobRecord = decode(&key, &body).map_err(|error| error.to_string())?;
            match (*pushed.lock().expect("no panic"), record.state) {
                (true, State::Dead) => Err("an acknowledged manifest names a dead blob".to_owned()),
                _ => Ok(()),
            }
        };
        Scenario {
            actors: vec![Box::pin(push), Box::pin(collector)],
            check: Box::new(check),
        }
    };
    explore(faults, scenario).await
}

/// More than L passes while a manifest is pushed, always.
fn slow() -> Horizons {
    Horizons {
        liveness: core::time::Duration::ZERO,
        ..Horizons::default()
    }
}

/// The swaps of records take effect later than their worker waits.
const LATE: Faults = Faults {
    late_only: true,
    ..Faults::of(1, "blob/")
};

#[tokio::test]
async fn an_acknowledged_manifest_names_no_dead_blob() {
    explored(Kill::WhatItObserved, slow())
        .await
        .assert_holds(100);
    explored_with(Kill::WhatItObserved, slow(), LATE)
        .await
        .assert_holds(100);
}

/// A HEAD from a cache, condemn, kill, then 201: time passes, and nobody looks at it.
#[tokio::test]
async fn a_liveness_that_is_not_read_again_is_acknowledged_dead() {
    explored(Kill::WhatItObserved, Horizons::default())
        .await
        .assert_broken("names a dead blob");
}

#[tokio::test]
async fn a_worker_that_kills_another_version_than_it_observed_kills_what_was_rescued() {
    explored(Kill::WhateverIsThere, slow())
        .await
        .assert_broken("names a dead blob");
}

/// A manifest that is acknowledged after the mark is found by a second one only.
#[tokio::test]
async fn a_worker_that_does_not_mark_again_kills_what_a_manifest_names() {
    explored(Kill::AfterOneMark, slow())
        .await
        .assert_broken("names a dead blob");
}

/// What condemns arrives when its window is over already.
#[tokio::test]
async fn a_worker_that_kills_what_it_has_not_observed_for_long_kills_what_a_manifest_names() {
    explored_with(Kill::HoweverLate, slow(), LATE)
        .await
        .assert_broken("names a dead blob");
}

/// How a pull takes a record that is condemned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pull {
    /// As shipped.
    Serves,
    /// Breaks "GET serves live and condemned".
    TakesForGone,
}

/// A pull of the layer of a manifest that was acknowledged, while a collector is at work.
async fn explored_pull(pull: Pull) -> Explored {
    let scenario = async move |model: Model| {
        let (pusher, puller) = (
            replica_with(&model, slow()).await,
            replica_with(&model, slow()).await,
        );
        push(&pusher, LAYER).await.expect("a push");
        let digest = Digest::sha256(LAYER);
        pusher
            .blob(&repository(), &digest, Need::Live)
            .await
            .expect("a HEAD")
            .expect("a blob");
        let (key, _) = model.objects("blob/").pop().expect("a record");
        let is_missing = Arc::new(Mutex::new(false));
        let client = {
            let (model, key, is_missing) = (model.clone(), key.clone(), Arc::clone(&is_missing));
            async move {
                let reference =
                    flotilla_common::name::Reference::Digest(Digest::sha256(&manifest()));
                let repository = repository();
                let put = pusher.put_manifest(
                    &repository,
                    &reference,
                    &[],
                    Some(OCI_MANIFEST),
                    manifest(),
                );
                if put.await.is_err() {
                    return;
                }
                let is_there = match pull {
                    Pull::Serves => puller
                        .blob(&repository, &digest, Need::Bytes)
                        .await
                        .expect("no faults")
                        .is_some(),
                    Pull::TakesForGone => is_condemned(&model, &key).await.is_none(),
                };
                *is_missing.lock().expect("no panic") = !is_there;
            }
        };
        let collector = collect(model.clone(), key, Kill::WhatItObserved);
        let check = move |_: &Model| match *is_missing.lock().expect("no panic") {
            true => Err("a layer of an acknowledged manifest is not served".to_owned()),
            false => Ok(()),
        };
        Scenario {
            actors: vec![Box::pin(client), Box::pin(collector)],
            check: Box::new(check),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test]
async fn what_an_acknowledged_manifest_names_is_served_while_it_is_condemned() {
    explored_pull(Pull::Serves).await.assert_holds(100);
    explored_pull(Pull::TakesForGone)
        .await
        .assert_broken("is not served");
}

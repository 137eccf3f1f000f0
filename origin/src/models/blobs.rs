//! The life of a blob: a push of a manifest against a collector. What is acknowledged names no dead blob.
//!
//! The collector is the least that the rules allow: it condemns what a mark did not find, observes that, and after a
//! second mark, begun later, kills the version that it observed.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::SealKey;
use futures_util::{StreamExt, stream};

use super::explorer::{Explored, Scenario, explore};
use super::model::{Faults, Model};
use crate::config::Limits;
use crate::format::{Horizons, agree};
use crate::nonce::nonce;
use crate::record::{BlobRecord, ManifestRecord, State, decode, encode};
use crate::registry::{Body, Need, Registry};
use crate::replicas::{Announcer, Replicas, Secret};
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
    static NOBODY: OnceLock<Arc<Announcer>> = OnceLock::new();
    let nobody = || Arc::new(Announcer::new(Replicas::none(), Secret::of(&format)).expect("a client"));
    let announcer = Arc::clone(NOBODY.get_or_init(nobody));
    let (storage, region) = (Arc::new(model.clone()), "eu-1".parse().expect("a name"));
    Arc::new(Registry::new(storage, format, region, key, Limits::default(), announcer))
}

/// How a collector kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    /// By a swap of the version that it observed before its second mark.
    WhatItObserved,
    /// Breaks that: whatever is there, as a paused worker would that does not look.
    WhateverIsThere,
}

/// Whether a manifest names the layer; a tombstone names nothing.
async fn is_marked(model: &Model) -> bool {
    let prefix = Prefix::new("rm/").expect("a prefix");
    let page = model.list(&prefix, None, 99).await.expect("no faults");
    for entry in page.entries {
        let Some(object) = model.read(&entry.key).await.expect("no faults") else { continue };
        if ManifestRecord::of(&entry.key, &object.body).expect("a manifest").content.is_some() {
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
    let Some(found) = model.read(&key).await.expect("no faults") else { return };
    let Some(condemned) = swap(&model, &key, &found, State::Condemned).await else { return };
    // W passes here.
    if is_marked(&model).await {
        return;
    }
    match kill {
        Kill::WhatItObserved => {
            swap(&model, &key, &condemned, State::Dead).await;
        }
        Kill::WhateverIsThere => {
            let Some(present) = model.read(&key).await.expect("no faults") else { return };
            swap(&model, &key, &present, State::Dead).await;
        }
    }
}

fn manifest() -> Bytes {
    let digest = Digest::sha256(LAYER);
    let blob = serde_json::json!({"mediaType": "x/y", "digest": digest, "size": LAYER.len()});
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []})
        .to_string()
        .into()
}

async fn explored(kill: Kill, horizons: Horizons) -> Explored {
    let scenario = async |model: Model| {
        let registry = replica_with(&model, horizons).await;
        let (ticket, progress) = registry.begin_upload(&repository(), false);
        let bytes = stream::iter([Ok(LAYER.into())]).boxed();
        let body = Body { bytes, len: None, offset: None };
        let digest = Digest::sha256(LAYER);
        registry.finish(&repository(), ticket, Some(progress.known), digest, body).await.expect("a push");
        registry.blob(&repository(), &digest, Need::Live).await.expect("a HEAD").expect("a blob");
        let (key, _) = model.objects("blob/").pop().expect("a record");
        let pushed = Arc::new(Mutex::new(false));
        let (acknowledged, by_digest) = (Arc::clone(&pushed), Digest::sha256(&manifest()));
        let push = async move {
            let reference = flotilla_common::name::Reference::Digest(by_digest);
            let repository = repository();
            let put = registry.put_manifest(&repository, &reference, &[], Some(OCI_MANIFEST), manifest());
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
        Scenario { actors: vec![Box::pin(push), Box::pin(collector)], check: Box::new(check) }
    };
    explore(Faults::NONE, scenario).await
}

/// More than L passes while a manifest is pushed, always.
fn slow() -> Horizons {
    Horizons { liveness: core::time::Duration::ZERO, ..Horizons::default() }
}

#[tokio::test]
async fn an_acknowledged_manifest_names_no_dead_blob() {
    explored(Kill::WhatItObserved, slow()).await.assert_holds(100);
}

/// A HEAD from a cache, condemn, kill, then 201: time passes, and nobody looks at it.
#[tokio::test]
async fn a_liveness_that_is_not_read_again_is_acknowledged_dead() {
    explored(Kill::WhatItObserved, Horizons::default()).await.assert_broken();
}

#[tokio::test]
async fn a_worker_that_kills_another_version_than_it_observed_kills_what_was_rescued() {
    explored(Kill::WhateverIsThere, slow()).await.assert_broken();
}

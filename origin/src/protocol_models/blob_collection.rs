//! The lifecycle of a blob: the push of a manifest against a collector. An acknowledged manifest
//! must not name a dead blob.
//!
//! The collector does the minimum that the rules require: it condemns a blob that a mark did not
//! find, observes that, and after a second mark, begun later, kills the version that it observed.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::SealKey;
use flotilla_runtime::clock::Clock;
use futures_util::{StreamExt, stream};

use super::explorer::{Explored, Scenario, explore};
use super::storage_model::{Faults, ModelStorage};
use crate::config::Limits;
use crate::format::{Horizons, read_or_create};
use crate::nonce::nonce;
use crate::record::{BlobRecord, ManifestRecord, RecordState, decode, encode};
use crate::registry::{ChangeRules, Need, Registry, RegistryError, UploadBody};
use crate::replicas::{Invalidator, Replicas, Secret};
use crate::storage::{Key, Object, Prefix, Storage};

const LAYER: &[u8] = b"layer";

pub(super) fn repository() -> RepositoryName {
    "app".parse().expect("a name")
}

/// A replica with empty caches.
pub(super) async fn replica(model: &ModelStorage) -> Arc<Registry> {
    replica_with(model, Horizons::default()).await
}

async fn replica_with(model: &ModelStorage, horizons: Horizons) -> Arc<Registry> {
    replica_in("eu-1", model, horizons).await
}

/// A replica of a region, with empty caches.
pub(super) async fn replica_in(
    region: &str,
    model: &ModelStorage,
    horizons: Horizons,
) -> Arc<Registry> {
    let format = read_or_create(model, horizons).await.expect("a format");
    let key = SealKey::from_secret(region.parse().expect("a name"), &[7; 32]);
    // There is no other replica to invalidate, and an HTTP client is expensive to create.
    static INVALIDATOR: OnceLock<Arc<Invalidator>> = OnceLock::new();
    let create = || {
        Arc::new(
            Invalidator::new(Replicas::none(), Secret::new(&key, &format), Clock::tokio())
                .expect("a client"),
        )
    };
    let invalidator = Arc::clone(INVALIDATOR.get_or_init(create));
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
    let body = UploadBody {
        bytes: stream::iter([Ok(blob.into())]).boxed(),
        len: None,
        offset: None,
    };
    let digest = Digest::sha256(blob);
    registry
        .finish(&repository(), ticket, Some(progress.hint), digest, body)
        .await
}

/// The behaviour of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collector {
    /// Kills by a swap of the version that it observed before its second mark.
    Shipped,
    /// Violates that: kills whatever version exists, like a paused worker that does not check.
    IgnoresVersion,
    /// Violates "a second mark begins after the observation": kills right after condemning.
    WithoutSecondMark,
    /// Violates "observed condemned before": its window begins with the attempt to condemn,
    /// whenever that takes effect.
    WithoutObservation,
}

/// Whether a manifest names the layer. A tombstone names nothing.
async fn is_marked(model: &ModelStorage) -> bool {
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

async fn swap(
    model: &ModelStorage,
    key: &Key,
    seen: &Object,
    state: RecordState,
) -> Option<Object> {
    let mut record: BlobRecord = decode(key, &seen.body).expect("a record");
    (record.state, record.nonce) = (state, nonce());
    let body = Bytes::from(encode(key, &record).expect("a record"));
    let version = model.swap(key, &seen.version, body.clone()).await.ok()?;
    Some(Object {
        body,
        version,
        modified: None,
    })
}

async fn collect(model: ModelStorage, key: Key, collector: Collector) {
    if is_marked(&model).await {
        return;
    }
    let Some(found) = model.read(&key).await.expect("no faults") else {
        return;
    };
    let attempted = swap(&model, &key, &found, RecordState::Condemned).await;
    let observed = match (attempted, collector) {
        (Some(condemned), _) => Some(condemned),
        (None, Collector::WithoutObservation) => None,
        // The outcome is unknown, so the record is read back. A record that is not condemned is
        // left to the next collection.
        (None, _) => match read_condemned(&model, &key).await {
            None => return,
            condemned => condemned,
        },
    };
    // The window W passes here.
    if collector != Collector::WithoutSecondMark && is_marked(&model).await {
        return;
    }
    let victim = match collector {
        Collector::Shipped | Collector::WithoutSecondMark => observed,
        Collector::IgnoresVersion => model.read(&key).await.expect("no faults"),
        Collector::WithoutObservation => read_condemned(&model, &key).await,
    };
    if let Some(victim) = victim {
        swap(&model, &key, &victim, RecordState::Dead).await;
    }
}

/// Reads the record; `None` unless it is condemned.
async fn read_condemned(model: &ModelStorage, key: &Key) -> Option<Object> {
    let present = model.read(key).await.expect("no faults")?;
    let record: BlobRecord = decode(key, &present.body).expect("a record");
    (record.state == RecordState::Condemned).then_some(present)
}

fn manifest() -> Bytes {
    let digest = Digest::sha256(LAYER);
    let blob = serde_json::json!({"mediaType": "x/y", "digest": digest, "size": LAYER.len()});
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []})
        .to_string()
        .into()
}

async fn explore_push(collector: Collector, horizons: Horizons) -> Explored {
    explore_push_with(collector, horizons, Faults::NONE).await
}

async fn explore_push_with(collector: Collector, horizons: Horizons, faults: Faults) -> Explored {
    let scenario = async |model: ModelStorage| {
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
            let (repository, rules) = (repository(), ChangeRules::default());
            let media_type = Some(OCI_MANIFEST);
            let put =
                registry.put_manifest(&repository, &reference, &[], media_type, manifest(), &rules);
            if put.await.is_ok() {
                *acknowledged.lock().expect("no panic") = true;
            }
        };
        let collector = collect(model.clone(), key.clone(), collector);
        let check = move |model: &ModelStorage| {
            let (_, body) = model.objects(key.as_str()).pop().ok_or("no record")?;
            let record: BlobRecord = decode(&key, &body).map_err(|error| error.to_string())?;
            match (*pushed.lock().expect("no panic"), record.state) {
                (true, RecordState::Dead) => {
                    Err("an acknowledged manifest names a dead blob".to_owned())
                }
                _ => Ok(()),
            }
        };
        Scenario::new(vec![Box::pin(push), Box::pin(collector)], Box::new(check))
    };
    explore(faults, scenario).await
}

/// Horizons with L = 0, so that every manifest push takes longer than L.
fn slow_push() -> Horizons {
    Horizons {
        liveness: core::time::Duration::ZERO,
        ..Horizons::default()
    }
}

/// Swaps of records may apply after their worker has given up waiting.
const LATE_SWAPS: Faults = Faults {
    late_only: true,
    ..Faults::of(1, "blob/")
};

#[tokio::test]
async fn acknowledged_manifests_have_live_blobs() {
    explore_push(Collector::Shipped, slow_push())
        .await
        .assert_holds(100);
    explore_push_with(Collector::Shipped, slow_push(), LATE_SWAPS)
        .await
        .assert_holds(100);
}

/// A HEAD answered from a cache, then condemn, kill and 201: the liveness is older than L, and the
/// push does not check it again.
#[tokio::test]
async fn push_without_second_liveness_check_names_dead_blob() {
    explore_push(Collector::Shipped, Horizons::default())
        .await
        .assert_violated("names a dead blob");
}

#[tokio::test]
async fn gc_ignoring_version_deletes_rescued_blob() {
    explore_push(Collector::IgnoresVersion, slow_push())
        .await
        .assert_violated("names a dead blob");
}

/// Only a second mark finds a manifest that is acknowledged after the first.
#[tokio::test]
async fn gc_without_second_mark_deletes_live_blob() {
    explore_push(Collector::WithoutSecondMark, slow_push())
        .await
        .assert_violated("names a dead blob");
}

/// The swap that condemns applies after its window has already passed.
#[tokio::test]
async fn gc_without_observation_deletes_live_blob() {
    explore_push_with(Collector::WithoutObservation, slow_push(), LATE_SWAPS)
        .await
        .assert_violated("names a dead blob");
}

/// The behaviour of a pull that finds a condemned record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pull {
    /// As shipped.
    Serves,
    /// Violates "GET serves live and condemned records".
    TreatsAsMissing,
}

/// Pulls the layer of an acknowledged manifest while a collector runs.
async fn explore_pull(pull: Pull) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let (pusher, puller) = (
            replica_with(&model, slow_push()).await,
            replica_with(&model, slow_push()).await,
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
                let rules = ChangeRules::default();
                let put = pusher.put_manifest(
                    &repository,
                    &reference,
                    &[],
                    Some(OCI_MANIFEST),
                    manifest(),
                    &rules,
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
                    Pull::TreatsAsMissing => read_condemned(&model, &key).await.is_none(),
                };
                *is_missing.lock().expect("no panic") = !is_there;
            }
        };
        let collector = collect(model.clone(), key, Collector::Shipped);
        let check = move |_: &ModelStorage| match *is_missing.lock().expect("no panic") {
            true => Err("a layer of an acknowledged manifest is not served".to_owned()),
            false => Ok(()),
        };
        Scenario::new(vec![Box::pin(client), Box::pin(collector)], Box::new(check))
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test]
async fn condemned_blobs_are_served() {
    explore_pull(Pull::Serves).await.assert_holds(100);
    explore_pull(Pull::TreatsAsMissing)
        .await
        .assert_violated("is not served");
}

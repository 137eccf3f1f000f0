//! Two regions whose storages are processes of their own, which fail outside the origins.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_origin::check::check;
use flotilla_origin::check::regions::check_regions;
use flotilla_origin::storage::Storage;
use flotilla_runtime::clock::Clock;
use reqwest::{Method, Response, StatusCode};

use super::harness::{NAMES, Regions};
use super::until;
use crate::servers::{Kind, MountedDirectory, Outage, Server, StorageServer};
use crate::support::{MANIFEST, Registry, header, manifest, sample};

/// A kind of storage.
#[derive(Clone, Copy, Debug)]
pub(super) enum StorageKind {
    Server(Kind),
    Directory,
}

/// Starts a storage; `None`, with a message, if its program is missing.
async fn start_storage(test: &str, kind: StorageKind) -> Option<StorageServer> {
    Some(match kind {
        StorageKind::Server(kind) => StorageServer::Http(Server::start(test, kind).await?),
        StorageKind::Directory => StorageServer::Directory(MountedDirectory::start(test)?),
    })
}

/// An image as a client pushed it.
pub(super) struct Image {
    pub(super) manifest: Bytes,
    /// The config and the layers.
    pub(super) blobs: Vec<Bytes>,
}

impl Image {
    fn new(tag: &str, layers: Vec<Bytes>) -> Self {
        let config = Bytes::from(format!("{{\"tag\":\"{tag}\"}}"));
        let manifest = manifest(&config, &layers);
        let mut blobs = vec![config];
        blobs.extend(layers);
        Self { manifest, blobs }
    }
}

/// Two regions; the storage of one of them fails.
pub(super) struct OutageSite {
    pub(super) regions: Regions,
    servers: Vec<StorageServer>,
    /// The region whose storage fails.
    pub(super) failing: usize,
    /// An image that both regions have.
    pub(super) image: Image,
}

impl OutageSite {
    /// Starts the regions, pushes an image in the one that will fail, and waits until the other has
    /// it. `None`, with a message, if a program is missing.
    pub(super) async fn start(
        test: &str,
        kinds: [StorageKind; 2],
        failing: usize,
        largest_layer: usize,
    ) -> Option<Self> {
        let mut servers = Vec::new();
        for kind in kinds {
            servers.push(start_storage(test, kind).await?);
        }
        let storages = servers.iter().map(StorageServer::storage).collect();
        let regions = Regions::start_on(storages, 1, "", |_, _| {}).await;
        let layers = [40_000, 300_000, largest_layer];
        let layers = layers.map(|len| sample(len, len)).to_vec();
        let image = Image::new("v1", layers);
        let client = regions.client(failing);
        for blob in &image.blobs {
            client.push_blob("app", blob.clone()).await;
        }
        let manifest = image.manifest.clone();
        let answer = client.put_manifest("/v2/app/manifests/v1", MANIFEST, manifest);
        assert_eq!(answer.await.status(), StatusCode::CREATED);
        let site = Self {
            regions,
            servers,
            failing,
            image,
        };
        until("the copy", async || {
            site.stores_tag(site.other(), "v1").await
        })
        .await;
        Some(site)
    }

    /// The region whose storage works.
    pub(super) const fn other(&self) -> usize {
        1 - self.failing
    }

    /// Begins an outage; `None` ends it.
    pub(super) fn set_outage(&mut self, outage: Option<Outage>) {
        self.servers[self.failing].set_outage(outage);
    }

    fn storage(&self, region: usize) -> &Arc<dyn Storage> {
        &self.regions.sites[region].storage
    }

    /// Whether a region's storage has a tag, whatever other regions would answer. A storage that
    /// still fails has none.
    pub(super) async fn stores_tag(&self, region: usize, tag: &str) -> bool {
        let key = format!("tag/app/_/{tag}").parse().unwrap();
        matches!(self.storage(region).read(&key).await, Ok(Some(_)))
    }

    /// Waits until both regions have the same, and all of it is whole.
    pub(super) async fn assert_whole(&self) {
        for region in [0, 1] {
            let identity = self.regions.identity_of(NAMES[region]);
            until("equal regions", async || {
                let storage = Arc::clone(self.storage(region));
                let report = check_regions(storage, &identity, Clock::system(), true).await;
                let report = report.unwrap();
                assert_eq!(report.damage.count, 0, "{report:#?}");
                report.compared > Some(0) && report.pending.count == 0
            })
            .await;
            let report = check(Arc::clone(self.storage(region)), true).await.unwrap();
            assert!(report.is_complete(), "{report:#?}");
        }
    }
}

/// How far a replica uses its own storage.
pub(super) async fn own_standing(client: &Registry) -> String {
    let list = client.get("/flotilla/v1/regions").await;
    let list: serde_json::Value = serde_json::from_slice(&list.bytes().await.unwrap()).unwrap();
    list["storage"].as_str().unwrap().to_owned()
}

/// Pulls what a path names, which must be `expected`; returns the time to its last byte.
pub(super) async fn pull(client: &Registry, path: &str, expected: &Bytes) -> Duration {
    let started = Instant::now();
    let answer = client.get(path).await;
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    let took = started.elapsed();
    assert_eq!(status, StatusCode::OK, "{path}: {body:?} after {took:?}");
    assert!(body == *expected, "{path}");
    took
}

/// Pulls all but the largest blob of an image; returns the longest time.
pub(super) async fn pull_blobs(client: &Registry, image: &Image) -> Duration {
    let mut longest = Duration::ZERO;
    for blob in &image.blobs[..image.blobs.len() - 1] {
        let path = format!("/v2/app/blobs/{}", Digest::sha256(blob));
        longest = longest.max(pull(client, &path, blob).await);
    }
    longest
}

/// A push as clients do it: requests that are answered 408, 503 or 507 are repeated after a while,
/// and an upload that is gone is begun again. Returns the number of refused requests.
pub(super) async fn push_until_accepted(client: &Registry, tag: &str, layer: &Bytes) -> usize {
    let image = Image::new(tag, vec![layer.clone()]);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut refused = 0;
    while let Err(status) = try_push(client, tag, &image).await {
        assert!(
            matches!(
                status,
                StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::REQUEST_TIMEOUT
                    | StatusCode::INSUFFICIENT_STORAGE
            ),
            "{status}"
        );
        assert!(
            Instant::now() < deadline,
            "no push of {tag} succeeds: {status}"
        );
        refused += 1;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    refused
}

async fn try_push(client: &Registry, tag: &str, image: &Image) -> Result<(), StatusCode> {
    for blob in &image.blobs {
        let digest = Digest::sha256(blob);
        let path = format!("/v2/app/blobs/uploads/?digest={digest}");
        let request = client.request(Method::POST, &path).body(blob.clone());
        created(&request.send().await.unwrap())?;
    }
    let path = format!("/v2/app/manifests/{tag}");
    created(
        &client
            .put_manifest(&path, MANIFEST, image.manifest.clone())
            .await,
    )
}

fn created(answer: &Response) -> Result<(), StatusCode> {
    match answer.status() {
        StatusCode::CREATED => Ok(()),
        other => Err(other),
    }
}

/// Whether an answer is 503 and says when to ask again.
pub(super) fn is_not_now(answer: &Response) -> bool {
    answer.status() == StatusCode::SERVICE_UNAVAILABLE && !header(answer, "retry-after").is_empty()
}

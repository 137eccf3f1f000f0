//! A fleet in one process: an origin and a tracker of a few lines each, and real peers.
//!
//! Peers must not depend on the real origin and tracker; the whole is tested in the workspace's
//! `tests`.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

pub(crate) mod origin;
pub(crate) mod tracker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::seal::{SealKey, TrustedKeys};
use flotilla_common::swarm;
use flotilla_peer::{Config, Peer};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{Authority, Identity, client_without_trust};
use flotilla_runtime::shutdown::Shutdown;
use futures_util::StreamExt;
use reqwest::{Client, Response};
use tempfile::TempDir;
use tracing_subscriber::EnvFilter;

use origin::FakeOrigin;
use tracker::FakeTracker;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A fleet; everything in it stops with it.
pub(crate) struct Fleet {
    pub shutdown: Shutdown,
    pub origin: Arc<FakeOrigin>,
    pub tracker: Option<Arc<FakeTracker>>,
    pub key: SealKey,
    pub authority: Authority,
    dir: TempDir,
}

impl Fleet {
    /// An origin, a tracker and no peer yet.
    pub(crate) async fn new() -> Self {
        let mut fleet = Self::without_tracker().await;
        fleet.tracker = Some(FakeTracker::start(&fleet.shutdown).await);
        fleet
    }

    pub(crate) async fn without_tracker() -> Self {
        Self::of(Authority::create().unwrap(), None).await
    }

    /// A fleet whose origin knows its peers by their certificates.
    pub(crate) async fn over_tls() -> Self {
        let authority = Authority::create().unwrap();
        let issued = authority
            .issue_server(&["127.0.0.1".to_owned()], HOUR)
            .unwrap();
        let origin = Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            authority.certificate_pem(),
        )
        .unwrap();
        let mut fleet = Self::of(authority, Some(origin)).await;
        fleet.tracker = Some(FakeTracker::start(&fleet.shutdown).await);
        fleet
    }

    async fn of(authority: Authority, origin: Option<Identity>) -> Self {
        show_logs();
        let shutdown = Shutdown::new();
        let key = SealKey::from_secret("eu-1".parse().unwrap(), &[7; 32]);
        Self {
            origin: FakeOrigin::start(key.clone(), origin, &shutdown).await,
            tracker: None,
            key,
            authority,
            dir: tempfile::tempdir().unwrap(),
            shutdown,
        }
    }

    /// The settings of a peer of this fleet, to be changed or used as they are.
    pub(crate) fn config(&self, name: &str) -> Config {
        let id: PeerId = name.parse().unwrap();
        let issued = self.authority.issue_peer(&id, HOUR).unwrap();
        let identity = Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            self.authority.certificate_pem(),
        )
        .unwrap();
        let (region, zone) = ("eu".parse().unwrap(), "eu-a".parse().unwrap());
        // As patient as a test may be.
        let swarm = swarm::Config {
            escalate: Duration::from_millis(50),
            escalate_with_tracker: Duration::from_millis(500),
            ..swarm::Config::default()
        };
        let mut trusted = TrustedKeys::none();
        trusted.add(&self.key.public()).unwrap();
        Config {
            trusted_keys: trusted.into(),
            mirror: ([127, 0, 0, 1], 0).into(),
            quic: ([127, 0, 0, 1], 0).into(),
            origins: vec![self.origin.url()],
            trackers: self.tracker.iter().map(|tracker| tracker.url()).collect(),
            rng_seed: Some(1),
            swarm,
            ..Config::new(
                id,
                identity,
                self.store_of(name),
                region,
                zone,
                Clock::system(),
            )
        }
    }

    pub(crate) fn store_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn peer(&self, name: &str) -> Peer {
        self.start(self.config(name)).await
    }

    pub(crate) async fn start(&self, config: Config) -> Peer {
        Peer::start(config, &self.shutdown).await.unwrap()
    }
}

/// The log of a test that fails is shown with it, for its threads inherit where its output goes.
fn show_logs() {
    let filter = EnvFilter::new("flotilla_peer=debug,flotilla_common=debug,warn");
    let _started_before = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_test_writer()
        .try_init();
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shutdown.abandon();
    }
}

/// Asks a peer's mirror for something, as a container runtime would.
pub(crate) async fn get(peer: &Peer, path: &str) -> Response {
    get_range(peer, path, None).await
}

pub(crate) async fn get_range(peer: &Peer, path: &str, range: Option<&str>) -> Response {
    let url = format!("http://{}{path}?ns=registry.example", peer.mirror_addr());
    let mut request = client().get(url);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    request.send().await.unwrap()
}

pub(crate) fn client() -> Client {
    Client::builder()
        .tls_backend_preconfigured(client_without_trust().unwrap())
        .no_proxy()
        .build()
        .unwrap()
}

/// Pulls the image `app:v1`: the manifest, then all blobs at once. Each is checked against its
/// digest.
pub(crate) async fn pull(peer: &Peer) -> Vec<Bytes> {
    try_pull(peer).await.unwrap()
}

pub(crate) async fn try_pull(peer: &Peer) -> Result<Vec<Bytes>, String> {
    try_pull_of(peer, "v1").await
}

/// As [`pull`], of another tag or digest.
pub(crate) async fn try_pull_of(peer: &Peer, reference: &str) -> Result<Vec<Bytes>, String> {
    let manifest = get(peer, &format!("/v2/app/manifests/{reference}")).await;
    if !manifest.status().is_success() {
        return Err(manifest.text().await.unwrap());
    }
    let manifest =
        flotilla_common::manifest::Manifest::parse(&manifest.bytes().await.unwrap()).unwrap();
    let blobs = manifest
        .blobs()
        .into_iter()
        .map(|blob| blob.digest)
        .collect::<Vec<_>>();
    let pulls = blobs.into_iter().map(|digest| async move {
        let response = get(peer, &format!("/v2/app/blobs/{digest}")).await;
        if !response.status().is_success() {
            return Err(response.text().await.unwrap());
        }
        let bytes = response.bytes().await.map_err(|error| error.to_string())?;
        if digest.matches(&bytes) {
            Ok(bytes)
        } else {
            Err(format!("{digest} has wrong bytes"))
        }
    });
    futures_util::future::join_all(pulls)
        .await
        .into_iter()
        .collect()
}

/// Reads `response` until it has `bytes` of it, and keeps it open.
pub(crate) async fn read_some(response: Response, bytes: usize) -> (usize, impl StreamExt) {
    let mut stream = Box::pin(response.bytes_stream());
    let mut got = 0;
    while got < bytes {
        got += stream.next().await.unwrap().unwrap().len();
    }
    (got, stream)
}

/// Bytes that no compressor and no luck could guess.
pub(crate) fn noise(length: usize, salt: u64) -> Bytes {
    use rand::Rng;
    let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(salt) << 1 | 1);
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes.into()
}

/// Waits, looking again and again, until something is so; a failed test after half a minute.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = tokio::time::timeout(Duration::from_secs(30), async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(patience.await.is_ok(), "never came: {what}");
}

/// The digest of a blob, as text.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256(bytes)
}

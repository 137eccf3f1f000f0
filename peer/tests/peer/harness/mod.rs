//! A fleet in one process: a minimal origin, a minimal tracker, and real peers.
//!
//! The peer crate must not depend on the real origin and tracker. Tests of all services together
//! are in the workspace's `tests` folder.

pub(crate) mod origin;
pub(crate) mod tracker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::seal::{SealKey, TrustedKeys};
use flotilla_common::swarm::SwarmConfig;
use flotilla_common::tracker::TrackerUrl;
use flotilla_peer::{Config, FallbackTimeouts, OriginUrl, Peer};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, Identity, client_without_trust};
use flotilla_runtime::shutdown::Shutdown;
use futures_util::StreamExt;
use reqwest::{Client, Response};
use tempfile::TempDir;
use tracing_subscriber::EnvFilter;

use origin::FakeOrigin;
use tracker::FakeTracker;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A fleet. Dropping it stops everything in it.
pub(crate) struct Fleet {
    pub shutdown: Shutdown,
    pub origin: Arc<FakeOrigin>,
    pub tracker: Option<Arc<FakeTracker>>,
    pub key: SealKey,
    pub authority: CertificateAuthority,
    dir: TempDir,
}

impl Fleet {
    /// A fleet with an origin and a tracker, and no peer yet.
    pub(crate) async fn new() -> Self {
        let mut fleet = Self::without_tracker().await;
        fleet.tracker = Some(FakeTracker::start(&fleet.shutdown).await);
        fleet
    }

    pub(crate) async fn without_tracker() -> Self {
        Self::create(CertificateAuthority::create(Clock::system()).unwrap(), None).await
    }

    /// A fleet whose origin authenticates peers by their certificates.
    pub(crate) async fn with_tls() -> Self {
        let authority = CertificateAuthority::create(Clock::system()).unwrap();
        let issued = authority
            .issue_server(&["127.0.0.1".to_owned()], None, HOUR)
            .unwrap();
        let origin = Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            authority.certificate_pem(),
            Clock::system(),
        )
        .unwrap();
        let mut fleet = Self::create(authority, Some(origin)).await;
        fleet.tracker = Some(FakeTracker::start(&fleet.shutdown).await);
        fleet
    }

    async fn create(authority: CertificateAuthority, origin: Option<Identity>) -> Self {
        init_logging();
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

    /// The configuration of a peer of this fleet.
    pub(crate) fn config(&self, name: &str) -> Config {
        let id: PeerId = name.parse().unwrap();
        let issued = self.authority.issue_peer(&id, HOUR).unwrap();
        let identity = Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            self.authority.certificate_pem(),
            Clock::system(),
        )
        .unwrap();
        let (region, zone) = ("eu".parse().unwrap(), "eu-a".parse().unwrap());
        // Short, so that tests of the fallback to the origin do not take long.
        let swarm = SwarmConfig {
            fallback_timeout: Duration::from_millis(50),
            fallback_timeout_with_tracker: Duration::from_millis(500),
            ..SwarmConfig::default()
        };
        let mut trusted = TrustedKeys::none();
        trusted.add(self.key.issuer(), &self.key.public()).unwrap();
        Config {
            trusted_keys: trusted.into(),
            mirror: ([127, 0, 0, 1], 0).into(),
            quic: ([127, 0, 0, 1], 0).into(),
            origins: vec![OriginUrl::in_own_region(self.origin.url())],
            trackers: self
                .tracker
                .iter()
                .map(|tracker| TrackerUrl::in_own_region(tracker.url()))
                .collect(),
            rng_seed: Some(1),
            swarm,
            ..Config::new(
                id,
                identity,
                self.store_dir(name),
                region,
                zone,
                Clock::system(),
            )
        }
    }

    fn store_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn peer(&self, name: &str) -> Peer {
        self.start(self.config(name)).await
    }

    pub(crate) async fn peer_with_timeouts(
        &self,
        name: &str,
        fallback_timeouts: FallbackTimeouts,
    ) -> Peer {
        self.start(Config {
            fallback_timeouts,
            ..self.config(name)
        })
        .await
    }

    pub(crate) async fn start(&self, config: Config) -> Peer {
        Peer::start(config, &self.shutdown).await.unwrap()
    }
}

/// Logs to the captured output of the test, so that a failed test shows its log.
fn init_logging() {
    let filter = EnvFilter::new("flotilla_peer=debug,flotilla_common=debug,warn");
    // Fails for all tests but the first.
    let _ = tracing_subscriber::fmt()
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

/// Sends a GET request to a peer's mirror, as a container runtime does.
pub(crate) async fn get(peer: &Peer, path: &str) -> Response {
    get_range(peer, path, None).await
}

/// The text of the peer's metrics.
pub(crate) async fn metrics(peer: &Peer) -> String {
    let url = format!("http://{}/metrics", peer.admin_addr());
    let answer = client().get(url).send().await.unwrap();
    answer.text().await.unwrap()
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

/// Pulls the image `app:v1`: the manifest, then all blobs concurrently. Each blob is checked
/// against its digest.
pub(crate) async fn pull(peer: &Peer) -> Vec<Bytes> {
    try_pull(peer).await.unwrap()
}

pub(crate) async fn try_pull(peer: &Peer) -> Result<Vec<Bytes>, String> {
    try_pull_reference(peer, "v1").await
}

/// As [`try_pull`], for another tag or digest.
pub(crate) async fn try_pull_reference(peer: &Peer, reference: &str) -> Result<Vec<Bytes>, String> {
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

/// Reads at least `bytes` of a body and returns the number read and the open rest.
pub(crate) async fn read_at_least(response: Response, bytes: usize) -> (usize, impl StreamExt) {
    let mut stream = Box::pin(response.bytes_stream());
    let mut read = 0;
    while read < bytes {
        read += stream.next().await.unwrap().unwrap().len();
    }
    (read, stream)
}

/// Pseudo-random bytes. Different salts give different bytes.
pub(crate) fn random_bytes(length: usize, salt: u64) -> Bytes {
    use rand::Rng;
    let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(salt) << 1 | 1);
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes.into()
}

/// Waits until a condition is true. The test fails after 30 s.
pub(crate) async fn wait_until(condition: &str, mut is_true: impl FnMut() -> bool) {
    let waiting = tokio::time::timeout(Duration::from_secs(30), async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waiting.await.is_ok(), "timed out: {condition}");
}

/// The digest of a blob.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256(bytes)
}

//! Peers as processes of their own, so that what one costs can be told from what its neighbours
//! cost.
//!
//! The region's origin and tracker run in this process; each peer is `flotilla peer` with a store
//! and ports of its own, on loopback. It lives no longer than its [`PeerProcess`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::name::{NameError, PeerId, RegionName};
use flotilla_peer::Stats;
use tempfile::TempDir;
use tokio::time::Instant;

use super::content::Pushed;
use super::process::Process;
use super::service::{ServiceProcess, Started};
use crate::cli::CommandError;
use crate::client::{RegistryClient, http_client};
use crate::pki;
use crate::region::{ANY_PORT, Region, RegionPlan};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const REGION: &str = "local";
const REPOSITORY: &str = "bench";
/// How often a peer is asked how far it is: a small share of what is measured, both in time and in
/// work.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// With no chunk held in this time, a download is taken to be stuck.
const STUCK: Duration = Duration::from_secs(30);

/// An origin and a tracker in this process, and where peers are started.
#[derive(Debug)]
pub(super) struct Field {
    dir: TempDir,
    region: Region,
    http: reqwest::Client,
}

/// A running `flotilla peer`.
#[derive(Debug)]
pub(super) struct PeerProcess {
    id: PeerId,
    service: ServiceProcess,
    store: PathBuf,
}

impl Field {
    /// Starts an origin and a tracker, without any cap.
    pub(super) async fn start() -> Result<Self, CommandError> {
        let dir = tempfile::tempdir()
            .map_err(|error| CommandError::failed("make a temporary folder", error))?;
        let name: RegionName = REGION
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the region", error))?;
        let fleet = pki::open_or_init(&dir.path().join("pki"), &name)
            .map_err(|error| CommandError::failed("make the fleet's keys", error))?;
        let region = Region::start(dir.path(), fleet, RegionPlan::default()).await?;
        let http =
            http_client().map_err(|error| CommandError::failed("make an HTTP client", error))?;
        Ok(Self { dir, region, http })
    }

    /// A client of the origin.
    pub(super) fn origin(&self) -> Result<RegistryClient, CommandError> {
        self.client(self.region.origin_url())
    }

    /// A client of a peer's mirror.
    pub(super) fn mirror(&self, peer: &PeerProcess) -> Result<RegistryClient, CommandError> {
        Ok(self
            .client(format!("http://{}", peer.service.address()))?
            .through_mirror(self.region.registry()))
    }

    fn client(&self, base: String) -> Result<RegistryClient, CommandError> {
        let no_client = |error| CommandError::failed("make a registry client", error);
        let repository = REPOSITORY
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the repository", error))?;
        RegistryClient::new(base, repository).map_err(no_client)
    }

    /// Starts a peer and waits until its mirror listens.
    pub(super) async fn peer(&self, id: &str) -> Result<PeerProcess, CommandError> {
        let what = format!("start {id}");
        let failed = |error: Failed| CommandError::failed(what.as_str(), error);
        let id: PeerId = id
            .parse()
            .map_err(|error: NameError| failed(error.into()))?;
        let pki = self.dir.path().join("pki");
        let files = pki::issue_peer_files(&pki, &id).map_err(|error| failed(error.into()))?;
        let store = self.dir.path().join(id.as_str());
        let mut command =
            Command::new(std::env::current_exe().map_err(|error| failed(error.into()))?);
        command
            .arg("peer")
            .args([
                "--mirror",
                &ANY_PORT.to_string(),
                "--quic",
                &ANY_PORT.to_string(),
            ])
            .args([
                "--origin",
                &self.region.origin_url(),
                "--tracker",
                &self.region.tracker_url(),
            ])
            .args(["--region", REGION, "--zone", "bench"])
            .arg("--store")
            .arg(&store)
            .arg("--tls-cert")
            .arg(&files.certificate)
            .arg("--tls-key")
            .arg(&files.key)
            .arg("--tls-ca")
            .arg(&files.authority)
            .arg("--trusted-keys")
            .arg(pki.join(pki::TRUSTED_KEYS));
        let service = ServiceProcess::start(&mut command, Started::PEER).await;
        Ok(PeerProcess {
            id,
            service: service.map_err(|error| failed(error.into()))?,
            store,
        })
    }

    /// Its folder, with the stores of all in it.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Has a peer fetch an image as a runtime begins to: by asking for its manifest.
    pub(super) async fn want(
        &self,
        peer: &PeerProcess,
        image: &Pushed,
    ) -> Result<(), CommandError> {
        let what = || format!("ask {} for an image", peer.id);
        let manifest = self.mirror(peer)?.manifest(&image.manifest).await;
        manifest
            .map(drop)
            .map_err(|error| CommandError::failed(what(), error))
    }

    /// Waits until a peer holds all these images, each layer checked as a whole.
    pub(super) async fn complete(
        &self,
        peer: &PeerProcess,
        images: &[Pushed],
    ) -> Result<Stats, CommandError> {
        let layers: Vec<Digest> = images.iter().map(|image| image.layer).collect();
        let (mut held, mut moved_at) = (0, Instant::now());
        loop {
            let stats = self.stats(peer).await?;
            let of_layers = || {
                stats
                    .blobs
                    .iter()
                    .filter(|blob| layers.contains(&blob.digest))
            };
            if of_layers().filter(|blob| blob.is_complete).count() == layers.len() {
                return Ok(stats);
            }
            let now: u64 = of_layers().map(|blob| blob.held).sum();
            if now > held {
                (held, moved_at) = (now, Instant::now());
            }
            if moved_at.elapsed() > STUCK {
                let why = format!(
                    "nothing moved for {STUCK:?} at {held} bytes; its log:\n{}",
                    peer.service.log()
                );
                return Err(CommandError::failed(format!("wait for {}", peer.id), why));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn stats(&self, peer: &PeerProcess) -> Result<Stats, CommandError> {
        let asked = async {
            let response = self
                .http
                .get(format!("http://{}/flotilla/status", peer.service.address()))
                .send()
                .await?;
            response.error_for_status()?.bytes().await
        };
        let body = asked.await.map_err(|error| {
            CommandError::failed(format!("ask {} how far it is", peer.id), error)
        })?;
        serde_json::from_slice(&body)
            .map_err(|error| CommandError::failed("read a peer's status", error))
    }
}

impl PeerProcess {
    /// Its process.
    pub(super) fn process(&self) -> Process {
        self.service.process()
    }

    /// Ends it and deletes its store.
    pub(super) fn discard(self) -> Result<(), CommandError> {
        let store = self.store.clone();
        drop(self);
        std::fs::remove_dir_all(&store)
            .map_err(|error| CommandError::failed(format!("delete {}", store.display()), error))
    }
}

//! Peers as child processes, so that the resource usage of each is known.
//!
//! The region's origin and tracker run in this process; each peer is a `flotilla peer` with its own
//! store and ports, on loopback, that is killed when its [`PeerProcess`] is dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::name::{NameError, PeerId, RegionName};
use flotilla_peer::Stats;
use tempfile::TempDir;
use tokio::time::Instant;

use super::process::Process;
use super::service_process::{BoxError, ListeningEvent, ServiceProcess};
use super::synthetic_image::PushedImage;
use crate::client::{RegistryClient, http_client};
use crate::command::CommandError;
use crate::pki;
use crate::region::{ANY_PORT, Region, RegionPlan};

const REGION: &str = "local";
const REPOSITORY: &str = "bench";
/// Time between two status requests to a peer: short beside what is measured, and cheap.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// A download without a new chunk for this long has failed.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// An origin and a tracker in this process, to which peers are added.
#[derive(Debug)]
pub struct Testbed {
    program: PathBuf,
    dir: TempDir,
    region: Region,
    http: reqwest::Client,
}

/// A running `flotilla peer`.
#[derive(Debug)]
pub struct PeerProcess {
    id: PeerId,
    service: ServiceProcess,
    store: PathBuf,
}

impl Testbed {
    /// Starts an origin and a tracker without rate limits. `program` is the `flotilla` program that
    /// runs the peers.
    ///
    /// # Errors
    /// What did not start, and why.
    pub async fn start(program: PathBuf) -> Result<Self, CommandError> {
        let dir = tempfile::tempdir()
            .map_err(|error| CommandError::failed("create a temporary directory", error))?;
        let name: RegionName = REGION
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the region", error))?;
        let fleet = pki::open_or_init(&dir.path().join("pki"), &name)
            .map_err(|error| CommandError::failed("create the fleet's keys", error))?;
        let region = Region::start(dir.path(), fleet, RegionPlan::default()).await?;
        let http =
            http_client().map_err(|error| CommandError::failed("create an HTTP client", error))?;
        Ok(Self {
            program,
            dir,
            region,
            http,
        })
    }

    /// A client of the origin.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn origin(&self) -> Result<RegistryClient, CommandError> {
        self.client(self.region.origin_url())
    }

    /// A client of a peer's mirror.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn mirror(&self, peer: &PeerProcess) -> Result<RegistryClient, CommandError> {
        Ok(self
            .client(format!("http://{}", peer.service.address()))?
            .through_mirror(self.region.registry()))
    }

    fn client(&self, base: String) -> Result<RegistryClient, CommandError> {
        let no_client = |error| CommandError::failed("create a registry client", error);
        let repository = REPOSITORY
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the repository", error))?;
        RegistryClient::new(base, repository).map_err(no_client)
    }

    /// Starts a peer and waits until its mirror listens.
    ///
    /// # Errors
    /// If it does not start, with its log.
    pub async fn start_peer(&self, id: &str) -> Result<PeerProcess, CommandError> {
        let action = format!("start {id}");
        let failed = |error: BoxError| CommandError::failed(action.as_str(), error);
        let id: PeerId = id
            .parse()
            .map_err(|error: NameError| failed(error.into()))?;
        let store = self.dir.path().join(id.as_str());
        let mut command = self.peer_command(&id, &store).map_err(failed)?;
        let service = ServiceProcess::start(&mut command, ListeningEvent::PEER).await;
        Ok(PeerProcess {
            id,
            service: service.map_err(|error| failed(error.into()))?,
            store,
        })
    }

    fn peer_command(&self, id: &PeerId, store: &Path) -> Result<Command, BoxError> {
        let any_port = ANY_PORT.to_string();
        let pki = self.dir.path().join("pki");
        let files = pki::issue_peer_files(&pki, id)?;
        let mut command = Command::new(&self.program);
        command
            .arg("peer")
            .args(["--mirror", &any_port, "--quic", &any_port])
            .args(["--origin", &self.region.origin_url()])
            .args(["--tracker", &self.region.tracker_url()])
            .args(["--region", REGION, "--zone", "bench"])
            .arg("--store")
            .arg(store)
            .arg("--tls-cert")
            .arg(&files.certificate)
            .arg("--tls-key")
            .arg(&files.key)
            .arg("--tls-ca")
            .arg(&files.authority)
            .arg("--trusted-keys")
            .arg(pki.join(pki::TRUSTED_KEYS));
        Ok(command)
    }

    /// The folder with all peers' stores.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the pull of an image at a peer, as a container runtime does: with a request for its
    /// manifest.
    ///
    /// # Errors
    /// If the request fails.
    pub async fn start_pull(
        &self,
        peer: &PeerProcess,
        image: &PushedImage,
    ) -> Result<(), CommandError> {
        let manifest = self.mirror(peer)?.manifest(&image.manifest).await;
        manifest.map(drop).map_err(|error| {
            CommandError::failed(format!("get a manifest through {}", peer.id), error)
        })
    }

    /// Waits until a peer holds the layers of all these images, with their digests verified.
    ///
    /// # Errors
    /// If no new chunk arrives for 30 s, with the peer's log.
    pub async fn wait_until_complete(
        &self,
        peer: &PeerProcess,
        images: &[PushedImage],
    ) -> Result<Stats, CommandError> {
        let layers: Vec<Digest> = images.iter().map(|image| image.layer).collect();
        let mut held = 0;
        let mut progressed_at = Instant::now();
        loop {
            let stats = self.stats(peer).await?;
            let layer_stats = || {
                stats
                    .blobs
                    .iter()
                    .filter(|blob| layers.contains(&blob.digest))
            };
            if layer_stats().filter(|blob| blob.is_complete).count() == layers.len() {
                return Ok(stats);
            }
            let held_now: u64 = layer_stats().map(|blob| blob.held).sum();
            if held_now > held {
                held = held_now;
                progressed_at = Instant::now();
            }
            if progressed_at.elapsed() > STALL_TIMEOUT {
                let why = format!(
                    "no progress for {STALL_TIMEOUT:?} at {held} bytes; its log:\n{}",
                    peer.service.log()
                );
                return Err(CommandError::failed(format!("wait for {}", peer.id), why));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn stats(&self, peer: &PeerProcess) -> Result<Stats, CommandError> {
        let request = async {
            let response = self
                .http
                .get(format!("http://{}/flotilla/status", peer.service.address()))
                .send()
                .await?;
            response.error_for_status()?.bytes().await
        };
        let body = request.await.map_err(|error| {
            CommandError::failed(format!("get the status of {}", peer.id), error)
        })?;
        serde_json::from_slice(&body)
            .map_err(|error| CommandError::failed("decode a peer's status", error))
    }
}

impl PeerProcess {
    /// Its process.
    pub fn process(&self) -> Process {
        self.service.process()
    }

    /// Kills it and deletes its store.
    ///
    /// # Errors
    /// If the store cannot be deleted.
    pub fn remove(self) -> Result<(), CommandError> {
        let store = self.store.clone();
        drop(self);
        std::fs::remove_dir_all(&store)
            .map_err(|error| CommandError::failed(format!("delete {}", store.display()), error))
    }
}

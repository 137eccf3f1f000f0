//! Peers as processes of their own, so that what one costs can be told from what its neighbours cost.
//!
//! The region's origin and tracker run in this process; each peer is `flotilla peer` with a store and ports of its own,
//! on loopback. It lives no longer than its [`PeerProcess`].

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::name::{NameError, PeerId, RegionName};
use flotilla_peer::Stats;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::content::Pushed;
use super::process::Process;
use crate::cli::CommandError;
use crate::client::{RegistryClient, http_client};
use crate::pki;
use crate::region::{ANY_PORT, Region, RegionPlan};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const REGION: &str = "local";
const REPOSITORY: &str = "bench";
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a peer is asked how far it is: a small share of what is measured, both in time and in work.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// With no chunk held in this time, a download is taken to be stuck.
const STUCK: Duration = Duration::from_secs(30);
/// Lines of a peer's log that are shown if it fails.
const LOG_LINES: usize = 20;

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
    child: Child,
    mirror: SocketAddr,
    store: PathBuf,
    log: Log,
}

impl Field {
    /// Starts an origin and a tracker, without any cap.
    pub(super) async fn start() -> Result<Self, CommandError> {
        let dir =
            tempfile::tempdir().map_err(|error| CommandError::failed("make a temporary folder", error))?;
        let name: RegionName =
            REGION.parse().map_err(|error: NameError| CommandError::failed("name the region", error))?;
        let fleet = pki::open_or_init(&dir.path().join("pki"), &name)
            .map_err(|error| CommandError::failed("make the fleet's keys", error))?;
        let region = Region::start(dir.path(), fleet, RegionPlan::default()).await?;
        let http = http_client().map_err(|error| CommandError::failed("make an HTTP client", error))?;
        Ok(Self { dir, region, http })
    }

    /// A client of the origin.
    pub(super) fn origin(&self) -> Result<RegistryClient, CommandError> {
        self.client(self.region.origin_url())
    }

    /// A client of a peer's mirror.
    pub(super) fn mirror(&self, peer: &PeerProcess) -> Result<RegistryClient, CommandError> {
        Ok(self.client(format!("http://{}", peer.mirror))?.through_mirror(self.region.registry()))
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
        let id: PeerId = id.parse().map_err(|error: NameError| failed(error.into()))?;
        let pki = self.dir.path().join("pki");
        let files = pki::issue_peer_files(&pki, &id).map_err(|error| failed(error.into()))?;
        let store = self.dir.path().join(id.as_str());
        let mut command = Command::new(std::env::current_exe().map_err(|error| failed(error.into()))?);
        command
            .arg("peer")
            .args(["--mirror", &ANY_PORT.to_string(), "--quic", &ANY_PORT.to_string()])
            .args(["--origin", &self.region.origin_url(), "--tracker", &self.region.tracker_url()])
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
            .arg(pki.join(pki::TRUSTED_KEYS))
            .env("FLOTILLA_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(error.into()))?;
        let log = Log::default();
        let (started, mirror) = oneshot::channel();
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            std::thread::spawn(move || log.follow(stderr, Started::PEER, started));
        }
        // From here on the child ends with it, whatever goes wrong.
        let mut peer = PeerProcess { id, child, mirror: ANY_PORT, store, log };
        match timeout(START_TIMEOUT, mirror).await {
            Ok(Ok(mirror)) => peer.mirror = mirror,
            Ok(Err(_)) => return Err(failed(format!("it ended; its log:\n{}", peer.log.tail()).into())),
            Err(_) => {
                return Err(failed(
                    format!("not within {START_TIMEOUT:?}; its log:\n{}", peer.log.tail()).into(),
                ));
            }
        }
        Ok(peer)
    }

    /// Its folder, with the stores of all in it.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Has a peer fetch an image as a runtime begins to: by asking for its manifest.
    pub(super) async fn want(&self, peer: &PeerProcess, image: &Pushed) -> Result<(), CommandError> {
        let what = || format!("ask {} for an image", peer.id);
        let manifest = self.mirror(peer)?.manifest(&image.manifest).await;
        manifest.map(drop).map_err(|error| CommandError::failed(what(), error))
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
            let of_layers = || stats.blobs.iter().filter(|blob| layers.contains(&blob.digest));
            if of_layers().filter(|blob| blob.is_complete).count() == layers.len() {
                return Ok(stats);
            }
            let now: u64 = of_layers().map(|blob| blob.held).sum();
            if now > held {
                (held, moved_at) = (now, Instant::now());
            }
            if moved_at.elapsed() > STUCK {
                let why =
                    format!("nothing moved for {STUCK:?} at {held} bytes; its log:\n{}", peer.log.tail());
                return Err(CommandError::failed(format!("wait for {}", peer.id), why));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn stats(&self, peer: &PeerProcess) -> Result<Stats, CommandError> {
        let asked = async {
            let response = self.http.get(format!("http://{}/flotilla/status", peer.mirror)).send().await?;
            response.error_for_status()?.bytes().await
        };
        let body = asked
            .await
            .map_err(|error| CommandError::failed(format!("ask {} how far it is", peer.id), error))?;
        serde_json::from_slice(&body).map_err(|error| CommandError::failed("read a peer's status", error))
    }
}

impl PeerProcess {
    /// Its process.
    pub(super) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Ends it and deletes its store.
    pub(super) fn discard(self) -> Result<(), CommandError> {
        let store = self.store.clone();
        drop(self);
        std::fs::remove_dir_all(&store)
            .map_err(|error| CommandError::failed(format!("delete {}", store.display()), error))
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The line of a log that says where a service listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    message: &'static str,
    address: &'static str,
}

impl Started {
    /// A peer's, with its mirror.
    const PEER: Self = Self { message: "peer started", address: "mirror" };
    /// An origin's.
    pub(super) const ORIGIN: Self = Self { message: "origin started", address: "address" };

    fn address_in(self, line: &str) -> Option<SocketAddr> {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event.get("message")? == self.message).then(|| event.get(self.address)?.as_str()?.parse().ok())?
    }
}

/// The last lines of a service's log.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    /// Reads a service's log to its end, and tells where it listens.
    pub(super) fn follow(&self, stderr: ChildStderr, line: Started, started: oneshot::Sender<SocketAddr>) {
        let (said, mut started) = (line, Some(started));
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some(address) = said.address_in(&line)
                && let Some(started) = started.take()
            {
                // Nobody waits any more if it took too long.
                let _ = started.send(address);
            }
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == LOG_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    }

    pub(super) fn tail(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

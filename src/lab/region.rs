//! A region as an operator starts it: `flotilla pki`, an origin, trackers and peers, each a process
//! on its host.

use std::path::{Path, PathBuf};
use std::thread;

use flotilla_common::name::RepositoryName;
use flotilla_peer::Stats;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::network::Network;
use super::service::Recipe;
use super::{Ground, Host, LabError, Service};
use crate::client::{ClientError, Pulled, RegistryClient};
use crate::image::Layout;

const ORIGIN_PORT: u16 = 15_000;
const MIRROR_PORT: u16 = 15_001;
const QUIC_PORT: u16 = 15_002;
const TRACKER_PORT: u16 = 15_070;
const REGION: &str = "local";
const REPOSITORY: &str = "library/app";
/// The tag of the image that is pulled.
pub const TAG: &str = "v1";

/// How a laboratory is set up.
#[derive(Clone, Debug)]
pub struct LabPlan {
    /// The `flotilla` program.
    pub program: PathBuf,
    /// Where the hosts are.
    pub ground: Ground,
    /// Trackers; every peer knows all of them.
    pub trackers: u32,
    /// Further arguments of the origin.
    pub origin_arguments: Vec<String>,
    /// Further arguments of every tracker.
    pub tracker_arguments: Vec<String>,
}

impl LabPlan {
    /// One tracker, nothing special.
    pub fn new(program: impl Into<PathBuf>, ground: Ground) -> Self {
        Self {
            program: program.into(),
            ground,
            trackers: 1,
            origin_arguments: Vec::new(),
            tracker_arguments: Vec::new(),
        }
    }
}

/// How a peer is set up.
#[derive(Clone, Debug, Default)]
pub struct PeerPlan {
    /// Its zone; `None` for the default one.
    pub zone: Option<String>,
    /// The folder of its store; `None` for one in the laboratory's folder.
    pub store: Option<PathBuf>,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
}

/// A pull that goes on.
pub type Pulling = JoinHandle<Result<Pulled, ClientError>>;

/// A running region. Dropped, it takes everything with it; and it panics then if something went
/// wrong that nobody asked about: an error in a log, a service that died by itself. [`Lab::end`]
/// says so without a panic.
#[derive(Debug)]
pub struct Lab {
    plan: LabPlan,
    repository: RepositoryName,
    expected: Vec<String>,
    is_over: bool,
    origin: Service,
    trackers: Vec<Service>,
    peers: Vec<Service>,
    network: Network,
    dir: TempDir,
}

impl Lab {
    /// Makes the fleet's keys and starts an origin and the trackers. Peers are added later.
    ///
    /// # Errors
    /// What did not start, and why.
    pub async fn start(plan: LabPlan) -> Result<Self, LabError> {
        let dir = tempfile::tempdir()
            .map_err(|error| LabError::failed("make a temporary folder", error))?;
        let mut network = Network::start(plan.ground)?;
        let host = network.add_host("origin")?;
        host.run(
            &flotilla(
                &plan.program,
                &["pki", "init", "--dir", &text(&dir.path().join("pki"))],
            ),
            "",
        )?;
        let listen = host.public(ORIGIN_PORT);
        let storage = dir.path().join("storage");
        std::fs::create_dir_all(&storage).map_err(LabError::io("create", &storage))?;
        let seal_key = text(&dir.path().join("pki").join(format!("{REGION}.seal.key")));
        let storage = format!("file://{}", storage.display());
        let mut arguments = words(&[
            "origin",
            "--listen",
            &listen.to_string(),
            "--storage",
            &storage,
        ]);
        arguments.extend(words(&["--region", REGION, "--seal-key", &seal_key]));
        arguments.extend(plan.origin_arguments.iter().cloned());
        let health = format!("http://{listen}/healthz");
        let origin = recipe(&plan, dir.path(), "origin", arguments, health);
        let origin = Service::new(origin, host)?;
        let repository = REPOSITORY.parse().map_err(ClientError::from)?;
        let (expected, trackers, peers) = (Vec::new(), Vec::new(), Vec::new());
        let mut lab = Self {
            plan,
            repository,
            expected,
            is_over: false,
            origin,
            trackers,
            peers,
            network,
            dir,
        };
        lab.origin.launch()?;
        for number in 1..=lab.plan.trackers {
            lab.launch_tracker(number)?;
        }
        lab.origin.ready().await?;
        for tracker in &mut lab.trackers {
            tracker.ready().await?;
        }
        Ok(lab)
    }

    fn launch_tracker(&mut self, number: u32) -> Result<(), LabError> {
        let name = format!("tracker-{number}");
        let host = self.network.add_host(&name)?;
        let listen = host.public(TRACKER_PORT);
        let mut arguments = words(&["tracker", "--listen", &listen.to_string()]);
        arguments.extend(self.plan.tracker_arguments.iter().cloned());
        let health = format!("http://{listen}/healthz");
        let tracker = recipe(&self.plan, self.dir.path(), &name, arguments, health);
        self.trackers.push(Service::new(tracker, host)?);
        self.trackers.last_mut().map_or(Ok(()), Service::launch)
    }

    /// Adds peers, each on a host of its own, and waits until their mirrors answer.
    ///
    /// # Errors
    /// What did not start, and why.
    pub async fn add_peers(&mut self, plans: &[PeerPlan]) -> Result<(), LabError> {
        let before = self.peers.len();
        for plan in plans {
            self.launch_peer(plan)?;
        }
        for peer in &mut self.peers[before..] {
            peer.ready().await?;
        }
        Ok(())
    }

    fn launch_peer(&mut self, plan: &PeerPlan) -> Result<(), LabError> {
        let name = format!("peer-{}", self.peers.len() + 1);
        let host = self.network.add_host(&name)?;
        let pki = self.dir.path().join("pki");
        let issue = ["pki", "issue", "--dir", &text(&pki), "--peer", &name];
        host.run(&flotilla(&self.plan.program, &issue), "")?;
        let mirror = host.private(MIRROR_PORT);
        let store = plan
            .store
            .clone()
            .unwrap_or_else(|| self.dir.path().join("stores").join(&name));
        let trackers = self
            .trackers
            .iter()
            .map(|tracker| format!("http://{}", tracker.host().public(TRACKER_PORT)));
        let mut arguments = words(&["peer", "--mirror", &mirror.to_string()]);
        for (flag, value) in [
            ("--quic", host.public(QUIC_PORT).to_string()),
            ("--origin", self.origin_url()),
            ("--tracker", trackers.collect::<Vec<_>>().join(",")),
            ("--store", text(&store)),
            ("--region", REGION.to_owned()),
            (
                "--zone",
                plan.zone.clone().unwrap_or_else(|| "default".to_owned()),
            ),
            ("--trusted-keys", text(&pki.join("trusted-keys"))),
            ("--tls-cert", text(&pki.join(format!("{name}.pem")))),
            ("--tls-key", text(&pki.join(format!("{name}.key")))),
            ("--tls-ca", text(&pki.join("ca.pem"))),
        ] {
            if !value.is_empty() {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        arguments.extend(plan.arguments.iter().cloned());
        let health = format!("http://{mirror}/flotilla/healthz");
        let mut recipe = recipe(&self.plan, self.dir.path(), &name, arguments, health);
        recipe.environment.extend(plan.environment.iter().cloned());
        self.peers.push(Service::new(recipe, host)?);
        self.peers.last_mut().map_or(Ok(()), Service::launch)
    }

    /// The origin's host.
    pub const fn origin_host(&self) -> &Host {
        self.origin.host()
    }

    /// A peer's host.
    ///
    /// # Panics
    /// If there is no such peer.
    pub fn peer_host(&self, index: usize) -> &Host {
        self.peers[index].host()
    }

    /// The origin.
    pub const fn origin(&mut self) -> &mut Service {
        &mut self.origin
    }

    /// A tracker, by its place in the list that peers know.
    ///
    /// # Panics
    /// If there is no such tracker.
    pub fn tracker(&mut self, index: usize) -> &mut Service {
        &mut self.trackers[index]
    }

    /// A peer, in the order they were added.
    ///
    /// # Panics
    /// If there is no such peer.
    pub fn peer(&mut self, index: usize) -> &mut Service {
        &mut self.peers[index]
    }

    /// How many peers there are, those that are down included.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The folder of everything: `pki`, `storage`, `stores/peer-N`, `logs`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The origin's base URL.
    pub fn origin_url(&self) -> String {
        format!("http://{}", self.registry())
    }

    /// The origin as image references name it: host and port.
    pub fn registry(&self) -> String {
        self.origin.host().public(ORIGIN_PORT).to_string()
    }

    /// The base URL of a peer's mirror, for clients on the peer's host.
    pub fn mirror_url(&self, peer: usize) -> String {
        format!("http://{}", self.peers[peer].host().private(MIRROR_PORT))
    }

    /// A client that pushes to the origin; to be used on the origin's host, where no link slows it.
    ///
    /// # Errors
    /// If there can be none.
    pub fn origin_client(&self) -> Result<RegistryClient, LabError> {
        Ok(RegistryClient::new(
            self.origin_url(),
            self.repository.clone(),
        )?)
    }

    /// Pushes the image in a layout under [`TAG`].
    ///
    /// # Errors
    /// What failed.
    pub async fn push(&self, layout: &Path) -> Result<(), LabError> {
        let (client, layout) = (self.origin_client()?, layout.to_owned());
        let pushed = self.origin.host().spawn(async move {
            let layout = Layout::open(&layout)?;
            client.push(&layout, TAG).await
        });
        pushed.await.map_err(ClientError::from)??;
        Ok(())
    }

    /// Begins a pull through a peer's mirror, by a client on the peer's host. `on_bytes` is told of
    /// each piece.
    ///
    /// # Errors
    /// If there can be no client.
    pub fn pull(
        &self,
        peer: usize,
        on_bytes: impl Fn(u64) + Clone + Send + Sync + 'static,
    ) -> Result<Pulling, LabError> {
        let client = RegistryClient::new(self.mirror_url(peer), self.repository.clone())?;
        let client = client.through_mirror(self.registry());
        Ok(self.peers[peer]
            .host()
            .spawn(async move { client.pull(TAG, on_bytes).await }))
    }

    /// What a peer has done so far, as it says itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn stats(&self, peer: usize) -> Result<Stats, LabError> {
        let url = format!("{}/flotilla/status", self.mirror_url(peer));
        let text = self.peers[peer].get(&url).await?;
        serde_json::from_str(&text).map_err(|error| LabError::failed("read a peer's status", error))
    }

    /// Bytes of blobs that the origin has sent since it started, as it says itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn origin_blob_bytes(&self) -> Result<u64, LabError> {
        const COUNTER: &str = "flotilla_origin_sent_bytes_total ";
        let text = self
            .origin
            .get(&format!("{}/metrics", self.origin_url()))
            .await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(COUNTER)?.parse().ok());
        value.ok_or_else(|| {
            LabError::failed(
                "read the origin's metrics",
                format!("there is no {COUNTER}"),
            )
        })
    }

    /// Announces an error: log lines with this text are no reason to fail.
    pub fn expect_error(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Ends everything and says what went wrong that nobody asked about.
    ///
    /// # Errors
    /// That, with the logs.
    pub fn end(mut self) -> Result<(), LabError> {
        self.judge()
    }

    /// Kills everything, after it was looked at.
    fn judge(&mut self) -> Result<(), LabError> {
        self.is_over = true;
        let expected = std::mem::take(&mut self.expected);
        let complaints: Vec<_> = self
            .services_mut()
            .flat_map(|service| service.complaints(&expected))
            .collect();
        self.services_mut().for_each(Service::kill);
        if complaints.is_empty() {
            return Ok(());
        }
        Err(LabError::Complaints(format!(
            "{}\n{}",
            complaints.join("\n"),
            self.logs()
        )))
    }

    fn services_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        [&mut self.origin]
            .into_iter()
            .chain(&mut self.trackers)
            .chain(&mut self.peers)
    }

    /// The ends of all logs.
    fn logs(&self) -> String {
        let services = [&self.origin]
            .into_iter()
            .chain(&self.trackers)
            .chain(&self.peers);
        services
            .map(|service| format!("\nlog of {}:\n{}", service.name(), service.log()))
            .collect()
    }
}

impl Drop for Lab {
    #[allow(clippy::panic, reason = "the last chance to fail a story")]
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        match self.judge() {
            _ if thread::panicking() => eprintln!("{}", self.logs()),
            Ok(()) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn recipe(
    plan: &LabPlan,
    dir: &Path,
    name: &str,
    arguments: Vec<String>,
    health_url: String,
) -> Recipe {
    Recipe {
        name: name.to_owned(),
        program: plan.program.clone(),
        arguments,
        environment: Vec::new(),
        health_url,
        log: dir.join(format!("{name}.log")),
    }
}

fn flotilla<'a>(program: &'a Path, arguments: &[&'a str]) -> Vec<&'a str> {
    [program.to_str().unwrap_or_default()]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

//! Regions as an operator starts them: `flotilla pki`, an origin for each, trackers and peers, each
//! a process on its own host.

use std::path::{Path, PathBuf};
use std::thread;

use flotilla::client::{ClientError, PulledImage, RegistryClient};
use flotilla::image::Layout;
use flotilla_common::name::RepositoryName;
use flotilla_peer::Stats;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::error::LabError;
use crate::host::Host;
use crate::link::VirtualLink;
use crate::network::{Network, NetworkKind};
use crate::service::{Service, ServiceCommand};

const ORIGIN_PORT: u16 = 15_000;
const MIRROR_PORT: u16 = 15_001;
const QUIC_PORT: u16 = 15_002;
const ORIGIN_ADMIN_PORT: u16 = 15_003;
const TRACKER_PORT: u16 = 15_070;
/// The name of the only region.
const REGION: &str = "local";
const REPOSITORY: &str = "library/app";
/// The tag of the image that is pulled.
pub const TAG: &str = "v1";

/// How a laboratory is set up.
#[derive(Clone, Debug)]
pub struct LabPlan {
    /// The `flotilla` program.
    pub program: PathBuf,
    /// How the hosts are connected.
    pub network: NetworkKind,
    /// The number of regions, each with an origin and a storage. The origins do not know each
    /// other: an image is pushed to each of them. Peers prefer the origin of their own region, then
    /// the others in their order.
    pub regions: usize,
    /// The number of trackers, all in the first region. Every peer is configured with all of them.
    /// Without effect if each region has one.
    pub trackers: u32,
    /// Whether each region has a tracker, which its peers use before those of other regions.
    pub has_tracker_per_region: bool,
    /// More arguments for every origin.
    pub origin_arguments: Vec<String>,
    /// More arguments for every tracker.
    pub tracker_arguments: Vec<String>,
    /// The directory in which trackers and peers record their state machines, each in a folder with
    /// its name; `None` if they do not.
    pub record: Option<PathBuf>,
}

impl LabPlan {
    /// One region, one tracker, and no more arguments.
    pub fn new(program: impl Into<PathBuf>, network: NetworkKind) -> Self {
        Self {
            program: program.into(),
            network,
            regions: 1,
            trackers: 1,
            has_tracker_per_region: false,
            origin_arguments: Vec::new(),
            tracker_arguments: Vec::new(),
            record: None,
        }
    }
}

/// How a peer process is set up.
#[derive(Clone, Debug, Default)]
pub struct PeerSetup {
    /// The peer's region, by number from 0.
    pub region: usize,
    /// The peer's zone; `None` for `default`.
    pub zone: Option<String>,
    /// The folder of its store; `None` for one in the laboratory's folder.
    pub store: Option<PathBuf>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// More environment variables.
    pub environment: Vec<(String, String)>,
}

/// A running pull.
pub type PullTask = JoinHandle<Result<PulledImage, ClientError>>;

/// Running regions. Dropping it ends all their processes, and panics if a service logged an error
/// or ended unexpectedly; [`Lab::finish`] returns that as an error instead.
#[derive(Debug)]
pub struct Lab {
    plan: LabPlan,
    repository: RepositoryName,
    expected_errors: Vec<String>,
    is_finished: bool,
    /// One for each region.
    origins: Vec<Service>,
    trackers: Vec<Service>,
    peers: Vec<Service>,
    /// The region of each peer.
    peer_regions: Vec<usize>,
    network: Network,
    dir: TempDir,
}

impl Lab {
    /// Creates the fleet's keys and starts the origins and trackers. Peers are added later.
    ///
    /// # Errors
    /// If a service does not start.
    pub async fn start(plan: LabPlan) -> Result<Self, LabError> {
        let dir = tempfile::tempdir()
            .map_err(|error| LabError::failed("create a temporary directory", error))?;
        let network = Network::start(plan.network, plan.regions)?;
        let mut lab = Self {
            plan,
            repository: REPOSITORY.parse().map_err(ClientError::from)?,
            expected_errors: Vec::new(),
            is_finished: false,
            origins: Vec::new(),
            trackers: Vec::new(),
            peers: Vec::new(),
            peer_regions: Vec::new(),
            network,
            dir,
        };
        for region in 0..lab.plan.regions {
            lab.spawn_origin(region)?;
        }
        if lab.plan.has_tracker_per_region {
            (0..lab.plan.regions).try_for_each(|region| lab.spawn_tracker(region))?;
        } else {
            (0..lab.plan.trackers).try_for_each(|_| lab.spawn_tracker(0))?;
        }
        for service in lab.origins.iter_mut().chain(&mut lab.trackers) {
            service.wait_until_healthy().await?;
        }
        Ok(lab)
    }

    /// Creates the seal key of a region and starts its origin; with the first one, creates the
    /// fleet.
    fn spawn_origin(&mut self, region: usize) -> Result<(), LabError> {
        let pki = display(&self.dir.path().join("pki"));
        let region_name = self.region_name(region);
        let numbered = |what: &str| match region {
            0 => what.to_owned(),
            _ => format!("{what}-{}", region + 1),
        };
        let name = numbered("origin");
        let (host, link) = self.network.add_host(&name, region)?;
        let create_key = match region {
            0 => ["pki", "init", "--dir", &pki, "--region", &region_name],
            _ => ["pki", "issue", "--dir", &pki, "--origin", &region_name],
        };
        host.run(&flotilla(&self.plan.program, &create_key), "")?;
        let listen = host.public_address(ORIGIN_PORT);
        let storage = self.dir.path().join(numbered("storage"));
        std::fs::create_dir_all(&storage).map_err(LabError::io("create", &storage))?;
        let storage = format!("file://{}", storage.display());
        let seal_key = format!("{pki}/{region_name}.seal.key");
        let mut arguments = owned(&["origin", "--listen", &listen.to_string()]);
        let admin = host.private_address(ORIGIN_ADMIN_PORT);
        arguments.extend(owned(&["--admin-listen", &admin.to_string()]));
        arguments.extend(owned(&["--storage", &storage]));
        arguments.extend(owned(&["--region", &region_name, "--seal-key", &seal_key]));
        arguments.extend(self.plan.origin_arguments.iter().cloned());
        let health_url = format!("http://{listen}/healthz");
        let command = service_command(&self.plan, self.dir.path(), &name, arguments, health_url);
        let mut origin = Service::new(command, host, link)?;
        origin.spawn()?;
        self.origins.push(origin);
        Ok(())
    }

    fn spawn_tracker(&mut self, region: usize) -> Result<(), LabError> {
        let name = format!("tracker-{}", self.trackers.len() + 1);
        let (host, link) = self.network.add_host(&name, region)?;
        let listen = host.public_address(TRACKER_PORT);
        let mut arguments = owned(&["tracker", "--listen", &listen.to_string()]);
        arguments.extend(self.record_arguments(&name));
        arguments.extend(self.plan.tracker_arguments.iter().cloned());
        let health_url = format!("http://{listen}/healthz");
        let command = service_command(&self.plan, self.dir.path(), &name, arguments, health_url);
        let mut tracker = Service::new(command, host, link)?;
        tracker.spawn()?;
        self.trackers.push(tracker);
        Ok(())
    }

    /// Adds peers, each on its own host, and waits until their mirrors are healthy.
    ///
    /// # Errors
    /// If a peer does not start.
    pub async fn add_peers(&mut self, setups: &[PeerSetup]) -> Result<(), LabError> {
        let before = self.peers.len();
        for setup in setups {
            self.spawn_peer(setup)?;
        }
        for peer in &mut self.peers[before..] {
            peer.wait_until_healthy().await?;
        }
        Ok(())
    }

    fn spawn_peer(&mut self, setup: &PeerSetup) -> Result<(), LabError> {
        let name = format!("peer-{}", self.peers.len() + 1);
        let (host, link) = self.network.add_host(&name, setup.region)?;
        let pki = display(&self.dir.path().join("pki"));
        let issue = ["pki", "issue", "--dir", &pki, "--peer", &name];
        host.run(&flotilla(&self.plan.program, &issue), "")?;
        let arguments = self.peer_arguments(setup, &name, &host);
        let mirror = host.private_address(MIRROR_PORT);
        let health_url = format!("http://{mirror}/flotilla/healthz");
        let mut command =
            service_command(&self.plan, self.dir.path(), &name, arguments, health_url);
        command
            .environment
            .extend(setup.environment.iter().cloned());
        let mut peer = Service::new(command, host, link)?;
        peer.spawn()?;
        self.peers.push(peer);
        self.peer_regions.push(setup.region);
        Ok(())
    }

    fn peer_arguments(&self, setup: &PeerSetup, name: &str, host: &Host) -> Vec<String> {
        let pki = self.dir.path().join("pki");
        let default_store = || self.dir.path().join("stores").join(name);
        let store = setup.store.clone().unwrap_or_else(default_store);
        let zone = setup.zone.clone().unwrap_or_else(|| "default".to_owned());
        let mut arguments = owned(&["peer", "--region", &self.region_name(setup.region)]);
        for (flag, value) in [
            ("--mirror", host.private_address(MIRROR_PORT).to_string()),
            ("--quic", host.public_address(QUIC_PORT).to_string()),
            ("--origin", self.origins_of(setup.region)),
            ("--tracker", self.trackers_of(setup.region)),
            ("--store", display(&store)),
            ("--zone", zone),
            ("--trusted-keys", display(&pki.join("trusted-keys"))),
            ("--tls-cert", display(&pki.join(format!("{name}.pem")))),
            ("--tls-key", display(&pki.join(format!("{name}.key")))),
            ("--tls-ca", display(&pki.join("ca.pem"))),
        ] {
            // A laboratory may have no trackers.
            if !value.is_empty() {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        arguments.extend(self.record_arguments(name));
        arguments.extend(setup.arguments.iter().cloned());
        arguments
    }

    /// The arguments with which a service records its state machines.
    fn record_arguments(&self, service: &str) -> Vec<String> {
        let folder = self.plan.record.as_ref().map(|dir| dir.join(service));
        let arguments = folder.map(|folder| ["--record".to_owned(), display(&folder)]);
        arguments.into_iter().flatten().collect()
    }

    /// The origins of the peers of a region, the preferred one first.
    fn origins_of(&self, region: usize) -> String {
        let origins = self.own_first(region);
        let urls = origins.map(|at| format!("{}={}", self.region_name(at), self.origin_url(at)));
        urls.collect::<Vec<_>>().join(",")
    }

    /// The trackers of the peers of a region.
    fn trackers_of(&self, region: usize) -> String {
        let url = |tracker: &Service| {
            let address = tracker.host().public_address(TRACKER_PORT);
            format!("http://{address}")
        };
        let urls: Vec<String> = if self.plan.has_tracker_per_region {
            let regions = self.own_first(region);
            let of = |at| format!("{}={}", self.region_name(at), url(&self.trackers[at]));
            regions.map(of).collect()
        } else {
            self.trackers.iter().map(url).collect()
        };
        urls.join(",")
    }

    /// All regions, this one first.
    fn own_first(&self, region: usize) -> impl Iterator<Item = usize> + use<> {
        let others = (0..self.plan.regions).filter(move |other| *other != region);
        std::iter::once(region).chain(others)
    }

    /// The name of a region, by number from 0.
    pub fn region_name(&self, region: usize) -> String {
        match self.plan.regions {
            1 => REGION.to_owned(),
            _ => format!("region-{}", region + 1),
        }
    }

    /// The number of regions.
    pub fn region_count(&self) -> usize {
        self.origins.len()
    }

    /// The host of a region's origin.
    ///
    /// # Panics
    /// If `region` is out of range, as all methods for an origin.
    pub fn origin_host(&self, region: usize) -> &Host {
        self.origins[region].host()
    }

    /// The link of the host of a region's origin.
    ///
    /// # Errors
    /// On loopback.
    pub fn origin_link(&self, region: usize) -> Result<&VirtualLink, LabError> {
        self.origins[region].link()
    }

    /// The host of a peer.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn peer_host(&self, index: usize) -> &Host {
        self.peers[index].host()
    }

    /// The link of a peer's host.
    ///
    /// # Errors
    /// On loopback.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn peer_link(&self, index: usize) -> Result<&VirtualLink, LabError> {
        self.peers[index].link()
    }

    /// Bytes that each region has sent to others, packet headers included.
    ///
    /// # Errors
    /// On loopback, or if `ip` fails.
    pub fn bytes_to_other_regions(&self) -> Result<Vec<u64>, LabError> {
        self.network.bytes_to_other_regions()
    }

    /// The origin of a region.
    pub fn origin(&mut self, region: usize) -> &mut Service {
        &mut self.origins[region]
    }

    /// The number of trackers.
    pub fn tracker_count(&self) -> usize {
        self.trackers.len()
    }

    /// A tracker, by number from 0; with one per region, by the number of its region.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn tracker(&mut self, index: usize) -> &mut Service {
        &mut self.trackers[index]
    }

    /// A peer, in the order they were added.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn peer(&mut self, index: usize) -> &mut Service {
        &mut self.peers[index]
    }

    /// The number of peers, including stopped ones.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The laboratory's folder: `pki`, `storage`, `storage-N` of further regions, `stores/peer-N`,
    /// and a log file per service.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The base URL of a region's origin.
    pub fn origin_url(&self, region: usize) -> String {
        format!("http://{}", self.registry(region))
    }

    /// The registry's name in image references: host and port of a region's origin.
    pub fn registry(&self, region: usize) -> String {
        let address = self.origin_host(region).public_address(ORIGIN_PORT);
        address.to_string()
    }

    /// The base URL of a peer's mirror, for clients on the peer's host.
    pub fn mirror_url(&self, peer: usize) -> String {
        let host = self.peers[peer].host();
        format!("http://{}", host.private_address(MIRROR_PORT))
    }

    /// A client that pushes to the origin of a region. Use it on the origin's host, whose link then
    /// does not slow the push down.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn origin_client(&self, region: usize) -> Result<RegistryClient, LabError> {
        Ok(RegistryClient::new(
            self.origin_url(region),
            self.repository.clone(),
        )?)
    }

    /// Pushes the image of a layout to every region under [`TAG`].
    ///
    /// # Errors
    /// If a push fails.
    pub async fn push(&self, layout: &Path) -> Result<(), LabError> {
        for region in 0..self.origins.len() {
            let client = self.origin_client(region)?;
            let layout = layout.to_owned();
            let pushed = self.origin_host(region).spawn(async move {
                let layout = Layout::open(&layout)?;
                client.push(&layout, TAG).await
            });
            pushed.await.map_err(ClientError::from)??;
        }
        Ok(())
    }

    /// Starts a pull through a peer's mirror, by a client on the peer's host. `on_bytes` is called
    /// with the length of each received buffer.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn pull(
        &self,
        peer: usize,
        on_bytes: impl Fn(u64) + Clone + Send + Sync + 'static,
    ) -> Result<PullTask, LabError> {
        let client = RegistryClient::new(self.mirror_url(peer), self.repository.clone())?;
        let client = client.through_mirror(self.registry(self.peer_regions[peer]));
        Ok(self.peers[peer]
            .host()
            .spawn(async move { client.pull(TAG, on_bytes).await }))
    }

    /// A peer's own statistics.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn stats(&self, peer: usize) -> Result<Stats, LabError> {
        let url = format!("{}/flotilla/status", self.mirror_url(peer));
        let text = self.peers[peer].get(&url).await?;
        serde_json::from_str(&text)
            .map_err(|error| LabError::failed("decode a peer's status", error))
    }

    /// Blob bytes that the origin of a region has sent since it started, by its own metrics.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn origin_blob_bytes(&self, region: usize) -> Result<u64, LabError> {
        const COUNTER: &str = "flotilla_origin_sent_bytes_total ";
        let admin = self.origin_host(region).private_address(ORIGIN_ADMIN_PORT);
        let url = format!("http://{admin}/metrics");
        let text = self.origins[region].get(&url).await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(COUNTER)?.parse().ok());
        value.ok_or_else(|| {
            LabError::failed("read the origin's metrics", format!("{COUNTER}is missing"))
        })
    }

    /// Ends the peers, then the trackers, with SIGTERM: they write the rest of their recordings.
    ///
    /// # Errors
    /// If one does not end.
    pub async fn terminate_recorded(&mut self) -> Result<(), LabError> {
        for service in self.peers.iter_mut().chain(&mut self.trackers) {
            service.terminate().await?;
        }
        Ok(())
    }

    /// From now on, logged errors that contain `text` are expected.
    pub fn expect_error(&mut self, text: &str) {
        self.expected_errors.push(text.to_owned());
    }

    /// Ends all processes.
    ///
    /// # Errors
    /// If a service logged an unexpected error or ended unexpectedly, with all logs.
    pub fn finish(mut self) -> Result<(), LabError> {
        self.check_and_kill()
    }

    fn check_and_kill(&mut self) -> Result<(), LabError> {
        self.is_finished = true;
        let expected = std::mem::take(&mut self.expected_errors);
        let errors: Vec<_> = self
            .services_mut()
            .flat_map(|service| service.unexpected_errors(&expected))
            .collect();
        self.services_mut().for_each(Service::kill);
        if errors.is_empty() {
            return Ok(());
        }
        Err(LabError::UnexpectedErrors(format!(
            "{}\n{}",
            errors.join("\n"),
            self.logs()
        )))
    }

    fn services_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        self.origins
            .iter_mut()
            .chain(&mut self.trackers)
            .chain(&mut self.peers)
    }

    /// The last lines of all logs.
    fn logs(&self) -> String {
        let services = self.origins.iter().chain(&self.trackers).chain(&self.peers);
        services
            .map(|service| format!("\nlog of {}:\n{}", service.name(), service.log()))
            .collect()
    }
}

impl Drop for Lab {
    #[allow(clippy::panic, reason = "the only way to fail the test from here")]
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        match self.check_and_kill() {
            _ if thread::panicking() => eprintln!("{}", self.logs()),
            Ok(()) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn service_command(
    plan: &LabPlan,
    dir: &Path,
    name: &str,
    arguments: Vec<String>,
    health_url: String,
) -> ServiceCommand {
    ServiceCommand {
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

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

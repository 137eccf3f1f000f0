//! A region in this process: an origin, a tracker and peers with real listeners, for `flotilla
//! demo`, `flotilla up` and the tests.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flotilla_common::name::{PeerId, RegionName, ZoneName};
use flotilla_common::tracker::TrackerUrl;
use flotilla_common::units::BitRate;
use flotilla_origin::Origin;
use flotilla_origin::policy::LivePolicy;
use flotilla_origin::storage::Storage;
use flotilla_peer::{ChunkInterceptor, OriginUrl, Peer, Stats, Unaltered};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use flotilla_tracker::Tracker;

use crate::client::{ClientError, RegistryClient, http_client, http_client_with};
use crate::command::CommandError;
use crate::fleet::Fleet;

/// Any free port on loopback.
pub const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The names in the certificate of an origin on this machine.
const LOOPBACK_NAMES: [&str; 2] = ["127.0.0.1", "localhost"];
/// From the first contact of two regions to the first walk through all keys: here all replicas of a
/// region read a policy at the same moment.
const SETTLE: Duration = Duration::from_secs(1);

/// How a region is started.
#[derive(Clone, Debug)]
pub struct RegionPlan {
    /// The origin's address.
    pub origin: SocketAddr,
    /// The tracker's address.
    pub tracker: SocketAddr,
    /// The rate limit of the origin's uplink and of each peer's uplink and downlink.
    pub rate: Option<BitRate>,
    /// The origin's storage; `None` for a directory in the region's own.
    pub storage: Option<Arc<dyn Storage>>,
    /// Whether the origin serves HTTPS, with a certificate that names its region. Origins of
    /// several regions need it.
    pub https: bool,
}

impl Default for RegionPlan {
    fn default() -> Self {
        Self {
            origin: ANY_PORT,
            tracker: ANY_PORT,
            rate: None,
            storage: None,
            https: false,
        }
    }
}

/// How a peer is started.
#[derive(Clone, Debug)]
pub struct PeerPlan {
    /// The peer's id.
    pub id: PeerId,
    /// The peer's zone.
    pub zone: ZoneName,
    /// The mirror's address.
    pub mirror: SocketAddr,
    /// The URL of the registry that it pulls from; `None` for the region's origin.
    pub upstream: Option<String>,
    /// What it sends to other peers; anything but [`Unaltered`] makes it send corrupt bytes.
    pub interceptor: Arc<dyn ChunkInterceptor>,
}

impl PeerPlan {
    /// The peer `peer-{number}` in the zone `zone-{zone}`.
    ///
    /// # Panics
    /// Never: such names are valid.
    pub fn numbered(number: u32, zone: u32) -> Self {
        let valid = "the name is valid";
        Self {
            id: format!("peer-{number}").parse().expect(valid),
            zone: format!("zone-{zone}").parse().expect(valid),
            mirror: ANY_PORT,
            upstream: None,
            interceptor: Arc::new(Unaltered),
        }
    }
}

/// A running peer.
#[derive(Debug)]
pub struct RunningPeer {
    plan: PeerPlan,
    peer: Peer,
}

impl RunningPeer {
    /// The peer's id.
    pub const fn id(&self) -> &PeerId {
        &self.plan.id
    }

    /// The peer's zone.
    pub const fn zone(&self) -> &ZoneName {
        &self.plan.zone
    }

    /// The mirror's address.
    pub fn mirror_addr(&self) -> SocketAddr {
        self.peer.mirror_addr()
    }

    /// The address of the peer's listener for operators.
    pub fn admin_addr(&self) -> SocketAddr {
        self.peer.admin_addr()
    }

    /// The peer's statistics so far.
    pub fn stats(&self) -> Stats {
        self.peer.stats()
    }
}

/// A running region. Each service can be stopped separately.
#[derive(Debug)]
pub struct Region {
    dir: PathBuf,
    name: RegionName,
    fleet: Fleet,
    rate: Option<BitRate>,
    origin: Option<Origin>,
    origin_addr: SocketAddr,
    origin_admin_addr: SocketAddr,
    origin_bytes: u64,
    is_https: bool,
    /// The origins of other regions, in the order in which peers prefer them.
    other_origins: Vec<OriginUrl>,
    tracker: Option<(Tracker, Shutdown)>,
    tracker_addr: SocketAddr,
    tracker_admin_addr: SocketAddr,
    peers: Vec<RunningPeer>,
}

impl Region {
    /// Starts an origin, with its storage in `dir`, and a tracker. Peers are added later.
    ///
    /// # Errors
    /// If a service does not start.
    pub async fn start(dir: &Path, fleet: Fleet, plan: RegionPlan) -> Result<Self, CommandError> {
        let name = fleet.seal_key().issuer().clone();
        let mut config = flotilla_origin::Config::new(
            plan.origin,
            storage_url(dir)?,
            name.clone(),
            fleet.seal_key().clone(),
            Clock::system(),
        )
        .with_uplink(plan.rate);
        config.regions.settle = SETTLE;
        if plan.https {
            let identity = fleet.origin(&LOOPBACK_NAMES.map(str::to_owned));
            config.tls = Some(identity.map_err(|error| {
                CommandError::failed("issue a certificate to the origin", error)
            })?);
        }
        let origin = match plan.storage {
            Some(storage) => Origin::start_on(config, storage).await,
            None => Origin::start(config).await,
        };
        let origin = origin.map_err(|error| CommandError::failed("start the origin", error))?;
        let config = flotilla_tracker::Config {
            listen: plan.tracker,
            ..flotilla_tracker::Config::default()
        };
        let shutdown = Shutdown::new();
        let tracker = Tracker::start(config, None, Clock::system(), &shutdown)
            .await
            .map_err(|error| CommandError::failed("start the tracker", error))?;
        Ok(Self {
            dir: dir.to_owned(),
            name,
            fleet,
            rate: plan.rate,
            origin_addr: origin.addr(),
            origin_admin_addr: origin.admin_addr(),
            origin: Some(origin),
            origin_bytes: 0,
            is_https: plan.https,
            other_origins: Vec::new(),
            tracker_addr: tracker.addr(),
            tracker_admin_addr: tracker.admin_addr(),
            tracker: Some((tracker, shutdown)),
            peers: Vec::new(),
        })
    }

    /// Starts a peer; its store is in the region's folder, under the peer's id.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn add_peer(&mut self, plan: PeerPlan) -> Result<&RunningPeer, CommandError> {
        let config = self.peer_config(&plan)?;
        self.add_peer_with(plan, config).await
    }

    /// The configuration that [`Region::add_peer`] uses.
    ///
    /// # Errors
    /// If the peer's certificate cannot be issued.
    pub fn peer_config(&self, plan: &PeerPlan) -> Result<flotilla_peer::Config, CommandError> {
        let action = format!("start {}", plan.id);
        let identity = self
            .fleet
            .peer(&plan.id)
            .map_err(|error| CommandError::failed(action.as_str(), error))?;
        let trusted = self
            .fleet
            .trusted_keys()
            .map_err(|error| CommandError::failed(action.as_str(), error))?;
        let store = self.dir.join("peers").join(plan.id.as_str());
        Ok(flotilla_peer::Config {
            trusted_keys: trusted.into(),
            mirror: plan.mirror,
            quic: ANY_PORT,
            origins: self.origins_of(plan),
            trackers: vec![TrackerUrl::in_own_region(self.tracker_url())],
            up: self.rate,
            down: self.rate,
            interceptor: Arc::clone(&plan.interceptor),
            ..flotilla_peer::Config::new(
                plan.id.clone(),
                identity,
                store,
                self.name.clone(),
                plan.zone.clone(),
                Clock::system(),
            )
        })
    }

    /// The origins of a peer, the preferred one first.
    fn origins_of(&self, plan: &PeerPlan) -> Vec<OriginUrl> {
        match &plan.upstream {
            Some(upstream) => vec![OriginUrl::in_own_region(upstream.clone())],
            None => {
                let mut origins = vec![OriginUrl::in_own_region(self.origin_url())];
                origins.extend(self.other_origins.iter().cloned());
                origins
            }
        }
    }

    /// Sets the origins of other regions, for the peers that are added from now on.
    pub fn set_other_origins(&mut self, origins: Vec<OriginUrl>) {
        self.other_origins = origins;
    }

    /// As [`Region::add_peer`], with another configuration.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn add_peer_with(
        &mut self,
        plan: PeerPlan,
        config: flotilla_peer::Config,
    ) -> Result<&RunningPeer, CommandError> {
        let peer = Peer::start(config, &Shutdown::new())
            .await
            .map_err(|error| CommandError::failed(format!("start {}", plan.id), error))?;
        let running = RunningPeer { plan, peer };
        self.peers.push(running);
        Ok(&self.peers[self.peers.len() - 1])
    }

    /// The origin's base URL.
    pub fn origin_url(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.origin_addr)
    }

    /// The URL of the origin's listener for operators.
    pub fn origin_admin_url(&self) -> String {
        format!("http://{}", self.origin_admin_addr)
    }

    /// The region's name.
    pub const fn name(&self) -> &RegionName {
        &self.name
    }

    /// The policy that the origin uses; `None` if it has been stopped.
    pub fn policy(&self) -> Option<&LivePolicy> {
        self.origin.as_ref().map(Origin::policy)
    }

    /// The registry's name in image references: the origin's host and port.
    pub fn registry(&self) -> String {
        self.origin_addr.to_string()
    }

    /// The tracker's base URL.
    pub fn tracker_url(&self) -> String {
        format!("http://{}", self.tracker_addr)
    }

    /// The URL of the tracker's listener for operators.
    pub fn tracker_admin_url(&self) -> String {
        format!("http://{}", self.tracker_admin_addr)
    }

    /// The peers, in the order of their start.
    pub fn peers(&self) -> &[RunningPeer] {
        &self.peers
    }

    /// Blob bytes that the origin sent, also if it has been stopped.
    pub fn origin_blob_bytes(&self) -> u64 {
        self.origin
            .as_ref()
            .map_or(self.origin_bytes, |origin| origin.metrics().blob_bytes())
    }

    /// A client of the origin, for `repository`.
    ///
    /// # Errors
    /// If the name is not valid, or the client cannot be created.
    pub fn origin_client(&self, repository: &str) -> Result<RegistryClient, ClientError> {
        let http = if self.is_https {
            http_client_with(self.fleet.client()?)?
        } else {
            http_client()?
        };
        let repository = repository.parse()?;
        Ok(RegistryClient::with_http(
            http,
            self.origin_url(),
            repository,
        ))
    }

    /// A client of the origin that shows the certificate of the region of `caller`: the origin
    /// answers it from its own storage only, and not from another region.
    ///
    /// # Errors
    /// As [`Region::origin_client`].
    pub fn client_from_region(
        &self,
        caller: &Self,
        repository: &str,
    ) -> Result<RegistryClient, ClientError> {
        let identity = caller.fleet.origin(&LOOPBACK_NAMES.map(str::to_owned))?;
        let http = http_client_with(identity.https_client()?)?;
        let repository = repository.parse()?;
        Ok(RegistryClient::with_http(
            http,
            self.origin_url(),
            repository,
        ))
    }

    /// A client that pulls `repository` through a peer's mirror.
    ///
    /// # Errors
    /// If the name is not valid.
    pub fn mirror_client(
        &self,
        peer: usize,
        repository: &str,
    ) -> Result<RegistryClient, ClientError> {
        let base = format!("http://{}", self.peers[peer].mirror_addr());
        Ok(RegistryClient::new(base, repository.parse()?)?.through_mirror(self.registry()))
    }

    /// Stops the origin without draining it.
    pub fn stop_origin(&mut self) {
        self.origin_bytes = self.origin_blob_bytes();
        self.origin = None;
    }

    /// Stops the tracker without draining it.
    pub fn stop_tracker(&mut self) {
        if let Some((_, shutdown)) = self.tracker.take() {
            shutdown.abandon();
        }
    }

    /// Stops a peer abruptly, like SIGKILL; its store stays.
    ///
    /// # Panics
    /// If `peer` is out of range.
    pub async fn stop_peer(&mut self, peer: usize) -> PeerPlan {
        let RunningPeer { plan, peer } = self.peers.remove(peer);
        peer.abandon().await;
        plan
    }

    /// Drains and stops all services.
    pub async fn shut_down(self) {
        for running in self.peers {
            running.peer.shutdown().await;
        }
        if let Some((tracker, shutdown)) = self.tracker {
            shutdown.trigger();
            tracker.finished().await;
        }
        if let Some(origin) = self.origin {
            origin.shutdown().await;
        }
    }
}

/// Creates the folder of the origin's storage in the region's directory, and returns its URL.
pub(crate) fn storage_url(dir: &Path) -> Result<String, CommandError> {
    let dir = std::path::absolute(dir.join("storage")).map_err(|error| {
        CommandError::failed(format!("use the directory {}", dir.display()), error)
    })?;
    std::fs::create_dir_all(&dir)
        .map_err(|error| CommandError::failed(format!("create {}", dir.display()), error))?;
    Ok(format!("file://{}", dir.display()))
}

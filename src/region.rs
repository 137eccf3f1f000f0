//! A region in this process: an origin, a tracker and peers with real listeners. What `demo`, `up`
//! and the stories in `tests/` start.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_common::name::{PeerId, RegionName, ZoneName};
use flotilla_common::units::BitRate;
use flotilla_origin::Origin;
use flotilla_peer::{Faithful, Outbound, Peer, Stats};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use flotilla_tracker::Tracker;

use crate::cli::CommandError;
use crate::client::{ClientError, RegistryClient};
use crate::fleet::Fleet;

/// Where nothing in particular listens: loopback, a free port.
pub const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How a region is started.
#[derive(Clone, Debug)]
pub struct RegionPlan {
    /// Where the origin listens.
    pub origin: SocketAddr,
    /// Where the tracker listens.
    pub tracker: SocketAddr,
    /// The cap of the origin's uplink and of each peer's uplink and downlink.
    pub rate: Option<BitRate>,
}

impl Default for RegionPlan {
    fn default() -> Self {
        Self {
            origin: ANY_PORT,
            tracker: ANY_PORT,
            rate: None,
        }
    }
}

/// How a peer is started.
#[derive(Clone, Debug)]
pub struct PeerPlan {
    /// Its id.
    pub id: PeerId,
    /// Its zone.
    pub zone: ZoneName,
    /// Where its mirror listens.
    pub mirror: SocketAddr,
    /// The registry that it asks, if not the region's origin.
    pub upstream: Option<String>,
    /// What it sends; something else than [`Faithful`] plays a liar.
    pub outbound: Arc<dyn Outbound>,
}

impl PeerPlan {
    /// A peer by number, in the zone `zone-{zone}`.
    ///
    /// # Panics
    /// Never: such names are labels.
    pub fn numbered(number: u32, zone: u32) -> Self {
        let label = "numbers make labels";
        Self {
            id: format!("peer-{number}").parse().expect(label),
            zone: format!("zone-{zone}").parse().expect(label),
            mirror: ANY_PORT,
            upstream: None,
            outbound: Arc::new(Faithful),
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
    /// Its id.
    pub const fn id(&self) -> &PeerId {
        &self.plan.id
    }

    /// Its zone.
    pub const fn zone(&self) -> &ZoneName {
        &self.plan.zone
    }

    /// Where its mirror listens.
    pub fn mirror_addr(&self) -> SocketAddr {
        self.peer.mirror_addr()
    }

    /// What it did so far.
    pub fn stats(&self) -> Stats {
        self.peer.stats()
    }
}

/// A running region. Every service can be stopped by itself.
#[derive(Debug)]
pub struct Region {
    dir: PathBuf,
    name: RegionName,
    fleet: Fleet,
    rate: Option<BitRate>,
    origin: Option<Origin>,
    origin_addr: SocketAddr,
    origin_bytes: u64,
    tracker: Option<(Tracker, Shutdown)>,
    tracker_addr: SocketAddr,
    peers: Vec<RunningPeer>,
}

impl Region {
    /// Starts an origin on local storage in `dir`, and a tracker. Peers are added later.
    ///
    /// # Errors
    /// What did not start, and why.
    pub async fn start(dir: &Path, fleet: Fleet, plan: RegionPlan) -> Result<Self, CommandError> {
        let name = fleet.seal_key().issuer().clone();
        let storage = storage_url(dir)?;
        let config = flotilla_origin::Config::new(
            plan.origin,
            storage,
            name.clone(),
            fleet.seal_key().clone(),
            Clock::system(),
        )
        .with_uplink(plan.rate);
        let origin = Origin::start(config)
            .await
            .map_err(|error| CommandError::failed("start the origin", error))?;
        let config = flotilla_tracker::Config {
            listen: plan.tracker,
            ..flotilla_tracker::Config::default()
        };
        let shutdown = Shutdown::new();
        let tracker = Tracker::start(config, None, &shutdown)
            .await
            .map_err(|error| CommandError::failed("start the tracker", error))?;
        Ok(Self {
            dir: dir.to_owned(),
            name,
            fleet,
            rate: plan.rate,
            origin_addr: origin.addr(),
            origin: Some(origin),
            origin_bytes: 0,
            tracker_addr: tracker.addr(),
            tracker: Some((tracker, shutdown)),
            peers: Vec::new(),
        })
    }

    /// Starts one more peer; its store is kept in the region's folder under its id.
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn add_peer(&mut self, plan: PeerPlan) -> Result<&RunningPeer, CommandError> {
        let config = self.peer_config(&plan)?;
        self.add_peer_with(plan, config).await
    }

    /// The settings that [`Region::add_peer`] uses.
    ///
    /// # Errors
    /// If the fleet cannot give it an identity.
    pub fn peer_config(&self, plan: &PeerPlan) -> Result<flotilla_peer::Config, CommandError> {
        let what = format!("start {}", plan.id);
        let identity = self
            .fleet
            .peer(&plan.id)
            .map_err(|error| CommandError::failed(what.as_str(), error))?;
        let trusted = self
            .fleet
            .trusted_keys()
            .map_err(|error| CommandError::failed(what.as_str(), error))?;
        let store = self.dir.join("peers").join(plan.id.as_str());
        let (id, region, zone) = (plan.id.clone(), self.name.clone(), plan.zone.clone());
        Ok(flotilla_peer::Config {
            trusted_keys: trusted.into(),
            mirror: plan.mirror,
            quic: ANY_PORT,
            origins: vec![plan.upstream.clone().unwrap_or_else(|| self.origin_url())],
            trackers: vec![self.tracker_url()],
            up: self.rate,
            down: self.rate,
            outbound: Arc::clone(&plan.outbound),
            ..flotilla_peer::Config::new(id, identity, store, region, zone, Clock::system())
        })
    }

    /// As [`Region::add_peer`], with other settings.
    ///
    /// # Errors
    /// Why it did not start.
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
        format!("http://{}", self.origin_addr)
    }

    /// The origin as image references name it: host and port.
    pub fn registry(&self) -> String {
        self.origin_addr.to_string()
    }

    /// The tracker's base URL.
    pub fn tracker_url(&self) -> String {
        format!("http://{}", self.tracker_addr)
    }

    /// The peers, in the order they were added.
    pub fn peers(&self) -> &[RunningPeer] {
        &self.peers
    }

    /// Bytes of blobs that the origin has sent, also if it is stopped by now.
    pub fn origin_blob_bytes(&self) -> u64 {
        self.origin
            .as_ref()
            .map_or(self.origin_bytes, |origin| origin.metrics().blob_bytes())
    }

    /// A client that pulls `repository` through a peer's mirror.
    ///
    /// # Errors
    /// If the name is none.
    pub fn mirror_client(
        &self,
        peer: usize,
        repository: &str,
    ) -> Result<RegistryClient, ClientError> {
        let base = format!("http://{}", self.peers[peer].mirror_addr());
        Ok(RegistryClient::new(base, repository.parse()?)?.through_mirror(self.registry()))
    }

    /// Stops the origin where it stands.
    pub fn stop_origin(&mut self) {
        self.origin_bytes = self.origin_blob_bytes();
        self.origin = None;
    }

    /// Stops the tracker where it stands.
    pub fn stop_tracker(&mut self) {
        if let Some((_, shutdown)) = self.tracker.take() {
            shutdown.abandon();
        }
    }

    /// Stops a peer where it stands, as a killed process would; its store stays.
    ///
    /// # Panics
    /// If there is no such peer.
    pub async fn stop_peer(&mut self, peer: usize) -> PeerPlan {
        let RunningPeer { plan, peer } = self.peers.remove(peer);
        peer.abandon().await;
        plan
    }

    /// Stops everything, each service finishing what is in flight.
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

/// The URL of the origin's local storage in a region's folder.
fn storage_url(dir: &Path) -> Result<String, CommandError> {
    let dir = std::path::absolute(dir.join("storage")).map_err(|error| {
        CommandError::failed(format!("use the folder {}", dir.display()), error)
    })?;
    std::fs::create_dir_all(&dir)
        .map_err(|error| CommandError::failed(format!("create {}", dir.display()), error))?;
    Ok(format!("file://{}", dir.display()))
}

//! The peer: the agent on every machine that pulls images.
//!
//! To the container runtime it is a registry mirror on loopback; to its neighbours a source and
//! sink of chunks over QUIC. What it decides is decided by [`flotilla_common::swarm::PeerMachine`];
//! this crate is the machine's driver and its hands: mirror, transport, store, and the clients of
//! origins and trackers.
//!
//! ```text
//! container runtime ──HTTP──▶ mirror ──▶ store ◀── transport ◀──QUIC──▶ neighbours
//!                               │          ▲            ▲
//!                               └▶ driver ─┴─▶ origins  │ trackers
//! ```
//!
//! What must never happen here: bytes that were not verified are stored as held, advertised,
//! relayed or emitted; a pull is worse than it would be without a peer.

mod config;
mod driver;
mod flow;
mod metrics;
mod mirror;
mod origin;
mod pulls;
mod stats;
pub mod status;
mod store;
mod tracker_client;
mod transport;

use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_common::name::PeerId;
use flotilla_common::swarm::{self, PeerMachine};
use flotilla_common::wire::peer::About;
use flotilla_common::wire::tracker::PeerInfo;
use flotilla_runtime::http;
use flotilla_runtime::identity::{Timing, keep_fresh};
use flotilla_runtime::listen::listening_cure;
use flotilla_runtime::rate::Limiter;
use flotilla_runtime::shutdown::Shutdown;
use rand::RngExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

pub use config::{Config, check_url};
pub use mirror::{Patience, Warming, docker_daemon_json, hosts_toml, registries_conf};
pub use stats::{BlobProgress, Stats};
pub use store::StoreError;
pub use transport::{
    CongestionControl, Faithful, Outbound, QuicSettings, TransportError, UnknownCongestionControl,
    quic_endpoint,
};

use driver::{Driver, Events, MAX_TOLD, Moved, QUEUE, Shared, Waited};
use mirror::Mirror;
use origin::{Origins, http_client};
use pulls::Pulls;
use stats::Counters;
use store::{ManifestStore, Store, blocking};
use tracker_client::{POLL_TIMEOUT, Trackers};
use transport::Transport;

/// How long pulls that are under way may take to finish when the peer shuts down.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a peer does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting cannot work; the text names it and the cure.
    #[error("{0}")]
    Config(String),
    /// The store's folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address cannot be bound.
    #[error("listen on {address}: {source}{}", listening_cure(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The transport, or a client of origins and trackers, cannot be made.
    #[error("{0}")]
    Transport(String),
}

/// A running peer. Dropping it does not stop it; [`Peer::shutdown`] does.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    mirror: SocketAddr,
    quic: SocketAddr,
    shared: Arc<Shared>,
    /// Of the mirror: pulls drain before anything else stops.
    serving: Shutdown,
    /// Of everything else.
    working: Shutdown,
}

impl Peer {
    /// Starts a peer: opens its store, binds its listeners, announces what it holds. It is stopped
    /// by [`Peer::shutdown`], or with everything else that hangs on `parent`.
    ///
    /// # Errors
    /// What is wrong, and with which setting.
    pub async fn start(config: Config, parent: &Shutdown) -> Result<Self, StartError> {
        config.validate().map_err(StartError::Config)?;
        let (serving, working) = (parent.child(), parent.child());
        let (store, manifests) = open_store(&config).await?;
        let listen = |address| move |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(config.mirror)
            .await
            .map_err(listen(config.mirror))?;

        let (commands, command_queue) = mpsc::channel(QUEUE);
        let (incidents, incident_queue) = mpsc::channel(QUEUE);
        let (tracker_events, tracker_queue) = mpsc::channel(QUEUE);
        let (sightings, sighting_queue) = mpsc::channel(QUEUE);

        let about = About {
            region: config.region.clone(),
            zone: config.zone.clone(),
            up_bits_per_second: config.up.map(|rate| rate.0),
        };
        let transport = Transport::start(
            config.quic,
            &config.identity,
            about,
            QuicSettings {
                download_limit: config.down,
                congestion: config.congestion,
            },
            &working,
            incidents,
        )
        .map_err(|error| StartError::Transport(error.to_string()))?;
        let quic = transport.local_addr().map_err(listen(config.quic))?;
        let me = PeerInfo {
            id: config.id.clone(),
            addr: config.advertised.unwrap_or(quic),
            region: config.region.clone(),
            zone: config.zone.clone(),
        };
        let client = |progress| {
            http_client(&config.identity, progress)
                .map_err(|error| StartError::Transport(error.to_string()))
        };
        let origins = Origins::new(client(None)?, &config.origins, config.clock, sightings);
        working.spawn(origins.clone().probe_for_ever(working.clone()));
        let trackers = Trackers::start(
            client(Some(POLL_TIMEOUT))?,
            &config.trackers,
            me.clone(),
            config.clock,
            tracker_events,
            &working,
        );
        let machine = PeerMachine::new(machine_config(&config), rng_seed(&config));
        let shared = Arc::new(Shared {
            clock: config.clock,
            me,
            store,
            manifests,
            images_told: Arc::new(Semaphore::new(MAX_TOLD)),
            origins,
            transport,
            trackers,
            identity: config.identity,
            trusted: config.trusted_keys,
            counters: Arc::new(Counters::default()),
            pulls: Pulls::new(config.down),
            waited: Waited::default(),
            moved: Moved::default(),
            up_cap: config.up,
            up: Limiter::from(config.up),
            down: Limiter::from(config.down),
            outbound: config.outbound,
            requires_grants: config.requires_grants,
            patience: config.patience,
            shutdown: working.clone(),
        });
        keep_fresh(shared.identity.clone(), Timing::default(), &working);
        keep_fresh(shared.trusted.clone(), Timing::default(), &working);
        let events = Events {
            commands: command_queue,
            incidents: incident_queue,
            tracker: tracker_queue,
            sightings: sighting_queue,
        };
        working.spawn(Driver::run(machine, Arc::clone(&shared), events));
        let router = Mirror::new(Arc::clone(&shared), commands, config.registries).router();
        let server =
            http::serve(listener, router, None, &serving).map_err(listen(config.mirror))?;
        let mirror = server.address();
        if !mirror.ip().is_loopback() {
            tracing::warn!(
                %mirror,
                "the mirror can be reached from other machines, and whoever reaches it may pull what this one may pull; \
                 set mirror to an address of loopback, such as 127.0.0.1:5001"
            );
        }
        tracing::info!(id = %config.id, %mirror, %quic, "peer started");
        Ok(Self {
            id: config.id,
            mirror,
            quic,
            shared,
            serving,
            working,
        })
    }

    /// Its name.
    pub const fn id(&self) -> &PeerId {
        &self.id
    }

    /// Where the container runtime asks.
    pub const fn mirror_addr(&self) -> SocketAddr {
        self.mirror
    }

    /// Where neighbours connect.
    pub const fn quic_addr(&self) -> SocketAddr {
        self.quic
    }

    /// What it has done so far, and what it holds.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Lets pulls under way finish, takes leave of tracker and neighbours, and saves the store.
    /// Bounded by some seconds.
    pub async fn shutdown(self) {
        let drained = self.serving.drain(DRAIN).await;
        // First nobody announces any more, then the trackers are told.
        self.working.drain(Duration::from_secs(1)).await;
        self.shared.trackers.leave().await;
        self.shared.transport.close().await;
        self.save().await;
        tracing::info!(?drained, "peer stopped");
    }

    /// Stops where it stands: no pull drains, no tracker is told, nothing is saved. All that a
    /// neighbour sees is that the connection ends.
    pub async fn abandon(self) {
        self.serving.abandon();
        self.working.abandon();
        self.serving.drain(Duration::ZERO).await;
        self.working.drain(Duration::ZERO).await;
    }

    async fn save(&self) {
        let shared = Arc::clone(&self.shared);
        let saved = blocking(move || {
            shared.store.save();
            Ok(())
        });
        if let Err(error) = saved.await {
            tracing::warn!(%error, "save store");
        }
    }
}

impl Shared {
    /// All counters, and the store's blobs.
    pub(crate) fn stats(&self) -> Stats {
        let blobs = self.store.blobs().into_iter().map(|blob| BlobProgress {
            digest: *blob.digest(),
            size: blob.geometry().size(),
            held: blob.held_bytes(),
            is_complete: blob.is_complete(),
        });
        Stats {
            store_bytes: self.store.bytes(),
            blobs: blobs.collect(),
            certificate_ends_unix_s: self.identity.ends_unix_s(),
            ..self.counters.snapshot()
        }
    }
}

async fn open_store(config: &Config) -> Result<(Store, ManifestStore), StartError> {
    let (dir, quota, trusted) = (
        config.store.clone(),
        config.quota,
        config.trusted_keys.current(),
    );
    let unusable = |source| StoreError::Unusable {
        dir: config.store.clone(),
        source,
    };
    let opened = blocking(move || {
        Ok(Store::open(&dir, quota, &trusted).and_then(|store| {
            let manifests =
                ManifestStore::open(&dir).map_err(|source| StoreError::Unusable { dir, source })?;
            Ok((store, manifests))
        }))
    });
    Ok(opened.await.map_err(unusable)??)
}

/// The machine's settings, with what follows from the peer's.
fn machine_config(config: &Config) -> swarm::Config {
    swarm::Config {
        up_bits_per_second: config.up.map(|rate| rate.0),
        down_bits_per_second: config.down.map(|rate| rate.0),
        origins: u32::try_from(config.origins.len()).unwrap_or(u32::MAX),
        key: driver::peer_key(&config.id),
        ..config.swarm.clone()
    }
}

fn rng_seed(config: &Config) -> u64 {
    config.rng_seed.unwrap_or_else(|| rand::rng().random())
}

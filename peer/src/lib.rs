//! The peer: the agent on each machine that pulls images.
//!
//! To the container runtime, a peer is a registry mirror on loopback. To its neighbours, it is a
//! source and a receiver of chunks over QUIC. All decisions are made by the state machine
//! [`flotilla_common::swarm::PeerMachine`]; this crate drives the machine and does its I/O with the
//! mirror, the transport, the store, and the clients of origins and trackers.
//!
//! ```text
//! container runtime ──HTTP──▶ mirror ──▶ store ◀── transport ◀──QUIC──▶ neighbours
//!                               │          ▲            ▲
//!                               └▶ driver ─┴─▶ origins  │ trackers
//! ```
//!
//! Two things must never happen: bytes that are not verified are held, advertised, relayed or sent
//! to the runtime; a pull is slower or less reliable than without a peer.

mod config;
mod dial_filter;
mod driver;
mod expected_blobs;
mod handles;
mod metrics;
mod mirror;
mod open_files;
mod origin;
mod pull_start;
mod pulls;
mod rate_meter;
mod start;
mod stats;
pub mod status;
mod store;
mod telemetry;
mod tracker_client;
mod transport;

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_common::name::PeerId;
use flotilla_runtime::admin::Readiness;
use flotilla_runtime::identity::{ReloadTiming, reload_on_change};
use flotilla_runtime::open_files::raise_limit;
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;

pub use config::{Config, OriginUrl, check_url, parse_tracker};
pub use flotilla_common::opening::FallbackTimeouts;
pub use mirror::{Warming, docker_daemon_json, hosts_toml, registries_conf};
pub use origin::{BuildClientError, tracker_http_client};
pub use start::StartError;
pub use stats::{BlobProgress, Stats};
pub use store::{PinnedBlobs, StoreError};
pub use tracker_client::{
    ExchangeKind, ExchangeObserver, PostError, TrackerContext, TrackerEvent, Trackers,
};
pub use transport::{
    ChunkInterceptor, CongestionControl, QuicSettings, TransportError, Unaltered,
    UnknownCongestionControl, quic_endpoint,
};

use handles::{Handles, Shutdowns};
use open_files::OpenFilesBudget;
use start::{
    connect_upstream, create_mirror, join_network, mirror_limits, open_stores, queues,
    serve_mirror, serve_operators, start_driver,
};
use store::run_blocking;
use telemetry::Telemetry;

/// How long pulls in progress may take to finish when the peer shuts down.
const PULL_DRAIN: Duration = Duration::from_secs(10);
/// How long the peer's other tasks may take to end.
const TASK_DRAIN: Duration = Duration::from_secs(1);

/// A running peer. Dropping it does not stop it; [`Peer::shutdown`] does.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    mirror: SocketAddr,
    admin: SocketAddr,
    quic: SocketAddr,
    handles: Handles,
    shutdowns: Shutdowns,
}

impl Peer {
    /// Starts a peer: opens its store, binds its addresses, and announces the blobs in the store.
    /// It stops at [`Peer::shutdown`], or with all other tasks of `parent`.
    ///
    /// # Errors
    /// The setting that is wrong, and why.
    pub async fn start(config: Config, parent: &Shutdown) -> Result<Self, StartError> {
        config.validate().map_err(StartError::Config)?;
        let shutdowns = Shutdowns {
            mirror: parent.child(),
            tasks: parent.child(),
        };
        let budget = OpenFilesBudget::within(raise_limit())
            .map_err(|error| StartError::Config(error.to_string()))?;
        let stores = open_stores(&config, budget.stored).await?;
        let listener = TcpListener::bind(config.mirror)
            .await
            .map_err(StartError::listen(config.mirror))?;
        let (queues, events) = queues();
        let telemetry = Arc::new(Telemetry::new(config.down));
        let handles = Handles {
            stores,
            network: join_network(
                &config,
                queues.transport_events,
                queues.tracker,
                &telemetry,
                &shutdowns.tasks,
            )?,
            upstream: connect_upstream(&config, &shutdowns.tasks)?,
            telemetry,
        };
        reload_on_change(
            config.identity.clone(),
            ReloadTiming::default(),
            &shutdowns.tasks,
        );
        reload_on_change(
            config.trusted_keys.clone(),
            ReloadTiming::default(),
            &shutdowns.tasks,
        );
        start_driver(&config, &handles, events, &shutdowns.tasks)?;
        let listener = (listener, mirror_limits(&budget));
        let (mirror, metrics) = create_mirror(&config, &handles, queues.commands, &shutdowns);
        let readiness = Readiness::starting(&shutdowns.mirror);
        let admin = Arc::clone(&mirror);
        let admin = serve_operators(&config, admin, metrics, readiness.clone(), &shutdowns).await?;
        let mirror = serve_mirror(&config, mirror, listener, &shutdowns)?;
        readiness.set_ready();
        let transport = &handles.network.transport;
        let quic = transport
            .local_addr()
            .map_err(StartError::listen(config.quic))?;
        tracing::info!(id = %config.id, %mirror, %quic, %admin, "peer started");
        Ok(Self {
            id: config.id,
            mirror,
            admin,
            quic,
            handles,
            shutdowns,
        })
    }

    /// The peer's id.
    pub const fn id(&self) -> &PeerId {
        &self.id
    }

    /// The address for the container runtime.
    pub const fn mirror_addr(&self) -> SocketAddr {
        self.mirror
    }

    /// The address for operators.
    pub const fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// The UDP address for neighbours.
    pub const fn quic_addr(&self) -> SocketAddr {
        self.quic
    }

    /// The peer's counters, and the blobs in its store.
    pub fn stats(&self) -> Stats {
        let Handles {
            stores,
            network,
            telemetry,
            ..
        } = &self.handles;
        telemetry.stats(&stores.blobs, &network.identity)
    }

    /// Drains pulls in progress, tells the trackers that it leaves, closes its connections, and
    /// saves the store. This takes some seconds at most.
    pub async fn shutdown(self) {
        let drained = self.shutdowns.mirror.drain(PULL_DRAIN).await;
        // The announcing tasks must have ended before the peer tells the trackers that it leaves.
        self.shutdowns.tasks.drain(TASK_DRAIN).await;
        self.handles.network.trackers.leave().await;
        self.handles.network.transport.close().await;
        self.save_store().await;
        tracing::info!(?drained, "peer stopped");
    }

    /// Stops at once, as after a crash: no pull is drained, no tracker is informed, nothing is
    /// saved. Neighbours only see that their connections end.
    pub async fn abandon(self) {
        let Shutdowns { mirror, tasks } = self.shutdowns;
        mirror.abandon();
        tasks.abandon();
        mirror.drain(Duration::ZERO).await;
        tasks.drain(Duration::ZERO).await;
    }

    async fn save_store(&self) {
        let store = Arc::clone(&self.handles.stores.blobs);
        let saved = run_blocking(move || {
            store.save();
            Ok(())
        });
        if let Err(error) = saved.await {
            tracing::warn!(
                %error,
                "saving the store failed; chunks received last may be downloaded again"
            );
        }
    }
}

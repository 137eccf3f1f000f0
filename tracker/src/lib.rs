//! The tracker: announces in, handouts and leases out.
//!
//! All decisions are made by [`flotilla_common::tracker::TrackerMachine`]; this crate gives it a
//! clock, HTTP and metrics. The state is soft and in memory only: there is no disk and no database,
//! and a tracker never asks another one. Peers fill a restarted tracker again within one announce
//! interval.
//!
//! ```text
//! POST /flotilla/v2/announce   wire::tracker::AnnounceRequest -> AnnounceAnswer
//! POST /flotilla/v1/announce   wire::tracker::v1, from peers of older builds
//! POST /flotilla/v1/lease      wire::tracker::LeaseRequest -> LeaseAnswer, parked for a bounded time
//! GET  /healthz, /readyz       alive; alive and not draining
//!
//! on the listener for operators (flotilla_runtime::admin::AdminSettings):
//! GET  /healthz, /readyz       the same
//! GET  /metrics                metrics for Prometheus
//! GET  /admin/swarms           the largest swarms as JSON
//! ```

mod config;
mod http;
mod metrics;
mod service;
mod state;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_common::tracker::{TrackerCounts, TrackerMachine};
use flotilla_runtime::admin::{self, AdminError, Readiness};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::http::{HttpServer, ListenerLimits, serve_with};
use flotilla_runtime::identity::{
    ClientAuth, Identity, IdentityError, ReloadTiming, reload_on_change,
};
use flotilla_runtime::listen::listen_hint;
use flotilla_runtime::recording::{self, RecordingError};
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;

pub use config::{Config, InvalidSetting, LeaseConfig, LimitsConfig};
use service::Service;
pub use state::SwarmStatus;

/// With TLS, connections at once of clients without a certificate. They are for health checks:
/// peers have certificates.
const ANONYMOUS_CONNECTIONS: usize = 64;

/// Why a tracker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is invalid.
    #[error("tracker configuration: {0}")]
    Config(#[from] InvalidSetting),
    /// The listener for operators cannot be started.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The certificate is invalid or unreadable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The recording cannot be created.
    #[error(transparent)]
    Record(#[from] RecordingError),
    /// The address is in use, or not an address of this machine.
    #[error("listen on {addr}: {source}{}", listen_hint(source))]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// A running tracker.
#[derive(Debug)]
pub struct Tracker {
    server: HttpServer,
    admin: HttpServer,
    service: Arc<Service>,
}

impl Tracker {
    /// Binds and serves until `shutdown`. With `tls`, it serves HTTPS only, reloads the certificate
    /// when its files change, and a peer must announce under the id in its own certificate. The
    /// handshake does not demand one, because health checks have none; the endpoints of peers do.
    ///
    /// All tasks are spawned through `shutdown`, whose `drain` waits for them; parked requests are
    /// answered when it starts.
    ///
    /// # Errors
    /// A setting is invalid, or the address cannot be bound.
    pub async fn start(
        config: Config,
        tls: Option<Identity>,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> Result<Self, StartError> {
        config.validate()?;
        config.admin.check(tls.is_some())?;
        let addr = config.listen;
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| StartError::Listen { addr, source })?;
        let limits = ListenerLimits {
            connections: config.limits.connections as usize,
            anonymous: ANONYMOUS_CONNECTIONS,
            ..ListenerLimits::default()
        };
        let https = tls
            .as_ref()
            .map(|identity| identity.https_server(ClientAuth::Optional))
            .transpose()?;
        if let Some(identity) = &tls {
            reload_on_change(identity.clone(), ReloadTiming::default(), shutdown);
        }
        let recording = recording::create::<TrackerMachine>(config.record.as_deref())?;
        let service = Service::new(config, tls, clock, shutdown.clone(), recording);
        let service = Arc::new(service);
        let readiness = Readiness::starting(shutdown);
        let admin = service.config().admin.serve(
            admin::health(readiness.clone()),
            http::operators(Arc::clone(&service)),
            service.identity(),
            shutdown,
        );
        let admin = admin.await?;
        shutdown.spawn(Arc::clone(&service).run_timers());
        let router = http::public(Arc::clone(&service), readiness.clone());
        let server = serve_with(listener, router, https, shutdown, limits)
            .map_err(|source| StartError::Listen { addr, source })?;
        // The listener is new, so its counter is not set yet.
        let _ = service.metrics().connections.set(server.connections());
        readiness.set_ready();
        tracing::info!(address = %server.address(), admin = %admin.address(), "tracker started");
        Ok(Self {
            server,
            admin,
            service,
        })
    }

    /// The address for peers, with the port that the system chose.
    pub fn addr(&self) -> SocketAddr {
        self.server.address()
    }

    /// The address for operators, with the port that the system chose.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Number of peers in the roster.
    pub fn peer_count(&self) -> u32 {
        self.service.figures().peers
    }

    /// Counts of events since the start.
    pub fn counts(&self) -> TrackerCounts {
        self.service.figures().counts
    }

    /// The largest swarms, at most `limit`.
    pub fn swarms(&self, limit: usize) -> Vec<SwarmStatus> {
        self.service.swarms(limit)
    }

    /// Waits until the shutdown starts and every connection has ended.
    pub async fn finished(self) {
        self.server.finished().await;
        self.admin.finished().await;
    }
}

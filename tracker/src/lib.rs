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
//! GET  /metrics                metrics for Prometheus
//! GET  /admin/swarms           the largest swarms as JSON, for operators
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
use flotilla_runtime::admin::Readiness;
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

/// Why a tracker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is invalid.
    #[error("tracker configuration: {0}")]
    Config(#[from] InvalidSetting),
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
    service: Arc<Service>,
}

impl Tracker {
    /// Binds and serves until `shutdown`. With `tls`, it serves HTTPS only, reloads the certificate
    /// when its files change, and a peer must announce under the id in its own certificate.
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
        let addr = config.listen;
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| StartError::Listen { addr, source })?;
        let limits = ListenerLimits {
            connections: config.limits.connections as usize,
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
        shutdown.spawn(Arc::clone(&service).run_timers());
        let readiness = Readiness::starting(shutdown);
        let router = http::router(Arc::clone(&service), readiness.clone());
        let server = serve_with(listener, router, https, shutdown, limits)
            .map_err(|source| StartError::Listen { addr, source })?;
        // The listener is new, so its counter is not set yet.
        let _ = service.metrics().connections.set(server.connections());
        readiness.set_ready();
        tracing::info!(address = %server.address(), "tracker started");
        Ok(Self { server, service })
    }

    /// The address that it listens on, with the port that the system chose.
    pub fn addr(&self) -> SocketAddr {
        self.server.address()
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
    }
}

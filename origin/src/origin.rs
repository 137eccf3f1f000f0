//! A running origin: storage opened and probed, the bucket's format agreed on, a listener.

use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_runtime::admin::Readiness;
use flotilla_runtime::http::{self as http_server, Workers, serve, serve_with};
use flotilla_runtime::identity::{Clients, IdentityError, Timing, keep_fresh};
use flotilla_runtime::listen::listening_cure;
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;

use crate::config::{Config, Limits};
use crate::format::{self, FormatError};
use crate::http::{self, Admission, Api, SendBuffers};
use crate::metrics::Metrics;
use crate::readiness::StorageHealth;
use crate::registry::Registry;
use crate::replicas::{self, Invalidator, Secret};
use crate::storage::{self, Bounded, Counted, OpenError, Storage};

/// Connections beyond their bound that are answered at all.
const CONNECTION_RESERVE: usize = 128;

/// Why an origin does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The storage cannot be used.
    #[error(transparent)]
    Storage(#[from] OpenError),
    /// The storage is set up for others.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An upload would outlive what it relies on.
    #[error("upload_lifetime must be shorter than the horizon")]
    UploadLifetime,
    /// Seals would name another region than tags.
    #[error(
        "region is {region}, but seal-key is one of region {issuer}, and seals would name that: leave region out, or take a \
         key of {region} (`flotilla pki issue --origin {region}` makes one)"
    )]
    Region {
        /// The configured one.
        region: RegionName,
        /// The seal key's.
        issuer: RegionName,
    },
    /// The others could not tell this replica.
    #[error("replicas are listed, but this one listens nowhere for them: set replica-listen")]
    ReplicaListen,
    /// Nobody can be sent to this storage.
    #[error(
        "redirect blobs: {0}; leave redirect-blobs out, or take a storage that signs URLs: s3, gs or az"
    )]
    Redirects(String),
    /// A thread cannot be started.
    #[error("start threads: {0}")]
    Threads(io::Error),
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The address cannot be bound.
    #[error("listen on {address}: {source}{}", listening_cure(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A running origin. Dropped without [`shutdown`](Self::shutdown), it stops where it stands.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    replica_address: Option<SocketAddr>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    shutdown: Shutdown,
    drain_delay: Duration,
    drain_timeout: Duration,
    _workers: Option<Arc<Workers>>,
}

impl Origin {
    /// Starts an origin on the storage that its configuration names.
    ///
    /// # Errors
    /// [`StartError`]: each names what to change.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let storage = storage::open(&config.storage, config.limits.part_buffers.0)?;
        Self::start_on(config, storage).await
    }

    /// Starts an origin on a storage that is already open: several replicas in one process share
    /// one.
    ///
    /// # Errors
    /// [`StartError`]: each names what to change.
    pub async fn start_on(config: Config, storage: Arc<dyn Storage>) -> Result<Self, StartError> {
        if config.limits.upload_lifetime >= config.horizons.horizon {
            return Err(StartError::UploadLifetime);
        }
        let (region, issuer) = (&config.region, config.seal_key.issuer());
        if region != issuer {
            return Err(StartError::Region {
                region: region.clone(),
                issuer: issuer.clone(),
            });
        }
        if !config.replicas.is_none() && config.replica_listen.is_none() {
            return Err(StartError::ReplicaListen);
        }
        let storage: Arc<dyn Storage> =
            Arc::new(Bounded::new(storage, config.limits.storage_timeout));
        storage::probe(&*storage).await?;
        if config.redirect_blobs {
            storage::probe_signing(&*storage)
                .await
                .map_err(StartError::Redirects)?;
        }
        let format = format::agree(&*storage, config.horizons).await?;
        let counted = Counted::new(storage);
        let admission = Arc::new(Admission::new(&config.limits));
        let metrics = Metrics::new(
            counted.operations(),
            Arc::clone(&admission),
            config.tls.clone(),
        );
        let metrics = Arc::new(metrics);
        let Limits {
            drain_delay,
            drain_timeout,
            ..
        } = config.limits;
        let listener_limits = listener_limits(&config.limits);
        let shutdown = Shutdown::new();
        config.replicas.follow(&shutdown).await;
        let invalidator = Arc::new(Invalidator::new(config.replicas, Secret::of(&format))?);
        let (region, seal_key) = (config.region, config.seal_key);
        let buffers = SendBuffers::new(config.limits.pull_buffers);
        let registry = Registry::new(
            Arc::new(counted),
            format,
            region,
            seal_key,
            config.limits,
            invalidator,
        );
        let (uplink, redirect_blobs) = (config.uplink, config.redirect_blobs);
        let readiness = Readiness::starting(&shutdown);
        let api = Api {
            registry,
            uplink,
            buffers,
            redirect_blobs,
            readiness: readiness.clone(),
            storage_health: StorageHealth::default(),
            admission,
            metrics: Arc::clone(&metrics),
        };
        let api = Arc::new(api);
        let replica_address = match config.replica_listen {
            Some(address) => Some(listen_for_replicas(address, Arc::clone(&api), &shutdown).await?),
            None => None,
        };
        let tls = config
            .tls
            .as_ref()
            .map(|identity| identity.https_server(Clients::Anybody))
            .transpose()?;
        if let Some(identity) = config.tls {
            keep_fresh(identity, Timing::default(), &shutdown);
        }
        let listen_error = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(listen_error)?;
        let workers = (config.threads > 0)
            .then(|| Workers::start(config.threads))
            .transpose();
        let workers = workers.map_err(StartError::Threads)?.map(Arc::new);
        let responder = http::responder(api).on(workers.clone());
        let server = serve_with(listener, responder, tls, &shutdown, listener_limits)
            .map_err(listen_error)?;
        metrics.watch(server.connections());
        readiness.ready();
        let address = server.address();
        tracing::info!(%address, storage = config.storage, "origin started");
        Ok(Self {
            address,
            replica_address,
            metrics,
            readiness,
            shutdown,
            drain_delay,
            drain_timeout,
            _workers: workers,
        })
    }

    /// The address that it listens on.
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The address where the other replicas tell it what they changed.
    pub const fn replica_addr(&self) -> Option<SocketAddr> {
        self.replica_address
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Says that it is not ready, and works on until those who balance load have seen it; then
    /// finishes what is in flight, within the drain's bound.
    pub async fn shutdown(self) {
        self.readiness.not_ready("draining");
        if !self.drain_delay.is_zero() {
            tracing::info!(delay = ?self.drain_delay, "not ready any more");
            tokio::time::sleep(self.drain_delay).await;
        }
        let drained = self.shutdown.drain(self.drain_timeout).await;
        tracing::info!(?drained, "origin stopped");
    }
}

/// The bounds of the listener for clients.
fn listener_limits(limits: &Limits) -> http_server::Limits {
    http_server::Limits {
        connections: limits.connections,
        reserve: CONNECTION_RESERVE,
        head_timeout: limits.head_timeout,
        write_timeout: limits.reader_timeout,
        drain_timeout: limits.drain_timeout,
        ..http_server::Limits::default()
    }
}

async fn listen_for_replicas(
    address: SocketAddr,
    api: Arc<Api>,
    shutdown: &Shutdown,
) -> Result<SocketAddr, StartError> {
    let listen_error = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen_error)?;
    let server = serve(listener, replicas::router(api), None, shutdown).map_err(listen_error)?;
    Ok(server.address())
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shutdown.abandon();
    }
}

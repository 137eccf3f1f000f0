//! A running origin: storage opened and probed, the bucket's format agreed on, listeners started.

use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_runtime::admin::{AdminError, Readiness};
use flotilla_runtime::http::{self as http_server, HttpServer, Workers, serve_with};
use flotilla_runtime::identity::{ClientAuth, IdentityError, ReloadTiming, reload_on_change};
use flotilla_runtime::listen::listen_hint;
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use crate::admission::Admission;
use crate::config::{Config, Limits};
use crate::format::{self, Format, FormatError};
use crate::http::{self, Api, RegionServer, SendBuffers, operators};
use crate::metrics::Metrics;
use crate::policy::{LivePolicy, PolicyStartError, Region};
use crate::readiness::StorageHealth;
use crate::region_certificate::{RegionCertificateError, RegionIdentity};
use crate::regions::copy::BlobCopier;
use crate::regions::counts::RegionCounts;
use crate::regions::members::Members;
use crate::regions::regional::{Regional, RegionalConfig};
use crate::regions::remote::{RegionClient, RemoteSource};
use crate::regions::replicate::Replicator;
use crate::regions::source::{Source, Unreachable};
use crate::regions::storage_pins::{PinnedSource, StoragePins};
use crate::regions::sweep_state::SweepTimes;
use crate::regions::take::{TakeOrders, TakeQueue, take_queue};
use crate::registry::Registry;
use crate::replica_port::ReplicaPort;
use crate::replicas::{Invalidator, Secret};
use crate::storage::{self, CountingStorage, OpenError, Storage, TimeoutStorage};

/// Connections beyond the limit that still get an answer: 503.
const CONNECTION_RESERVE: usize = 128;

/// Why an origin does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The storage cannot be used.
    #[error(transparent)]
    Storage(#[from] OpenError),
    /// The policy of the bucket cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyStartError),
    /// The policy lists other regions, and the certificate does not prove this one.
    #[error(transparent)]
    RegionCertificate(#[from] RegionCertificateError),
    /// The bucket was set up with another format or other horizons.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An upload could outlive the objects that it relies on.
    #[error("upload_lifetime ({0:?}) must be shorter than horizon ({1:?})")]
    UploadLifetime(Duration, Duration),
    /// Other regions would get no requests, or more than there are.
    #[error(
        "region-share is {0}: write a percentage from 1 to 100, which is the share of max-requests \
         and max-uploads for other regions"
    )]
    RegionShare(u8),
    /// Seals would name another region than tags.
    #[error(
        "region is {region}, but seal-key belongs to region {issuer}: leave region out, or use a \
         key of {region} (`flotilla pki issue --origin {region}` makes one)"
    )]
    Region {
        /// The configured region.
        region: RegionName,
        /// The region of the seal key.
        issuer: RegionName,
    },
    /// The other replicas could not send invalidations to this one.
    #[error(
        "replicas are configured, but this replica does not listen for them: set replica-listen"
    )]
    ReplicaListen,
    /// The storage signs no URLs.
    #[error(
        "redirect blobs: {0}; leave redirect-blobs out, or use a storage that signs URLs: s3, gs or az"
    )]
    Redirects(String),
    /// A thread cannot be started.
    #[error("start threads: {0}")]
    Threads(io::Error),
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The listener for operators cannot be started.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The address cannot be bound.
    #[error("listen on {address}: {source}{}", listen_hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// A running origin. If it is dropped without [`shutdown`](Self::shutdown), it stops at once.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    admin: SocketAddr,
    replica_port: Option<ReplicaPort>,
    invalidator: Arc<Invalidator>,
    policy: LivePolicy,
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

    /// Starts an origin on a storage that is already open, so that several replicas in one process
    /// can share it.
    ///
    /// # Errors
    /// [`StartError`]: each names what to change.
    pub async fn start_on(config: Config, storage: Arc<dyn Storage>) -> Result<Self, StartError> {
        validate(&config)?;
        let storage = probe_storage(&config, storage).await?;
        let format = format::read_or_create(&*storage, config.horizons).await?;
        let storage_id = format.storage_id;
        let own = config.region.clone();
        let policy = LivePolicy::start(Arc::clone(&storage), own.clone(), config.clock).await?;
        let identity = RegionIdentity::bind(own, config.tls.clone())?;
        identity.check(&policy.current())?;
        let shutdown = Shutdown::new();
        policy.keep_fresh(&shutdown);
        identity.check_later_policies(&policy, &shutdown);
        config.replicas.keep_resolved(&shutdown).await;
        let invalidator = Invalidator::new(
            config.replicas.clone(),
            Secret::new(&config.seal_key, &format),
            config.clock,
        )?;
        let invalidator = Arc::new(invalidator);
        let (takes, orders) = take_queue();
        let api = build_api(
            &config,
            storage,
            format,
            &invalidator,
            &policy,
            takes,
            &shutdown,
        );
        // While the storage is out it cannot say which storages the regions had.
        if let Err(error) = api.regions.load_pins().await {
            tracing::warn!(%error, "the known storages of other regions cannot be read; trusting the first contact");
        }
        start_regional(&api, orders);
        // Other replicas conclude from a refused connection that this one serves no clients.
        let replica_port = match config.replica_listen {
            Some(address) => Some(ReplicaPort::open(address, &api, &invalidator).await?),
            None => None,
        };
        invalidator.keep_leases(&shutdown);
        let (health, private) = (operators::health(&api), operators::private(&api));
        let identity = config.tls.as_ref();
        let admin = config.admin.serve(health, private, identity, &shutdown);
        let admin = admin.await?.address();
        let workers = start_workers(config.threads)?;
        let server = listen_for_clients(&config, &api, workers.clone(), &shutdown).await?;
        api.metrics.set_connections(server.connections());
        api.readiness.set_ready();
        let address = server.address();
        tracing::info!(%address, %admin, storage = config.storage, %storage_id, "origin started");
        Ok(Self {
            address,
            admin,
            replica_port,
            invalidator,
            policy,
            metrics: Arc::clone(&api.metrics),
            readiness: api.readiness.clone(),
            shutdown,
            drain_delay: config.limits.drain_delay,
            drain_timeout: config.limits.drain_timeout,
            _workers: workers,
        })
    }

    /// The address on which it serves clients.
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The address on which it serves operators.
    pub const fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// The address on which it accepts messages from other replicas.
    pub fn replica_addr(&self) -> Option<SocketAddr> {
        self.replica_port.as_ref().map(ReplicaPort::address)
    }

    /// The policy of its bucket.
    pub const fn policy(&self) -> &LivePolicy {
        &self.policy
    }

    /// Its counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Drains: reports not ready, gives its leases back, serves on for the drain delay so that load
    /// balancers turn away, then finishes what is in flight, within the drain timeout.
    pub async fn shutdown(mut self) {
        self.readiness.set_not_ready("draining");
        self.invalidator.leave().await;
        if !self.drain_delay.is_zero() {
            tracing::info!(delay = ?self.drain_delay, "draining: /readyz now returns 503");
            tokio::time::sleep(self.drain_delay).await;
        }
        let drained = self.shutdown.drain(self.drain_timeout).await;
        // The last client has been served.
        if let Some(port) = self.replica_port.take() {
            port.close().await;
        }
        tracing::info!(?drained, "origin stopped");
    }
}

fn validate(config: &Config) -> Result<(), StartError> {
    config.admin.check(config.tls.is_some())?;
    if config.limits.upload_lifetime >= config.horizons.horizon {
        return Err(StartError::UploadLifetime(
            config.limits.upload_lifetime,
            config.horizons.horizon,
        ));
    }
    if !(1..=100).contains(&config.limits.region_share) {
        return Err(StartError::RegionShare(config.limits.region_share));
    }
    let issuer = config.seal_key.issuer();
    if config.region != *issuer {
        return Err(StartError::Region {
            region: config.region.clone(),
            issuer: issuer.clone(),
        });
    }
    if !config.replicas.is_none() && config.replica_listen.is_none() {
        return Err(StartError::ReplicaListen);
    }
    Ok(())
}

/// Adds timeouts to the storage, and checks that it supports everything that the origin needs.
async fn probe_storage(
    config: &Config,
    storage: Arc<dyn Storage>,
) -> Result<Arc<dyn Storage>, StartError> {
    let storage: Arc<dyn Storage> =
        Arc::new(TimeoutStorage::new(storage, config.limits.storage_timeout));
    storage::probe(&*storage).await?;
    if config.redirect_blobs {
        storage::probe_signing(&*storage)
            .await
            .map_err(StartError::Redirects)?;
    }
    Ok(storage)
}

pub(crate) fn build_api(
    config: &Config,
    storage: Arc<dyn Storage>,
    format: Format,
    invalidator: &Arc<Invalidator>,
    policy: &LivePolicy,
    takes: TakeQueue,
    shutdown: &Shutdown,
) -> Arc<Api> {
    let storage = CountingStorage::new(storage);
    let admission = Arc::new(Admission::new(&config.limits));
    let metrics = Metrics::new(
        storage.operations(),
        Arc::clone(&admission),
        Arc::clone(invalidator),
        takes.clone(),
        config.tls.clone(),
    );
    let registry = Arc::new(Registry::new(
        Arc::new(storage),
        format,
        config.seal_key.clone(),
        config.limits.clone(),
        Arc::clone(invalidator),
        config.clock,
    ));
    let counts = Arc::<RegionCounts>::default();
    let pins = StoragePins::new(
        registry.storage_id(),
        Arc::clone(registry.storage()),
        Arc::clone(&counts),
    );
    let regional = connect_regions(config, &registry, policy, &pins, counts, shutdown);
    Arc::new(Api {
        clock: config.clock,
        registry,
        uplink: config.uplink.clone(),
        buffers: SendBuffers::new(config.limits.pull_buffers),
        redirect_blobs: config.redirect_blobs,
        readiness: Readiness::starting(shutdown),
        storage_health: StorageHealth::default(),
        admission,
        metrics: Arc::new(metrics),
        regional,
        regions: RegionServer::new(
            config.region.clone(),
            policy.clone(),
            takes,
            pins,
            config.clock,
        ),
    })
}

/// The other regions; `None` if this origin has no certificate to show them.
fn connect_regions(
    config: &Config,
    registry: &Arc<Registry>,
    policy: &LivePolicy,
    pins: &Arc<StoragePins>,
    counts: Arc<RegionCounts>,
    shutdown: &Shutdown,
) -> Option<Arc<Regional>> {
    let identity = config.tls.clone()?;
    let pins = Arc::clone(pins);
    let connect = move |region: &Region| -> Arc<dyn Source> {
        match RegionClient::new(&identity, region.name.clone(), region.url.as_str()) {
            Ok(client) => {
                let client = client.with_pins(Arc::clone(&pins));
                Arc::new(PinnedSource::new(
                    RemoteSource::new(client),
                    Arc::clone(&pins),
                ))
            }
            Err(error) => {
                tracing::error!(%error, "a region cannot be reached");
                Arc::new(Unreachable::new(region.name.clone(), error.to_string()))
            }
        }
    };
    let members = Members::new(config.region.clone(), policy.clone(), Box::new(connect));
    let copier = BlobCopier::new(Arc::clone(registry), config.regions.down.clone(), counts);
    let horizon = config.horizons.horizon;
    let settings = RegionalConfig {
        sweeps: SweepTimes {
            settle: config.regions.settle,
            second: horizon,
            ..SweepTimes::default()
        },
        horizon,
        forward_writes: config.regions.forward_writes,
    };
    Some(Regional::new(
        Arc::clone(registry),
        Arc::new(members),
        Arc::new(Replicator::new(Arc::clone(registry), copier)),
        config.clock,
        settings,
        shutdown.clone(),
    ))
}

/// Starts the work between regions.
fn start_regional(api: &Arc<Api>, orders: TakeOrders) {
    if let Some(regional) = &api.regional {
        regional.start(orders);
        api.metrics.set_regional(Arc::clone(regional));
    }
}

fn start_workers(threads: usize) -> Result<Option<Arc<Workers>>, StartError> {
    if threads == 0 {
        return Ok(None);
    }
    let workers = Workers::start(threads).map_err(StartError::Threads)?;
    Ok(Some(Arc::new(workers)))
}

async fn listen_for_clients(
    config: &Config,
    api: &Arc<Api>,
    workers: Option<Arc<Workers>>,
    shutdown: &Shutdown,
) -> Result<HttpServer, StartError> {
    let tls = match &config.tls {
        Some(identity) => {
            let tls = identity.https_server(ClientAuth::Optional)?;
            reload_on_change(identity.clone(), ReloadTiming::default(), shutdown);
            Some(tls)
        }
        None => None,
    };
    let address = config.listen;
    let listen_error = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen_error)?;
    let responder = http::responder(Arc::clone(api))
        .on(workers)
        .with_sendfile(config.sendfile);
    let limits = listener_limits(&config.limits);
    serve_with(listener, responder, tls, shutdown, limits).map_err(listen_error)
}

/// The limits of the listener for clients.
fn listener_limits(limits: &Limits) -> http_server::ListenerLimits {
    http_server::ListenerLimits {
        connections: limits.connections,
        reserve: CONNECTION_RESERVE,
        head_timeout: limits.head_timeout,
        write_timeout: limits.reader_timeout,
        drain_timeout: limits.drain_timeout,
        ..http_server::ListenerLimits::default()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shutdown.abandon();
        let (clients, replica_port) = (self.shutdown.clone(), self.replica_port.take());
        // Without a runtime no client is served any more.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                clients.drain(Duration::ZERO).await;
                drop(replica_port);
            });
        }
    }
}

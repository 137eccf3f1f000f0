//! The parts of a peer, set up one by one for [`crate::Peer::start`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_common::recording::Recorded;
use flotilla_common::swarm::{PeerMachine, SwarmConfig};
use flotilla_common::tracker::TrackerSession;
use flotilla_common::wire::peer::About;
use flotilla_common::wire::tracker::PeerInfo;
use flotilla_runtime::admin::{self, AdminError, Readiness};
use flotilla_runtime::http::{self, ListenerLimits};
use flotilla_runtime::listen::listen_hint;
use flotilla_runtime::metrics::RequestMetrics;
use flotilla_runtime::rate::Limiter;
use flotilla_runtime::recording::{self, RecordingError};
use flotilla_runtime::shutdown::Shutdown;
use prometheus_client::registry::Registry;
use rand::RngExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::dial_filter::DialFilter;
use crate::driver::{Commands, Driver, DriverContext, Events, QUEUE};
use crate::handles::{Handles, Network, Shutdowns, Stores, Upstream};
use crate::metrics::{self, MetricSources};
use crate::mirror::{self, Mirror, MirrorContext};
use crate::open_files::OpenFilesBudget;
use crate::origin::{
    BuildClientError, ConnectionReuse, HttpClients, OriginClient, origin_http_client, region_count,
    tracker_http_client,
};
use crate::pull_start::PullStarter;
use crate::store::{ManifestStore, Store, StoreError, run_blocking};
use crate::telemetry::Telemetry;
use crate::tracker_client::{TrackerContext, TrackerEvent, Trackers};
use crate::transport::{QuicSettings, Transport, TransportEvent};

/// Connections to the mirror beyond its limit, which are answered 503. Without them, a client
/// beyond the limit would wait instead of turning to its next host.
const MIRROR_RESERVE: usize = 16;

/// Why a peer did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is invalid. The text names the setting and the fix.
    #[error("{0}")]
    Config(String),
    /// The store's directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address cannot be bound.
    #[error("listen on {address}: {source}{}", listen_hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The listener for operators cannot be started.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A recording cannot be created.
    #[error(transparent)]
    Record(#[from] RecordingError),
    /// The transport, or the client of origins and trackers, cannot be set up.
    #[error("{0}")]
    Transport(String),
}

impl StartError {
    /// Adds the address to the error of a bind.
    pub(crate) fn listen(address: SocketAddr) -> impl Fn(io::Error) -> Self {
        move |source| Self::Listen { address, source }
    }

    fn client(error: BuildClientError) -> Self {
        Self::Transport(error.to_string())
    }
}

/// Opens the stores of blobs and manifests. At most `max_open_files` data files stay open.
pub(crate) async fn open_stores(
    config: &Config,
    max_open_files: usize,
) -> Result<Stores, StartError> {
    let dir = config.store.clone();
    let quota = config.quota;
    let trusted = config.trusted_keys.current();
    let unusable = |source| StoreError::Unusable {
        dir: config.store.clone(),
        source,
    };
    let opened = run_blocking(move || {
        Ok(
            Store::open(&dir, quota, max_open_files, &trusted).and_then(|blobs| {
                let manifests = ManifestStore::open(&dir)
                    .map_err(|source| StoreError::Unusable { dir, source })?;
                Ok(Stores {
                    blobs: Arc::new(blobs),
                    manifests: Arc::new(manifests),
                })
            }),
        )
    });
    Ok(opened.await.map_err(unusable)??)
}

/// The sending ends of the driver's queues.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) commands: Commands,
    pub(crate) transport_events: mpsc::Sender<TransportEvent>,
    pub(crate) tracker: mpsc::Sender<TrackerEvent>,
}

/// Makes the driver's queues.
pub(crate) fn queues() -> (Queues, Events) {
    let (commands, command_queue) = Commands::channel();
    let (transport_events, transport_event_queue) = mpsc::channel(QUEUE);
    let (tracker, tracker_queue) = mpsc::channel(QUEUE);
    let queues = Queues {
        commands,
        transport_events,
        tracker,
    };
    let events = Events {
        commands: command_queue,
        transport_events: transport_event_queue,
        tracker: tracker_queue,
    };
    (queues, events)
}

/// Binds the QUIC socket, and begins to announce to the trackers.
pub(crate) fn join_network(
    config: &Config,
    transport_events: mpsc::Sender<TransportEvent>,
    tracker_events: mpsc::Sender<TrackerEvent>,
    telemetry: &Telemetry,
    shutdown: &Shutdown,
) -> Result<Network, StartError> {
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
        shutdown,
        transport_events,
    )
    .map_err(|error| StartError::Transport(error.to_string()))?;
    let bound = transport
        .local_addr()
        .map_err(StartError::listen(config.quic))?;
    let me = PeerInfo {
        id: config.id.clone(),
        addr: config.advertised.unwrap_or(bound),
        region: config.region.clone(),
        zone: config.zone.clone(),
    };
    let context = TrackerContext {
        client: tracker_http_client(&config.identity, None).map_err(StartError::client)?,
        clock: config.clock,
        observer: telemetry.trackers.clone(),
        recording: recording::create::<TrackerSession>(config.record.as_deref())?,
        origins: region_count(&config.origins, &config.region),
    };
    let trackers = Trackers::start(
        context,
        &config.trackers,
        me.clone(),
        tracker_events,
        shutdown,
    );
    Ok(Network {
        me: Arc::new(me),
        identity: config.identity.clone(),
        transport,
        trackers,
        upload_limit: Limiter::from(config.up),
        upload_rate: config.up,
    })
}

/// Makes the client of the origins, and begins to probe origins that do not answer.
pub(crate) fn connect_upstream(
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Upstream, StartError> {
    let client = |reuse| origin_http_client(&config.identity, reuse).map_err(StartError::client);
    let http = HttpClients::new(
        client(ConnectionReuse::Pooled)?,
        client(ConnectionReuse::Never)?,
    );
    let origins = OriginClient::new(
        http,
        &config.origins,
        &config.region,
        config.failover.clone(),
        rng_seed(config),
        config.clock,
    );
    shutdown.spawn(origins.clone().probe_until_shutdown(shutdown.clone()));
    Ok(Upstream {
        origins,
        trusted_keys: config.trusted_keys.clone(),
        download_limit: Limiter::from(config.down),
    })
}

/// Starts the state machine and its driver.
pub(crate) fn start_driver(
    config: &Config,
    handles: &Handles,
    events: Events,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let context = DriverContext {
        clock: config.clock,
        stores: handles.stores.clone(),
        network: handles.network.clone(),
        dial_filter: DialFilter::new(config.peers_from.clone(), config.quic),
        upstream: handles.upstream.clone(),
        telemetry: Arc::clone(&handles.telemetry),
        interceptor: Arc::clone(&config.interceptor),
        requires_grants: config.requires_grants,
        shutdown: shutdown.clone(),
    };
    let setup = (machine_config(config), rng_seed(config));
    let machine = Recorded::new(
        setup,
        recording::create::<PeerMachine>(config.record.as_deref())?,
    );
    shutdown.spawn(Driver::run(machine, context, events));
    Ok(())
}

/// The limits of the mirror's listener.
pub(crate) fn mirror_limits(budget: &OpenFilesBudget) -> ListenerLimits {
    ListenerLimits {
        connections: budget.connections,
        reserve: MIRROR_RESERVE,
        ..ListenerLimits::default()
    }
}

/// Makes the mirror, and the metrics of the peer.
pub(crate) fn create_mirror(
    config: &Config,
    handles: &Handles,
    commands: Commands,
    shutdowns: &Shutdowns,
) -> (Arc<Mirror>, Registry) {
    let requests = RequestMetrics::default();
    let sources = MetricSources {
        telemetry: Arc::clone(&handles.telemetry),
        store: Arc::clone(&handles.stores.blobs),
        identity: handles.network.identity.clone(),
        trackers: handles.network.trackers.clone(),
        origins: handles.upstream.origins.clone(),
    };
    let metrics = metrics::registry(sources, &requests);
    let context = MirrorContext {
        clock: config.clock,
        stores: handles.stores.clone(),
        upstream: handles.upstream.clone(),
        telemetry: Arc::clone(&handles.telemetry),
        commands: commands.clone(),
        fallback_timeouts: config.fallback_timeouts,
        shutdown: shutdowns.tasks.clone(),
    };
    let pull_starter = PullStarter::new(
        config.clock,
        handles.stores.clone(),
        handles.upstream.clone(),
        Arc::clone(&handles.telemetry),
        commands,
    );
    let registries = config.registries.clone();
    let mirror = Mirror::new(context, pull_starter, registries, requests);
    (mirror, metrics)
}

/// Serves operators until all other tasks end, so that they see the drain; returns the address.
pub(crate) async fn serve_operators(
    config: &Config,
    mirror: Arc<Mirror>,
    metrics: Registry,
    readiness: Readiness,
    shutdowns: &Shutdowns,
) -> Result<SocketAddr, StartError> {
    let (health, private) = (admin::health(readiness), mirror::operators(mirror, metrics));
    let identity = Some(&config.identity);
    let served = config
        .admin
        .serve(health, private, identity, &shutdowns.tasks);
    Ok(served.await?.address())
}

/// Serves the mirror on `listener`; returns its address.
pub(crate) fn serve_mirror(
    config: &Config,
    mirror: Arc<Mirror>,
    (listener, limits): (TcpListener, ListenerLimits),
    shutdowns: &Shutdowns,
) -> Result<SocketAddr, StartError> {
    let router = mirror::router(mirror);
    let server = http::serve_with(listener, router, None, &shutdowns.mirror, limits)
        .map_err(StartError::listen(config.mirror))?;
    let address = server.address();
    if !address.ip().is_loopback() {
        tracing::warn!(
            mirror = %address,
            "other machines can reach the mirror and pull every image that this machine can pull; \
             set mirror to a loopback address such as 127.0.0.1:5001"
        );
    }
    Ok(address)
}

/// The settings of the state machine, with those that follow from the peer's settings.
fn machine_config(config: &Config) -> SwarmConfig {
    SwarmConfig {
        up_bits_per_second: config.up.map(|rate| rate.0),
        down_bits_per_second: config.down.map(|rate| rate.0),
        ..config.swarm.clone()
    }
}

fn rng_seed(config: &Config) -> u64 {
    config.rng_seed.unwrap_or_else(|| rand::rng().random())
}

//! Handles that the peer's tasks share. Clones refer to the same state.

use std::sync::Arc;

use flotilla_common::units::BitRate;
use flotilla_common::wire::tracker::PeerInfo;
use flotilla_runtime::identity::{Identity, LiveKeys};
use flotilla_runtime::rate::Limiter;
use flotilla_runtime::shutdown::Shutdown;

use crate::origin::OriginClient;
use crate::store::{ManifestStore, Store};
use crate::telemetry::Telemetry;
use crate::tracker_client::Trackers;
use crate::transport::Transport;

/// All handles of a peer.
#[derive(Debug)]
pub(crate) struct Handles {
    pub(crate) stores: Stores,
    pub(crate) network: Network,
    pub(crate) upstream: Upstream,
    pub(crate) telemetry: Arc<Telemetry>,
}

/// The peer's stores on disk.
#[derive(Clone, Debug)]
pub(crate) struct Stores {
    pub(crate) blobs: Arc<Store>,
    pub(crate) manifests: Arc<ManifestStore>,
}

/// The origins, and the keys and limits for downloads from them.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    pub(crate) origins: OriginClient,
    /// The origin keys whose seals and grants are trusted.
    pub(crate) trusted_keys: LiveKeys,
    /// The rate limit of everything that is downloaded, from neighbours too.
    pub(crate) download_limit: Limiter,
}

/// The swarm as this peer takes part in it: other peers, trackers and the own address.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// The peer as trackers announce it to others.
    pub(crate) me: Arc<PeerInfo>,
    pub(crate) identity: Identity,
    pub(crate) transport: Transport,
    pub(crate) trackers: Trackers,
    /// The rate limit of everything that is sent to neighbours.
    pub(crate) upload_limit: Limiter,
    /// The configured value of `upload_limit`.
    pub(crate) upload_rate: Option<BitRate>,
}

/// The order of a shutdown: pulls are drained first, then everything else ends.
#[derive(Debug)]
pub(crate) struct Shutdowns {
    pub(crate) mirror: Shutdown,
    pub(crate) tasks: Shutdown,
}

//! The state of the mirror, which its handlers share.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_runtime::metrics::RequestMetrics;
use moka::future::Cache;

use super::context::MirrorContext;
use super::cursors::Cursors;
use super::image_names::ImageNames;
use super::registries::Registries;
use crate::origin::FetchedManifest;
use crate::pull_start::PullStarter;

/// How long a resolved tag is used without asking an origin again. Concurrent requests for one
/// manifest share one fetch.
const RESOLVED_TTL: Duration = Duration::from_secs(2);
/// How long the last known manifest of a tag is remembered, for when no origin is available.
const LAST_KNOWN_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long requests for the rest of a cut body are refused.
const CUT_TTL: Duration = Duration::from_secs(30);
/// How long after its last request a blob counts as begun.
const BEGUN_TTL: Duration = Duration::from_secs(600);
/// Entries of each cache.
const CACHED: u64 = 1024;

/// The state of the mirror, which its handlers share.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(super) context: Arc<MirrorContext>,
    pub(super) pull_starter: PullStarter,
    pub(super) cursors: Arc<Cursors>,
    /// References that an origin resolved a short time ago.
    pub(super) resolved: Cache<(RepositoryName, Reference), FetchedManifest>,
    /// The digest of each reference when an origin resolved it last.
    pub(super) last_known: Cache<(RepositoryName, Reference), Digest>,
    /// The offsets at which bodies were cut a short time ago: the runtime will request the bytes
    /// from there on.
    pub(super) cut: Cache<(Digest, u64), ()>,
    /// Blobs of which the runtime has received bytes, with their sizes.
    pub(super) begun: Cache<Digest, u64>,
    pub(super) image_names: ImageNames,
    pub(super) registries: Registries,
    pub(super) requests: RequestMetrics,
}

impl Mirror {
    /// A mirror of `registries`, or of all registries if there are none. `requests` counts its
    /// requests.
    pub(crate) fn new(
        context: MirrorContext,
        pull_starter: PullStarter,
        registries: Vec<String>,
        requests: RequestMetrics,
    ) -> Arc<Self> {
        requests.register_routes(&["manifest", "blob"]);
        Arc::new(Self {
            cursors: Cursors::new(context.commands.clone(), context.shutdown.clone()),
            context: Arc::new(context),
            pull_starter,
            resolved: cache().time_to_live(RESOLVED_TTL).build(),
            last_known: cache().time_to_live(LAST_KNOWN_TTL).build(),
            cut: cache().time_to_live(CUT_TTL).build(),
            begun: cache().time_to_idle(BEGUN_TTL).build(),
            image_names: ImageNames::default(),
            registries: Registries::new(registries),
            requests,
        })
    }
}

fn cache<K, V>() -> moka::future::CacheBuilder<K, V, Cache<K, V>>
where
    K: core::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(CACHED)
}

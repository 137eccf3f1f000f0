//! The mirror: the registry endpoint for the container runtime on this machine.
//!
//! ```text
//! runtime                     mirror                          origin            swarm
//!   GET manifest ───────────▶   (cached, or) ─────────────────▶
//!                               closure: seals, tables ───────▶
//!                               every blob is wanted ─────────────────────────▶
//!   ◀──────────────── manifest
//!   GET blob ───────────────▶   reader at its cursor ─────────────────────────▶
//!   ◀───── parts as they are verified
//! ```
//!
//! Its responses follow the habits of containerd. An error is 404 or 503, is sent at once and says
//! what happened; 408 and 429 are never sent. The head of a response is sent when its first bytes
//! are available. A body is cut if no source can deliver the next bytes; requests for the rest are
//! refused at once unless the bytes have arrived. Bytes that the swarm cannot deliver are passed
//! through from the origin: a pull is never slower or less reliable than without a peer.

mod admin;
mod blob_range;
mod blobs;
mod client_config;
mod context;
mod cursors;
mod error;
mod image_names;
mod manifests;
mod passthrough;
mod reader;
mod registries;
mod response;
mod warm;

use core::fmt::Display;
use core::str::FromStr;
use core::time::Duration;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::routing::{get, post};
use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_runtime::metrics::Requests;
use moka::future::Cache;
use prometheus_client::registry::Registry;

use crate::origin::FetchedManifest;
use crate::pull_start::PullStarter;
pub use client_config::{docker_daemon_json, hosts_toml, registries_conf};
pub(crate) use context::MirrorContext;
use cursors::Cursors;
use error::{ContentKind, MirrorError, error_response, oci_error};
use image_names::ImageNames;
use registries::Registries;
pub use warm::Warming;

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
    context: Arc<MirrorContext>,
    pull_starter: PullStarter,
    cursors: Arc<Cursors>,
    /// References that an origin resolved a short time ago.
    resolved: Cache<(RepositoryName, Reference), FetchedManifest>,
    /// The digest of each reference when an origin resolved it last.
    last_known: Cache<(RepositoryName, Reference), Digest>,
    /// The offsets at which bodies were cut a short time ago: the runtime will request the bytes
    /// from there on.
    cut: Cache<(Digest, u64), ()>,
    /// Blobs of which the runtime has received bytes, with their sizes.
    begun: Cache<Digest, u64>,
    image_names: ImageNames,
    registries: Registries,
    requests: Requests,
    metrics: Registry,
}

impl Mirror {
    /// A mirror of `registries`, or of all registries if there are none. `requests` counts its
    /// requests; `metrics` is what it serves to Prometheus.
    pub(crate) fn new(
        context: MirrorContext,
        pull_starter: PullStarter,
        registries: Vec<String>,
        requests: Requests,
        metrics: Registry,
    ) -> Arc<Self> {
        requests.begin_with(&["manifest", "blob"]);
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
            metrics,
        })
    }

    /// All routes of the mirror's address.
    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/flotilla/healthz", get(async || "alive\n"))
            .route("/flotilla/metrics", get(admin::metrics))
            .route("/flotilla/status", get(admin::status))
            .route("/flotilla/warm/{*image}", post(warm::warm))
            .fallback(serve)
            .with_state(self)
    }
}

fn cache<K, V>() -> moka::future::CacheBuilder<K, V, Cache<K, V>>
where
    K: core::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(CACHED)
}

/// What a request path selects.
enum MirrorRoute {
    Ping,
    Manifest(RepositoryName, Reference),
    Blob(RepositoryName, Digest),
}

async fn serve(State(mirror): State<Arc<Mirror>>, request: Request) -> Response<Body> {
    let clock = mirror.context.clock;
    let started = clock.now();
    let label = route_label(request.uri().path());
    let response = answer(&mirror, request).await;
    let elapsed = clock.now().saturating_since(started);
    mirror.requests.answered(label, response.status(), elapsed);
    response
}

/// The label of a path in the request metrics.
fn route_label(path: &str) -> &'static str {
    match route(path) {
        Ok(MirrorRoute::Ping) => "ping",
        Ok(MirrorRoute::Manifest(..)) | Err((ContentKind::Manifest, _)) => "manifest",
        Ok(MirrorRoute::Blob(..)) => "blob",
        Err((ContentKind::Blob | ContentKind::OtherRegistry, _)) => "other",
    }
}

async fn answer(mirror: &Arc<Mirror>, request: Request) -> Response<Body> {
    let is_head = request.method() == Method::HEAD;
    if !is_head && request.method() != Method::GET {
        let message = "this mirror is read-only; push to the origin";
        return oci_error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
    }
    let route = match route(request.uri().path()) {
        Ok(MirrorRoute::Ping) => return response::ping(),
        Ok(route) => route,
        Err((kind, error)) => return error_response(kind, &error),
    };
    if let Err(error) = mirror.registries.check(request.uri()) {
        return error_response(ContentKind::OtherRegistry, &error);
    }
    let range = range_header(request.headers());
    let range = range.as_deref();
    match route {
        MirrorRoute::Ping => response::ping(),
        MirrorRoute::Manifest(repository, reference) => {
            match mirror.manifest(&repository, &reference, is_head).await {
                Ok(found) => manifests::response(&found, range),
                Err(error) => error_response(ContentKind::Manifest, &error),
            }
        }
        MirrorRoute::Blob(repository, digest) => mirror
            .blob(&repository, digest, range, is_head)
            .await
            .unwrap_or_else(|error| error_response(ContentKind::Blob, &error)),
    }
}

/// Parses a path. The name of the repository may contain slashes.
fn route(path: &str) -> Result<MirrorRoute, (ContentKind, MirrorError)> {
    let unknown = || {
        let message = format!("no such path: {path}");
        (ContentKind::Blob, MirrorError::Unknown(message))
    };
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
    if rest.is_empty() || rest == "/" {
        return Ok(MirrorRoute::Ping);
    }
    let rest = rest.strip_prefix('/').ok_or_else(unknown)?;
    if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
        let kind = ContentKind::Manifest;
        let repository = parse(kind, name)?;
        return Ok(MirrorRoute::Manifest(repository, parse(kind, reference)?));
    }
    if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
        let kind = ContentKind::Blob;
        let repository = parse(kind, name)?;
        return Ok(MirrorRoute::Blob(repository, parse(kind, digest)?));
    }
    Err(unknown())
}

fn parse<T: FromStr<Err: Display>>(
    kind: ContentKind,
    text: &str,
) -> Result<T, (ContentKind, MirrorError)> {
    text.parse()
        .map_err(|error| (kind, MirrorError::Invalid(format!("{text}: {error}"))))
}

fn range_header(headers: &HeaderMap) -> Option<String> {
    headers.get(header::RANGE)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_paths() {
        let digest = Digest::sha256(b"x");
        assert!(matches!(route("/v2/"), Ok(MirrorRoute::Ping)));
        assert!(matches!(route("/v2"), Ok(MirrorRoute::Ping)));
        assert!(matches!(
            route("/v2/a/b/manifests/v1"),
            Ok(MirrorRoute::Manifest(name, Reference::Tag(_))) if name.as_str() == "a/b"
        ));
        assert!(matches!(
            route(&format!("/v2/manifests/blobs/{digest}")),
            Ok(MirrorRoute::Blob(name, found)) if name.as_str() == "manifests" && found == digest
        ));
        assert!(matches!(
            route("/v2/a/blobs/sha256:zz"),
            Err((ContentKind::Blob, MirrorError::Invalid(_)))
        ));
        assert!(matches!(
            route("/v2/A/manifests/v1"),
            Err((ContentKind::Manifest, MirrorError::Invalid(_)))
        ));
        assert!(matches!(route("/v3/"), Err((_, MirrorError::Unknown(_)))));
        assert!(matches!(
            route("/v2/_catalog"),
            Err((_, MirrorError::Unknown(_)))
        ));
    }
}

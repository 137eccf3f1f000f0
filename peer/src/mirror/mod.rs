//! The mirror: the registry that the container runtime on this machine talks to.
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
//! The rules of its answers are containerd's habits: an error is 404 or 503, at once, and says what
//! happened; never 408 or 429. The head of an answer goes out when its first bytes are there. A
//! body that cannot go on is cut, and what comes after it is refused at once unless the bytes are
//! there by then. What the swarm cannot deliver is passed through from the origin: a pull is never
//! worse than without a peer.

mod admin;
mod answer;
mod blobs;
mod client_config;
mod manifests;
mod names;
mod passing;
mod reader;
mod registries;
mod warm;

use core::fmt::Display;
use core::str::FromStr;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{get, post};
use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_common::wire::origin::{API_VERSION, API_VERSION_HEADER, CONTENT_DIGEST_HEADER};
use flotilla_common::wire::peer::Image;
use flotilla_runtime::http::range::unsatisfied_range;
use flotilla_runtime::metrics::Requests;
use moka::future::Cache;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::driver::{Command, Shared};
use crate::metrics;
use crate::origin::FetchedManifest;
use answer::{Failure, Subject, error, failed};
pub use client_config::{docker_daemon_json, hosts_toml, registries_conf};
use names::Names;
pub use reader::Patience;
use registries::Registries;
pub use warm::Warming;

/// How long a tag's digest is believed, and a manifest that several ask for at once is fetched
/// once.
const TAG_TTL: Duration = Duration::from_secs(2);
/// How long it is known what a tag named, for the case that every origin is out.
const LAST_KNOWN_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a body that was cut is not gone on with at once.
const CUT_TTL: Duration = Duration::from_secs(30);
/// How long after its last request a blob counts as begun.
const BEGUN_TTL: Duration = Duration::from_secs(600);
/// How long an image that a neighbour handed on is at hand, and how many are.
const HANDED_ON_TTL: Duration = Duration::from_secs(30);
const HANDED_ON: u64 = 8;
/// Entries of each other cache.
const CACHED: u64 = 1024;

/// The mirror's state; its handlers share it.
#[derive(Debug)]
pub(crate) struct Mirror {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    resolved: Cache<(RepositoryName, Reference), FetchedManifest>,
    /// What each reference named when an origin was last asked.
    last_known: Cache<(RepositoryName, Reference), Digest>,
    /// Images that neighbours handed on just now, since no origin could be asked.
    images: Cache<Digest, Arc<Image>>,
    /// Where bodies were cut just now: what the runtime asks for next.
    cut: Cache<(Digest, u64), ()>,
    /// Blobs of which bytes were handed out, and their sizes.
    begun: Cache<Digest, u64>,
    next_reader: AtomicU64,
    names: Names,
    registries: Registries,
    requests: Requests,
    registry: Registry,
}

impl Mirror {
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Sender<Command>,
        registries: Vec<String>,
    ) -> Arc<Self> {
        let requests = Requests::default();
        requests.begin_with(&["manifest", "blob"]);
        Arc::new(Self {
            registry: metrics::registry(Arc::clone(&shared), &requests),
            requests,
            names: Names::default(),
            registries: Registries::new(registries),
            shared,
            commands,
            resolved: Cache::builder()
                .max_capacity(CACHED)
                .time_to_live(TAG_TTL)
                .build(),
            last_known: Cache::builder()
                .max_capacity(CACHED)
                .time_to_live(LAST_KNOWN_TTL)
                .build(),
            images: Cache::builder()
                .max_capacity(HANDED_ON)
                .time_to_live(HANDED_ON_TTL)
                .build(),
            cut: Cache::builder()
                .max_capacity(CACHED)
                .time_to_live(CUT_TTL)
                .build(),
            begun: Cache::builder()
                .max_capacity(CACHED)
                .time_to_idle(BEGUN_TTL)
                .build(),
            next_reader: AtomicU64::new(0),
        })
    }

    /// All that is served on the mirror's address.
    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/flotilla/healthz", get(async || "alive\n"))
            .route("/flotilla/metrics", get(admin::figures))
            .route("/flotilla/status", get(admin::status))
            .route("/flotilla/warm/{*image}", post(warm::warm))
            .fallback(serve)
            .with_state(self)
    }

    fn reader_id(&self) -> u64 {
        self.next_reader.fetch_add(1, Ordering::Relaxed)
    }
}

/// What a path asks for.
enum Target {
    Ping,
    Manifest(RepositoryName, Reference),
    Blob(RepositoryName, Digest),
}

async fn serve(State(mirror): State<Arc<Mirror>>, request: Request) -> Response<Body> {
    let began = mirror.shared.clock.now();
    let route = route_of(request.uri().path());
    let response = answer(&mirror, request).await;
    let elapsed = mirror.shared.clock.now().saturating_since(began);
    mirror.requests.answered(route, response.status(), elapsed);
    response
}

/// What requests are counted under.
fn route_of(path: &str) -> &'static str {
    match target(path) {
        Ok(Target::Ping) => "ping",
        Ok(Target::Manifest(..)) | Err((Subject::Manifest, _)) => "manifest",
        Ok(Target::Blob(..)) => "blob",
        Err((Subject::Blob | Subject::Name, _)) => "other",
    }
}

async fn answer(mirror: &Arc<Mirror>, request: Request) -> Response<Body> {
    let is_head = request.method() == Method::HEAD;
    if !is_head && request.method() != Method::GET {
        let message = "this is a mirror for pulls; push to the origin";
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
    }
    let target = target(request.uri().path());
    if let (Ok(Target::Manifest(..) | Target::Blob(..)), Err(failure)) =
        (&target, mirror.registries.check(request.uri()))
    {
        return failed(Subject::Name, &failure);
    }
    match target {
        Ok(Target::Ping) => ping(),
        Ok(Target::Manifest(repository, reference)) => {
            let range = range_of(request.headers());
            match mirror.manifest(&repository, &reference, is_head).await {
                Ok(found) => manifests::response(&found, range.as_deref()),
                Err(failure) => failed(Subject::Manifest, &failure),
            }
        }
        Ok(Target::Blob(repository, digest)) => {
            let range = range_of(request.headers());
            match mirror
                .blob(&repository, digest, range.as_deref(), is_head)
                .await
            {
                Ok(response) => response,
                Err(failure) => failed(Subject::Blob, &failure),
            }
        }
        Err((subject, failure)) => failed(subject, &failure),
    }
}

/// Reads a path; the repository's name may have slashes of its own.
fn target(path: &str) -> Result<Target, (Subject, Failure)> {
    let unknown = || {
        (
            Subject::Blob,
            Failure::Unknown(format!("there is nothing at {path}")),
        )
    };
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
    if rest.is_empty() || rest == "/" {
        return Ok(Target::Ping);
    }
    let rest = rest.strip_prefix('/').ok_or_else(unknown)?;
    if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
        let subject = Subject::Manifest;
        return Ok(Target::Manifest(
            parsed(subject, name)?,
            parsed(subject, reference)?,
        ));
    }
    if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
        return Ok(Target::Blob(
            parsed(Subject::Blob, name)?,
            parsed(Subject::Blob, digest)?,
        ));
    }
    Err(unknown())
}

fn parsed<T: FromStr<Err: Display>>(subject: Subject, text: &str) -> Result<T, (Subject, Failure)> {
    text.parse()
        .map_err(|error| (subject, Failure::Invalid(format!("{text}: {error}"))))
}

fn ping() -> Response<Body> {
    let mut response = Response::new(Body::from("{}"));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(API_VERSION_HEADER, HeaderValue::from_static(API_VERSION));
    response
}

fn range_of(headers: &HeaderMap) -> Option<String> {
    headers.get(header::RANGE)?.to_str().ok().map(str::to_owned)
}

/// The headers that every content has: its digest, its exact type, its length.
fn content_headers(headers: &mut HeaderMap, digest: &Digest, media_type: &str, length: u64) {
    let media_type = HeaderValue::from_str(media_type)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, media_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(digest) = HeaderValue::from_str(&digest.to_string()) {
        headers.insert(CONTENT_DIGEST_HEADER, digest);
    }
}

/// Status 416 for a body of `size` bytes.
fn unsatisfiable(size: u64) -> Response<Body> {
    let message = format!("the range begins behind the end, at {size} bytes");
    let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", &message);
    if let Ok(range) = HeaderValue::from_str(&unsatisfied_range(size)) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_target() {
        let digest = Digest::sha256(b"x");
        assert!(matches!(target("/v2/"), Ok(Target::Ping)));
        assert!(matches!(target("/v2"), Ok(Target::Ping)));
        assert!(matches!(
            target("/v2/a/b/manifests/v1"),
            Ok(Target::Manifest(name, Reference::Tag(_))) if name.as_str() == "a/b"
        ));
        assert!(matches!(
            target(&format!("/v2/manifests/blobs/{digest}")),
            Ok(Target::Blob(name, found)) if name.as_str() == "manifests" && found == digest
        ));
        assert!(matches!(
            target("/v2/a/blobs/sha256:zz"),
            Err((Subject::Blob, Failure::Invalid(_)))
        ));
        assert!(matches!(
            target("/v2/A/manifests/v1"),
            Err((Subject::Manifest, Failure::Invalid(_)))
        ));
        assert!(matches!(target("/v3/"), Err((_, Failure::Unknown(_)))));
        assert!(matches!(
            target("/v2/_catalog"),
            Err((_, Failure::Unknown(_)))
        ));
    }
}

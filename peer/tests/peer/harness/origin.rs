//! A minimal origin with one sealed image, `app:v1`, and switches for failures.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, Response, StatusCode, header};
use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::hash_tree::TreeHasher;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::name::PeerId;
use flotilla_common::proof::Proof;
use flotilla_common::seal::{BlobFacts, SealKey};
use flotilla_common::wire::origin::{CLOSURE_PATH, ClosureAnswer};
use flotilla_runtime::http;
use flotilla_runtime::identity::{ClientAuth, Identity};
use flotilla_runtime::shutdown::Shutdown;
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) struct FakeOrigin {
    url: String,
    key: SealKey,
    manifest: Mutex<Bytes>,
    /// The blobs in the order of the manifest.
    order: Mutex<Vec<Digest>>,
    pub blobs: Mutex<HashMap<Digest, Bytes>>,
    pub proofs: Mutex<HashMap<Digest, Proof>>,
    /// Bytes of blobs sent.
    sent: AtomicU64,
    /// Requests received: method, path and range.
    pub requests: Mutex<Vec<String>>,
    /// Answers 503 to requests for blobs and readiness.
    pub are_blobs_unavailable: AtomicBool,
    /// Answers 503 to all requests.
    pub is_unavailable: AtomicBool,
    /// Accepts requests and never answers them, as a stopped process does.
    pub is_stopped: AtomicBool,
    /// Answers 403 to all requests except probes.
    pub is_forbidding: AtomicBool,
    /// Accepts requests for blobs and never answers them.
    pub is_hanging: AtomicBool,
    /// Answers 404 to requests for closures, as registries of other vendors do.
    pub is_without_seals: AtomicBool,
    /// Answers 404 to requests for tags.
    pub is_untagged: AtomicBool,
    /// Answers 503 to ranges that begin at or after this offset.
    pub unavailable_from: AtomicU64,
    /// Aborts bodies at this offset.
    pub aborts_at: AtomicU64,
    /// Stalls bodies at this offset until it changes.
    pub stalls_at: watch::Sender<u64>,
    /// Makes the grants for peers that have shown a certificate. `None`: no grants.
    pub grants: Mutex<Option<GrantSource>>,
    /// Answers 503 to so many further requests for closures.
    pub failing_closures: AtomicU64,
    /// Answers requests for closures so many milliseconds late.
    pub closure_delay_ms: AtomicU64,
    /// Cuts the bodies of so many further manifests.
    pub cut_manifests: AtomicU64,
    /// Requests for closures received.
    pub closure_requests: AtomicU64,
}

/// Makes a grant from the signing key, the peer and the digests of a closure.
pub(crate) type GrantSource =
    Box<dyn Fn(&SealKey, PeerId, Vec<Digest>) -> Option<Grant> + Send + Sync>;

/// Bytes of a body that are sent at once.
const PIECE: u64 = 64 << 10;

impl FakeOrigin {
    /// Starts the origin: with HTTPS if it has an identity, otherwise with HTTP.
    pub(crate) async fn start(
        key: SealKey,
        identity: Option<Identity>,
        shutdown: &Shutdown,
    ) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if identity.is_some() { "https" } else { "http" };
        let tls = identity.map(|identity| identity.https_server(ClientAuth::Optional).unwrap());
        let origin = Arc::new(Self {
            url: format!("{scheme}://{}", listener.local_addr().unwrap()),
            key,
            manifest: Mutex::default(),
            order: Mutex::default(),
            blobs: Mutex::default(),
            proofs: Mutex::default(),
            sent: AtomicU64::new(0),
            requests: Mutex::default(),
            are_blobs_unavailable: AtomicBool::new(false),
            is_unavailable: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            is_forbidding: AtomicBool::new(false),
            is_hanging: AtomicBool::new(false),
            is_without_seals: AtomicBool::new(false),
            is_untagged: AtomicBool::new(false),
            unavailable_from: AtomicU64::new(u64::MAX),
            aborts_at: AtomicU64::new(u64::MAX),
            stalls_at: watch::Sender::new(u64::MAX),
            grants: Mutex::default(),
            failing_closures: AtomicU64::new(0),
            closure_delay_ms: AtomicU64::new(0),
            cut_manifests: AtomicU64::new(0),
            closure_requests: AtomicU64::new(0),
        });
        let router = Router::new()
            .fallback(serve)
            .with_state(Arc::clone(&origin));
        http::serve(listener, router, tls, shutdown).unwrap();
        origin
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Replaces `app:v1`: the first blob is the configuration, the others are layers. Returns the
    /// digest of the manifest.
    pub(crate) fn push(&self, blobs: &[Bytes]) -> Digest {
        let descriptor = |bytes: &Bytes| serde_json::json!({"mediaType": "application/x", "digest": Digest::sha256(bytes), "size": bytes.len()});
        for bytes in blobs {
            let digest = Digest::sha256(bytes);
            self.proofs.lock().unwrap().insert(digest, self.seal(bytes));
            self.blobs.lock().unwrap().insert(digest, bytes.clone());
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(&blobs[0]),
            "layers": blobs[1..].iter().map(descriptor).collect::<Vec<_>>(),
        });
        let manifest = Bytes::from(manifest.to_string());
        *self.manifest.lock().unwrap() = manifest.clone();
        *self.order.lock().unwrap() = blobs.iter().map(|bytes| Digest::sha256(bytes)).collect();
        Digest::sha256(&manifest)
    }

    /// The manifest of `app:v1`.
    pub(crate) fn manifest_bytes(&self) -> Bytes {
        self.manifest.lock().unwrap().clone()
    }

    /// Adds a blob that is part of no image.
    pub(crate) fn add_blob(&self, bytes: &Bytes) {
        let digest = Digest::sha256(bytes);
        self.blobs.lock().unwrap().insert(digest, bytes.clone());
    }

    fn seal(&self, bytes: &[u8]) -> Proof {
        self.seal_with_digest(Digest::sha256(bytes), bytes)
    }

    /// Seals the tree of `bytes` under `digest`, which may be a wrong one.
    pub(crate) fn seal_with_digest(&self, digest: Digest, bytes: &[u8]) -> Proof {
        let mut hasher = TreeHasher::new();
        hasher.update(bytes);
        let tree = hasher.finish();
        let facts = BlobFacts {
            digest,
            size: tree.geometry.size(),
            chunk_log2: tree.geometry.chunk_log2(),
            root: tree.root,
        };
        Proof::Sealed {
            seal: self.key.seal(facts),
            table: tree.table,
        }
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn closure(&self, client: Option<PeerId>) -> Response<Body> {
        self.closure_requests.fetch_add(1, Ordering::Relaxed);
        let one_less = |left: u64| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let failing = self.failing_closures.fetch_update(set, fetch, one_less);
        if failing.is_ok() {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        if self.is_without_seals.load(Ordering::Relaxed) {
            return status(StatusCode::NOT_FOUND);
        }
        let proofs = self.proofs.lock().unwrap();
        let order = self.order.lock().unwrap().clone();
        let proofs = order.iter().map(|digest| proofs[digest].clone()).collect();
        let digests = std::iter::once(Digest::sha256(&self.manifest.lock().unwrap()))
            .chain(order)
            .collect();
        let grants = self.grants.lock().unwrap();
        let grant = client
            .zip(grants.as_ref())
            .and_then(|(peer, grant)| grant(&self.key, peer, digests));
        Response::new(Body::from(
            codec::encode(&ClosureAnswer { proofs, grant }).unwrap(),
        ))
    }

    fn manifest(&self, reference: &str) -> Response<Body> {
        let manifest = self.manifest.lock().unwrap().clone();
        let is_tag = reference == "v1" && !self.is_untagged.load(Ordering::Relaxed);
        if !is_tag && reference != Digest::sha256(&manifest).to_string() {
            return status(StatusCode::NOT_FOUND);
        }
        let one_less = |left: u64| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let is_cut = self
            .cut_manifests
            .fetch_update(set, fetch, one_less)
            .is_ok();
        let length = manifest.len();
        let body = if is_cut {
            let cut = io::Error::other("the test cuts the body");
            Body::from_stream(stream::iter([Ok(manifest.slice(..length / 2)), Err(cut)]))
        } else {
            Body::from(manifest)
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, OCI_MANIFEST.parse().unwrap());
        response
    }

    fn blob(self: &Arc<Self>, digest: &str, request: &Request) -> Response<Body> {
        if self.are_blobs_unavailable.load(Ordering::Relaxed) {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        let blob = digest
            .parse()
            .ok()
            .and_then(|digest: Digest| self.blobs.lock().unwrap().get(&digest).cloned());
        let Some(blob) = blob else {
            return status(StatusCode::NOT_FOUND);
        };
        if request.method() == Method::HEAD {
            let mut response = Response::new(Body::empty());
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, blob.len().into());
            return response;
        }
        let size = blob.len() as u64;
        let Some(range) = range_of(request) else {
            return self.body(blob, 0..size);
        };
        let part = match range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap()
        {
            ("", last) => size.saturating_sub(last.parse().unwrap())..size,
            (first, "") => first.parse().unwrap()..size,
            (first, last) => first.parse().unwrap()..size.min(last.parse::<u64>().unwrap() + 1),
        };
        if part.start >= self.unavailable_from.load(Ordering::Relaxed) {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        if part.start >= size {
            let mut response = status(StatusCode::RANGE_NOT_SATISFIABLE);
            let range = format!("bytes */{size}").parse().unwrap();
            response.headers_mut().insert(header::CONTENT_RANGE, range);
            return response;
        }
        let range = format!("bytes {}-{}/{size}", part.start, part.end - 1)
            .parse()
            .unwrap();
        let mut response = self.body(blob, part);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        response.headers_mut().insert(header::CONTENT_RANGE, range);
        response
    }

    fn body(self: &Arc<Self>, blob: Bytes, part: Range<u64>) -> Response<Body> {
        let length = part.end - part.start;
        let pieces = stream::try_unfold((Arc::clone(self), part), move |(origin, mut rest)| {
            let blob = blob.clone();
            async move {
                if rest.is_empty() {
                    return Ok(None);
                }
                if rest.start >= origin.aborts_at.load(Ordering::Relaxed) {
                    return Err(io::Error::other("the test aborts the body"));
                }
                let offset = rest.start;
                origin
                    .stalls_at
                    .subscribe()
                    .wait_for(|stall| offset < *stall)
                    .await
                    .unwrap();
                let limit =
                    (*origin.stalls_at.borrow()).min(origin.aborts_at.load(Ordering::Relaxed));
                let end = (offset + PIECE).min(rest.end).min(limit);
                origin.sent.fetch_add(end - offset, Ordering::Relaxed);
                rest.start = end;
                Ok(Some((
                    blob.slice(offset as usize..end as usize),
                    (origin, rest),
                )))
            }
        });
        let mut response = Response::new(Body::from_stream(pieces));
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
        response
    }
}

fn range_of(request: &Request) -> Option<&str> {
    request
        .headers()
        .get(header::RANGE)
        .map(|range| range.to_str().unwrap())
}

async fn serve(State(origin): State<Arc<FakeOrigin>>, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let received = format!(
        "{} {path} {}",
        request.method(),
        range_of(&request).unwrap_or_default()
    );
    origin
        .requests
        .lock()
        .unwrap()
        .push(received.trim_end().to_owned());
    if origin.is_stopped.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    if origin.is_unavailable.load(Ordering::Relaxed) {
        return status(StatusCode::SERVICE_UNAVAILABLE);
    }
    if origin.is_forbidding.load(Ordering::Relaxed) && path != "/readyz" {
        return status(StatusCode::FORBIDDEN);
    }
    if origin.is_hanging.load(Ordering::Relaxed) && path.contains("/blobs/") {
        std::future::pending::<()>().await;
    }
    if path == "/readyz" && origin.are_blobs_unavailable.load(Ordering::Relaxed) {
        return status(StatusCode::SERVICE_UNAVAILABLE);
    }
    if path == CLOSURE_PATH {
        let delay = origin.closure_delay_ms.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let client = request.extensions().get::<http::ClientIdentity>();
        return origin.closure(client.and_then(|client| client.peer().cloned()));
    }
    match path
        .strip_prefix("/v2/app/")
        .and_then(|rest| rest.split_once('/'))
    {
        Some(("manifests", reference)) => origin.manifest(reference),
        Some(("blobs", digest)) => origin.blob(digest, &request),
        _ => status(StatusCode::NOT_FOUND),
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(
        r#"{"errors":[{"code":"FAKE","message":"refused by the test origin"}]}"#,
    ));
    *response.status_mut() = status;
    response
}

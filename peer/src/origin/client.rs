//! The client of all origins: which origin is asked, and what is known of each.
//!
//! Origins are tried in the configured order, those of the peer's own region first; an origin that
//! failed is tried last for a short time.

use core::time::Duration;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{ACCEPT, MAX_MANIFEST_LEN};
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_common::reachability::Reachability;
use flotilla_common::swarm::OriginSlot;
use flotilla_common::time::Time;
use flotilla_common::wire::origin::{CLOSURE_PATH, ClosureAnswer, ClosureRequest};
use flotilla_runtime::clock::Clock;
use reqwest::header::{ACCEPT as ACCEPT_HEADER, CONTENT_TYPE};
use reqwest::{Client, Method};
use tokio::sync::{Notify, mpsc};

use super::error::OriginError;
use super::request::{header, read_body, send};
use crate::status::OriginStatus;

/// How long a failed origin is tried last.
const DEMOTION: Duration = Duration::from_secs(2);

/// A manifest from an origin, checked against its digest.
#[derive(Debug, Clone)]
pub(crate) struct FetchedManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// Whether an origin answered a request other than the download of a chunk; for the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OriginHealthReport {
    pub(crate) origin: OriginSlot,
    pub(crate) is_up: bool,
}

/// A client of all configured origins. Clones share their state.
#[derive(Debug, Clone)]
pub(crate) struct OriginClient(pub(super) Arc<ClientState>);

#[derive(Debug)]
pub(super) struct ClientState {
    client: Client,
    pub(super) clock: Clock,
    pub(super) entries: Vec<OriginEntry>,
    health: mpsc::Sender<OriginHealthReport>,
    /// Notified when a request to an origin fails, for the probes.
    pub(super) failed: Notify,
}

#[derive(Debug)]
pub(super) struct OriginEntry {
    /// Without a trailing slash.
    url: String,
    /// The time until which the origin is tried last, in nanoseconds of the clock.
    demoted_until: AtomicU64,
    /// For status, metrics and probes.
    pub(super) reachability: Mutex<Reachability>,
}

impl OriginClient {
    /// A client of the origins at `urls`, in the order of preference. Each URL has the scheme
    /// `http` or `https` and a host.
    pub(crate) fn new(
        client: Client,
        urls: &[String],
        clock: Clock,
        health: mpsc::Sender<OriginHealthReport>,
    ) -> Self {
        let entry = |url: &String| OriginEntry {
            url: url.trim_end_matches('/').to_owned(),
            demoted_until: AtomicU64::new(0),
            reachability: Mutex::default(),
        };
        Self(Arc::new(ClientState {
            client,
            clock,
            entries: urls.iter().map(entry).collect(),
            health,
            failed: Notify::new(),
        }))
    }

    /// The manifest of a reference, from the first origin that has it.
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, OriginError> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.try_each(|origin| {
            let path = &path;
            async move {
                let request = self
                    .request(Method::GET, origin, path)
                    .header(ACCEPT_HEADER, ACCEPT);
                let response = send(request).await?;
                let media_type = header(&response, CONTENT_TYPE.as_str()).unwrap_or_default();
                let bytes = read_body(response, MAX_MANIFEST_LEN).await?;
                let digest = match reference {
                    Reference::Digest(digest) if digest.matches(&bytes) => *digest,
                    Reference::Digest(_) => {
                        return Err(OriginError::Unavailable(
                            "manifest does not match the requested digest".to_owned(),
                        ));
                    }
                    Reference::Tag(_) => Digest::sha256(&bytes),
                };
                Ok(FetchedManifest {
                    digest,
                    media_type,
                    bytes,
                })
            }
        })
        .await
    }

    /// The proofs of all blobs of a manifest; `None` if the origin is another kind of registry.
    pub(crate) async fn closure(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
    ) -> Result<Option<ClosureAnswer>, OriginError> {
        let request = ClosureRequest {
            repository: repository.clone(),
            manifest: *manifest,
        };
        let encoded =
            codec::encode(&request).map_err(|error| OriginError::Refused(error.to_string()))?;
        let body = Bytes::from(encoded);
        let answer = self
            .try_each(|origin| {
                let request = self
                    .request(Method::POST, origin, CLOSURE_PATH)
                    .body(body.clone());
                async move {
                    let bytes = read_body(send(request).await?, codec::MAX_LEN).await?;
                    codec::decode(&bytes)
                        .map_err(|error| OriginError::Unavailable(error.to_string()))
                }
            })
            .await;
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(OriginError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks one origin after another until one serves the content. If an origin does not have it,
    /// the next one is asked too, because replication between regions takes time.
    pub(super) async fn try_each<T, F: Future<Output = Result<T, OriginError>>>(
        &self,
        ask: impl Fn(OriginSlot) -> F,
    ) -> Result<T, OriginError> {
        let mut refused = Vec::new();
        let mut failed = Vec::new();
        for origin in self.in_order() {
            match ask(origin).await {
                Ok(answer) => {
                    self.record_and_report(origin, None);
                    return Ok(answer);
                }
                Err(error @ OriginError::Unsatisfiable(_)) => {
                    self.record_and_report(origin, None);
                    return Err(error);
                }
                Err(OriginError::Refused(message)) => {
                    self.record_and_report(origin, None);
                    refused.push(self.with_url(origin, &message));
                }
                Err(error) => {
                    self.record_and_report(origin, Some(error.to_string()));
                    tracing::warn!(origin = self.url(origin), %error, "request to an origin failed; trying the next one");
                    failed.push(self.with_url(origin, &error.to_string()));
                }
            }
        }
        Err(match (refused.is_empty(), failed.is_empty()) {
            (true, true) => OriginError::None,
            (false, true) => OriginError::Refused(refused.join("; ")),
            (true, false) => OriginError::Unavailable(failed.join("; ")),
            // A failed origin may have the content. Only an error that is not `Refused` tells the
            // runtime that a later attempt may succeed.
            (false, false) => {
                OriginError::Unsure(format!("{}; {}", failed.join("; "), refused.join("; ")))
            }
        })
    }

    /// All origins in the configured order, but those that failed a short time ago last.
    fn in_order(&self) -> Vec<OriginSlot> {
        let now = self.0.clock.now().as_nanos();
        let is_demoted = |slot: &OriginSlot| {
            let entry = &self.0.entries[slot.0 as usize];
            entry.demoted_until.load(Ordering::Relaxed) > now
        };
        let mut slots: Vec<_> = (0..self.0.entries.len() as u32).map(OriginSlot).collect();
        slots.sort_by_key(is_demoted);
        slots
    }

    /// Records the outcome of a request, and reports it to the state machine.
    fn record_and_report(&self, origin: OriginSlot, error: Option<String>) {
        let is_up = error.is_none();
        let demoted_until = if is_up {
            Time::ZERO
        } else {
            self.0.clock.now() + DEMOTION
        };
        self.record(origin, error);
        if let Some(entry) = self.0.entries.get(origin.0 as usize) {
            let nanos = demoted_until.as_nanos();
            entry.demoted_until.store(nanos, Ordering::Relaxed);
        }
        // While the driver's queue is full, reports are dropped; a later request makes another.
        let report = OriginHealthReport { origin, is_up };
        let _ = self.0.health.try_send(report);
    }

    /// Records the outcome of a request: the error, if it failed.
    pub(crate) fn record(&self, origin: OriginSlot, error: Option<String>) {
        let Some(entry) = self.0.entries.get(origin.0 as usize) else {
            return;
        };
        let mut reachability = lock(&entry.reachability);
        match error {
            None if reachability.answered() => {
                tracing::info!(origin = entry.url, "origin is reachable again");
            }
            None => {}
            Some(error) => {
                reachability.failed(self.0.clock.now(), error, &mut rand::rng());
                self.0.failed.notify_one();
            }
        }
    }

    /// The status of each origin.
    pub(crate) fn status(&self) -> Vec<OriginStatus> {
        let status = |origin: &OriginEntry| {
            let reachability = lock(&origin.reachability);
            OriginStatus {
                url: origin.url.clone(),
                is_answering: reachability.is_answering(),
                trouble: reachability.error().map(str::to_owned),
            }
        };
        self.0.entries.iter().map(status).collect()
    }

    /// A request to an origin; `path` begins with a slash.
    pub(super) fn request(
        &self,
        method: Method,
        origin: OriginSlot,
        path: &str,
    ) -> reqwest::RequestBuilder {
        self.0
            .client
            .request(method, format!("{}{path}", self.url(origin)))
    }

    /// The URL of an origin.
    pub(crate) fn url(&self, origin: OriginSlot) -> &str {
        self.0
            .entries
            .get(origin.0 as usize)
            .map_or("", |origin| &origin.url)
    }

    fn with_url(&self, origin: OriginSlot, message: &str) -> String {
        format!("origin {}: {message}", self.url(origin))
    }
}

pub(super) fn lock(reachability: &Mutex<Reachability>) -> MutexGuard<'_, Reachability> {
    reachability.lock().unwrap_or_else(PoisonError::into_inner)
}

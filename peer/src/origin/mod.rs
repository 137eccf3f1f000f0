//! The client of the origins: manifests, closures, chunks, and whole blobs to pass through.
//!
//! Origins are tried in configured order, the own region's first; one that just failed goes to the
//! end for a moment. One that does not answer is probed until it does. Which origin serves a
//! *chunk* is not decided here but by the machine, which hears how each request went. Every wait
//! has a bound: on the connection, on the answer's head, and on progress.

mod blob;
mod chunk;
mod client;
mod probe;
mod whole;

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
use reqwest::{Client, Method, Response, StatusCode};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

pub(crate) use blob::OpenBlob;
pub(crate) use chunk::{OriginFetchError, fetch_chunk};
pub(crate) use client::http_client;

use crate::status::OriginStatus;

/// From the request to the head of the answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For the whole of a manifest or a closure.
const SMALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an origin that failed is asked last.
const REST: Duration = Duration::from_secs(2);
/// Bytes of an error body that are read for its message.
const MAX_ERROR_LEN: usize = 4096;

/// Why an origin did not give what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OriginError {
    /// It says that it does not have it, or that nobody may have it.
    #[error("{0}")]
    Refused(String),
    /// It does not answer, or cannot serve now. Of all origins together: none of them does.
    #[error("{0}")]
    Unavailable(String),
    /// Of all origins together: some do not have it, and the others cannot be asked now.
    #[error("{0}")]
    Unsure(String),
    /// The range that was asked for begins behind the end of the bytes, which are this many.
    #[error("the range begins behind the end, at {0} bytes")]
    Unsatisfiable(u64),
    /// There is no origin.
    #[error("no origin is configured")]
    None,
}

/// A manifest as an origin sent it, its digest checked.
#[derive(Debug, Clone)]
pub(crate) struct FetchedManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// What an origin's health turned out to be outside of a chunk's fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) origin: OriginSlot,
    pub(crate) is_up: bool,
}

/// All configured origins. Clones share what they know.
#[derive(Debug, Clone)]
pub(crate) struct Origins(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    clock: Clock,
    origins: Vec<Origin>,
    sightings: mpsc::Sender<Sighting>,
    /// An origin fell silent: it is to be probed.
    silent: Notify,
}

#[derive(Debug)]
struct Origin {
    /// Without a slash at its end.
    url: String,
    /// Nanoseconds of the clock at which its rest ends.
    rests_until: AtomicU64,
    /// What is known of it.
    reachability: Mutex<Reachability>,
}

impl Origins {
    /// A client of `urls`, in order; each `http://` or `https://` with a host.
    pub(crate) fn new(
        client: Client,
        urls: &[String],
        clock: Clock,
        sightings: mpsc::Sender<Sighting>,
    ) -> Self {
        let origin = |url: &String| Origin {
            url: url.trim_end_matches('/').to_owned(),
            rests_until: AtomicU64::new(0),
            reachability: Mutex::default(),
        };
        let origins = urls.iter().map(origin).collect();
        Self(Arc::new(Inner {
            client,
            clock,
            origins,
            sightings,
            silent: Notify::new(),
        }))
    }

    /// The manifest under a reference, from the first origin that has it.
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, OriginError> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.first(|origin| {
            let path = &path;
            async move {
                let request = self
                    .request(Method::GET, origin, path)
                    .header(ACCEPT_HEADER, ACCEPT);
                let response = send(request).await?;
                let media_type = header(&response, CONTENT_TYPE.as_str()).unwrap_or_default();
                let bytes = whole(response, MAX_MANIFEST_LEN).await?;
                let digest = match reference {
                    Reference::Digest(digest) if digest.matches(&bytes) => *digest,
                    Reference::Digest(_) => {
                        return Err(OriginError::Unavailable(
                            "sent bytes of another digest".to_owned(),
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

    /// The proofs of all blobs of a manifest; `None` from an upstream that is no Flotilla.
    pub(crate) async fn closure(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
    ) -> Result<Option<ClosureAnswer>, OriginError> {
        let question = ClosureRequest {
            repository: repository.clone(),
            manifest: *manifest,
        };
        let question = Bytes::from(
            codec::encode(&question).map_err(|error| OriginError::Refused(error.to_string()))?,
        );
        let answer = self
            .first(|origin| {
                let request = self
                    .request(Method::POST, origin, CLOSURE_PATH)
                    .body(question.clone());
                async move {
                    let bytes = whole(send(request).await?, codec::MAX_LEN).await?;
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

    /// Asks one origin after the other until one serves. An origin that refuses does not keep the
    /// next one from being asked: a region may lag behind.
    async fn first<T, F: Future<Output = Result<T, OriginError>>>(
        &self,
        ask: impl Fn(OriginSlot) -> F,
    ) -> Result<T, OriginError> {
        let (mut refused, mut failed) = (Vec::new(), Vec::new());
        for origin in self.in_order() {
            match ask(origin).await {
                Ok(answer) => {
                    self.saw(origin, None);
                    return Ok(answer);
                }
                Err(error @ OriginError::Unsatisfiable(_)) => {
                    self.saw(origin, None);
                    return Err(error);
                }
                Err(OriginError::Refused(message)) => {
                    self.saw(origin, None);
                    refused.push(self.told_by(origin, &message));
                }
                Err(error) => {
                    self.saw(origin, Some(error.to_string()));
                    tracing::warn!(origin = self.url(origin), %error, "ask origin");
                    failed.push(self.told_by(origin, &error.to_string()));
                }
            }
        }
        Err(match (refused.is_empty(), failed.is_empty()) {
            (true, true) => OriginError::None,
            (false, true) => OriginError::Refused(refused.join("; ")),
            (true, false) => OriginError::Unavailable(failed.join("; ")),
            // One that was not asked may have it: only "is down" tells the runtime that a later
            // attempt may succeed.
            (false, false) => {
                OriginError::Unsure(format!("{}; {}", failed.join("; "), refused.join("; ")))
            }
        })
    }

    fn in_order(&self) -> Vec<OriginSlot> {
        let now = self.0.clock.now().as_nanos();
        let rests = |slot: &OriginSlot| {
            self.0.origins[slot.0 as usize]
                .rests_until
                .load(Ordering::Relaxed)
                > now
        };
        let mut slots: Vec<_> = (0..self.0.origins.len() as u32).map(OriginSlot).collect();
        slots.sort_by_key(rests);
        slots
    }

    fn saw(&self, origin: OriginSlot, trouble: Option<String>) {
        let is_up = trouble.is_none();
        let rests_until = if is_up {
            Time::ZERO
        } else {
            self.0.clock.now() + REST
        };
        self.heard(origin, trouble);
        if let Some(origin) = self.0.origins.get(origin.0 as usize) {
            origin
                .rests_until
                .store(rests_until.as_nanos(), Ordering::Relaxed);
        }
        // A machine that is busy learns it the next time.
        let _ = self.0.sightings.try_send(Sighting { origin, is_up });
    }

    /// How a request went: what went wrong, if anything did.
    pub(crate) fn heard(&self, origin: OriginSlot, trouble: Option<String>) {
        let Some(Origin {
            url, reachability, ..
        }) = self.0.origins.get(origin.0 as usize)
        else {
            return;
        };
        match trouble {
            None if lock(reachability).answered() => {
                tracing::info!(origin = url, "origin answers again")
            }
            None => {}
            Some(trouble) => {
                lock(reachability).failed(self.0.clock.now(), trouble, &mut rand::rng());
                self.0.silent.notify_one();
            }
        }
    }

    /// Each origin, and what is known of it.
    pub(crate) fn status(&self) -> Vec<OriginStatus> {
        let status = |origin: &Origin| {
            let reachability = lock(&origin.reachability);
            OriginStatus {
                url: origin.url.clone(),
                is_answering: reachability.is_answering(),
                trouble: reachability.trouble().map(str::to_owned),
            }
        };
        self.0.origins.iter().map(status).collect()
    }

    fn request(&self, method: Method, origin: OriginSlot, path: &str) -> reqwest::RequestBuilder {
        self.0
            .client
            .request(method, format!("{}{path}", self.url(origin)))
    }

    pub(crate) fn url(&self, origin: OriginSlot) -> &str {
        self.0
            .origins
            .get(origin.0 as usize)
            .map_or("", |origin| &origin.url)
    }

    fn told_by(&self, origin: OriginSlot, message: &str) -> String {
        format!("origin {}: {message}", self.url(origin))
    }
}

fn lock(reachability: &Mutex<Reachability>) -> MutexGuard<'_, Reachability> {
    reachability.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a request and reads the head of its answer.
async fn send(request: reqwest::RequestBuilder) -> Result<Response, OriginError> {
    let response = timeout(HEAD_TIMEOUT, request.send())
        .await
        .map_err(|_| OriginError::Unavailable(format!("no answer within {HEAD_TIMEOUT:?}")))?
        .map_err(|error| OriginError::Unavailable(client::explain(&error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE
        && let Some(size) = blob::size_of_unsatisfied(&response)
    {
        return Err(OriginError::Unsatisfiable(size));
    }
    let message = match whole(response, MAX_ERROR_LEN).await {
        Ok(body) => client::error_message(&body),
        Err(_) => None,
    };
    let message = message.map_or_else(
        || status.to_string(),
        |message| format!("{status}: {message}"),
    );
    // Whoever is asked too often, or too early, may be asked again; every other 4xx is an answer.
    let may_pass = status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || !status.is_client_error();
    Err(if may_pass {
        OriginError::Unavailable(message)
    } else {
        OriginError::Refused(message)
    })
}

/// A body of at most `limit` bytes.
async fn whole(mut response: Response, limit: usize) -> Result<Bytes, OriginError> {
    let read = async {
        let mut body = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| OriginError::Unavailable(client::explain(&error)))?
        {
            if body.len() + piece.len() > limit {
                return Err(OriginError::Unavailable(format!(
                    "sent more than {limit} bytes"
                )));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Bytes::from(body))
    };
    timeout(SMALL_TIMEOUT, read).await.map_err(|_| {
        OriginError::Unavailable(format!("sent no whole body within {SMALL_TIMEOUT:?}"))
    })?
}

fn header(response: &Response, name: &str) -> Option<String> {
    response
        .headers()
        .get(name)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

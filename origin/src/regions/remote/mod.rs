//! Another region over HTTPS.
//!
//! Its answers are bounded and checked here, so that callers see a value or a [`SourceError`]:
//! lengths, encodings, the name of the region, the digests of manifests, the ranges of blobs.

pub(crate) mod client;

use core::time::Duration;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use bincode::{Decode, Encode};
use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{
    DONE_PATH, DoneRequest, EntryId, FACTS_LEN, FACTS_PATH, Fact, FactHead, FactKey, FactKind,
    FactsRequest, JOURNAL_PATH, JournalPage, JournalRequest, KEYS_PATH, KeysPage, KeysRequest,
    MAX_ENTRIES, MAX_FACTS, MAX_KEYS, RegionState, STATE_PATH, TAKE_PATH, TakeAnswer, TakeRequest,
    decode_facts,
};
use flotilla_runtime::error_text::explain;
use flotilla_runtime::http::range::parse_content_range;
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use reqwest::Response;
use serde_json::json;
use tokio::sync::Semaphore;

use super::source::{Source, SourceBlob, SourceError};
use super::take::MAX_TAKE_WAIT;

pub(crate) use client::RegionClient;

/// The timeout for the head of an answer that needs few reads.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout for answers that may need thousands of reads or deletes: a full page of entries.
const ENTRIES_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of clients that one replica sends to a region at once. Each has a connection, of which
/// the other region's own clients need most.
const REQUESTS_AT_ONCE: usize = 1024;
/// The maximum length of an answer of facts in bytes: the heads, and the bytes of manifests, of
/// which one alone may be longer than [`FACTS_LEN`].
const MAX_FACTS_LEN: usize = codec::MAX_LEN + 2 * FACTS_LEN;

/// The origin of another region.
#[derive(Clone, Debug)]
pub(crate) struct RemoteSource {
    client: RegionClient,
    /// Requests of clients, until the last byte of their answers.
    requests: Arc<Semaphore>,
}

impl RemoteSource {
    pub(crate) fn new(client: RegionClient) -> Self {
        Self {
            client,
            requests: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)),
        }
    }

    /// Posts a request; returns the body of the answer.
    async fn post(
        &self,
        path: &str,
        request: &(impl Encode + Sync),
        limit: usize,
        head_timeout: Duration,
    ) -> Result<Bytes, SourceError> {
        let body = codec::encode(request).map_err(|error| self.client.error(error))?;
        let client = &self.client;
        let asked = client.ask(Method::POST, path, HeaderMap::new(), body, head_timeout);
        client.body_of(asked.await?, limit).await
    }

    fn decode<T: Decode<()>>(&self, body: &[u8]) -> Result<T, SourceError> {
        codec::decode(body).map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, reason: impl core::fmt::Display) -> SourceError {
        let text = format_args!("its answer cannot be used: {reason}");
        self.client.error(text)
    }

    /// Checks that values answer the keys that were asked for.
    fn check_facts(&self, keys: &[FactKey], facts: &[Fact]) -> Result<(), SourceError> {
        if facts.len() > keys.len() || (facts.is_empty() && !keys.is_empty()) {
            let reason = format_args!("{} values for {} keys", facts.len(), keys.len());
            return Err(self.unreadable(reason));
        }
        match keys.iter().zip(facts).find(|(key, fact)| !fits(key, fact)) {
            Some((key, fact)) => {
                Err(self.unreadable(format_args!("{:?} is no value of {key:?}", fact.head)))
            }
            None => Ok(()),
        }
    }

    /// The size of the blob that an answer is about, and whether the answer begins at `offset`.
    fn blob_size(&self, response: &Response, offset: u64) -> Result<u64, SourceError> {
        match response.status() {
            StatusCode::OK if offset == 0 => response
                .content_length()
                .ok_or_else(|| self.unreadable("a blob without Content-Length")),
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE);
                let range = range.and_then(|value| parse_content_range(value.to_str().ok()?));
                match range {
                    Some((range, size)) if range.start == offset && range.end == size => Ok(size),
                    _ => Err(self.unreadable("another range of the blob than was asked for")),
                }
            }
            _ => Err(self.unreadable("the whole blob instead of a range")),
        }
    }
}

/// Whether a value can be one of this key. The bytes of a manifest must have its digest.
fn fits(key: &FactKey, fact: &Fact) -> bool {
    match (key, &fact.head) {
        (_, FactHead::Absent)
        | (FactKey::Manifest(..), FactHead::Evicted { .. } | FactHead::DeletedManifest { .. })
        | (FactKey::Tag(..), FactHead::Tag { .. }) => true,
        (FactKey::Manifest(_, digest), FactHead::Manifest { .. }) => digest.matches(&fact.bytes),
        (FactKey::Manifest(..), FactHead::Tag { .. }) | (FactKey::Tag(..), _) => false,
    }
}

#[async_trait]
impl Source for RemoteSource {
    fn region(&self) -> &RegionName {
        self.client.region()
    }

    async fn state(&self) -> Result<RegionState, SourceError> {
        let client = &self.client;
        let (headers, body) = (HeaderMap::new(), Vec::new());
        let asked = client.ask(Method::GET, STATE_PATH, headers, body, HEAD_TIMEOUT);
        let body = client.body_of(asked.await?, codec::MAX_LEN).await?;
        let state: RegionState = self.decode(&body)?;
        if state.region == *self.region() {
            return Ok(state);
        }
        let found = &state.region;
        Err(client.error(format_args!(
            "its url leads to region {found}: correct the policy"
        )))
    }

    async fn journal(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, SourceError> {
        let limit = u32::try_from(limit.min(MAX_ENTRIES)).unwrap_or(u32::MAX);
        let request = JournalRequest { after, limit };
        let asked = self.post(JOURNAL_PATH, &request, codec::MAX_LEN, ENTRIES_TIMEOUT);
        self.decode(&asked.await?)
    }

    async fn done(&self, entries: Vec<EntryId>, sweep: Option<u128>) -> Result<(), SourceError> {
        let mut rest = &entries[..];
        loop {
            let (now, later) = rest.split_at(rest.len().min(MAX_ENTRIES));
            rest = later;
            let request = DoneRequest {
                entries: now.to_vec(),
                // A sweep has ended only once everything before it is dropped.
                sweep: sweep.filter(|_| rest.is_empty()),
            };
            self.post(DONE_PATH, &request, 0, ENTRIES_TIMEOUT).await?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
        let keys = &keys[..keys.len().min(MAX_FACTS)];
        let request = FactsRequest {
            keys: keys.to_vec(),
        };
        let asked = self.post(FACTS_PATH, &request, MAX_FACTS_LEN, HEAD_TIMEOUT);
        let facts = decode_facts(&asked.await?).map_err(|error| self.unreadable(error))?;
        self.check_facts(keys, &facts)?;
        Ok(facts)
    }

    async fn keys(
        &self,
        kind: FactKind,
        after: Option<&FactKey>,
        limit: usize,
    ) -> Result<KeysPage, SourceError> {
        let request = KeysRequest {
            kind,
            after: after.cloned(),
            limit: u32::try_from(limit.min(MAX_KEYS)).unwrap_or(u32::MAX),
        };
        let asked = self.post(KEYS_PATH, &request, codec::MAX_LEN, HEAD_TIMEOUT);
        self.decode(&asked.await?)
    }

    /// With `wait` the caller bounds the wait by the bytes that are to be copied.
    async fn take(&self, request: TakeRequest) -> Result<TakeAnswer, SourceError> {
        let head_timeout = match request.wait {
            true => MAX_TAKE_WAIT + HEAD_TIMEOUT,
            false => HEAD_TIMEOUT,
        };
        let asked = self.post(TAKE_PATH, &request, codec::MAX_LEN, head_timeout);
        self.decode(&asked.await?)
    }

    async fn send(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, SourceError> {
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            return Ok(too_many_requests(self.region()));
        };
        let response = self.client.send(request).await?;
        Ok(response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &permit;
                frame
            }))
        }))
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<SourceBlob>, SourceError> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.insert(
                header::RANGE,
                range.map_err(|error| self.client.error(error))?,
            );
        }
        let asked = self
            .client
            .ask(Method::GET, &path, headers, Vec::new(), HEAD_TIMEOUT);
        let response = asked.await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !response.status().is_success() {
            return Err(self.client.refused(response).await);
        }
        let size = self.blob_size(&response, offset)?;
        Ok(Some(SourceBlob {
            size,
            bytes: exactly(size - offset, response),
        }))
    }
}

/// The answer to a client whose request was not sent to a region, as that region would give it.
fn too_many_requests(region: &RegionName) -> http::Response<Body> {
    let message = format!("too many requests to region {region} at once; repeat the request later");
    let body = json!({"errors": [{"code": "TOOMANYREQUESTS", "message": message}]});
    let mut response = http::Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The bytes of an answer, which must be `len`.
fn exactly(len: u64, response: Response) -> stream::BoxStream<'static, Result<Bytes, String>> {
    stream::unfold(Some((response, len)), |state| async move {
        let (mut response, left) = state?;
        match response.chunk().await {
            Ok(Some(piece)) => match left.checked_sub(piece.len() as u64) {
                Some(left) => Some((Ok(piece), Some((response, left)))),
                None => Some((Err("the blob is longer than announced".to_owned()), None)),
            },
            Ok(None) if left == 0 => None,
            Ok(None) => Some((Err(format!("the blob ended {left} bytes early")), None)),
            Err(error) => Some((Err(explain(&error.without_url())), None)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests;

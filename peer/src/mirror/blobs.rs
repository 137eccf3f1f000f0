//! Blob requests: answered from the store while the blob is downloaded, or passed through from an
//! origin.
//!
//! The handler decides the head of the response. It sends the head when the first bytes are
//! available; if there will be none, it answers 404 or 503 at once. After a long wait it sends the
//! head without a byte, because runtimes give up without one. There is one exception: once
//! the runtime has received bytes of a blob, it requests the other ranges of the blob here too and
//! fails the pull on any status other than 206. Such a request therefore gets the head and a body
//! that is cut without a byte. The runtime then repeats the request, is refused, and turns to its
//! next host.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use flotilla_common::opening::{BlobRead, BlobReadInput, KnownBlob};
use flotilla_common::time::Time;
use flotilla_runtime::http::range::normalize_range;
use futures_util::{Stream, StreamExt, stream};

use super::blob_range::BlobRange;
use super::error::MirrorError;
use super::passthrough::Passthrough;
use super::reader::Reader;
use super::response::{set_content_headers, set_partial, unsatisfiable};
use super::state::Mirror;
use crate::expected_blobs::ExpectedBlobs;
use crate::origin::OriginError;
use crate::store::{Availability, PinReason, StoredBlob};

const MEDIA_TYPE: &str = "application/octet-stream";

impl Mirror {
    /// Answers with a blob, or with the range of it that the `Range` header selects.
    pub(super) async fn blob(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: Digest,
        range: Option<&str>,
        is_head: bool,
    ) -> Result<Response<Body>, MirrorError> {
        // Asked before the store, because the store has a blob before it is not expected any more.
        let is_expected = self.pull_starter.expected().contains(&digest);
        let stored = self.context.stores.blobs.get(&digest);
        if is_head {
            let size = match &stored {
                Some(blob) => blob.geometry().size(),
                None => self.origin_blob_size(repository, &digest).await?,
            };
            return Ok(match BlobRange::requested(digest, range, size) {
                Some(range) => response(&range, Body::empty()),
                None => unsatisfiable(size),
            });
        }
        let known = match &stored {
            Some(blob) => KnownBlob::Stored(blob.geometry()),
            None if is_expected => KnownBlob::Expected,
            None => KnownBlob::Unknown,
        };
        let timeouts = self.context.fallback_timeouts;
        let now = self.context.clock.now();
        let head_by = now + timeouts.head;
        let mut machine = BlobRead::new(now, timeouts, known);
        let stored = if machine.is_expecting() {
            self.wait_until_proved(&mut machine, &digest).await
        } else {
            stored
        };
        match (stored, machine.poll_output()) {
            (Some(blob), None) => self.read(repository, &blob, machine, range, head_by).await,
            _ => self.pass_through(repository, digest, range, head_by).await,
        }
    }

    /// Waits until the store has the proof of a blob that is expected; `None` if it will not.
    async fn wait_until_proved(
        &self,
        machine: &mut BlobRead,
        digest: &Digest,
    ) -> Option<Arc<StoredBlob>> {
        let clock = self.context.clock;
        let decide = |expected: &ExpectedBlobs| {
            let is_expected = expected.contains(digest);
            match self.context.stores.blobs.get(digest) {
                Some(blob) => Some(Some(blob)),
                None => (!is_expected).then_some(None),
            }
        };
        let decided = tokio::select! {
            biased;
            decided = self.pull_starter.expected().wait_for(decide) => decided,
            () = clock.sleep_until(machine.poll_timeout()) => {
                machine.handle_timeout(clock.now());
                tracing::warn!(
                    blob = %digest,
                    "proof of a blob did not arrive in time; passing the blob through from an origin"
                );
                return None;
            }
        };
        let input = match &decided {
            Some(blob) => BlobReadInput::Proved {
                is_whole: blob.geometry().is_whole(),
            },
            None => BlobReadInput::NotExpected,
        };
        machine.handle(clock.now(), input);
        decided
    }

    async fn origin_blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<u64, MirrorError> {
        let origins = &self.context.upstream.origins;
        let size = origins.blob_size(repository, digest).await;
        size.map_err(|error| MirrorError::from_origin(&format!("{repository}@{digest}"), &error))
    }

    /// Answers from the store, following the download.
    async fn read(
        self: &Arc<Self>,
        repository: &RepositoryName,
        blob: &Arc<StoredBlob>,
        machine: BlobRead,
        range: Option<&str>,
        head_by: Time,
    ) -> Result<Response<Body>, MirrorError> {
        // Pinned before the driver is told, because it may release its own pin at any time.
        let pin = blob.pin(PinReason::Reader);
        let (digest, size) = (*blob.digest(), blob.geometry().size());
        let Some(range) = BlobRange::requested(digest, range, size) else {
            return Ok(unsatisfiable(size));
        };
        let start = range.range.start;
        if !matches!(blob.availability(start), Availability::Ready(_)) {
            self.refuse_after_cut(digest, start)?;
        }
        self.pull_starter.want(repository, &digest).await;
        let reader = Reader::new(
            Arc::clone(&self.context),
            repository.clone(),
            pin,
            machine,
            self.cursors.open(digest, *blob.geometry(), start),
            range.range.clone(),
        );
        self.begin(range, reader.into_stream(), head_by).await
    }

    /// Answers with an origin's response.
    async fn pass_through(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: Digest,
        range: Option<&str>,
        head_by: Time,
    ) -> Result<Response<Body>, MirrorError> {
        let size = self.begun.get(&digest).await;
        let begun = size.and_then(|size| BlobRange::requested(digest, range, size));
        if let Some(begun) = &begun {
            self.refuse_after_cut(digest, begun.range.start)?;
        }
        let forwarded = range.and_then(normalize_range);
        let context = Arc::clone(&self.context);
        match Passthrough::open(context, repository, &digest, forwarded.as_deref()).await {
            Ok(passthrough) => {
                let range = passthrough.range();
                self.begin(range, passthrough.into_stream(), head_by).await
            }
            Err(OriginError::Unsatisfiable(size)) => Ok(unsatisfiable(size)),
            Err(error) => {
                let error = MirrorError::from_origin(&format!("{repository}@{digest}"), &error);
                match begun {
                    Some(range) => self.fail(&range, error),
                    None => Err(error),
                }
            }
        }
    }

    /// Waits for the first bytes before it sends the head, at most until `head_by`.
    async fn begin(
        self: &Arc<Self>,
        range: BlobRange,
        pieces: impl Stream<Item = Result<Bytes, MirrorError>> + Send + 'static,
        head_by: Time,
    ) -> Result<Response<Body>, MirrorError> {
        let mut pieces = Box::pin(pieces);
        let first = tokio::select! {
            biased;
            first = pieces.next() => match first {
                None => return Ok(response(&range, Body::empty())),
                Some(Ok(first)) => Some(Ok(first)),
                Some(Err(error)) => return self.fail(&range, error),
            },
            () = self.context.clock.sleep_until(Some(head_by)) => None,
        };
        self.begun.insert(range.digest, range.size).await;
        let body = self.counted_body(&range, stream::iter(first).chain(pieces));
        Ok(response(&range, body))
    }

    /// Answers without bytes: with the error, or with a cut body if the runtime would fail the pull
    /// on an error.
    fn fail(
        self: &Arc<Self>,
        range: &BlobRange,
        error: MirrorError,
    ) -> Result<Response<Body>, MirrorError> {
        if range.range.start == 0 || !self.begun.contains_key(&range.digest) {
            return Err(error);
        }
        let body = self.counted_body(range, stream::iter([Err(error)]));
        Ok(response(range, body))
    }

    /// A body that counts its bytes and remembers the offset at which it is cut.
    fn counted_body(
        self: &Arc<Self>,
        range: &BlobRange,
        pieces: impl Stream<Item = Result<Bytes, MirrorError>> + Send + 'static,
    ) -> Body {
        let mirror = Arc::clone(self);
        let digest = range.digest;
        let mut end = range.range.start;
        Body::from_stream(pieces.then(move |piece| {
            let mirror = Arc::clone(&mirror);
            let len = piece.as_ref().map_or(0, |bytes: &Bytes| bytes.len() as u64);
            end += len;
            let offset = end;
            async move {
                let context = &mirror.context;
                match &piece {
                    Ok(_) => {
                        context.telemetry.counters.to_runtime.add(len);
                        let now = context.clock.now();
                        context.telemetry.pulls.emitted(now, &digest, len);
                    }
                    Err(error) => {
                        let reason = error.to_string();
                        context.telemetry.pulls.failed(&digest, &reason);
                        tracing::warn!(
                            blob = %digest, offset, %error,
                            "response body cut: no source for the next bytes"
                        );
                        mirror.cut.insert((digest, offset), ()).await;
                    }
                }
                piece
            }
        }))
    }

    /// Refuses the runtime's request for the rest of a body that was just cut, so that it turns to
    /// its next host.
    fn refuse_after_cut(&self, digest: Digest, offset: u64) -> Result<(), MirrorError> {
        if self.cut.contains_key(&(digest, offset)) {
            return Err(MirrorError::Unknown(format!(
                "{digest}: no source for the bytes from offset {offset}; try the next host"
            )));
        }
        Ok(())
    }
}

/// The response with its head.
fn response(range: &BlobRange, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let length = range.range.end - range.range.start;
    set_content_headers(response.headers_mut(), &range.digest, MEDIA_TYPE, length);
    if range.is_partial {
        set_partial(&mut response, &range.range, range.size);
    }
    response
}

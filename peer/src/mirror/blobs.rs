//! Serving blobs: from the store as they come in, or passed through from the origin.
//!
//! What is decided here is the head of the answer. It goes out when the first bytes are there; with
//! none to come it is 404 or 503, at once. One exception: when a blob has been begun, the runtime
//! fetches its other ranges here and fails the pull on any other status, so then the head goes out
//! and the body is cut without a byte, after which the runtime asks again, is refused, and goes on
//! to its next host.

use core::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use flotilla_runtime::http::range::{RequestedRange, content_range, normalize_range};
use futures_util::{Stream, StreamExt, stream};

use super::answer::Failure;
use super::manifests::failure;
use super::passing::Passing;
use super::reader::Reader;
use super::{Mirror, content_headers, unsatisfiable};
use crate::origin::OriginError;
use crate::store::{Availability, StoredBlob};

const MEDIA_TYPE: &str = "application/octet-stream";

/// What an answer has: which bytes of which blob.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) digest: Digest,
    pub(super) part: Range<u64>,
    pub(super) size: u64,
    /// A range was asked for and is served as one.
    pub(super) is_partial: bool,
}

impl Mirror {
    /// A blob, or the range of it that is asked for.
    pub(super) async fn blob(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: Digest,
        range: Option<&str>,
        is_head: bool,
    ) -> Result<Response<Body>, Failure> {
        let known = self.shared.store.get(&digest);
        if is_head {
            let size = match &known {
                Some(blob) => blob.geometry().size(),
                None => self.ask_size(repository, &digest).await?,
            };
            return Ok(match place(digest, range, size) {
                Some(place) => answer(&place, Body::empty()),
                None => unsatisfiable(size),
            });
        }
        match known {
            Some(blob) => self.read(repository, &blob, range).await,
            None => self.pass(repository, digest, range).await,
        }
    }

    async fn ask_size(&self, repository: &RepositoryName, digest: &Digest) -> Result<u64, Failure> {
        let size = self.shared.origins.blob_size(repository, digest).await;
        size.map_err(|error| failure(&format!("{repository}@{digest}"), &error))
    }

    /// An answer that follows the store as the blob comes in.
    async fn read(
        self: &Arc<Self>,
        repository: &RepositoryName,
        blob: &Arc<StoredBlob>,
        range: Option<&str>,
    ) -> Result<Response<Body>, Failure> {
        let (digest, size) = (*blob.digest(), blob.geometry().size());
        let Some(place) = place(digest, range, size) else {
            return Ok(unsatisfiable(size));
        };
        if !matches!(blob.availability(place.part.start), Availability::Ready(_)) {
            self.refuse_after_a_cut(digest, place.part.start)?;
        }
        self.want_known(repository, &digest, None).await;
        let reader = Reader::open(
            Arc::clone(self),
            repository.clone(),
            Arc::clone(blob),
            place.part.clone(),
        );
        self.begin(place, reader.into_stream()).await
    }

    /// An answer that comes straight from an origin.
    async fn pass(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: Digest,
        range: Option<&str>,
    ) -> Result<Response<Body>, Failure> {
        let begun = self.begun.get(&digest).await;
        let known = begun.and_then(|size| place(digest, range, size));
        if let Some(place) = &known {
            self.refuse_after_a_cut(digest, place.part.start)?;
        }
        let asked = range.and_then(normalize_range);
        match Passing::ask(
            Arc::clone(&self.shared),
            repository,
            &digest,
            asked.as_deref(),
        )
        .await
        {
            Ok(passing) => {
                let place = passing.place();
                self.begin(place, passing.into_stream()).await
            }
            Err(OriginError::Unsatisfiable(size)) => Ok(unsatisfiable(size)),
            Err(error) => {
                let failure = failure(&format!("{repository}@{digest}"), &error);
                match known {
                    Some(place) => self.fail(&place, failure).await,
                    None => Err(failure),
                }
            }
        }
    }

    /// Waits for the first bytes of a stream before anything is promised.
    async fn begin(
        self: &Arc<Self>,
        place: Place,
        pieces: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
    ) -> Result<Response<Body>, Failure> {
        let mut pieces = Box::pin(pieces);
        let first = match pieces.next().await {
            None => return Ok(answer(&place, Body::empty())),
            Some(Ok(first)) => first,
            Some(Err(failure)) => return self.fail(&place, failure).await,
        };
        self.begun.insert(place.digest, place.size).await;
        let body = self.watch(&place, stream::iter([Ok(first)]).chain(pieces));
        Ok(answer(&place, body))
    }

    /// Nothing comes: an error, or the head and a cut where only that lets the runtime go on.
    async fn fail(
        self: &Arc<Self>,
        place: &Place,
        failure: Failure,
    ) -> Result<Response<Body>, Failure> {
        if place.part.start == 0 || !self.begun.contains_key(&place.digest) {
            return Err(failure);
        }
        Ok(answer(
            place,
            self.watch(place, stream::iter([Err(failure)])),
        ))
    }

    /// A body that counts its bytes, and remembers where it was cut.
    fn watch(
        self: &Arc<Self>,
        place: &Place,
        pieces: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
    ) -> Body {
        let (mirror, digest, mut at) = (Arc::clone(self), place.digest, place.part.start);
        Body::from_stream(pieces.then(move |piece| {
            let mirror = Arc::clone(&mirror);
            let bytes = piece.as_ref().map_or(0, |bytes: &Bytes| bytes.len() as u64);
            at += bytes;
            let here = at;
            async move {
                match &piece {
                    Ok(_) => {
                        mirror.shared.counters.to_runtime.add(bytes);
                        mirror
                            .shared
                            .pulls
                            .emitted(mirror.shared.clock.now(), &digest, bytes);
                    }
                    Err(failure) => {
                        mirror.shared.pulls.failed(&digest, &failure.to_string());
                        tracing::warn!(blob = %digest, at = here, %failure, "cut a blob's body");
                        mirror.cut.insert((digest, here), ()).await;
                    }
                }
                piece
            }
        }))
    }

    /// The runtime comes back to the first host after a cut; let it go on to the next one.
    fn refuse_after_a_cut(&self, digest: Digest, at: u64) -> Result<(), Failure> {
        if self.cut.contains_key(&(digest, at)) {
            return Err(Failure::Unknown(format!(
                "{digest} was cut off here at byte {at} a moment ago"
            )));
        }
        Ok(())
    }
}

/// Where a request's bytes are in a blob of `size` bytes; `None` if there are none.
fn place(digest: Digest, range: Option<&str>, size: u64) -> Option<Place> {
    let (part, is_partial) = match RequestedRange::parse(range, size) {
        RequestedRange::Whole => (0..size, false),
        RequestedRange::Part(part) => (part, true),
        RequestedRange::Unsatisfiable => return None,
    };
    Some(Place {
        digest,
        part,
        size,
        is_partial,
    })
}

/// The head, before its body.
fn answer(place: &Place, body: Body) -> Response<Body> {
    let Place {
        digest,
        part,
        size,
        is_partial,
    } = place;
    let mut response = Response::new(body);
    content_headers(
        response.headers_mut(),
        digest,
        MEDIA_TYPE,
        part.end - part.start,
    );
    if *is_partial {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        if let Ok(range) = HeaderValue::from_str(&content_range(part, *size)) {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    response
}

//! Serving blobs: from the swarm as they come, or passed through from the origin.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use bytes::Bytes;
use core::ops::Range;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use flotilla_runtime::clock::Clock;
use futures_util::{Stream, StreamExt, stream};

use super::answer::Failure;
use super::manifests::failure;
use super::passing::Passing;
use super::range::Wanted;
use super::reader::Reader;
use super::{Mirror, content_headers, content_range, unsatisfiable};
use crate::store::{Availability, StoredBlob};

const MEDIA_TYPE: &str = "application/octet-stream";

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
        let size = match &known {
            Some(blob) => blob.geometry().size(),
            None => {
                let size = self.shared.origins.blob_size(repository, &digest).await;
                size.map_err(|error| failure(&format!("{repository}@{digest}"), &error))?
            }
        };
        let (status, part) = match Wanted::parse(range, size) {
            Wanted::Whole => (StatusCode::OK, 0..size),
            Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
            Wanted::Unsatisfiable => return Ok(unsatisfiable(size)),
        };
        let body = if is_head {
            Body::empty()
        } else {
            match known {
                Some(blob) => self.read(repository, &blob, part.clone()).await?,
                None => self.pass(repository, &digest, part.clone()).await?,
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        content_headers(response.headers_mut(), &digest, MEDIA_TYPE, part.end - part.start);
        if status == StatusCode::PARTIAL_CONTENT
            && let Some(value) = content_range(&part, size)
        {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        Ok(response)
    }

    /// A body that follows the swarm; its first bytes are there.
    async fn read(
        self: &Arc<Self>,
        repository: &RepositoryName,
        blob: &Arc<StoredBlob>,
        part: Range<u64>,
    ) -> Result<Body, Failure> {
        let digest = *blob.digest();
        let is_there = matches!(blob.availability(part.start), Availability::Ready(_));
        if !is_there && self.cut.contains_key(&digest) {
            // The runtime comes back to the first host after a cut; let it go on to the next one.
            return Err(Failure::Unknown(format!("{digest} was cut off here a moment ago")));
        }
        self.want_known(repository, &digest, None).await;
        let reader = Reader::open(Arc::clone(self), repository.clone(), Arc::clone(blob), part);
        self.begin(digest, reader.into_stream()).await
    }

    /// A body that comes straight from an origin.
    async fn pass(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<Body, Failure> {
        let passing = Passing::open(Arc::clone(&self.shared), repository, digest, part)
            .await
            .map_err(|error| failure(&format!("{repository}@{digest}"), &error))?;
        self.begin(*digest, passing.into_stream()).await
    }

    /// Waits for the first bytes of a stream before anything is promised.
    async fn begin(
        self: &Arc<Self>,
        digest: Digest,
        pieces: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
    ) -> Result<Body, Failure> {
        let mut pieces = Box::pin(pieces);
        let Some(first) = pieces.next().await else { return Ok(Body::empty()) };
        let mirror = Arc::clone(self);
        let pieces = stream::iter([Ok(first?)]).chain(pieces).then(move |piece| {
            let mirror = Arc::clone(&mirror);
            async move {
                match &piece {
                    Ok(bytes) => {
                        mirror.shared.counters.to_runtime.add(bytes.len() as u64);
                        mirror.shared.pulls.emitted(Clock::now(), &digest, bytes.len() as u64);
                    }
                    Err(failure) => {
                        mirror.shared.pulls.failed(&digest, &failure.to_string());
                        tracing::warn!(blob = %digest, %failure, "cut a blob's body");
                        mirror.cut.insert(digest, ()).await;
                    }
                }
                piece
            }
        });
        Ok(Body::from_stream(pieces))
    }
}

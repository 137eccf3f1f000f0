//! Pass-through: a blob's bytes straight from an origin to the container runtime, which checks the
//! digest itself.
//!
//! These bytes are never stored, advertised or relayed. A body that breaks off goes on from another
//! origin, if there is one.

use core::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use futures_util::{Stream, stream};

use super::blob_range::BlobRange;
use super::context::MirrorContext;
use super::error::MirrorError;
use crate::origin::{OpenBlob, OriginError, content};

/// An origin's response body on its way to the runtime.
pub(super) struct Passthrough {
    context: Arc<MirrorContext>,
    open: OpenBlob,
    repository: RepositoryName,
    digest: Digest,
    /// The bytes that are still to come.
    left: Range<u64>,
    /// How often it may go on at another origin.
    attempts: usize,
}

impl Passthrough {
    /// Opens what a `Range` header selects, or the whole blob, at the first origin that has it.
    pub(super) async fn open(
        context: Arc<MirrorContext>,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<&str>,
    ) -> Result<Self, OriginError> {
        let origins = &context.upstream.origins;
        let open = origins.open_blob(repository, digest, range).await?;
        let range = open.range.clone();
        Ok(Self::new(context, open, repository, digest, range))
    }

    /// Opens exactly `range` of a blob at the first origin that has it.
    pub(super) async fn open_exactly(
        context: Arc<MirrorContext>,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Self, OriginError> {
        let origins = &context.upstream.origins;
        let open = origins
            .open_exactly(repository, digest, &range, None)
            .await?;
        Ok(Self::new(context, open, repository, digest, range))
    }

    fn new(
        context: Arc<MirrorContext>,
        open: OpenBlob,
        repository: &RepositoryName,
        digest: &Digest,
        left: Range<u64>,
    ) -> Self {
        let attempts = context.upstream.origins.attempts() - 1;
        Self {
            context,
            open,
            repository: repository.clone(),
            digest: *digest,
            left,
            attempts,
        }
    }

    /// The range that the origin sends.
    pub(super) fn range(&self) -> BlobRange {
        BlobRange {
            digest: self.digest,
            range: self.open.range.clone(),
            size: self.open.size,
            is_partial: self.open.is_partial,
        }
    }

    /// The bytes, in order.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, MirrorError>> + Send {
        stream::unfold(Some(self), |passthrough| async move {
            let mut passthrough = passthrough?;
            match passthrough.next().await {
                Ok(None) => None,
                Ok(Some(bytes)) => Some((Ok(bytes), Some(passthrough))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The next bytes, never more than were asked for. A body that ends early is an error.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, MirrorError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let mut bytes = self.receive().await.map_err(|error| {
            let digest = self.digest;
            MirrorError::Unavailable(format!(
                "{digest}: the origin's response ended early: {error}"
            ))
        })?;
        let left = self.left.end - self.left.start;
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let len = bytes.len() as u64;
        self.left.start += len;
        self.context.upstream.download_limit.take(bytes.len()).await;
        let telemetry = &self.context.telemetry;
        telemetry.counters.from_origin.add(len);
        telemetry.counters.passed_through.add(len);
        let now = self.context.clock.now();
        telemetry.pulls.passed_through(now, &self.digest, len);
        Ok(Some(bytes))
    }

    /// The next bytes of the response, or of another origin's if it broke off.
    async fn receive(&mut self) -> Result<Bytes, OriginError> {
        loop {
            let origins = &self.context.upstream.origins;
            let OpenBlob {
                origin, response, ..
            } = &mut self.open;
            let origin = *origin;
            let error = match origins.next_piece(origin, response).await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => OriginError::Unavailable("bytes are missing".to_owned()),
                Err(error) => error,
            };
            origins.report_broken(origin, content(&self.digest), &error);
            if self.attempts == 0 {
                return Err(error);
            }
            self.attempts -= 1;
            let open = origins.open_exactly(&self.repository, &self.digest, &self.left, None);
            self.open = open.await?;
        }
    }
}

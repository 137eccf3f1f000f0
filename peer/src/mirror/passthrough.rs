//! Pass-through: a blob's bytes straight from an origin to the container runtime, which checks the
//! digest itself.
//!
//! These bytes are never stored, advertised or relayed.

use core::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use futures_util::{Stream, stream};

use super::blob_range::BlobRange;
use super::context::MirrorContext;
use super::error::MirrorError;
use crate::origin::{OpenBlob, OriginError};

/// An origin's response body on its way to the runtime.
pub(super) struct Passthrough {
    context: Arc<MirrorContext>,
    open: OpenBlob,
    digest: Digest,
    /// Bytes that are still to come.
    left: u64,
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
        let left = open.range.end - open.range.start;
        Ok(Self {
            context,
            open,
            digest: *digest,
            left,
        })
    }

    /// Opens exactly `range` of a blob at the first origin that has it.
    pub(super) async fn open_exactly(
        context: Arc<MirrorContext>,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Self, OriginError> {
        let origins = &context.upstream.origins;
        let open = origins.open_exactly(repository, digest, &range).await?;
        Ok(Self {
            context,
            open,
            digest: *digest,
            left: range.end - range.start,
        })
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
        if self.left == 0 {
            return Ok(None);
        }
        let broken = |cause: &str| {
            let digest = self.digest;
            MirrorError::Unavailable(format!(
                "{digest}: the origin's response ended early{cause}"
            ))
        };
        let received = self.open.response.chunk().await;
        let received = received.map_err(|error| broken(&format!(": {error}")))?;
        let mut bytes = received.ok_or_else(|| broken(""))?;
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        let len = bytes.len() as u64;
        self.left -= len;
        self.context.upstream.download_limit.take(bytes.len()).await;
        let telemetry = &self.context.telemetry;
        telemetry.counters.from_origin.add(len);
        telemetry.counters.passed_through.add(len);
        let now = self.context.clock.now();
        telemetry.pulls.passed_through(now, &self.digest, len);
        Ok(Some(bytes))
    }
}

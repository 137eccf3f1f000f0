//! Passing a blob through: straight from an origin to the runtime, which checks the digest itself.
//!
//! Nothing that passes here is stored, advertised or relayed.

use core::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use futures_util::{Stream, stream};

use super::answer::Failure;
use super::blobs::Place;
use crate::driver::Shared;
use crate::origin::{OpenBlob, OriginError};

/// An origin's body on its way to the runtime.
pub(super) struct Passing {
    shared: Arc<Shared>,
    open: OpenBlob,
    digest: Digest,
    left: u64,
}

impl Passing {
    /// Opens what a `Range` header asks for, or all, at the first origin that gives it.
    pub(super) async fn ask(
        shared: Arc<Shared>,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<&str>,
    ) -> Result<Self, OriginError> {
        let open = shared.origins.open_blob(repository, digest, range).await?;
        let left = open.part.end - open.part.start;
        Ok(Self {
            shared,
            open,
            digest: *digest,
            left,
        })
    }

    /// Opens exactly these bytes of a blob at the first origin that gives them.
    pub(super) async fn open(
        shared: Arc<Shared>,
        repository: &RepositoryName,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<Self, OriginError> {
        let open = shared.origins.open_part(repository, digest, &part).await?;
        Ok(Self {
            shared,
            open,
            digest: *digest,
            left: part.end - part.start,
        })
    }

    /// Which bytes these are.
    pub(super) fn place(&self) -> Place {
        let OpenBlob {
            part,
            size,
            is_partial,
            ..
        } = &self.open;
        Place {
            digest: self.digest,
            part: part.clone(),
            size: *size,
            is_partial: *is_partial,
        }
    }

    /// The bytes, in order.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Failure>> + Send {
        stream::unfold(Some(self), |passing| async move {
            let mut passing = passing?;
            match passing.next().await {
                Ok(None) => None,
                Ok(Some(bytes)) => Some((Ok(bytes), Some(passing))),
                Err(failure) => Some((Err(failure), None)),
            }
        })
    }

    /// The next bytes, never more than were asked for; an error if they end too soon.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.left == 0 {
            return Ok(None);
        }
        let piece = self.open.response.chunk().await;
        let broken = |why: String| Failure::Unavailable(format!("{}: {why}", self.digest));
        let piece = piece.map_err(|error| broken(format!("the origin broke off: {error}")))?;
        let mut bytes = piece.ok_or_else(|| broken("the origin broke off".to_owned()))?;
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= bytes.len() as u64;
        self.shared.down.take(bytes.len()).await;
        self.shared.counters.from_origin.add(bytes.len() as u64);
        self.shared.counters.passed_through.add(bytes.len() as u64);
        self.shared
            .pulls
            .passed(self.shared.clock.now(), &self.digest, bytes.len() as u64);
        Ok(Some(bytes))
    }
}

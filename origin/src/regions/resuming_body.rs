//! A body that goes on at the same offset from another region when its source stalls or breaks.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::timeout;

use super::source::{Source, SourceBlob};

/// A source that sends nothing for this long is left.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a body changes its source: each region is asked at most twice.
const MAX_RESUMES_PER_SOURCE: usize = 2;

/// A range of a blob from whichever region delivers it.
pub(crate) struct ResumingBody {
    sources: Vec<Arc<dyn Source>>,
    repository: RepositoryName,
    digest: Digest,
    /// Of the whole blob.
    size: u64,
    /// The next byte.
    offset: u64,
    /// After the last byte.
    end: u64,
    bytes: BoxStream<'static, Result<Bytes, String>>,
    /// The source that is asked next.
    next: usize,
    resumes: usize,
}

impl ResumingBody {
    /// Continues `blob`, whole, which the first of `sources` gave.
    pub(crate) fn new(
        sources: Vec<Arc<dyn Source>>,
        repository: RepositoryName,
        digest: Digest,
        blob: SourceBlob,
    ) -> Self {
        Self {
            sources,
            repository,
            digest,
            size: blob.size,
            offset: 0,
            end: blob.size,
            bytes: blob.bytes,
            next: 1,
            resumes: 0,
        }
    }

    /// Continues a range that the own storage began to deliver.
    pub(crate) fn of_own(
        sources: Vec<Arc<dyn Source>>,
        repository: RepositoryName,
        digest: Digest,
        size: u64,
        range: Range<u64>,
        bytes: BoxStream<'static, Result<Bytes, String>>,
    ) -> Self {
        Self {
            sources,
            repository,
            digest,
            size,
            offset: range.start,
            end: range.end,
            bytes,
            next: 0,
            resumes: 0,
        }
    }

    /// The bytes; an error is the last item, after all sources have failed.
    pub(crate) fn into_stream(self) -> BoxStream<'static, Result<Bytes, String>> {
        stream::unfold(Some(self), |body| async move {
            let mut body = body?;
            match body.next_piece().await {
                Some(Ok(piece)) => Some((Ok(piece), Some(body))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        })
        .boxed()
    }

    async fn next_piece(&mut self) -> Option<Result<Bytes, String>> {
        loop {
            if self.offset >= self.end {
                return None;
            }
            let reason = match timeout(STALL_TIMEOUT, self.bytes.next()).await {
                Ok(Some(Ok(mut piece))) => {
                    let rest = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
                    piece.truncate(rest);
                    self.offset += piece.len() as u64;
                    return Some(Ok(piece));
                }
                Ok(Some(Err(error))) => error,
                Ok(None) => "the body ended early".to_owned(),
                Err(_) => format!("no byte within {STALL_TIMEOUT:?}"),
            };
            if let Err(error) = self.resume(reason).await {
                return Some(Err(error));
            }
        }
    }

    /// Goes on with the next source that has the blob.
    async fn resume(&mut self, mut reason: String) -> Result<(), String> {
        let limit = self.sources.len() * MAX_RESUMES_PER_SOURCE;
        while self.resumes < limit {
            let source = Arc::clone(&self.sources[self.next % self.sources.len()]);
            self.next += 1;
            self.resumes += 1;
            tracing::debug!(region = %source.region(), digest = %self.digest, offset = self.offset, reason, "a blob's source failed; continuing from another region");
            let asked = source.blob(&self.repository, &self.digest, self.offset);
            match timeout(STALL_TIMEOUT, asked).await {
                Ok(Ok(Some(blob))) if blob.size == self.size => {
                    self.bytes = blob.bytes;
                    return Ok(());
                }
                Ok(Ok(Some(blob))) => reason = format!("its size is {} now", blob.size),
                Ok(Ok(None)) => reason = format!("{} does not have it", source.region()),
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => reason = format!("{} does not answer", source.region()),
            }
        }
        Err(reason)
    }
}

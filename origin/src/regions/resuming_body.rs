//! A body that goes on at the same offset from another region when its source stalls or breaks. It
//! does not go on after bytes that are known to be wrong: the client has them already.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::time::timeout;

use super::source::{Source, SourceBlob};

/// A source that sends nothing for this long is left.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a body changes its source without progress: each region is asked at most twice.
const MAX_RESUMES_PER_SOURCE: usize = 2;
/// After so many bytes from one source the regions are asked anew: a blob of hundreds of GB takes
/// hours, in which each link breaks more than twice.
const PROGRESS_LEN: u64 = 1 << 20;

/// Why a source of a body ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BrokenBody {
    /// Another region may deliver the rest.
    #[error("{0}")]
    Failed(String),
    /// The bytes so far are not those of the blob.
    #[error("{0}")]
    Corrupt(String),
}

/// Ends `bytes` with an error if the next of them do not come within [`STALL_TIMEOUT`]. The time
/// counts while they are asked for, not while a client reads those before.
pub(crate) fn with_stall_timeout(
    bytes: BoxStream<'static, Result<Bytes, BrokenBody>>,
) -> BoxStream<'static, Result<Bytes, BrokenBody>> {
    stream::unfold(Some(bytes), |bytes| async move {
        let mut bytes = bytes?;
        match timeout(STALL_TIMEOUT, bytes.next()).await {
            Ok(piece) => Some((piece?, Some(bytes))),
            Err(_) => {
                let reason = format!("no byte within {STALL_TIMEOUT:?}");
                Some((Err(BrokenBody::Failed(reason)), None))
            }
        }
    })
    .boxed()
}

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
    bytes: BoxStream<'static, Result<Bytes, BrokenBody>>,
    /// The source that is asked next.
    next: usize,
    /// Since the last progress.
    resumes: usize,
    /// Bytes from the present source.
    progress: u64,
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
            bytes: with_stall_timeout(of_source(blob.bytes)),
            next: 1,
            resumes: 0,
            progress: 0,
        }
    }

    /// Continues a range that the own storage began to deliver. `bytes` must end with an error if
    /// the storage stalls; it may wait for the client.
    pub(crate) fn of_own(
        sources: Vec<Arc<dyn Source>>,
        repository: RepositoryName,
        digest: Digest,
        size: u64,
        range: Range<u64>,
        bytes: BoxStream<'static, Result<Bytes, BrokenBody>>,
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
            progress: 0,
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
            let reason = match self.bytes.next().await {
                Some(Ok(mut piece)) => {
                    let rest = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
                    piece.truncate(rest);
                    self.offset += piece.len() as u64;
                    self.progress += piece.len() as u64;
                    if self.progress >= PROGRESS_LEN {
                        self.resumes = 0;
                    }
                    return Some(Ok(piece));
                }
                Some(Err(BrokenBody::Corrupt(error))) => return Some(Err(error)),
                Some(Err(BrokenBody::Failed(error))) => error,
                None => "the body ended early".to_owned(),
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
                    self.bytes = with_stall_timeout(of_source(blob.bytes));
                    self.progress = 0;
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

fn of_source(
    bytes: BoxStream<'static, Result<Bytes, String>>,
) -> BoxStream<'static, Result<Bytes, BrokenBody>> {
    bytes.map_err(BrokenBody::Failed).boxed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use futures_util::stream::iter;

    use super::super::test_regions::{TestRegion, repository};
    use super::*;

    /// A region with a blob that breaks each connection after 2 MiB.
    async fn breaking(len: usize) -> (Bytes, ResumingBody) {
        let [eu, us] = [
            TestRegion::start("eu-1").await,
            TestRegion::start("us-1").await,
        ];
        let content: Bytes = (0..len).map(|at| at as u8).collect::<Vec<_>>().into();
        let digest = eu.push_blob(content.clone()).await;
        let source = eu.source_of(&us);
        source
            .faults
            .breaks_after
            .store(2 << 20, core::sync::atomic::Ordering::Relaxed);
        let blob = source.blob(&repository(), &digest, 0).await;
        let blob = blob.unwrap().unwrap();
        let body = ResumingBody::new(vec![source], repository(), digest, blob);
        (content, body)
    }

    #[tokio::test]
    async fn long_bodies_survive_any_number_of_breaks() {
        let (content, body) = breaking(32 << 20).await;
        let pieces: Vec<_> = body.into_stream().collect().await;
        let pieces: Result<Vec<Bytes>, String> = pieces.into_iter().collect();
        assert!(pieces.unwrap().concat() == content);
    }

    #[tokio::test]
    async fn wrong_bytes_are_not_completed_from_elsewhere() {
        let (content, complete) = breaking(1 << 10).await;
        let pieces = [
            Ok(content.slice(..1_000)),
            Err(BrokenBody::Corrupt("digest mismatch".to_owned())),
        ];
        let own = ResumingBody::of_own(
            complete.sources.clone(),
            repository(),
            complete.digest,
            1 << 10,
            0..1 << 10,
            iter(pieces).boxed(),
        );
        let pieces: Vec<_> = own.into_stream().collect().await;
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[1], Err("digest mismatch".to_owned()));
    }
}

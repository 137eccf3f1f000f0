//! A reader: one response's position in a blob that is still being downloaded.
//!
//! A reader returns bytes as they are verified. It reads at most one piece ahead, because the
//! runtime may close the connection long before the end of the range. The position of readers
//! decides which chunks are downloaded first. If no bytes arrive within the fallback timeouts, or
//! the store cannot take the blob, the reader goes on with bytes from an origin.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::name::RepositoryName;
use flotilla_common::time::Time;
use futures_util::{Stream, stream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::context::MirrorContext;
use super::cursors::Cursor;
use super::error::MirrorError;
use super::passthrough::Passthrough;
use crate::config::FallbackTimeouts;
use crate::driver::DriverCommand;
use crate::store::{Availability, MAX_IO_BYTES, Pin, StoreError, StoredBlob};

/// How often a waiting reader checks the fallback timeouts.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a body that must be cut waits for the bodies at lower offsets of the blob to end.
const CUT_ORDER_TIMEOUT: Duration = Duration::from_secs(2);

/// One wait for the next byte.
struct ByteWait {
    since: Time,
    /// Since when no source has the chunk, while none has.
    no_source_since: Option<Time>,
    /// Whether the blob has no chunk proofs.
    is_whole_blob: bool,
}

impl ByteWait {
    const fn new(now: Time, is_whole_blob: bool) -> Self {
        Self {
            since: now,
            no_source_since: None,
            is_whole_blob,
        }
    }

    /// The reason to fall back to an origin, if a timeout has expired.
    fn expired(
        &mut self,
        now: Time,
        has_source: bool,
        last_received: Duration,
        timeouts: &FallbackTimeouts,
    ) -> Option<&'static str> {
        self.no_source_since = if has_source {
            None
        } else {
            self.no_source_since.or(Some(now))
        };
        let waited = now.saturating_since(self.since);
        let maximum = if self.is_whole_blob {
            timeouts.whole_blob.min(timeouts.maximum)
        } else {
            timeouts.maximum
        };
        if self
            .no_source_since
            .is_some_and(|since| now.saturating_since(since) >= timeouts.no_source)
        {
            Some("no neighbour has the next chunk and no origin answers")
        } else if waited >= timeouts.no_progress && last_received >= timeouts.no_progress {
            Some("no bytes received from any source")
        } else {
            (waited >= maximum).then_some("next chunk did not arrive in time")
        }
    }
}

/// The state of one response.
pub(super) struct Reader {
    context: Arc<MirrorContext>,
    repository: RepositoryName,
    blob: Arc<StoredBlob>,
    cursor: Cursor,
    /// The bytes that are still to be returned.
    left: Range<u64>,
    passthrough: Option<Passthrough>,
    _pin: Pin,
}

impl Reader {
    /// A reader of `range`, where `cursor` was opened at its start.
    pub(super) fn new(
        context: Arc<MirrorContext>,
        repository: RepositoryName,
        blob: Arc<StoredBlob>,
        cursor: Cursor,
        range: Range<u64>,
    ) -> Self {
        Self {
            context,
            repository,
            cursor,
            left: range,
            passthrough: None,
            _pin: blob.pin(),
            blob,
        }
    }

    /// The bytes, in order.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, MirrorError>> + Send {
        stream::unfold(Some(self), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(None) => None,
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, MirrorError> {
        if let Some(passthrough) = &mut self.passthrough {
            return passthrough.next().await;
        }
        if self.left.is_empty() {
            return Ok(None);
        }
        let clock = self.context.clock;
        let mut wait = ByteWait::new(clock.now(), self.blob.geometry().is_whole());
        loop {
            match timeout(
                CHECK_INTERVAL,
                self.blob.wait_until_available(self.left.start),
            )
            .await
            {
                Ok(Availability::Ready(until)) => {
                    if let Some(bytes) = self.read(until).await? {
                        return Ok(Some(bytes));
                    }
                }
                Ok(Availability::Bypassed) => return self.fall_back().await,
                Ok(Availability::Waiting) | Err(_) => {
                    let has_source = self.has_source().await;
                    let now = clock.now();
                    let last_received = self.context.telemetry.last_received.elapsed(now);
                    let timeouts = &self.context.fallback_timeouts;
                    if let Some(reason) = wait.expired(now, has_source, last_received, timeouts) {
                        tracing::warn!(
                            blob = %self.blob.digest(), offset = self.left.start, reason,
                            "swarm did not deliver in time; passing the blob through from an origin"
                        );
                        return self.fall_back().await;
                    }
                }
            }
        }
    }

    /// Whether any known source can deliver the chunk that the reader waits for.
    async fn has_source(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        let digest = *self.blob.digest();
        let chunk = self.blob.geometry().chunk_at(self.left.start);
        let command = DriverCommand::HasSource {
            digest,
            chunk,
            answer,
        };
        self.context.commands.send(command).await;
        answered.await.unwrap_or(false)
    }

    /// Reads the next piece, which ends at `until` at the latest; `None` if the chunk was damaged
    /// on disk.
    async fn read(&mut self, until: u64) -> Result<Option<Bytes>, MirrorError> {
        let start = self.left.start;
        let piece = MAX_IO_BYTES as u64;
        let end = until.min(self.left.end).min((start / piece + 1) * piece);
        match self.blob.read(start..end).await {
            Ok(bytes) => {
                self.left.start = end;
                self.cursor.advance(start, end);
                Ok(Some(bytes))
            }
            Err(StoreError::Damaged { digest, chunk }) => {
                tracing::warn!(
                    blob = %digest, chunk,
                    "stored chunk is damaged; downloading it again"
                );
                let command = DriverCommand::Damaged { digest, chunk };
                self.context.commands.send(command).await;
                Ok(None)
            }
            Err(error) => {
                tracing::error!(
                    blob = %self.blob.digest(), %error,
                    "read of a stored blob failed; passing it through from an origin"
                );
                self.blob.mark_bypassed();
                self.fall_back().await
            }
        }
    }

    /// Goes on with bytes from an origin.
    async fn fall_back(&mut self) -> Result<Option<Bytes>, MirrorError> {
        let opened = Passthrough::open_exactly(
            Arc::clone(&self.context),
            &self.repository,
            self.blob.digest(),
            self.left.clone(),
        )
        .await;
        let mut passthrough = match opened {
            Ok(passthrough) => passthrough,
            Err(error) => {
                // When containerd fetches a layer in several ranges, it resumes after a cut only if
                // the first range is the first one to be cut.
                let _ = timeout(CUT_ORDER_TIMEOUT, self.cursor.wait_until_lowest()).await;
                let (repository, digest) = (&self.repository, self.blob.digest());
                let subject = format!("{repository}@{digest}: no neighbour has it");
                return Err(MirrorError::from_origin(&subject, &error));
            }
        };
        let first = passthrough.next().await;
        self.passthrough = Some(passthrough);
        first
    }
}

//! A reader: one response's position in a blob that is still being downloaded.
//!
//! A reader returns bytes as they are verified. It reads at most one piece ahead, because the
//! runtime may close the connection long before the end of the range. The position of readers
//! decides which chunks are downloaded first. When the reader goes on with bytes from an origin is
//! decided by its [`BlobRead`] machine.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::name::RepositoryName;
use flotilla_common::opening::{BlobRead, BlobReadInput, BlobReadOutput, FallbackReason};
use futures_util::{Stream, stream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::context::MirrorContext;
use super::cursors::Cursor;
use super::error::MirrorError;
use super::passthrough::Passthrough;
use crate::driver::DriverCommand;
use crate::store::{Availability, MAX_IO_BYTES, Pin, StoreError, StoredBlob};

/// How long a body that must be cut waits for the bodies at lower offsets of the blob to end.
const CUT_ORDER_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of one response.
pub(super) struct Reader {
    context: Arc<MirrorContext>,
    repository: RepositoryName,
    blob: Arc<StoredBlob>,
    machine: BlobRead,
    cursor: Cursor,
    /// The bytes that are still to be returned.
    left: Range<u64>,
    passthrough: Option<Passthrough>,
    _pin: Pin,
}

impl Reader {
    /// A reader of `range` of the pinned blob, where `cursor` was opened at its start.
    pub(super) fn new(
        context: Arc<MirrorContext>,
        repository: RepositoryName,
        pin: Pin,
        machine: BlobRead,
        cursor: Cursor,
        range: Range<u64>,
    ) -> Self {
        let blob = Arc::clone(pin.blob());
        Self {
            context,
            repository,
            machine,
            cursor,
            left: range,
            passthrough: None,
            _pin: pin,
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
        self.machine.handle(clock.now(), BlobReadInput::NextByte);
        loop {
            while let Some(output) = self.machine.poll_output() {
                match output {
                    BlobReadOutput::CheckSources => self.check_sources().await,
                    BlobReadOutput::PassThrough(reason) => return self.fall_back(reason).await,
                }
            }
            let deadline = clock.sleep_until(self.machine.poll_timeout());
            tokio::select! {
                biased;
                availability = self.blob.wait_until_available(self.left.start) => {
                    match availability {
                        Availability::Ready(until) => {
                            if let Some(bytes) = self.read(until).await? {
                                self.machine.handle(clock.now(), BlobReadInput::Delivered);
                                return Ok(Some(bytes));
                            }
                        }
                        Availability::Bypassed => {
                            self.machine.handle(clock.now(), BlobReadInput::Bypassed);
                        }
                        // The wait does not end with this.
                        Availability::Waiting => {}
                    }
                }
                () = deadline => self.machine.handle_timeout(clock.now()),
            }
        }
    }

    /// Tells the machine which sources there are.
    async fn check_sources(&mut self) {
        let has_source = self.has_source().await;
        let now = self.context.clock.now();
        let last_received = self.context.telemetry.last_received.elapsed(now);
        let sources = BlobReadInput::Sources {
            has_source,
            last_received,
        };
        self.machine.handle(now, sources);
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

    /// Reads the next piece, which ends at `until` at the latest; `None` if the chunk is
    /// damaged on disk or cannot be read.
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
            // A connection to an origin would need a file descriptor too.
            Err(error @ StoreError::OutOfFiles { .. }) => {
                Err(MirrorError::Unavailable(error.to_string()))
            }
            Err(error) => {
                tracing::error!(
                    blob = %self.blob.digest(), %error,
                    "read of a stored blob failed; passing it through from an origin"
                );
                self.blob.mark_bypassed();
                let now = self.context.clock.now();
                self.machine.handle(now, BlobReadInput::Bypassed);
                Ok(None)
            }
        }
    }

    /// Goes on with bytes from an origin.
    async fn fall_back(&mut self, reason: FallbackReason) -> Result<Option<Bytes>, MirrorError> {
        if reason != FallbackReason::Bypassed {
            tracing::warn!(
                blob = %self.blob.digest(), offset = self.left.start, %reason,
                "swarm did not deliver in time; passing the blob through from an origin"
            );
        }
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

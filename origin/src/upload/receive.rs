//! Streaming a request body into segments, and hashing it on the way.
//!
//! ```text
//! socket -> batch of 512 KiB -+-> hasher (blocking thread) -+-> next batch
//!                             +-> writer of the segment ----+
//! ```
//! While a batch is hashed and written, the next one is read. So an upload uses at most two
//! batches, each in a buffer of the pool. An upload without a buffer holds one received piece and
//! does not read its socket any further: that is the backpressure. Received pieces are copied into
//! the buffer, because a piece keeps its whole read buffer allocated, which may be much larger. A
//! buffer is taken only after the first bytes of a batch have arrived, and the batch is closed soon
//! after, so that slow clients do not occupy buffers.
//!
//! Memory is acquired in a fixed order: first what the segment's writer needs, then the buffer of
//! the batch. A task that holds a batch buffer therefore never waits for memory. Otherwise uploads
//! that hold batches and wait for parts could deadlock with uploads that hold parts and wait for
//! batches.
//!
//! A segment is invisible until it is finished, and belongs to the upload once a log entry names
//! it.

use core::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use tokio::time::Instant;

use super::hash::Hashes;
use super::id::Generation;
use crate::buffer_pool::BufferPool;
use crate::layout;
use crate::nonce::nonce;
use crate::record::Segment;
use crate::stall_budget::{BudgetExhausted, StallBudget};
use crate::storage::{ObjectWriter, Storage, StorageError};

/// Maximum number of bytes of a batch, which is hashed and written at once.
pub(crate) const BATCH_LEN: usize = 512 << 10;
/// How long a batch is filled after its first bytes arrived. Batches of slow clients are smaller.
const FILL_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the response of a failed upload is delayed by the removal of its segments.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Batches shorter than this are hashed inline, because moving them to another thread costs more.
const HASH_INLINE_LEN: usize = 64 << 10;

/// The limits for receiving a body.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveLimits {
    /// The buffers for batches.
    pub(crate) batches: BufferPool,
    /// The stall budget of a client that sends too slowly.
    pub(crate) stall: Duration,
    /// Maximum length of a segment in bytes.
    pub(crate) segment_len: u64,
    /// The Content-Length of the body, if the client sent one.
    pub(crate) expected: Option<u64>,
}

/// A body that was received completely.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) segments: Vec<Segment>,
    /// The hashers after all bytes of the upload.
    pub(crate) hashes: Hashes,
}

/// A body was not received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The client disconnected or violated the protocol.
    #[error("read request body: {0}")]
    Body(String),
    /// The client sent too slowly and exhausted its stall budget.
    #[error("{}", crate::stall_budget::EXHAUSTED)]
    Stalled,
    /// The length of the body differs from its Content-Length.
    #[error("the length of the body differs from its Content-Length")]
    Length,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Streams `body` into segments of the upload.
///
/// On an error all its segments are removed. That is safe, because no log entry can name them yet.
pub(crate) async fn receive<S, E>(
    storage: &dyn Storage,
    upload: &Generation,
    body: S,
    hashes: Hashes,
    limits: &ReceiveLimits,
) -> Result<Received, ReceiveError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    let mut sink = SegmentSink {
        storage,
        upload,
        limits,
        segments: Vec::new(),
        open: None,
    };
    match receive_into(&mut sink, body, hashes, limits).await {
        Ok(hashes) => Ok(Received {
            segments: sink.segments,
            hashes,
        }),
        Err(error) => {
            let SegmentSink { segments, open, .. } = sink;
            drop(open);
            drop_segments(storage, upload, &segments).await;
            Err(error)
        }
    }
}

async fn receive_into<S, E>(
    sink: &mut SegmentSink<'_>,
    body: S,
    mut hashes: Hashes,
    limits: &ReceiveLimits,
) -> Result<Hashes, ReceiveError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    let mut reader = BatchReader {
        body,
        limits,
        remaining: limits.expected,
        stall_budget: StallBudget::new(limits.stall),
        piece: None,
        has_ended: false,
    };
    let mut batch = read_first_batch(&mut reader, sink).await?;
    while !batch.is_empty() {
        let capacity = sink.reserve(batch.len()).await?;
        if capacity == 0 {
            hashes = sink.store(hashes, batch).await?;
            batch = read_first_batch(&mut reader, sink).await?;
        } else {
            let (next, stored) =
                tokio::join!(reader.read_batch(capacity), sink.store(hashes, batch));
            batch = next?;
            hashes = stored?;
        }
    }
    if reader.remaining.is_some_and(|remaining| remaining > 0) {
        return Err(ReceiveError::Length);
    }
    sink.finish().await?;
    Ok(hashes)
}

/// Reads a batch while no other batch is held; empty at the end of the body.
async fn read_first_batch<S, E>(
    reader: &mut BatchReader<'_, S>,
    sink: &mut SegmentSink<'_>,
) -> Result<Bytes, ReceiveError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    if reader.wait_until_readable().await? {
        let capacity = sink.reserve(0).await?;
        return reader.read_batch(capacity).await;
    }
    Ok(Bytes::new())
}

struct BatchReader<'a, S> {
    body: S,
    limits: &'a ReceiveLimits,
    /// Bytes that the body must still have, if its length is known.
    remaining: Option<u64>,
    stall_budget: StallBudget,
    /// Received bytes that are in no batch yet.
    piece: Option<Bytes>,
    has_ended: bool,
}

impl<S, E> BatchReader<'_, S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    /// Waits until bytes have arrived; false at the end of the body.
    async fn wait_until_readable(&mut self) -> Result<bool, ReceiveError> {
        while self.piece.is_none() && !self.has_ended {
            let piece = self.stall_budget.next(&mut self.body).await;
            let Some(piece) = piece.map_err(|BudgetExhausted| ReceiveError::Stalled)? else {
                self.has_ended = true;
                break;
            };
            let piece = piece.map_err(|error| ReceiveError::Body(error.to_string()))?;
            if let Some(remaining) = &mut self.remaining {
                *remaining = remaining
                    .checked_sub(piece.len() as u64)
                    .ok_or(ReceiveError::Length)?;
            }
            self.piece = (!piece.is_empty()).then_some(piece);
        }
        Ok(self.piece.is_some())
    }

    /// Reads a batch of at most `max_len` bytes; empty at the end of the body.
    async fn read_batch(&mut self, max_len: usize) -> Result<Bytes, ReceiveError> {
        if !self.wait_until_readable().await? {
            return Ok(Bytes::new());
        }
        let mut buffer = self.limits.batches.take().await;
        let deadline = Instant::now() + FILL_TIMEOUT;
        let len = max_len.min(BATCH_LEN);
        while buffer.len() < len {
            let waited = tokio::time::timeout_at(deadline, self.wait_until_readable()).await;
            let Ok(is_readable) = waited else {
                break;
            };
            is_readable?;
            let Some(mut piece) = self.piece.take() else {
                break;
            };
            let appended = buffer.append(&piece[..piece.len().min(len - buffer.len())]);
            piece.advance(appended);
            self.piece = (!piece.is_empty()).then_some(piece);
        }
        Ok(buffer.freeze())
    }
}

async fn hash(mut hashes: Hashes, bytes: Bytes) -> Result<Hashes, StorageError> {
    let len = bytes.len();
    let update = move || {
        hashes.update(&bytes);
        hashes
    };
    if len < HASH_INLINE_LEN {
        return Ok(update());
    }
    let hashed = tokio::task::spawn_blocking(update).await;
    hashed.map_err(|stopped| StorageError::unavailable("hash bytes", "upload", stopped))
}

struct SegmentSink<'a> {
    storage: &'a dyn Storage,
    upload: &'a Generation,
    limits: &'a ReceiveLimits,
    segments: Vec<Segment>,
    open: Option<(Segment, Box<dyn ObjectWriter>)>,
}

impl SegmentSink<'_> {
    /// Hashes and writes a batch, and releases its buffer, for which the next batch may be waiting.
    async fn store(&mut self, hashes: Hashes, batch: Bytes) -> Result<Hashes, StorageError> {
        let (hashed, written) = tokio::join!(hash(hashes, batch.clone()), self.write(batch));
        written.and(hashed)
    }

    /// How many bytes can be written, after `pending` more, without waiting for memory. Waits for
    /// memory, or begins a segment, only if `pending` is 0.
    async fn reserve(&mut self, pending: usize) -> Result<usize, StorageError> {
        if let Some((segment, writer)) = &mut self.open {
            let remaining = self
                .limits
                .segment_len
                .saturating_sub(segment.size + pending as u64);
            if remaining > 0 {
                let capacity = writer.reserve(pending).await?;
                return Ok(capacity.min(usize::try_from(remaining).unwrap_or(usize::MAX)));
            }
        }
        if pending > 0 {
            return Ok(0);
        }
        self.finish().await?;
        let segment = Segment {
            nonce: nonce(),
            size: 0,
        };
        let writer = self
            .storage
            .begin_write(&layout::segment(self.upload, segment.nonce))
            .await?;
        self.open.insert((segment, writer)).1.reserve(0).await
    }

    /// Writes a batch, for which memory is reserved.
    async fn write(&mut self, batch: Bytes) -> Result<(), StorageError> {
        let Some((segment, writer)) = &mut self.open else {
            return Ok(());
        };
        let len = batch.len() as u64;
        writer.write(batch).await?;
        segment.size += len;
        writer.flush().await
    }

    async fn finish(&mut self) -> Result<(), StorageError> {
        if let Some((segment, writer)) = self.open.take() {
            // Recorded before the attempt: if the outcome is unknown, the object may exist.
            self.segments.push(segment);
            writer.finish().await?;
        }
        Ok(())
    }
}

/// Removes segments that no log entry names, now or later. The removal has a timeout, so that slow
/// storage does not delay the response; the collector deletes what remains.
pub(crate) async fn drop_segments(
    storage: &dyn Storage,
    upload: &Generation,
    segments: &[Segment],
) {
    let removed = async {
        for segment in segments {
            let key = layout::segment(upload, segment.nonce);
            if let Err(error) = storage.delete(&key).await {
                tracing::debug!(%key, %error, "segment not removed; the collector will delete it");
            }
        }
    };
    if tokio::time::timeout(REMOVE_TIMEOUT, removed).await.is_err() {
        tracing::debug!(%upload, "removal of segments timed out; the collector will delete the rest");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use flotilla_common::digest::{Algorithm, Digest};
    use flotilla_common::name::RepositoryName;
    use futures_util::{StreamExt, stream};

    use super::*;
    use crate::storage::{Prefix, open};
    use crate::upload::id::UploadIdSigner;

    fn upload() -> Generation {
        let repository: RepositoryName = "app".parse().unwrap();
        UploadIdSigner::new([0; 32])
            .issue(&repository, u64::MAX, false)
            .id
    }

    fn limits(expected: Option<u64>) -> ReceiveLimits {
        let batches = BufferPool::new(BATCH_LEN, BATCH_LEN as u64);
        ReceiveLimits {
            batches,
            stall: Duration::from_secs(60),
            segment_len: 2 << 20,
            expected,
        }
    }

    async fn run(
        pieces: Vec<Result<Bytes, String>>,
        limits: &ReceiveLimits,
    ) -> (Result<Received, ReceiveError>, usize) {
        let storage = open("memory:///", 0).unwrap();
        let received = receive(
            &*storage,
            &upload(),
            stream::iter(pieces),
            Hashes::new(false),
            limits,
        )
        .await;
        let objects = storage
            .list(&Prefix::new("seg/").unwrap(), None, 99)
            .await
            .unwrap()
            .entries
            .len();
        (received, objects)
    }

    fn pieces(count: usize) -> Vec<Result<Bytes, String>> {
        (0..count)
            .map(|index| Ok(vec![index as u8; 700 << 10].into()))
            .collect()
    }

    #[tokio::test]
    async fn long_bodies_are_split_into_segments() {
        let limits = limits(None);
        let (received, objects) = run(pieces(8), &limits).await;
        let received = received.unwrap();
        assert_eq!(objects, received.segments.len());
        assert!(objects >= 3);
        let whole: Vec<u8> = (0..8_u8).flat_map(|index| vec![index; 700 << 10]).collect();
        assert_eq!(
            received
                .segments
                .iter()
                .map(|segment| segment.size)
                .sum::<u64>(),
            whole.len() as u64
        );
        let (digest, _) = received.hashes.finish(Algorithm::Sha256);
        assert_eq!(digest, Some(Digest::sha256(&whole)));
        assert!(limits.batches.try_take().is_some());
    }

    #[tokio::test]
    async fn failed_bodies_leave_no_segments() {
        let mut broken = pieces(6);
        broken.push(Err("reset".to_owned()));
        let (received, remaining) = run(broken, &limits(None)).await;
        assert!(matches!(received, Err(ReceiveError::Body(_))));
        assert_eq!(remaining, 0);
        for expected in [699 << 10, 9 * (700 << 10)] {
            let (received, remaining) = run(pieces(6), &limits(Some(expected))).await;
            assert!(matches!(received, Err(ReceiveError::Length)), "{expected}");
            assert_eq!(remaining, 0);
        }
    }

    #[tokio::test]
    async fn empty_bodies_write_nothing() {
        let (received, remaining) = run(Vec::new(), &limits(Some(0))).await;
        assert!(received.unwrap().segments.is_empty());
        assert_eq!(remaining, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_clients_time_out() {
        let storage = open("memory:///", 0).unwrap();
        let body = stream::iter(pieces(2)).chain(stream::pending());
        let received = receive(
            &*storage,
            &upload(),
            body,
            Hashes::new(false),
            &limits(None),
        )
        .await;
        assert!(matches!(received, Err(ReceiveError::Stalled)));
    }
}

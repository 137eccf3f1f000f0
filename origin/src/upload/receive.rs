//! The bytes of one request body on their way into segments, hashed as they pass.
//!
//! ```text
//! socket -> batch of 512 KiB -> hash (blocking thread) -+-> next
//!                          -> segment's writer       -+
//! ```
//! While a batch is hashed and written, the next one is read: two batches per upload, each in a
//! block of the pool. An upload without a block has one piece of its body and does not read its
//! socket any further. Bytes are copied into the block: a piece as it came keeps the buffer that it
//! was read into, which may be much larger. So that slow clients keep nobody waiting, a batch is
//! gathered only when its first bytes are there, and for a short time only.
//!
//! Memory is asked for in one order, what the segment's writer needs before the block of a batch:
//! who holds a block waits for nobody. Without that, uploads with blocks that wait for parts and
//! uploads with parts that wait for blocks wait for each other for ever.
//!
//! Nothing is visible before the segment is finished, and the segment counts only once a link names
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

/// Bytes that are gathered before they are hashed and written.
pub(crate) const BATCH_LEN: usize = 512 << 10;
/// How long a batch is gathered after its first bytes; a slow client's is smaller then.
const GATHER_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a client whose upload failed waits for its segments to be removed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Fewer bytes than this are hashed where they are: handing them over would cost more.
const HASH_HERE_LEN: usize = 64 << 10;

/// The bounds of a body.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Memory for batches.
    pub(crate) batches: BufferPool,
    /// The patience with a client that sends nothing, or little.
    pub(crate) stall: Duration,
    /// Bytes at which a segment ends.
    pub(crate) segment_len: u64,
    /// Bytes that the body may have; none if the client did not say.
    pub(crate) expected: Option<u64>,
}

/// What arrived.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) segments: Vec<Segment>,
    /// After all bytes of the upload.
    pub(crate) hashes: Hashes,
}

/// Why a body did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The client went away or broke the protocol.
    #[error("read request body: {0}")]
    Body(String),
    /// The client sent nothing, or too little, for too long.
    #[error("the client stalled")]
    Stalled,
    /// The body has another length than the client said.
    #[error("the body has another length than announced")]
    Length,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Streams `body` into segments of the upload.
///
/// On an error nothing of it stays: no link was tried yet, so nobody can know the segments.
pub(crate) async fn receive<S, E>(
    storage: &dyn Storage,
    upload: &Generation,
    body: S,
    hashes: Hashes,
    bounds: &Bounds,
) -> Result<Received, ReceiveError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    let mut sink = Sink {
        storage,
        upload,
        bounds,
        segments: Vec::new(),
        open: None,
    };
    match pump(&mut sink, body, hashes, bounds).await {
        Ok(hashes) => Ok(Received {
            segments: sink.segments,
            hashes,
        }),
        Err(error) => {
            let Sink { segments, open, .. } = sink;
            drop(open);
            drop_segments(storage, upload, &segments).await;
            Err(error)
        }
    }
}

async fn pump<S, E>(
    sink: &mut Sink<'_>,
    body: S,
    mut hashes: Hashes,
    bounds: &Bounds,
) -> Result<Hashes, ReceiveError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    let patience = StallBudget::new(bounds.stall);
    let mut source = Source {
        body,
        bounds,
        left: bounds.expected,
        patience,
        held: None,
        has_ended: false,
    };
    let mut batch = next_batch(&mut source, sink).await?;
    while !batch.is_empty() {
        let room = sink.room(batch.len()).await?;
        if room == 0 {
            hashes = sink.store(hashes, batch).await?;
            batch = next_batch(&mut source, sink).await?;
        } else {
            let (next, stored) = tokio::join!(source.batch(room), sink.store(hashes, batch));
            (batch, hashes) = (next?, stored?);
        }
    }
    if source.left.is_some_and(|left| left > 0) {
        return Err(ReceiveError::Length);
    }
    sink.finish().await?;
    Ok(hashes)
}

/// The next batch, with none under way; empty at the end of the body.
async fn next_batch<S, E>(
    source: &mut Source<'_, S>,
    sink: &mut Sink<'_>,
) -> Result<Bytes, ReceiveError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    if source.wait().await? {
        let room = sink.room(0).await?;
        return source.batch(room).await;
    }
    Ok(Bytes::new())
}

struct Source<'a, S> {
    body: S,
    bounds: &'a Bounds,
    left: Option<u64>,
    patience: StallBudget,
    /// What was read and is in no batch yet.
    held: Option<Bytes>,
    has_ended: bool,
}

impl<S, E> Source<'_, S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: core::fmt::Display,
{
    /// Waits for bytes; false at the end of the body.
    async fn wait(&mut self) -> Result<bool, ReceiveError> {
        while self.held.is_none() && !self.has_ended {
            let piece = self.patience.next(&mut self.body).await;
            let Some(piece) = piece.map_err(|BudgetExhausted| ReceiveError::Stalled)? else {
                self.has_ended = true;
                break;
            };
            let piece = piece.map_err(|error| ReceiveError::Body(error.to_string()))?;
            if let Some(left) = &mut self.left {
                *left = left
                    .checked_sub(piece.len() as u64)
                    .ok_or(ReceiveError::Length)?;
            }
            self.held = (!piece.is_empty()).then_some(piece);
        }
        Ok(self.held.is_some())
    }

    /// The next batch, of at most `room` bytes; empty at the end of the body.
    async fn batch(&mut self, room: usize) -> Result<Bytes, ReceiveError> {
        if !self.wait().await? {
            return Ok(Bytes::new());
        }
        let mut block = self.bounds.batches.take().await;
        let deadline = Instant::now() + GATHER_TIMEOUT;
        let len = room.min(BATCH_LEN);
        while block.len() < len {
            let Ok(more) = tokio::time::timeout_at(deadline, self.wait()).await else {
                break;
            };
            more?;
            let Some(mut piece) = self.held.take() else {
                break;
            };
            let now = block.append(&piece[..piece.len().min(len - block.len())]);
            piece.advance(now);
            self.held = (!piece.is_empty()).then_some(piece);
        }
        Ok(block.freeze())
    }
}

async fn hash(mut hashes: Hashes, bytes: Bytes) -> Result<Hashes, StorageError> {
    let len = bytes.len();
    let update = move || {
        hashes.update(&bytes);
        hashes
    };
    if len < HASH_HERE_LEN {
        return Ok(update());
    }
    let hashed = tokio::task::spawn_blocking(update).await;
    hashed.map_err(|stopped| StorageError::unavailable("hash bytes", "upload", stopped))
}

struct Sink<'a> {
    storage: &'a dyn Storage,
    upload: &'a Generation,
    bounds: &'a Bounds,
    segments: Vec<Segment>,
    open: Option<(Segment, Box<dyn ObjectWriter>)>,
}

impl Sink<'_> {
    /// Hashes and writes a batch. Its block is free again at the end: the next batch may be waiting
    /// for it.
    async fn store(&mut self, hashes: Hashes, batch: Bytes) -> Result<Hashes, StorageError> {
        let (hashed, written) = tokio::join!(hash(hashes, batch.clone()), self.write(batch));
        written.and(hashed)
    }

    /// How many bytes can be written after `pending` more without waiting for memory. Only without
    /// any pending it waits for memory, or begins a segment.
    async fn room(&mut self, pending: usize) -> Result<usize, StorageError> {
        if let Some((segment, writer)) = &mut self.open {
            let left = self
                .bounds
                .segment_len
                .saturating_sub(segment.size + pending as u64);
            if left > 0 {
                let room = writer.reserve(pending).await?;
                return Ok(room.min(usize::try_from(left).unwrap_or(usize::MAX)));
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

    /// There is room for the batch.
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
            // Noted before the attempt: an outcome that stays unknown may have left an object
            // behind.
            self.segments.push(segment);
            writer.finish().await?;
        }
        Ok(())
    }
}

/// Removes segments that no link names, now or later. A storage that takes its time keeps no client
/// waiting: what is left is the collector's.
pub(crate) async fn drop_segments(
    storage: &dyn Storage,
    upload: &Generation,
    segments: &[Segment],
) {
    let removed = async {
        for segment in segments {
            let key = layout::segment(upload, segment.nonce);
            if let Err(error) = storage.delete(&key).await {
                tracing::debug!(%key, %error, "a segment is left to the collector");
            }
        }
    };
    if tokio::time::timeout(REMOVE_TIMEOUT, removed).await.is_err() {
        tracing::debug!(%upload, "segments are left to the collector");
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
    use crate::upload::id::Signer;

    fn upload() -> Generation {
        let repository: RepositoryName = "app".parse().unwrap();
        Signer::new([0; 32]).begin(&repository, u64::MAX, false).id
    }

    fn bounds(expected: Option<u64>) -> Bounds {
        let batches = BufferPool::new(BATCH_LEN, BATCH_LEN as u64);
        Bounds {
            batches,
            stall: Duration::from_secs(60),
            segment_len: 2 << 20,
            expected,
        }
    }

    async fn run(
        pieces: Vec<Result<Bytes, String>>,
        bounds: &Bounds,
    ) -> (Result<Received, ReceiveError>, usize) {
        let storage = open("memory:///", 0).unwrap();
        let received = receive(
            &*storage,
            &upload(),
            stream::iter(pieces),
            Hashes::new(false),
            bounds,
        )
        .await;
        let left = storage
            .list(&Prefix::new("seg/").unwrap(), None, 99)
            .await
            .unwrap()
            .entries
            .len();
        (received, left)
    }

    fn pieces(count: usize) -> Vec<Result<Bytes, String>> {
        (0..count)
            .map(|index| Ok(vec![index as u8; 700 << 10].into()))
            .collect()
    }

    #[tokio::test]
    async fn a_long_body_becomes_several_segments_and_one_hash() {
        let bounds = bounds(None);
        let (received, objects) = run(pieces(8), &bounds).await;
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
        assert!(bounds.batches.try_take().is_some());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_or_lies_about_its_length_leaves_nothing() {
        let mut broken = pieces(6);
        broken.push(Err("reset".to_owned()));
        let (received, left) = run(broken, &bounds(None)).await;
        assert!(matches!(received, Err(ReceiveError::Body(_))));
        assert_eq!(left, 0);
        for expected in [699 << 10, 9 * (700 << 10)] {
            let (received, left) = run(pieces(6), &bounds(Some(expected))).await;
            assert!(matches!(received, Err(ReceiveError::Length)), "{expected}");
            assert_eq!(left, 0);
        }
    }

    #[tokio::test]
    async fn no_bytes_write_nothing() {
        let (received, left) = run(Vec::new(), &bounds(Some(0))).await;
        assert!(received.unwrap().segments.is_empty());
        assert_eq!(left, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_given_up() {
        let storage = open("memory:///", 0).unwrap();
        let body = stream::iter(pieces(2)).chain(stream::pending());
        let received = receive(
            &*storage,
            &upload(),
            body,
            Hashes::new(false),
            &bounds(None),
        )
        .await;
        assert!(matches!(received, Err(ReceiveError::Stalled)));
    }
}

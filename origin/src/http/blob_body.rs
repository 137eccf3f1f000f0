//! The bodies of blob responses that are copied through this process, and the bound on their
//! memory.
//!
//! A client that reads nothing keeps the next piece of its response in memory, so a thousand such
//! clients would keep a thousand buffers. A response therefore has at most two large pieces of a
//! file in memory, and those only while the pool that all responses share has a buffer left;
//! otherwise it continues with one small piece at a time. A response never waits for the pool: slow
//! clients cost others some throughput, but never block them.
//!
//! Do not collect such a stream: each piece holds a permit until it is dropped, so collecting the
//! pieces deadlocks. A connection drops each piece once it is sent.

use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::units::ByteSize;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffer_pool::{BufferPool, PooledBuffer};

/// Bytes of a large piece; with smaller ones scheduling costs more than copying.
const LARGE: usize = 512 << 10;
/// Bytes of a small piece.
const SMALL: usize = 16 << 10;
/// Large pieces of one response in memory: one being sent, one read ahead. A small piece is alone.
const PIECES_IN_FLIGHT: usize = 2;

/// Memory for the pieces of all responses together.
#[derive(Clone, Debug)]
pub(crate) struct SendBuffers(BufferPool);

/// A piece with the permits that it occupies until it was sent.
struct PieceInFlight {
    bytes: Bytes,
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl AsRef<[u8]> for PieceInFlight {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn with_permits(bytes: Bytes, permits: [Option<OwnedSemaphorePermit>; 2]) -> Bytes {
    Bytes::from_owner(PieceInFlight {
        bytes,
        _permits: permits,
    })
}

async fn acquire(permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(permits).acquire_owned().await.ok()
}

impl SendBuffers {
    pub(crate) fn new(bytes: ByteSize) -> Self {
        Self(BufferPool::new(LARGE, bytes.0))
    }

    /// Streams ranges of files, one after the other. With `read_timeout`, a read that takes longer
    /// ends the stream with an error; the time in which the client reads does not count.
    pub(super) fn files(
        &self,
        files: Vec<(Arc<File>, Range<u64>)>,
        read_timeout: Option<Duration>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let permits = Arc::new(Semaphore::new(PIECES_IN_FLIGHT));
        let pool = self.0.clone();
        let files = stream::iter(files.into_iter().map(Ok::<_, io::Error>));
        let pieces = files.map_ok(move |(file, range)| {
            let permits = Arc::clone(&permits);
            let pool = pool.clone();
            stream::try_unfold(range, move |range| {
                let file = Arc::clone(&file);
                let permits = Arc::clone(&permits);
                let pool = pool.clone();
                async move {
                    if range.is_empty() {
                        return Ok(None);
                    }
                    let first = acquire(&permits).await;
                    let (piece, second) = match pool.try_take() {
                        Some(buffer) => {
                            let read = read_large(buffer, file, range.clone());
                            (within(read_timeout, read).await?, None)
                        }
                        None => {
                            let second = acquire(&permits).await;
                            let read = read_small(file, range.clone());
                            (within(read_timeout, read).await?, second)
                        }
                    };
                    let rest = range.start + piece.len() as u64..range.end;
                    Ok::<_, io::Error>(Some((with_permits(piece, [first, second]), rest)))
                }
            })
        });
        pieces.try_flatten().boxed()
    }
}

/// Fails if a read takes longer than `limit`.
async fn within<T>(
    limit: Option<Duration>,
    read: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let Some(limit) = limit else {
        return read.await;
    };
    let read = tokio::time::timeout(limit, read).await;
    read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Streams bytes from remote storage, with one piece in memory at a time.
pub(in crate::http) fn one_piece_at_a_time<S, E>(
    bytes: S,
) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: Send + 'static,
{
    let permits = Arc::new(Semaphore::new(1));
    stream::unfold((bytes, permits), |(mut bytes, permits)| async move {
        let permit = acquire(&permits).await;
        let piece = bytes.next().await?;
        let piece = piece.map(|piece| with_permits(piece, [permit, None]));
        Some((piece, (bytes, permits)))
    })
    .boxed()
}

/// Reads the start of a range into a pooled buffer.
async fn read_large(
    mut buffer: PooledBuffer,
    file: Arc<File>,
    range: Range<u64>,
) -> io::Result<Bytes> {
    let read = move || {
        let len = usize::try_from(range.end - range.start).unwrap_or(LARGE);
        buffer.append_with(len, |room| file.read_exact_at(room, range.start))?;
        Ok(buffer.freeze())
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(io::Error::other)?
}

/// Reads a few bytes at the start of a range: on this thread if they are in the page cache, else on
/// a thread that may wait for the disk.
async fn read_small(file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end - range.start).map_or(SMALL, |len| len.min(SMALL));
    let mut bytes = vec![0; len];
    let read_now = rustix::io::preadv2(
        &file,
        &mut [IoSliceMut::new(&mut bytes)],
        range.start,
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    if read_now == Ok(len) {
        return Ok(bytes.into());
    }
    let read = move || {
        file.read_exact_at(&mut bytes, range.start)
            .map(|()| bytes.into())
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use std::io::Write;

    use super::*;
    use crate::regions::resuming_body::{BrokenBody, with_stall_timeout};

    const LEN: usize = 2 * LARGE + 5;

    fn file() -> (Arc<File>, Vec<u8>) {
        let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), bytes)
    }

    /// The length of each piece and all bytes, for a client that reads everything.
    async fn sent(buffers: &SendBuffers, range: Range<u64>) -> (Vec<usize>, Vec<u8>) {
        let pieces = buffers.files(vec![(file().0, range)], None);
        let mut lens = Vec::new();
        let mut bytes = Vec::new();
        let mut pieces = Box::pin(pieces);
        while let Some(piece) = pieces.next().await {
            let piece = piece.unwrap();
            lens.push(piece.len());
            bytes.extend_from_slice(&piece);
        }
        (lens, bytes)
    }

    #[tokio::test]
    async fn pieces_are_small_once_the_pool_is_empty() {
        let buffers = SendBuffers::new(ByteSize(2 * LARGE as u64));
        let (lens, bytes) = sent(&buffers, 3..LEN as u64).await;
        assert_eq!(lens, [LARGE, LARGE, 2]);
        assert_eq!(bytes, file().1[3..]);
        let _all: Vec<_> = core::iter::from_fn(|| buffers.0.try_take()).collect();
        let (lens, bytes) = sent(&buffers, 3..LEN as u64).await;
        assert!(lens.iter().all(|len| *len <= SMALL), "{lens:?}");
        assert_eq!(bytes, file().1[3..]);
    }

    #[tokio::test]
    async fn stalled_client_holds_two_large_pieces_or_one_small() {
        let buffers = SendBuffers::new(ByteSize(3 * LARGE as u64));
        let of = || Box::pin(buffers.files(vec![(file().0, 0..LEN as u64)], None));
        let mut first = of();
        let mut second = of();
        let mut third = of();
        let held: [Bytes; 2] = [
            first.next().await.unwrap().unwrap(),
            first.next().await.unwrap().unwrap(),
        ];
        assert!(futures_util::poll!(first.next()).is_pending());
        let last_large = second.next().await.unwrap().unwrap();
        let small = third.next().await.unwrap().unwrap();
        assert_eq!((last_large.len(), small.len()), (LARGE, SMALL));
        assert!(futures_util::poll!(third.next()).is_pending());
        drop(held);
        assert_eq!(first.next().await.unwrap().unwrap().len(), 5);
        drop(small);
        assert_eq!(third.next().await.unwrap().unwrap().len(), LARGE);
    }

    #[tokio::test(start_paused = true)]
    async fn only_storage_that_stalls_ends_a_body() {
        let pieces = [Bytes::from_static(b"a"), Bytes::from_static(b"b")].map(Ok::<_, BrokenBody>);
        let bytes = stream::iter(pieces).chain(stream::pending()).boxed();
        let mut body = Box::pin(one_piece_at_a_time(with_stall_timeout(bytes)));
        let first = body.next().await.unwrap().unwrap();
        // A connection asks for the next piece while its client reads the first one slowly.
        let minute = tokio::time::timeout(Duration::from_secs(60), body.next()).await;
        assert!(minute.is_err(), "{minute:?}");
        drop(first);
        assert_eq!(body.next().await.unwrap().unwrap(), "b");
        body.next().await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn remote_pieces_are_read_one_at_a_time() {
        let pieces = [Bytes::from_static(b"a"), Bytes::from_static(b"b")].map(Ok::<_, io::Error>);
        let mut passed = Box::pin(one_piece_at_a_time(stream::iter(pieces)));
        let first = passed.next().await.unwrap().unwrap();
        assert!(futures_util::poll!(passed.next()).is_pending());
        drop(first);
        assert_eq!(passed.next().await.unwrap().unwrap(), "b");
        assert!(passed.next().await.is_none());
    }
}

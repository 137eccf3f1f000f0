//! The bytes of blobs that pass through this process on their way to clients, and the memory that
//! they may have.
//!
//! A client that takes nothing keeps what it was to get next; a thousand of them would keep as much
//! as the sum of their buffers. So a response has at most two large pieces of a file at once, and
//! those only while the pool of all responses together has a block left; without, it goes on with a
//! small piece at a time. Nobody waits for the pool: a slow client costs the others a part of their
//! speed, and never their turn.
//!
//! Whoever collects all pieces before it drops the first waits for ever; a connection drops each
//! one that it has sent.

use core::ops::Range;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::units::ByteSize;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffer_pool::{BufferPool, PooledBuffer};

/// Bytes of a large piece: small ones cost more in scheduling than in copying.
const LARGE: usize = 512 << 10;
/// Bytes of a small piece.
const SMALL: usize = 16 << 10;
/// Large pieces of one response: one on its way out, one ahead. A small piece is alone.
const AT_ONCE: usize = 2;

/// The memory of all responses together.
#[derive(Clone, Debug)]
pub(crate) struct SendBuffers(BufferPool);

/// A piece with its places, free again when it was sent.
struct Held {
    bytes: Bytes,
    _places: [Option<OwnedSemaphorePermit>; 2],
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn held(bytes: Bytes, places: [Option<OwnedSemaphorePermit>; 2]) -> Bytes {
    Bytes::from_owner(Held {
        bytes,
        _places: places,
    })
}

async fn place(places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(places).acquire_owned().await.ok()
}

impl SendBuffers {
    pub(crate) fn new(bytes: ByteSize) -> Self {
        Self(BufferPool::new(LARGE, bytes.0))
    }

    /// The bytes of ranges of files, one after the other.
    pub(super) fn files(
        &self,
        files: Vec<(Arc<File>, Range<u64>)>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let own = Arc::new(Semaphore::new(AT_ONCE));
        let pool = self.0.clone();
        let files = stream::iter(files.into_iter().map(Ok::<_, io::Error>));
        let pieces = files.map_ok(move |(file, range)| {
            let (own, pool) = (Arc::clone(&own), pool.clone());
            stream::try_unfold(range, move |range| {
                let (file, own, pool) = (Arc::clone(&file), Arc::clone(&own), pool.clone());
                async move {
                    if range.is_empty() {
                        return Ok(None);
                    }
                    let first = place(&own).await;
                    let (piece, second) = match pool.try_take() {
                        Some(block) => (large(block, file, range.clone()).await?, None),
                        None => {
                            let second = place(&own).await;
                            (small(file, range.clone()).await?, second)
                        }
                    };
                    let rest = range.start + piece.len() as u64..range.end;
                    Ok::<_, io::Error>(Some((held(piece, [first, second]), rest)))
                }
            })
        });
        pieces.try_flatten().boxed()
    }
}

/// Bytes that come from a server, one piece at a time.
pub(super) fn one_by_one<S, E>(bytes: S) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: Send + 'static,
{
    let own = Arc::new(Semaphore::new(1));
    stream::unfold((bytes, own), |(mut bytes, own)| async move {
        let turn = place(&own).await;
        let piece = bytes.next().await?;
        Some((piece.map(|piece| held(piece, [turn, None])), (bytes, own)))
    })
    .boxed()
}

/// The first bytes of a range, in a block.
async fn large(mut block: PooledBuffer, file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
    let reading = move || {
        let len = usize::try_from(range.end - range.start).unwrap_or(LARGE);
        block.append_with(len, |room| file.read_exact_at(room, range.start))?;
        Ok(block.freeze())
    };
    tokio::task::spawn_blocking(reading)
        .await
        .map_err(io::Error::other)?
}

/// The first bytes of a range; here if they are in memory, and otherwise where waiting for a disk
/// is allowed.
async fn small(file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end - range.start).map_or(SMALL, |len| len.min(SMALL));
    let mut bytes = vec![0; len];
    let now = rustix::io::preadv2(
        &file,
        &mut [IoSliceMut::new(&mut bytes)],
        range.start,
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    if now == Ok(len) {
        return Ok(bytes.into());
    }
    let reading = move || {
        file.read_exact_at(&mut bytes, range.start)
            .map(|()| bytes.into())
    };
    tokio::task::spawn_blocking(reading)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use std::io::Write;

    use super::*;

    const LEN: usize = 2 * LARGE + 5;

    fn file() -> (Arc<File>, Vec<u8>) {
        let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), bytes)
    }

    /// The length of each piece, and all bytes, of a client that drops what it was sent.
    async fn sent(buffers: &SendBuffers, range: Range<u64>) -> (Vec<usize>, Vec<u8>) {
        let pieces = buffers.files(vec![(file().0, range)]);
        let (mut lens, mut bytes, mut pieces) = (Vec::new(), Vec::new(), Box::pin(pieces));
        while let Some(piece) = pieces.next().await {
            let piece = piece.unwrap();
            lens.push(piece.len());
            bytes.extend_from_slice(&piece);
        }
        (lens, bytes)
    }

    #[tokio::test]
    async fn pieces_are_large_while_the_pool_has_memory_and_small_without() {
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
    async fn a_client_that_takes_nothing_holds_two_large_pieces_or_a_small_one() {
        let buffers = SendBuffers::new(ByteSize(3 * LARGE as u64));
        let of = || Box::pin(buffers.files(vec![(file().0, 0..LEN as u64)]));
        let (mut first, mut second, mut third) = (of(), of(), of());
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

    #[tokio::test]
    async fn what_comes_from_a_server_is_passed_on_one_by_one() {
        let pieces = [Bytes::from_static(b"a"), Bytes::from_static(b"b")].map(Ok::<_, io::Error>);
        let mut passed = Box::pin(one_by_one(stream::iter(pieces)));
        let first = passed.next().await.unwrap().unwrap();
        assert!(futures_util::poll!(passed.next()).is_pending());
        drop(first);
        assert_eq!(passed.next().await.unwrap().unwrap(), "b");
        assert!(passed.next().await.is_none());
    }
}

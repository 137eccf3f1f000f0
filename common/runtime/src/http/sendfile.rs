//! File bodies sent from the page cache to the socket by sendfile(2), without a copy through this
//! process.
//!
//! hyper only takes bodies of bytes. A file body therefore yields *placeholders*: slices of one
//! buffer of zeros that no other body uses, each as long as the file piece that it represents. The
//! piece itself goes into the queue of the connection. Below hyper, [`SendfileStream`] recognizes a
//! placeholder by its address and sends the file's bytes instead.
//!
//! ```text
//! body:            queue <- (file, range)    yields PLACEHOLDER[..len]
//! hyper:           head, then the same slice, uncopied, to write_vectored
//! SendfileStream:  is it in PLACEHOLDER?   yes: sendfile from the queue's front   no: write it
//! ```
//! sendfile blocks on the disk for bytes that are not in the page cache, and no runtime thread may
//! block. Such bytes are first read into the page cache on a blocking thread. No file bytes are
//! held in this process: with a thousand slow clients, each would hold a piece.
//!
//! A client must never receive the zeros of a placeholder. hyper must not copy body pieces
//! (vectored writes, which [`super::serve_with`] switches on), and a placeholder with an empty
//! queue ends the connection with an error.

use core::num::NonZeroU64;
use core::ops::Range;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use rustix::io::ReadWriteFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of a file that are sent as one piece.
const PIECE_LEN: u64 = 512 << 10;
/// Distance between the bytes by which a piece is probed for being in the page cache; the kernel
/// reads ahead by at least this much.
const PROBE_EVERY: u64 = 128 << 10;

/// Never written, so the kernel never allocates memory for it.
static PLACEHOLDER: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; PIECE_LEN as usize]));

fn is_placeholder(slice: &[u8]) -> bool {
    PLACEHOLDER.as_ptr_range().contains(&slice.as_ptr())
}

/// A piece of a file.
#[derive(Clone, Debug)]
struct FilePiece {
    file: Arc<File>,
    range: Range<u64>,
}

/// Sends files on one unencrypted HTTP/1.1 connection; in the extensions of its requests. Absent
/// where bytes pass through this process anyway, as with TLS.
#[derive(Clone, Debug, Default)]
pub struct FileSender {
    queue: Arc<Mutex<VecDeque<FilePiece>>>,
}

impl FileSender {
    /// A body of file ranges, one after the other, for a response on this connection only.
    ///
    /// # Errors
    /// In the stream: a file cannot be read, or is shorter than its range.
    pub fn body(
        self,
        ranges: Vec<(Arc<File>, Range<u64>)>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let pieces = ranges.into_iter().flat_map(|(file, range)| {
            let starts = (range.start..range.end).step_by(PIECE_LEN as usize);
            starts.map(move |start| FilePiece {
                file: Arc::clone(&file),
                range: start..(start + PIECE_LEN).min(range.end),
            })
        });
        stream::iter(pieces.map(Ok))
            .and_then(move |piece| self.clone().enqueue(piece))
            .boxed()
    }

    async fn enqueue(self, piece: FilePiece) -> io::Result<Bytes> {
        let piece = if piece.is_in_memory() {
            piece
        } else {
            let fetched = tokio::task::spawn_blocking(move || piece.fetch().map(|()| piece)).await;
            fetched.map_err(io::Error::other)??
        };
        let len = (piece.range.end - piece.range.start) as usize;
        self.lock().push_back(piece);
        Ok(PLACEHOLDER.slice(..len))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<FilePiece>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends at most `len` bytes of the piece at the front of the queue.
    fn send(&self, stream: &TcpStream, len: usize) -> io::Result<usize> {
        let mut queue = self.lock();
        let piece = queue
            .front_mut()
            .ok_or_else(|| io::Error::other("a placeholder without a queued file piece"))?;
        let left = (piece.range.end - piece.range.start) as usize;
        let sent = rustix::fs::sendfile(
            stream,
            &piece.file,
            Some(&mut piece.range.start),
            len.min(left),
        )?;
        if sent == 0 {
            return Err(too_short());
        }
        if sent == left {
            queue.pop_front();
        }
        Ok(sent)
    }
}

impl FilePiece {
    /// Whether it is in the page cache, judged by a sample of its bytes.
    fn is_in_memory(&self) -> bool {
        self.probe(ReadWriteFlags::NOWAIT).is_ok()
    }

    /// Reads it into the page cache. Blocking.
    fn fetch(&self) -> io::Result<()> {
        let len = NonZeroU64::new(self.range.end - self.range.start);
        // Only a hint: without it the reads take longer.
        let _ = rustix::fs::fadvise(
            &self.file,
            self.range.start,
            len,
            rustix::fs::Advice::WillNeed,
        );
        self.probe(ReadWriteFlags::empty())
    }

    fn probe(&self, flags: ReadWriteFlags) -> io::Result<()> {
        let last = self.range.end.saturating_sub(1);
        let mut probes = (self.range.start..last)
            .step_by(PROBE_EVERY as usize)
            .chain([last]);
        probes.try_for_each(|offset| {
            let mut byte = [0];
            match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(&mut byte)], offset, flags)?
            {
                0 => Err(too_short()),
                _ => Ok(()),
            }
        })
    }
}

fn too_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file is shorter than its range",
    )
}

/// A connection that sends file pieces in place of their placeholders.
#[derive(Debug)]
pub(super) struct SendfileStream {
    inner: TcpStream,
    files: FileSender,
}

impl SendfileStream {
    pub(super) const fn new(inner: TcpStream, files: FileSender) -> Self {
        Self { inner, files }
    }

    fn poll_send(&self, context: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.inner.poll_write_ready(context))?;
            match self
                .inner
                .try_io(Interest::WRITABLE, || self.files.send(&self.inner, len))
            {
                // The readiness was stale; `try_io` has cleared it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for SendfileStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl AsyncWrite for SendfileStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if is_placeholder(bytes) {
            return self.poll_send(context, bytes.len());
        }
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let pieces = &pieces[pieces.iter().take_while(|piece| piece.is_empty()).count()..];
        match pieces.iter().position(|piece| is_placeholder(piece)) {
            Some(0) => self.poll_send(context, pieces[0].len()),
            Some(until) => Pin::new(&mut self.inner).poll_write_vectored(context, &pieces[..until]),
            None => Pin::new(&mut self.inner).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::io::Write;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 + 1).collect()
    }

    /// The bytes that a client receives when `body` is written as hyper does: vectored, after a
    /// head.
    async fn sent(sender: FileSender, body: Vec<Bytes>) -> io::Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let mut stream = SendfileStream::new(listener.accept().await.unwrap().0, sender);
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.map(|_| got)
        });
        let head = Bytes::from_static(b"head");
        let mut left: VecDeque<Bytes> = core::iter::once(head).chain(body).collect();
        while !left.is_empty() {
            let slices: Vec<_> = left.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut written = stream.write_vectored(&slices).await?;
            while let Some(mut first) = left.pop_front() {
                let taken = written.min(first.len());
                written -= taken;
                if taken < first.len() {
                    left.push_front(first.split_off(taken));
                    break;
                }
            }
        }
        drop(stream);
        reading.await.unwrap()
    }

    #[tokio::test]
    async fn client_receives_file_bytes_and_never_a_placeholder() {
        let bytes = pattern(3 * PIECE_LEN as usize + 7);
        let (first, second) = (file(&bytes), file(b"second"));
        let sender = FileSender::default();
        let ranges = vec![(first, 5..bytes.len() as u64), (second, 0..6)];
        let body: Vec<Bytes> = sender.clone().body(ranges).try_collect().await.unwrap();
        assert!(
            body.iter().all(|piece| is_placeholder(piece)),
            "fresh writes are in the page cache"
        );
        let got = sent(sender, body).await.unwrap();
        assert_eq!(got, [b"head", &bytes[5..], b"second"].concat());
    }

    #[tokio::test]
    async fn placeholder_without_file_is_an_error() {
        let sent = sent(FileSender::default(), vec![PLACEHOLDER.slice(..10)]).await;
        assert_eq!(
            sent.unwrap_err().to_string(),
            "a placeholder without a queued file piece"
        );
    }

    #[tokio::test]
    async fn file_shorter_than_its_range_is_an_error() {
        let sender = FileSender::default();
        let body = sender.body(vec![(file(b"short"), 0..10)]);
        let body: io::Result<Vec<Bytes>> = body.try_collect().await;
        assert_eq!(body.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

//! Bytes of files that go from the page cache to a socket without passing through this process
//! (sendfile(2)).
//!
//! hyper takes bodies of bytes and nothing else. So a body of files yields *stand-ins*: pieces of
//! one buffer of zeros that no other body has, each as long as the piece of a file that it stands
//! for, which is put into the connection's queue. Below hyper, [`SendfileStream`] knows a stand-in by
//! its address and sends the file's bytes in its place.
//!
//! ```text
//! body:        queue <- (file, range)    yields STAND_IN[..len]
//! hyper:       head, then the same slice, uncopied, to write_vectored
//! SendfileStream:  is it in STAND_IN?   yes: sendfile from the queue's front   no: write it
//! ```
//! Only bytes that are in the page cache take this way, for sendfile waits for a disk, and no
//! thread of the runtime may; others are brought there first, where waiting is allowed. None are
//! kept in this process: of a thousand clients that take their time, each would hold its piece.
//!
//! What must never happen: a client gets the zeros of a stand-in. hyper may not copy what a body
//! yields (it writes vectored, which [`super::serve_with`] insists on); a stand-in that finds
//! nothing in the queue ends the connection.

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
/// Distance at which a piece is probed for being in memory; the kernel reads ahead by at least this
/// much.
const PROBE_EVERY: u64 = 128 << 10;

/// Never written, so the kernel never gives it memory.
static STAND_IN: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; PIECE_LEN as usize]));

fn is_stand_in(slice: &[u8]) -> bool {
    STAND_IN.as_ptr_range().contains(&slice.as_ptr())
}

/// A piece of a file.
#[derive(Clone, Debug)]
struct Piece {
    file: Arc<File>,
    range: Range<u64>,
}

/// Sends files on one unencrypted connection: in the extensions of its requests. Not there where
/// bytes have to pass through this process anyway, as with TLS.
#[derive(Clone, Debug, Default)]
pub struct FileSender {
    queue: Arc<Mutex<VecDeque<Piece>>>,
}

impl FileSender {
    /// A body of ranges of files, one after the other, for a response on this connection and no
    /// other.
    ///
    /// # Errors
    /// In the stream: if a file cannot be read, or is shorter than its range.
    pub fn body(
        self,
        ranges: Vec<(Arc<File>, Range<u64>)>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let pieces = ranges.into_iter().flat_map(|(file, range)| {
            let starts = (range.start..range.end).step_by(PIECE_LEN as usize);
            starts.map(move |start| Piece {
                file: Arc::clone(&file),
                range: start..(start + PIECE_LEN).min(range.end),
            })
        });
        stream::iter(pieces.map(Ok))
            .and_then(move |piece| self.clone().yielded(piece))
            .boxed()
    }

    async fn yielded(self, piece: Piece) -> io::Result<Bytes> {
        let piece = if piece.is_in_memory() {
            piece
        } else {
            let fetched = tokio::task::spawn_blocking(move || piece.fetch().map(|()| piece)).await;
            fetched.map_err(io::Error::other)??
        };
        let len = (piece.range.end - piece.range.start) as usize;
        self.lock().push_back(piece);
        Ok(STAND_IN.slice(..len))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Piece>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends at most `len` bytes of what is next.
    fn send(&self, stream: &TcpStream, len: usize) -> io::Result<usize> {
        let mut queue = self.lock();
        let piece = queue
            .front_mut()
            .ok_or_else(|| io::Error::other("a stand-in for no file"))?;
        let left = (piece.range.end - piece.range.start) as usize;
        let sent = rustix::fs::sendfile(
            stream,
            &piece.file,
            Some(&mut piece.range.start),
            len.min(left),
        )?;
        if sent == 0 {
            return Err(shorter());
        }
        if sent == left {
            queue.pop_front();
        }
        Ok(sent)
    }
}

impl Piece {
    /// Whether it can be read without waiting, as far as a few bytes of it tell.
    fn is_in_memory(&self) -> bool {
        self.probe(ReadWriteFlags::NOWAIT).is_ok()
    }

    /// Brings it into the page cache. Blocking.
    fn fetch(&self) -> io::Result<()> {
        let len = NonZeroU64::new(self.range.end - self.range.start);
        // Only a hint, without which it takes longer.
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
                0 => Err(shorter()),
                _ => Ok(()),
            }
        })
    }
}

fn shorter() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file is shorter than its range",
    )
}

/// A connection's stream that sends files in the place of their stand-ins.
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
                // Readiness was out of date; it is cleared now.
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
        if is_stand_in(bytes) {
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
        match pieces.iter().position(|piece| is_stand_in(piece)) {
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

    /// What a client gets of what `body` yields, written as hyper writes: vectored, a head before
    /// it.
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
    async fn a_client_gets_the_files_bytes_and_never_a_stand_in() {
        let bytes = pattern(3 * PIECE_LEN as usize + 7);
        let (first, second) = (file(&bytes), file(b"second"));
        let sender = FileSender::default();
        let ranges = vec![(first, 5..bytes.len() as u64), (second, 0..6)];
        let body: Vec<Bytes> = sender.clone().body(ranges).try_collect().await.unwrap();
        assert!(
            body.iter().all(|piece| is_stand_in(piece)),
            "what was just written is in memory"
        );
        let got = sent(sender, body).await.unwrap();
        assert_eq!(got, [b"head", &bytes[5..], b"second"].concat());
    }

    #[tokio::test]
    async fn a_stand_in_for_no_file_is_an_error() {
        let sent = sent(FileSender::default(), vec![STAND_IN.slice(..10)]).await;
        assert_eq!(sent.unwrap_err().to_string(), "a stand-in for no file");
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error() {
        let sender = FileSender::default();
        let body = sender.body(vec![(file(b"short"), 0..10)]);
        let body: io::Result<Vec<Bytes>> = body.try_collect().await;
        assert_eq!(body.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

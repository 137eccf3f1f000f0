//! A stream whose writes fail when the client has taken nothing for too long.
//!
//! A client that keeps a connection open and never reads would otherwise hold it, and all that its
//! response holds, for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

#[derive(Debug)]
pub(super) struct WriteTimeout<S> {
    inner: S,
    patience: Duration,
    /// Until when a write that waits for the client may wait; kept between waits for its
    /// allocation.
    deadline: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<S> WriteTimeout<S> {
    pub(super) const fn new(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            patience,
            deadline: None,
            is_waiting: false,
        }
    }

    /// Passes on what a write said, unless it has been waiting for too long.
    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(self.patience)));
        if !self.is_waiting {
            self.is_waiting = true;
            deadline.as_mut().reset(Instant::now() + self.patience);
        }
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, pieces);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.judge(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.inner).poll_shutdown(context);
        self.judge(context, closed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_left() {
        let (near, _far) = duplex(10);
        let mut stream = WriteTimeout::new(near, PATIENCE);
        let started = Instant::now();
        let error = stream.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_gets_everything() {
        let (near, mut far) = duplex(1);
        let mut stream = WriteTimeout::new(near, PATIENCE);
        let reader = async {
            for _ in 0..5 {
                sleep(PATIENCE - Duration::from_secs(1)).await;
                far.read_exact(&mut [0]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[0; 5]), reader);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_between_writes_tries_nobodys_patience() {
        let (near, mut far) = duplex(1);
        let mut stream = WriteTimeout::new(near, PATIENCE);
        for _ in 0..3 {
            let taken = async {
                sleep(PATIENCE / 2).await;
                far.read_exact(&mut [0; 2]).await.unwrap();
            };
            let (written, ()) = tokio::join!(stream.write_all(&[0; 2]), taken);
            written.unwrap();
            sleep(PATIENCE * 2).await;
        }
    }
}

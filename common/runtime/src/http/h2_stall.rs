//! Stall timeout of one HTTP/2 stream, against clients that do not read their response.
//!
//! A client that stops opening a stream's flow-control window pins the memory of that stream while
//! the connection stays alive, so the write timeout of the socket never fires. A response is
//! therefore sent in small pieces. hyper polls for the next piece only when the window has room, so
//! the time between a piece and the next poll is the client's. A stream that waits for its client
//! too long is dropped, which resets it (RST_STREAM, CANCEL) and leaves the other streams alone.
//!
//! ```text
//! response ready -> [waits for client] -> polled -> [waits for body] -> piece given
//!                        ^                                                  |
//!                        '--------------------------------------------------'
//! ```

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task_local;
use tokio::time::{Instant, sleep_until};

use super::flush_before_abort::FlushBeforeAbort;

/// Bytes of a piece: a frame of the size that every client accepts. A stream buffers at most this
/// much beyond its window.
const PIECE_LEN: usize = 16 << 10;

task_local! {
    /// The progress of the stream whose task runs.
    static PROGRESS: Arc<Progress>;
}

#[derive(Debug, Default)]
struct Progress {
    is_waiting_for_client: AtomicBool,
    /// Pieces given to the client so far, the response head included.
    pieces: AtomicU64,
}

/// Marks the current stream, if there is one, as waiting for its client.
fn mark_piece_given() {
    let _no_stream = PROGRESS.try_with(|progress| {
        progress.pieces.fetch_add(1, Ordering::Relaxed);
        progress
            .is_waiting_for_client
            .store(true, Ordering::Relaxed);
    });
}

/// Marks the current stream, if there is one, as waiting for its body.
fn mark_polled() {
    let _no_stream = PROGRESS.try_with(|progress| {
        progress
            .is_waiting_for_client
            .store(false, Ordering::Relaxed)
    });
}

/// Runs a stream to its end, or until its client has read nothing for `stall_timeout`.
pub(super) async fn run_until_stalled(stream: impl Future<Output = ()>, stall_timeout: Duration) {
    let progress = Arc::<Progress>::default();
    let mut stream = pin!(PROGRESS.scope(Arc::clone(&progress), stream));
    let mut deadline = pin!(None);
    let mut waiting_since_piece = None;
    poll_fn(move |context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if !progress.is_waiting_for_client.load(Ordering::Relaxed) {
            waiting_since_piece = None;
            return Poll::Pending;
        }
        let pieces = Some(progress.pieces.load(Ordering::Relaxed));
        if waiting_since_piece != pieces {
            waiting_since_piece = pieces;
            deadline.set(Some(sleep_until(Instant::now() + stall_timeout)));
        }
        match deadline.as_mut().as_pin_mut() {
            Some(deadline) => deadline.poll(context),
            None => Poll::Pending,
        }
    })
    .await;
}

/// A response body in small pieces that tracks the progress of its client.
#[derive(Debug)]
pub(super) struct PacedBody {
    inner: FlushBeforeAbort,
    rest: Bytes,
}

impl PacedBody {
    /// Wraps the body of a response whose head is ready to be sent.
    pub(super) fn new(inner: FlushBeforeAbort) -> Self {
        mark_piece_given();
        Self {
            inner,
            rest: Bytes::new(),
        }
    }

    fn next_piece(&mut self) -> Frame<Bytes> {
        mark_piece_given();
        Frame::data(self.rest.split_to(self.rest.len().min(PIECE_LEN)))
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        mark_polled();
        if self.rest.is_empty() {
            match Pin::new(&mut self.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        Poll::Ready(Some(Ok(self.next_piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use axum::body::Body;
    use futures_util::{StreamExt, stream};
    use http_body_util::BodyExt;
    use tokio::time::sleep;

    use super::*;

    const STALL_TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn body_is_sent_whole_in_small_pieces() {
        let whole: Bytes = (0..100_000_u32).map(|at| at as u8).collect();
        let mut body = PacedBody::new(FlushBeforeAbort::new(whole.clone().into()));
        assert_eq!(body.size_hint().exact(), Some(100_000));
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE_LEN);
            got.extend_from_slice(&piece);
            assert_eq!(
                body.size_hint().exact(),
                Some((whole.len() - got.len()) as u64)
            );
            assert_eq!(body.is_end_stream(), got.len() == whole.len());
        }
        assert_eq!(got, whole);
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_client_ends_its_stream() {
        let started = Instant::now();
        let taken = async {
            let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"x"))])
                .chain(stream::pending());
            let mut body = PacedBody::new(FlushBeforeAbort::new(Body::from_stream(pieces)));
            sleep(STALL_TIMEOUT - Duration::from_secs(1)).await;
            body.frame().await.unwrap().unwrap();
            std::future::pending::<()>().await;
        };
        run_until_stalled(taken, STALL_TIMEOUT).await;
        assert_eq!(
            started.elapsed(),
            2 * STALL_TIMEOUT - Duration::from_secs(1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slow_body_does_not_count_as_a_stalled_client() {
        let taken = async {
            sleep(2 * STALL_TIMEOUT).await;
            let slow = stream::once(async {
                sleep(2 * STALL_TIMEOUT).await;
                Ok::<_, std::io::Error>(Bytes::from_static(b"x"))
            });
            let mut body = PacedBody::new(FlushBeforeAbort::new(Body::from_stream(Box::pin(slow))));
            assert_eq!(
                body.frame().await.unwrap().unwrap().into_data().unwrap(),
                "x"
            );
        };
        let started = Instant::now();
        run_until_stalled(taken, STALL_TIMEOUT).await;
        assert_eq!(started.elapsed(), 4 * STALL_TIMEOUT);
    }
}

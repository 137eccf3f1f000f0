//! The pace at which the client of one HTTP/2 stream takes its response.
//!
//! A client that opens a stream's window no further keeps what the stream has, while the connection
//! goes on: the patience with a connection's socket ([`super::patience`]) never ends. So a response
//! goes out in small pieces, each asked for only when the window has room for some of it, and a
//! stream that waits for its client for too long is dropped, which resets it (RST_STREAM, CANCEL)
//! and leaves the connection's other streams alone.
//!
//! ```text
//! response ready -> [the client's turn] -> piece asked for -> [the body's turn] -> piece given -> [the client's turn] ...
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

/// Bytes of a piece: a frame of the size that every client takes. A stream has as much waiting at
/// most, beyond what its window has room for.
const PIECE_LEN: usize = 16 << 10;

task_local! {
    /// Whose turn it is on the stream whose task runs.
    static TURN: Arc<Turn>;
}

#[derive(Debug, Default)]
struct Turn {
    is_clients: AtomicBool,
    /// How often it became the client's.
    given: AtomicU64,
}

/// It is the client's turn on the stream whose task runs, if there is one.
fn gave() {
    let _no_stream = TURN.try_with(|turn| {
        turn.given.fetch_add(1, Ordering::Relaxed);
        turn.is_clients.store(true, Ordering::Relaxed);
    });
}

fn was_asked() {
    let _no_stream = TURN.try_with(|turn| turn.is_clients.store(false, Ordering::Relaxed));
}

/// Runs a stream to its end, or until its client has taken nothing for as long as `patience`.
pub(super) async fn until_stalled(stream: impl Future<Output = ()>, patience: Duration) {
    let turn = Arc::<Turn>::default();
    let mut stream = pin!(TURN.scope(Arc::clone(&turn), stream));
    let mut deadline = pin!(None);
    let mut waits_since = None;
    poll_fn(move |context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if !turn.is_clients.load(Ordering::Relaxed) {
            waits_since = None;
            return Poll::Pending;
        }
        let given = Some(turn.given.load(Ordering::Relaxed));
        if waits_since != given {
            waits_since = given;
            deadline.set(Some(sleep_until(Instant::now() + patience)));
        }
        match deadline.as_mut().as_pin_mut() {
            Some(deadline) => deadline.poll(context),
            None => Poll::Pending,
        }
    })
    .await;
}

/// A response's body in small pieces.
#[derive(Debug)]
pub(super) struct PacedBody {
    inner: FlushBeforeAbort,
    rest: Bytes,
}

impl PacedBody {
    /// The body of a response that is ready: its client may have the first piece.
    pub(super) fn new(inner: FlushBeforeAbort) -> Self {
        gave();
        Self {
            inner,
            rest: Bytes::new(),
        }
    }

    fn next_piece(&mut self) -> Frame<Bytes> {
        gave();
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
        was_asked();
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

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_body_goes_out_whole_in_small_pieces() {
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
    async fn a_client_whose_turn_it_is_for_too_long_is_left() {
        let started = Instant::now();
        let taken = async {
            let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"x"))])
                .chain(stream::pending());
            let mut body = PacedBody::new(FlushBeforeAbort::new(Body::from_stream(pieces)));
            sleep(PATIENCE - Duration::from_secs(1)).await;
            body.frame().await.unwrap().unwrap();
            std::future::pending::<()>().await;
        };
        until_stalled(taken, PATIENCE).await;
        assert_eq!(started.elapsed(), 2 * PATIENCE - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_takes_its_time_tries_nobodys_patience() {
        let taken = async {
            sleep(2 * PATIENCE).await;
            let slow = stream::once(async {
                sleep(2 * PATIENCE).await;
                Ok::<_, std::io::Error>(Bytes::from_static(b"x"))
            });
            let mut body = PacedBody::new(FlushBeforeAbort::new(Body::from_stream(Box::pin(slow))));
            assert_eq!(
                body.frame().await.unwrap().unwrap().into_data().unwrap(),
                "x"
            );
        };
        let started = Instant::now();
        until_stalled(taken, PATIENCE).await;
        assert_eq!(started.elapsed(), 4 * PATIENCE);
    }
}

//! A future that a busy task may wait for beside its work without paying for it at each step.
//!
//! A task that is woken polls all that it waits for. Waiting for a shutdown takes a lock that all
//! tasks share, and a connection is woken a hundred thousand times before a shutdown comes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::FuturesUnordered;

/// Polls a future only when that future itself was woken, however often its neighbours in the task
/// are.
#[derive(Debug)]
pub(crate) struct WakeFilter<F>(FuturesUnordered<F>);

impl<F> WakeFilter<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(core::iter::once(future).collect())
    }
}

impl<F: Future> Future for WakeFilter<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        match Pin::new(&mut self.0).poll_next(context) {
            Poll::Ready(Some(output)) => Poll::Ready(output),
            // Polled after it was ready: a future may do anything then, and this one waits for
            // ever.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;

    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn neighbours_that_are_woken_do_not_count() {
        let (polls, notify) = (Cell::new(0), Notify::new());
        let mut notified = Box::pin(notify.notified());
        let future = poll_fn(|context| {
            polls.set(polls.get() + 1);
            notified.as_mut().poll(context)
        });
        let busy = async {
            for _ in 0..10 {
                yield_now().await;
            }
            assert_eq!(polls.get(), 1);
            notify.notify_waiters();
        };
        tokio::join!(WakeFilter::new(future), busy);
        assert_eq!(polls.get(), 2);
    }
}

//! A body whose error is delayed until hyper has flushed the bytes before it.
//!
//! hyper discards its write buffer when a body fails. Clients resume where the bytes that they got
//! end, and some count a response without any byte as no progress. The error is therefore held back
//! for one poll, in which hyper flushes.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

#[derive(Debug)]
pub(super) struct FlushBeforeAbort {
    inner: Body,
    delayed: Option<axum::Error>,
}

impl FlushBeforeAbort {
    pub(super) fn new(inner: Body) -> Self {
        Self {
            inner,
            delayed: None,
        }
    }
}

impl HttpBody for FlushBeforeAbort {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(error) = self.delayed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                self.delayed = Some(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.delayed.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

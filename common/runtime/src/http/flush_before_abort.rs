//! A body that ends in an error first lets hyper send what came before it.
//!
//! hyper drops its write buffer when a body fails. A client resumes where its bytes end, and some
//! count an answer without a byte as no progress at all; so the error is held back for one round,
//! in which hyper flushes.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

#[derive(Debug)]
pub(super) struct FlushBeforeAbort {
    inner: Body,
    held_back: Option<axum::Error>,
}

impl FlushBeforeAbort {
    pub(super) fn new(inner: Body) -> Self {
        Self {
            inner,
            held_back: None,
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
        if let Some(error) = self.held_back.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                self.held_back = Some(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held_back.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

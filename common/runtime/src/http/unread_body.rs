//! Request bodies that a handler refuses to read.
//!
//! An HTTP/1.1 connection cannot be used again while the rest of a request's body is on its way. A
//! short rest is read and discarded before the response is sent. With a long one the response says
//! `Connection: close`, so that the client does not send its next request into a connection that
//! ends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{HeaderValue, Response, header};
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// The longest rest that is read, in bytes.
const READ_REST_LEN: u64 = 64 << 10;
/// How long it may take to arrive.
const READ_REST_TIMEOUT: Duration = Duration::from_secs(1);

/// Gets the body that a handler dropped before its end.
#[derive(Clone, Debug, Default)]
pub(super) struct UnreadBody(Arc<Mutex<Option<Incoming>>>);

impl UnreadBody {
    /// The body for a handler.
    pub(super) fn watch(&self, body: Incoming) -> Body {
        Body::new(WatchedBody {
            inner: Some(body),
            unread: self.clone(),
        })
    }

    /// Prepares the connection for its next request, or tells the client that there will be none.
    pub(super) async fn finish<B>(self, mut response: Response<B>) -> Response<B> {
        let unread = self.lock().take();
        if let Some(body) = unread
            && !read_rest(body).await
        {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Incoming>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a short body to its end; false if it is long, late or broken.
async fn read_rest(mut body: Incoming) -> bool {
    if body
        .size_hint()
        .upper()
        .is_none_or(|len| len > READ_REST_LEN)
    {
        return false;
    }
    let rest = async {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    timeout(READ_REST_TIMEOUT, rest).await.unwrap_or(false)
}

/// The body that a handler reads. `inner` is there until it is dropped.
struct WatchedBody {
    inner: Option<Incoming>,
    unread: UnreadBody,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.inner {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.inner.as_ref().map(HttpBody::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        let unread = self.inner.take().filter(|body| !body.is_end_stream());
        if unread.is_some() {
            *self.unread.lock() = unread;
        }
    }
}

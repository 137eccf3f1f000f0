//! One forwarded request: how long its answer may take, and what its end tells the failover
//! machine.
//!
//! The request is never sent to a second region. So a call that fails or hangs must end in time,
//! and be known, for the next request to go to a region that answers.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use bytes::Bytes;
use flotilla_common::failover::{Input, Need, Outcome};
use flotilla_common::time::Time;
use flotilla_runtime::clock::Clock;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::timeout;

use super::proxy::pause_of;
use super::rules::COPY_TIMEOUT;
use crate::http::route::Route;
use crate::regions::routes::Routes;
use crate::regions::source::{Source, SourceError};
use crate::regions::take::MAX_TAKE_WAIT;

/// How long another region's storage may take for the operations of one request.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// For questions, which are answered by one read.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked up whether the time is over.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the head of the answer may take after the last byte of the request was sent. A push of
/// a manifest may wait for its blobs, and for the regions that must acknowledge it.
pub(super) fn head_timeout(route: &Route, method: &Method, ack_regions: usize) -> Duration {
    match route {
        _ if *method == Method::HEAD => QUESTION_TIMEOUT,
        Route::Manifest { .. } if ack_regions > 1 => COPY_TIMEOUT + STORAGE_TIMEOUT + MAX_TAKE_WAIT,
        Route::Manifest { .. } => COPY_TIMEOUT + STORAGE_TIMEOUT,
        _ => STORAGE_TIMEOUT,
    }
}

/// Sends a request to another region. Returns the head of its answer, and tells the failover
/// machine how the call ended.
///
/// # Errors
/// The region did not answer, went out meanwhile, or took longer than `limit` since the last byte
/// of the request. The request may have been performed.
pub(super) async fn send(
    routes: &Routes,
    source: &dyn Source,
    clock: Clock,
    request: Request<Body>,
    limit: Duration,
) -> Result<Response<Body>, SourceError> {
    let failed = |reason: String| SourceError {
        region: source.region().clone(),
        reason,
    };
    let progress = Progress::new(clock);
    let sent = source.send(request.map(|body| progress.watch(body)));
    let in_time = async {
        let mut sent = core::pin::pin!(sent);
        loop {
            if let Ok(answer) = timeout(CHECK_INTERVAL, &mut sent).await {
                return answer;
            }
            if progress.since_last() >= limit {
                return Err(failed(format!("no answer within {limit:?}")));
            }
        }
    };
    let Some(id) = routes.id_of(source.region()) else {
        return in_time.await;
    };
    let ended = routes.failover.until_out(id, in_time).await;
    let answer = ended.unwrap_or_else(|stalled| Err(failed(stalled.to_string())));
    routes.failover.handle(Input::Ended {
        source: id,
        need: Need::Fact,
        outcome: outcome(&answer),
    });
    answer
}

fn outcome(answer: &Result<Response<Body>, SourceError>) -> Outcome {
    let response = match answer {
        Ok(response) => response,
        Err(error) => {
            return Outcome::Failed {
                error: error.to_string(),
            };
        }
    };
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS => Outcome::Busy {
            retry_after: pause_of(response.headers()),
        },
        // A full storage answers reads.
        StatusCode::INSUFFICIENT_STORAGE => Outcome::Answered,
        status if status.is_server_error() => Outcome::Failed {
            error: format!("it answered {status} to a change"),
        },
        _ => Outcome::Answered,
    }
}

/// When the last piece of a request's body was taken for sending.
struct Progress {
    clock: Clock,
    last_nanos: Arc<AtomicU64>,
}

impl Progress {
    fn new(clock: Clock) -> Self {
        let last_nanos = Arc::new(AtomicU64::new(clock.now().as_nanos()));
        Self { clock, last_nanos }
    }

    fn since_last(&self) -> Duration {
        let last = Time::from_nanos(self.last_nanos.load(Ordering::Relaxed));
        self.clock.now().saturating_since(last)
    }

    fn watch(&self, body: Body) -> Body {
        Body::new(WatchedBody {
            body,
            clock: self.clock,
            last_nanos: Arc::clone(&self.last_nanos),
        })
    }
}

/// A body that tells when its pieces are taken. Its length stays known.
struct WatchedBody {
    body: Body,
    clock: Clock,
    last_nanos: Arc<AtomicU64>,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            let now = self.clock.now().as_nanos();
            self.last_nanos.store(now, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

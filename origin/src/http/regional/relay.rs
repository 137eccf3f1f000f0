//! Bodies that another region sends through this one. One that stalls ends within the same time as
//! one of the own storage; one of a blob goes on from a further region, if there is one.

use core::ops::Range;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use flotilla_runtime::http::range::parse_content_range;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use http::{Response, StatusCode, header};
use http_body::Body as _;

use crate::http::blob_body::one_piece_at_a_time;
use crate::regions::resuming_body::{BrokenBody, ResumingBody, with_stall_timeout};
use crate::regions::routes::Routes;
use crate::regions::source::Source;

/// A response whose body ends with an error when it stalls.
pub(super) fn bounded(response: Response<Body>) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| {
        let bytes = stalling(body).map_err(io::Error::other);
        Body::from_stream(one_piece_at_a_time(bytes))
    })
}

/// A response of `from` to the GET of a blob, whose body goes on from another region when it stalls
/// or breaks.
pub(super) fn resumed(
    routes: &Routes,
    from: &Arc<dyn Source>,
    repository: &RepositoryName,
    digest: &Digest,
    response: Response<Body>,
) -> Response<Body> {
    let Some((range, size)) = delivered(&response) else {
        return bounded(response);
    };
    let mut sources = routes.usable_others();
    let at = sources.iter().position(|other| Arc::ptr_eq(other, from));
    if let Some(at) = at {
        // It is asked again last.
        sources.rotate_left(at + 1);
    }
    response.map(|body| {
        let (repository, bytes) = (repository.clone(), stalling(body));
        let body = ResumingBody::of_own(sources, repository, *digest, size, range, bytes);
        let bytes = body.into_stream().map_err(io::Error::other);
        Body::from_stream(one_piece_at_a_time(bytes))
    })
}

/// The range of a blob that a response delivers, and the size of the blob; `None` if it delivers
/// none or does not say it.
fn delivered(response: &Response<Body>) -> Option<(Range<u64>, u64)> {
    let text = |name| response.headers().get(name)?.to_str().ok();
    match response.status() {
        StatusCode::OK => {
            let size = text(header::CONTENT_LENGTH)?.parse().ok()?;
            Some((0..size, size))
        }
        StatusCode::PARTIAL_CONTENT => parse_content_range(text(header::CONTENT_RANGE)?),
        _ => None,
    }
}

fn stalling(body: Body) -> BoxStream<'static, Result<Bytes, BrokenBody>> {
    let bytes = body.into_data_stream();
    let bytes = bytes.map_err(|error| BrokenBody::Failed(error.to_string()));
    with_stall_timeout(bytes.boxed())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use core::time::Duration;

    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn body_that_stalls_ends_with_an_error() {
        let first = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"a"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let mut bytes = bounded(Response::new(body)).into_body().into_data_stream();
        assert_eq!(bytes.next().await.unwrap().unwrap(), "a");
        let ended = tokio::time::timeout(Duration::from_secs(5), bytes.next()).await;
        ended.unwrap().unwrap().unwrap_err();
    }

    #[test]
    fn responses_say_which_range_they_deliver() {
        let response = |status: u16, name, value| {
            let response = Response::builder().status(status).header(name, value);
            response.body(Body::empty()).unwrap()
        };
        let (length, range) = (header::CONTENT_LENGTH, header::CONTENT_RANGE);
        assert_eq!(
            delivered(&response(200, length.clone(), "7")),
            Some((0..7, 7))
        );
        assert_eq!(
            delivered(&response(206, range.clone(), "bytes 2-4/7")),
            Some((2..5, 7))
        );
        for response in [
            response(200, range.clone(), "bytes 2-4/7"),
            response(206, length.clone(), "3"),
            response(416, range, "bytes */7"),
            response(304, length, "7"),
        ] {
            assert_eq!(delivered(&response), None);
        }
    }
}

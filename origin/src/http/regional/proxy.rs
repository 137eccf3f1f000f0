//! One request of a client, sent to another region.

use core::time::Duration;

use axum::body::Body;
use flotilla_common::failover::Outcome;
use flotilla_common::name::RegionName;
use flotilla_common::wire::origin::{REDIRECT_HEADER, REDIRECT_NEVER};
use flotilla_runtime::failover::CallError;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};

use super::relay;
use crate::http::error::{ApiError, Code};
use crate::regions::source::{Source, SourceError};

/// How long a region that answers 503 or 429 without `Retry-After` is left alone.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);
/// Headers that belong to one connection (RFC 9110, section 7.6.1), and those that name a host.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
];

/// Seconds after which clients are asked to come back if no region can serve.
const RETRY_AFTER_S: u32 = 5;

/// Upper bound of the pause of another region that clients are asked for.
const MAX_HANDED_ON_S: u32 = 60;

/// The answer if no region can serve a request now.
pub(super) fn unavailable(message: impl core::fmt::Display) -> ApiError {
    ApiError::new(Code::Unavailable, message).with_retry_after(RETRY_AFTER_S)
}

/// Hands on that other regions have no room for a request: own clients come first there.
pub(super) fn busy(status: StatusCode, pause: Duration) -> ApiError {
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS => Code::TooMany,
        _ => Code::Unavailable,
    };
    let seconds = u32::try_from(pause.as_secs()).unwrap_or(MAX_HANDED_ON_S);
    ApiError::new(
        code,
        "this region cannot serve the request, and the other regions have no room for it; repeat it later",
    )
    .with_retry_after(seconds.clamp(1, MAX_HANDED_ON_S))
}

/// Why a call to the own storage or another region does not serve a read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The own storage is sure that it does not have it, and these regions may. The error is the
    /// answer once they all say that they have not.
    MayBeElsewhere(ApiError, Vec<RegionName>),
    /// The own answer is final.
    Final(ApiError),
    /// Data is missing in the own storage, which is no word on the rest of it.
    OwnLost,
    /// The own storage failed.
    OwnFailed(ApiError),
    /// Another region does not have it.
    Absent,
    /// Another region was not asked, since what can change is read here.
    NotAsked,
    /// Enough bodies of the blob come from other regions, which is no word on any of them.
    Crowded,
    /// Another region asks for a pause, by this status: 429 or 503.
    Busy(StatusCode, Duration),
    /// Another region failed.
    Failed(SourceError),
}

impl CallError for ReadError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::MayBeElsewhere(..) | Self::Absent => Outcome::Missing,
            Self::Final(_) => Outcome::Answered,
            Self::Crowded | Self::NotAsked | Self::OwnLost => Outcome::Busy {
                retry_after: Duration::ZERO,
            },
            Self::OwnFailed(error) => Outcome::Failed {
                error: error.describe_cause(),
            },
            Self::Busy(_, pause) => Outcome::Busy {
                retry_after: *pause,
            },
            Self::Failed(error) => Outcome::Failed {
                error: error.to_string(),
            },
        }
    }
}

/// Sends a read to a region. An answer without the content is an error; a body that stalls ends.
pub(super) async fn read_at(
    source: &dyn Source,
    request: &Parts,
    path_and_query: &str,
) -> Result<Response<Body>, ReadError> {
    send_at(source, request, path_and_query, Body::empty()).await
}

/// The same, with a body.
pub(super) async fn send_at(
    source: &dyn Source,
    request: &Parts,
    path_and_query: &str,
    body: Body,
) -> Result<Response<Body>, ReadError> {
    let response = exchange(source, request, path_and_query, body).await?;
    Ok(relay::bounded(response))
}

/// Sends a read to a region, as [`read_at`]. The caller bounds the body.
pub(super) async fn open_at(
    source: &dyn Source,
    request: &Parts,
    path_and_query: &str,
) -> Result<Response<Body>, ReadError> {
    exchange(source, request, path_and_query, Body::empty()).await
}

async fn exchange(
    source: &dyn Source,
    request: &Parts,
    path_and_query: &str,
    body: Body,
) -> Result<Response<Body>, ReadError> {
    let request = copy_of(request, path_and_query, body);
    let response = source.send(request).await.map_err(ReadError::Failed)?;
    let status = response.status();
    if status.is_success()
        || status == StatusCode::NOT_MODIFIED
        || status == StatusCode::RANGE_NOT_SATISFIABLE
    {
        return Ok(response);
    }
    Err(match status {
        StatusCode::NOT_FOUND => ReadError::Absent,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            ReadError::Busy(status, pause_of(response.headers()))
        }
        other => ReadError::Failed(SourceError {
            region: source.region().clone(),
            reason: format!("it answered {other}"),
        }),
    })
}

/// The pause that an answer asks for.
pub(super) fn pause_of(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(DEFAULT_PAUSE, Duration::from_secs)
}

/// A copy of a request for another region.
pub(super) fn copy_of(request: &Parts, path_and_query: &str, body: Body) -> Request<Body> {
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method.clone();
    if let Ok(uri) = path_and_query.parse() {
        *copy.uri_mut() = uri;
    }
    *copy.headers_mut() = end_to_end(&request.headers);
    copy.headers_mut().insert(
        HeaderName::from_static(REDIRECT_HEADER),
        HeaderValue::from_static(REDIRECT_NEVER),
    );
    copy
}

/// The headers without those that belong to one connection.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let listed = headers.get_all(header::CONNECTION);
    let listed: Vec<String> = listed
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut copy = headers.clone();
    for name in HOP_BY_HOP {
        copy.remove(name);
    }
    for name in listed {
        copy.remove(name.as_str());
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_are_left_out() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Own"),
            ("x-own", "1"),
            ("host", "a"),
            ("transfer-encoding", "chunked"),
            ("range", "bytes=0-1"),
            ("authorization", "Basic x"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let copy = end_to_end(&headers);
        let names: Vec<_> = copy.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(copy.contains_key("range") && copy.contains_key("authorization"));
    }
}

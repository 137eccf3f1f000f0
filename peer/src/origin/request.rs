//! Sending one request to one origin: timeouts, statuses and error messages.

use core::time::Duration;

use bytes::Bytes;
use flotilla_runtime::http::range::parse_unsatisfied_range;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use super::error::OriginError;
use super::http_client::{error_message, explain};

/// From the request to the head of the response.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For the body of a manifest, a closure or an error.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of an error body that is read for its message, in bytes.
pub(super) const MAX_ERROR_LEN: usize = 4096;

/// Sends a request and reads the head of its response. A status other than 2xx is an error.
pub(super) async fn send(request: reqwest::RequestBuilder) -> Result<Response, OriginError> {
    let response = timeout(HEAD_TIMEOUT, request.send())
        .await
        .map_err(|_| OriginError::Unavailable(format!("no response within {HEAD_TIMEOUT:?}")))?
        .map_err(|error| OriginError::Unavailable(explain(&error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE
        && let Some(size) = size_of_unsatisfied(&response)
    {
        return Err(OriginError::Unsatisfiable(size));
    }
    let message = match read_body(response, MAX_ERROR_LEN).await {
        Ok(body) => error_message(&body),
        Err(_) => None,
    };
    let message = message.map_or_else(
        || status.to_string(),
        |message| format!("{status}: {message}"),
    );
    // Rate limits and timeouts are temporary; any other 4xx is final.
    let is_temporary = status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || !status.is_client_error();
    Err(if is_temporary {
        OriginError::Unavailable(message)
    } else {
        OriginError::Refused(message)
    })
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(mut response: Response, limit: usize) -> Result<Bytes, OriginError> {
    let read = async {
        let mut body = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| OriginError::Unavailable(explain(&error)))?
        {
            if body.len() + piece.len() > limit {
                return Err(OriginError::Unavailable(format!(
                    "response body exceeds {limit} bytes"
                )));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Bytes::from(body))
    };
    timeout(BODY_TIMEOUT, read).await.map_err(|_| {
        OriginError::Unavailable(format!("response body incomplete after {BODY_TIMEOUT:?}"))
    })?
}

/// The value of a header, if it is valid text.
pub(super) fn header(response: &Response, name: &str) -> Option<String> {
    response
        .headers()
        .get(name)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

/// The size of the blob, which a response with status 416 states.
fn size_of_unsatisfied(response: &Response) -> Option<u64> {
    parse_unsatisfied_range(&header(response, CONTENT_RANGE.as_str())?)
}

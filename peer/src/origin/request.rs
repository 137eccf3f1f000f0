//! Sending one request to one origin: statuses, error messages, and one repetition.
//!
//! How long the head of a response may take is decided by the failover machine, which drops the
//! call.

use core::time::Duration;
use std::error::Error as _;
use std::io;

use bytes::Bytes;
use flotilla_runtime::error_text::explain;
use flotilla_runtime::http::range::parse_unsatisfied_range;
use reqwest::header::{CONTENT_RANGE, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use tokio::time::timeout;

use super::error::OriginError;
use super::http_client::error_message;

/// For the body of a manifest, a closure or an error.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of an error body that is read for its message, in bytes.
pub(super) const MAX_ERROR_LEN: usize = 4096;
/// The pause of an overloaded origin that names none.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The HTTP clients of the origins. Clones share their connections.
#[derive(Debug, Clone)]
pub(crate) struct HttpClients {
    /// Keeps connections open.
    pub(super) pooled: Client,
    /// Opens a connection for each request.
    fresh: Client,
}

impl HttpClients {
    /// `fresh` keeps no idle connection.
    pub(crate) const fn new(pooled: Client, fresh: Client) -> Self {
        Self { pooled, fresh }
    }

    /// Sends a request and reads the head of its response. A status other than 2xx is an error.
    ///
    /// An idle connection may be closed by the origin just when a request is sent on it. All
    /// requests to origins can be repeated, so the request is then sent once more, on a connection
    /// of its own.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, OriginError> {
        let repetition = request.try_clone();
        let response = match request.send().await {
            Err(error) if is_closed_connection(&error) => {
                let repetition = repetition.and_then(|request| request.build().ok());
                match repetition {
                    Some(request) => self.fresh.execute(request).await,
                    None => Err(error),
                }
            }
            response => response,
        };
        let response = response.map_err(|error| OriginError::Unavailable(explain(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE
            && let Some(size) = size_of_unsatisfied(&response)
        {
            return Err(OriginError::Unsatisfiable(size));
        }
        Err(error_of(status, response).await)
    }
}

/// The error that a status means, with the message of the response's body.
async fn error_of(status: StatusCode, response: Response) -> OriginError {
    let retry_after = header(&response, RETRY_AFTER.as_str()).map(|seconds| {
        seconds
            .parse()
            .map_or(DEFAULT_RETRY_AFTER, Duration::from_secs)
    });
    let message = match read_body(response, MAX_ERROR_LEN).await {
        Ok(body) => error_message(&body),
        Err(_) => None,
    };
    let message = message.map_or_else(
        || status.to_string(),
        |message| format!("{status}: {message}"),
    );
    match (status, retry_after) {
        (StatusCode::NOT_FOUND, _) => OriginError::Missing(message),
        (StatusCode::TOO_MANY_REQUESTS, retry_after) => OriginError::Busy {
            message,
            retry_after: retry_after.unwrap_or(DEFAULT_RETRY_AFTER),
        },
        (StatusCode::SERVICE_UNAVAILABLE, Some(retry_after)) => OriginError::Busy {
            message,
            retry_after,
        },
        // Timeouts are temporary; any other 4xx is final.
        (StatusCode::REQUEST_TIMEOUT, _) => OriginError::Unavailable(message),
        _ if status.is_client_error() => OriginError::Refused(message),
        _ => OriginError::Unavailable(message),
    }
}

/// Whether a request failed because its connection was closed before the response began.
fn is_closed_connection(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_closed() || error.is_canceled())
        {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            )
        {
            return true;
        }
        cause = error.source();
    }
    false
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Answers `answers` requests on a connection, and closes it when the next one arrives.
    async fn serve(mut connection: TcpStream, answers: usize) {
        for request in 0..=answers {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(connection.read_u8().await.unwrap());
            }
            if request < answers {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                connection.write_all(answer).await.unwrap();
            }
        }
    }

    /// A server that answers `answers` requests on each connection.
    async fn server(answers: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(connection, answers));
            }
        });
        url
    }

    fn clients() -> HttpClients {
        let client = |idle| {
            let trust = flotilla_runtime::identity::client_without_trust().unwrap();
            let client = Client::builder()
                .tls_backend_preconfigured(trust)
                .no_proxy();
            client.pool_max_idle_per_host(idle).build().unwrap()
        };
        HttpClients::new(client(16), client(0))
    }

    #[tokio::test]
    async fn request_on_a_connection_that_closes_is_sent_once_more() {
        let url = server(1).await;
        let http = clients();
        for request in 0..4 {
            let sent = http.send(http.pooled.get(&url)).await;
            assert!(sent.is_ok(), "request {request}: {sent:?}");
        }
    }

    #[tokio::test]
    async fn request_is_not_sent_a_third_time() {
        let url = server(0).await;
        let http = clients();
        let error = http.send(http.pooled.get(&url)).await.unwrap_err();
        assert!(matches!(error, OriginError::Unavailable(_)), "{error:?}");
    }
}

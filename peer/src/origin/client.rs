//! The HTTP client that origins and trackers are asked with, and how its failures are told to
//! people.

use core::time::Duration;
use std::error::Error;

use flotilla_common::wire::origin::{REDIRECT_HEADER, REDIRECT_NEVER};
use flotilla_runtime::identity::{Identity, IdentityError};
use reqwest::Client;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

/// For TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A body that stands still for this long is cut.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections kept per host.
const IDLE_CONNECTIONS: usize = 16;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("use identity for HTTPS: {0}")]
    Identity(#[from] IdentityError),
    #[error("make HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// A client that shows the peer's certificate. `progress` bounds how long an answer may stand
/// still; a long poll needs more than the default.
pub(crate) fn http_client(
    identity: &Identity,
    progress: Option<Duration>,
) -> Result<Client, ClientError> {
    let never = (
        HeaderName::from_static(REDIRECT_HEADER),
        HeaderValue::from_static(REDIRECT_NEVER),
    );
    let client = Client::builder()
        .default_headers(HeaderMap::from_iter([never]))
        .tls_backend_preconfigured(identity.https_client()?)
        .no_proxy()
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(progress.unwrap_or(PROGRESS_TIMEOUT))
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .build()?;
    Ok(client)
}

/// What failed, down to its cause: reqwest's own text stops at "error sending request".
pub(crate) fn explain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// The first message of an OCI error body.
pub(super) fn error_message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Message>,
    }
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let first = errors.errors.into_iter().next()?;
    Some(
        format!("{} {}", first.code, first.message)
            .trim()
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oci_error_is_told_in_its_own_words() {
        let body = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}"#;
        assert_eq!(
            error_message(body).as_deref(),
            Some("NAME_UNKNOWN no such repository")
        );
        assert_eq!(error_message(b"<html>"), None);
        assert_eq!(error_message(br#"{"errors":[]}"#), None);
    }
}

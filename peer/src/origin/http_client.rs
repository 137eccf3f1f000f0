//! The HTTP client for origins and trackers, and readable texts for its errors.

use core::time::Duration;
use std::net::IpAddr;

use flotilla_common::wire::origin::{REDIRECT_HEADER, REDIRECT_NEVER};
use flotilla_runtime::identity::{Identity, IdentityError};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, ClientBuilder};
use rustls::ClientConfig;
use serde::Deserialize;

use crate::tracker_client::POLL_TIMEOUT;

/// For the TCP and TLS handshakes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A response of which no bytes arrive for this long is aborted.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// While requests to a tracker are open, how often and how long it is asked for a sign of life. A
/// tracker that parks requests sends nothing, as does one that is stopped. The timeout is long,
/// because a new connection costs an overloaded tracker more than any request.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections kept per host.
const IDLE_CONNECTIONS: usize = 16;

/// Why the client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildClientError {
    /// The identity is not valid for HTTPS.
    #[error("use identity for HTTPS: {0}")]
    Identity(#[from] IdentityError),
    /// The client's settings are not valid.
    #[error("build HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// Whether a client keeps idle connections for later requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionReuse {
    Pooled,
    Never,
}

/// A client of origins that presents the peer's certificate.
pub(crate) fn origin_http_client(
    identity: &Identity,
    reuse: ConnectionReuse,
) -> Result<Client, BuildClientError> {
    let idle_connections = match reuse {
        ConnectionReuse::Pooled => IDLE_CONNECTIONS,
        ConnectionReuse::Never => 0,
    };
    let never = (
        HeaderName::from_static(REDIRECT_HEADER),
        HeaderValue::from_static(REDIRECT_NEVER),
    );
    let client = builder(identity.https_client()?)
        .http1_only()
        .default_headers(HeaderMap::from_iter([never]))
        .read_timeout(READ_TIMEOUT)
        .pool_max_idle_per_host(idle_connections)
        .build()?;
    Ok(client)
}

/// A client of trackers that presents the peer's certificate and connects from `local_address`, if
/// there is one. It speaks HTTP/2, so that one connection carries the requests that a tracker parks
/// and all others.
///
/// # Errors
/// The identity is not valid for HTTPS.
pub fn tracker_http_client(
    identity: &Identity,
    local_address: Option<IpAddr>,
) -> Result<Client, BuildClientError> {
    let mut tls = identity.https_client()?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let client = builder(tls)
        .http2_prior_knowledge()
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .local_address(local_address)
        .read_timeout(POLL_TIMEOUT)
        .build()?;
    Ok(client)
}

fn builder(tls: ClientConfig) -> ClientBuilder {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
}

/// The first message of an OCI error body.
pub(super) fn error_message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct OciErrors {
        errors: Vec<OciError>,
    }
    #[derive(Deserialize)]
    struct OciError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: OciErrors = serde_json::from_slice(body).ok()?;
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
    fn message_of_an_oci_error() {
        let body = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}"#;
        assert_eq!(
            error_message(body).as_deref(),
            Some("NAME_UNKNOWN no such repository")
        );
        assert_eq!(error_message(b"<html>"), None);
        assert_eq!(error_message(br#"{"errors":[]}"#), None);
    }
}

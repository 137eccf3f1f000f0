//! The HTTPS client of one other region.

use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flotilla_common::name::RegionName;
use flotilla_common::wire::origin::{REDIRECT_HEADER, REDIRECT_NEVER};
use flotilla_common::wire::region::{FROM_STORAGE_HEADER, TO_STORAGE_HEADER};
use flotilla_runtime::error_text::explain;
use flotilla_runtime::identity::{Identity, IdentityError};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body::Body as _;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::timeout;

use crate::regions::source::SourceError;
use crate::regions::storage_pins::StoragePins;

/// For the TCP and TLS handshakes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout for the next bytes of a body that is read as a whole.
const PIECE_TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout for such a body altogether.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept for the next requests.
const IDLE_CONNECTIONS: usize = 32;
/// How long they are kept: less than the two minutes after which an origin closes them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// A connection whose other side is gone is noticed by the kernel.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The maximum length of the body of an error in bytes.
const MAX_ERROR_LEN: usize = 8 << 10;

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegionClientError {
    #[error("use the certificate for requests to region {0}: {1}")]
    Identity(RegionName, IdentityError),
    #[error("build the HTTP client of region {0}: {1}")]
    Client(RegionName, reqwest::Error),
}

/// A client of the origin of one other region, with its own pool of connections. Clones share it.
///
/// It shows the certificate of this origin, also a renewed one, and connects only to a server whose
/// certificate carries the name of the region beside that of its host. It follows no redirects.
#[derive(Clone, Debug)]
pub(crate) struct RegionClient {
    region: RegionName,
    /// `https://HOST[:PORT]`.
    url: String,
    http: Client,
    /// Which storages the requests name; `None` for requests that name none.
    pins: Option<Arc<StoragePins>>,
}

impl RegionClient {
    /// A client of the origin of `region` at `url`, which is `https://HOST` or
    /// `https://HOST:PORT`.
    ///
    /// # Errors
    /// [`RegionClientError`].
    pub(crate) fn new(
        identity: &Identity,
        region: RegionName,
        url: &str,
    ) -> Result<Self, RegionClientError> {
        let tls = identity
            .https_client_of_origin(&region)
            .map_err(|error| RegionClientError::Identity(region.clone(), error))?;
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("flotilla/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .tcp_nodelay(true)
            .tcp_keepalive(KEEP_ALIVE)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build();
        let http = http.map_err(|error| RegionClientError::Client(region.clone(), error))?;
        Ok(Self {
            region,
            url: url.to_owned(),
            http,
            pins: None,
        })
    }

    /// Makes every request name the storages of this region and of the other one, so that a wrong
    /// one is refused.
    pub(crate) fn with_pins(mut self, pins: Arc<StoragePins>) -> Self {
        self.pins = Some(pins);
        self
    }

    /// The region.
    pub(crate) const fn region(&self) -> &RegionName {
        &self.region
    }

    /// Sends a request of a client, and returns the answer, whatever its status. Bodies stream in
    /// both directions. Only connecting has a timeout: the caller bounds the rest. The headers must
    /// not contain those of the client's connection (`Host`, `Connection` and the like).
    ///
    /// # Errors
    /// The path is not the one that would be sent. No connection, or it ended before the head of an
    /// answer; the request may have been performed.
    pub(crate) async fn send(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, SourceError> {
        let (parts, body) = request.into_parts();
        let mut headers = parts.headers;
        let body = match body.size_hint().exact() {
            Some(0) => {
                // Of a body that was dropped.
                headers.remove(header::CONTENT_LENGTH);
                reqwest::Body::default()
            }
            exact => {
                if let Some(len) = exact {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
                }
                reqwest::Body::wrap_stream(body.into_data_stream())
            }
        };
        let path = parts.uri.path_and_query();
        let path = path.map_or("/", http::uri::PathAndQuery::as_str);
        if !self.is_sent_as_given(path) {
            return Err(self.error("the path is not in its normal form; it was not sent"));
        }
        let sent = self.execute(parts.method, path, headers, body).await;
        let response = sent.map_err(|error| self.error(explain(&error)))?;
        Ok(http::Response::from(response).map(Body::new))
    }

    /// Whether the path of a client's request names the same resource for the other region as here.
    /// URLs are normalized before they are sent (`\` is `/`, and `..` removes a segment), so that
    /// a client could call with the certificate of this origin what it may not call itself.
    fn is_sent_as_given(&self, path_and_query: &str) -> bool {
        let (path, _) = path_and_query
            .split_once('?')
            .unwrap_or((path_and_query, ""));
        let url = Url::parse(&format!("{}{path_and_query}", self.url));
        url.is_ok_and(|url| url.path() == path)
    }

    async fn execute(
        &self,
        method: Method,
        path_and_query: &str,
        mut headers: HeaderMap,
        body: impl Into<reqwest::Body>,
    ) -> Result<Response, reqwest::Error> {
        headers.insert(
            HeaderName::from_static(REDIRECT_HEADER),
            HeaderValue::from_static(REDIRECT_NEVER),
        );
        self.name_storages(&mut headers);
        let request = self
            .http
            .request(method, format!("{}{path_and_query}", self.url))
            .headers(headers)
            .body(body);
        request.send().await.map_err(reqwest::Error::without_url)
    }

    fn name_storages(&self, headers: &mut HeaderMap) {
        let Some(pins) = &self.pins else {
            return;
        };
        for (name, storage) in [
            (FROM_STORAGE_HEADER, Some(pins.own())),
            (TO_STORAGE_HEADER, pins.expected(&self.region)),
        ] {
            headers.remove(name);
            if let Some(storage) = storage
                && let Ok(value) = HeaderValue::from_str(&storage.to_string())
            {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }

    /// Sends a request with a short body, or none, that may be performed twice; the head of the
    /// answer must arrive within `head_timeout`. It is repeated once if its connection ends, which
    /// an idle connection may do at any time.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
        head_timeout: Duration,
    ) -> Result<Response, SourceError> {
        let sent = async {
            let (first_method, first_headers) = (method.clone(), headers.clone());
            let first = self.execute(first_method, path, first_headers, body.clone());
            match first.await {
                Err(error) if !error.is_connect() => {
                    self.execute(method, path, headers, body).await
                }
                sent => sent,
            }
        };
        match timeout(head_timeout, sent).await {
            Ok(sent) => sent.map_err(|error| self.error(explain(&error))),
            Err(_) => Err(self.error(format_args!("no answer within {head_timeout:?}"))),
        }
    }

    /// Reads the body of an answer with a status of success, at most `limit` bytes.
    pub(super) async fn body_of(
        &self,
        response: Response,
        limit: usize,
    ) -> Result<Bytes, SourceError> {
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        self.read(response, limit).await
    }

    /// The error for an answer with another status than expected.
    pub(super) async fn refused(&self, response: Response) -> SourceError {
        let status = response.status();
        let body = self.read(response, MAX_ERROR_LEN).await;
        let message = body.ok().as_deref().and_then(first_message);
        if status == StatusCode::MISDIRECTED_REQUEST
            && let Some(pins) = &self.pins
        {
            pins.refused_by(&self.region, message.as_deref().unwrap_or("no reason"));
        }
        match message {
            Some(message) => self.error(format_args!("it answered {status}: {message}")),
            None => self.error(format_args!("it answered {status}")),
        }
    }

    async fn read(&self, mut response: Response, limit: usize) -> Result<Bytes, SourceError> {
        let too_long = || self.error(format_args!("its answer is longer than {limit} bytes"));
        if response.content_length() > Some(limit as u64) {
            return Err(too_long());
        }
        let whole = async {
            let mut bytes = BytesMut::new();
            loop {
                let piece = timeout(PIECE_TIMEOUT, response.chunk()).await;
                let piece = piece.map_err(|_| self.stalled())?;
                let piece = piece.map_err(|error| self.error(explain(&error.without_url())))?;
                let Some(piece) = piece else {
                    return Ok(bytes.freeze());
                };
                if bytes.len() + piece.len() > limit {
                    return Err(too_long());
                }
                bytes.extend_from_slice(&piece);
            }
        };
        let read = timeout(BODY_TIMEOUT, whole).await;
        read.unwrap_or_else(|_| Err(self.stalled()))
    }

    fn stalled(&self) -> SourceError {
        self.error("its answer stalled")
    }

    /// An error about this region.
    pub(super) fn error(&self, reason: impl core::fmt::Display) -> SourceError {
        SourceError {
            region: self.region.clone(),
            reason: reason.to_string(),
        }
    }
}

/// The first message of an error body of the distribution specification.
fn first_message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Message>,
    }
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    errors.errors.into_iter().next().map(|error| error.message)
}

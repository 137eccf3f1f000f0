//! The HTTP client of remote storages: HTTP/1.1 with small connection buffers.
//!
//! A pass-through blob for a slow client waits in the buffers of its storage connection. The
//! default client of `object_store` lets them grow to 400 KiB without a setting, and 1,000 slow
//! pulls then exceed the memory bar of the origin
//! (`docs/decisions/hand-written-infrastructure.md`). Here a connection has at most two buffers of
//! [`SMALL_LEN`]: one being filled, one waiting for the client. Small buffers cost throughput, so
//! the first [`LARGE_BUFFER_RESPONSES`] responses have large ones. No response waits for a large
//! buffer: a slow client that holds one makes others slower, but never blocks them.
//!
//! Proxies and options that this client does not support (a timeout of whole responses, unverified
//! certificates) are served by the default client.

use core::error::Error;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{RANGE, USER_AGENT};
use http::{HeaderValue, Method};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService, ReqwestConnector,
};
use object_store::{ClientConfigKey, ClientOptions};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};

use super::client_options::{CONNECT_TIMEOUT, READ_TIMEOUT, client_options};
use super::sent_attempts::SentAttempts;
use super::whole_body::WholeBody;

/// Bytes that a connection reads at once. A response head must fit.
const SMALL_LEN: usize = 16 << 10;
const LARGE_LEN: usize = 256 << 10;
/// Concurrent responses with large buffers: 8 MiB.
const LARGE_BUFFER_RESPONSES: usize = 16;
/// Timeout of CompleteMultipartUpload, the only slow POST. S3 documents that it may take minutes
/// and sends spaces meanwhile; compatible servers may copy all bytes and send nothing.
const COMPLETE_TIMEOUT: Duration = Duration::from_mins(2);
/// How long idle connections are kept, as in other clients.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("flotilla/", env!("CARGO_PKG_VERSION")));

/// Options that this client supports only with the values of [`client_options`].
const FIXED_OPTIONS: [ClientConfigKey; 12] = [
    ClientConfigKey::AllowInvalidCertificates,
    ClientConfigKey::ConnectTimeout,
    ClientConfigKey::Http2Only,
    ClientConfigKey::NoSystemCertificates,
    ClientConfigKey::PoolIdleTimeout,
    ClientConfigKey::PoolMaxIdlePerHost,
    ClientConfigKey::ProxyCaCertificate,
    ClientConfigKey::ProxyExcludes,
    ClientConfigKey::ProxyUrl,
    ClientConfigKey::ReadTimeout,
    ClientConfigKey::Timeout,
    ClientConfigKey::UserAgent,
];

/// Connects clients with small buffers, and remembers the last one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct SmallBuffers {
    last: Arc<Mutex<Option<HttpClient>>>,
}

impl SmallBuffers {
    /// The client that was connected last. A builder of a store connects clients for credentials
    /// first, and the client for the store's own requests last.
    pub(super) fn last_client(&self) -> Option<HttpClient> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl HttpConnector for SmallBuffers {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = connect(options)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(client.clone());
        Ok(client)
    }
}

fn connect(options: &ClientOptions) -> object_store::Result<HttpClient> {
    let other = ReqwestConnector::default().connect(options)?;
    let ours = client_options();
    if FIXED_OPTIONS
        .iter()
        .any(|key| options.get_config_value(key) != ours.get_config_value(key))
    {
        return Ok(other);
    }
    let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp);
    let https = https(allow_http.is_some_and(|value| value == "true"));
    let https = https.map_err(|error| object_store::Error::Generic {
        store: "HTTP client",
        source: error.into(),
    })?;
    Ok(HttpClient::new(Transport {
        small: direct(https.clone(), SMALL_LEN),
        large: direct(https, LARGE_LEN),
        large_permits: Arc::new(Semaphore::new(LARGE_BUFFER_RESPONSES)),
        default: other,
        proxies: Matcher::from_system(),
    }))
}

type Https = HttpsConnector<TcpConnector>;

fn https(allow_http: bool) -> Result<Https, rustls::Error> {
    let mut tcp = TcpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEP_ALIVE));
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    let tls = tls.with_platform_verifier()?.with_no_client_auth();
    let https = HttpsConnectorBuilder::new().with_tls_config(tls);
    let https = if allow_http {
        https.https_or_http()
    } else {
        https.https_only()
    };
    Ok(https.enable_http1().wrap_connector(tcp))
}

type Direct = Client<Https, HttpRequestBody>;

fn direct(https: Https, buffer_len: usize) -> Direct {
    let mut client = Client::builder(TokioExecutor::new());
    client
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http1_max_buf_size(buffer_len);
    client.build(https)
}

#[derive(Debug)]
struct Transport {
    small: Direct,
    large: Direct,
    large_permits: Arc<Semaphore>,
    default: HttpClient,
    /// The proxies of the environment (`HTTPS_PROXY` and the like).
    proxies: Matcher,
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let attempts = request.extensions().get::<SentAttempts>().cloned();
        let outcome = self.send(request).await;
        if let Some(attempts) = attempts {
            attempts.note(&outcome);
        }
        outcome
    }
}

impl Transport {
    async fn send(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if self.proxies.intercept(request.uri()).is_some() {
            return self.default.execute(request).await;
        }
        request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
        let whole = request.extensions().get::<WholeBody>().cloned();
        // Other requests have small responses.
        let is_read = request.headers().contains_key(RANGE);
        let permit = is_read
            .then(|| Arc::clone(&self.large_permits).try_acquire_owned().ok())
            .flatten();
        let client = if permit.is_some() {
            &self.large
        } else {
            &self.small
        };
        let response_timeout = if request.method() == Method::POST {
            COMPLETE_TIMEOUT
        } else {
            READ_TIMEOUT
        };
        let response = timeout(response_timeout, client.request(request)).await;
        let response = response.map_err(|_| stalled())?.map_err(|error| {
            let error = request_error(error);
            match &whole {
                Some(whole) => whole.map_error(error),
                None => error,
            }
        })?;
        Ok(response.map(|body| {
            HttpResponseBody::new(TimedBody {
                body,
                stall_timer: None,
                whole,
                _permit: permit,
            })
        }))
    }
}

/// A response body that fails when the server sends nothing for too long while the body is polled.
#[derive(Debug)]
struct TimedBody {
    body: Incoming,
    stall_timer: Option<Pin<Box<Sleep>>>,
    /// Gets the error in place of the reader.
    whole: Option<WholeBody>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl TimedBody {
    /// The last item of a body that broke.
    fn broken(&self, error: HttpError) -> Option<Result<Frame<Bytes>, HttpError>> {
        match &self.whole {
            Some(whole) => {
                whole.note(&error);
                None
            }
            None => Some(Err(error)),
        }
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.stall_timer = None;
            return Poll::Ready(match frame {
                Some(Err(error)) => self.broken(HttpError::new(kind(&error), error)),
                Some(Ok(frame)) => Some(Ok(frame)),
                None => None,
            });
        }
        let stall_timer = self
            .stall_timer
            .get_or_insert_with(|| Box::pin(sleep(READ_TIMEOUT)));
        ready!(stall_timer.as_mut().poll(context));
        self.stall_timer = None;
        Poll::Ready(self.broken(stalled()))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn stalled() -> HttpError {
    HttpError::new(
        HttpErrorKind::Timeout,
        io::Error::new(
            io::ErrorKind::TimedOut,
            "the storage server sent nothing within the read timeout",
        ),
    )
}

fn request_error(error: ClientError) -> HttpError {
    let kind = if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        kind(&error)
    };
    HttpError::new(kind, error)
}

/// Classifies an error for the retry logic, by the first of its causes that has a kind.
fn kind(error: &(dyn Error + 'static)) -> HttpErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(kind) = kind_of_cause(error) {
            return kind;
        }
        cause = error.source();
    }
    HttpErrorKind::Unknown
}

fn kind_of_cause(error: &(dyn Error + 'static)) -> Option<HttpErrorKind> {
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        if error.is_timeout() {
            return Some(HttpErrorKind::Timeout);
        }
        let has_ended =
            error.is_closed() || error.is_incomplete_message() || error.is_body_write_aborted();
        return has_ended.then_some(HttpErrorKind::Request);
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::TimedOut => Some(HttpErrorKind::Timeout),
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => Some(HttpErrorKind::Interrupted),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn is_ours(options: ClientOptions) -> bool {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = connect(&options).unwrap();
        format!("{client:?}").contains("Transport")
    }

    #[test]
    fn unsupported_options_use_the_default_client() {
        assert!(is_ours(client_options()));
        assert!(is_ours(client_options().with_allow_http(true)));
        assert!(!is_ours(
            client_options().with_proxy_url("http://proxy.internal:3128")
        ));
        assert!(!is_ours(
            client_options().with_allow_invalid_certificates(true)
        ));
        assert!(!is_ours(
            client_options().with_timeout(Duration::from_secs(60))
        ));
    }

    #[test]
    fn error_kind_comes_from_its_cause() {
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(kind(&reset), HttpErrorKind::Interrupted);
        assert_eq!(kind(&io::Error::other("unknown")), HttpErrorKind::Unknown);
        assert_eq!(stalled().kind(), HttpErrorKind::Timeout);
    }
}

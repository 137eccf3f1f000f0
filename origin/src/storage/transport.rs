//! The HTTP client of remote storages: HTTP/1.1, with small buffers.
//!
//! A blob that passes through on its way to a slow client waits in the buffers of the connection
//! that it comes on. The client that `object_store` brings lets those grow to 400 KiB, and has no
//! setting for it: a thousand pulls at once would need as many. Here a connection has two buffers
//! of [`SMALL_LEN`] at most, one to be filled and one that nobody has taken yet. Small ones cost
//! speed, so the first [`LARGE_PLACES`] answers have large ones. Nobody waits for those: a slow
//! client that holds one costs the others a part of their speed, and never their turn.
//!
//! What it does not know (proxies, whole answers that are bounded in time, certificates that nobody
//! checks) the other client is asked for still: who configures it has it.

use core::error::Error;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;
use std::io;
use std::sync::Arc;

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

use super::remote::{self, CONNECT_TIMEOUT, READ_TIMEOUT};

/// Bytes that a connection reads at once; the head of an answer has to fit.
const SMALL_LEN: usize = 16 << 10;
const LARGE_LEN: usize = 256 << 10;
/// Answers at once with large buffers: 8 MiB.
const LARGE_PLACES: usize = 16;
/// How long a server may put a multipart upload together (CompleteMultipartUpload, the one POST
/// that takes its time). S3 says that it may take minutes, and sends spaces meanwhile; its like
/// copy all bytes, and send nothing.
const COMPLETE_TIMEOUT: Duration = Duration::from_mins(2);
/// As long as other clients keep a connection that nobody uses.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("flotilla/", env!("CARGO_PKG_VERSION")));

/// Settings that this client has as [`remote::client`] says, and no others.
const FIXED: [ClientConfigKey; 12] = [
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

/// Makes clients with small buffers.
#[derive(Debug)]
pub(super) struct SmallBuffers;

impl HttpConnector for SmallBuffers {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let other = ReqwestConnector::default().connect(options)?;
        let ours = remote::client();
        if FIXED
            .iter()
            .any(|key| options.get_config_value(key) != ours.get_config_value(key))
        {
            return Ok(other);
        }
        let may_be_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let https = https(may_be_http.is_some_and(|value| value == "true"));
        let https = https.map_err(|error| object_store::Error::Generic {
            store: "HTTP client",
            source: error.into(),
        })?;
        Ok(HttpClient::new(Transport {
            small: direct(https.clone(), SMALL_LEN),
            large: direct(https, LARGE_LEN),
            places: Arc::new(Semaphore::new(LARGE_PLACES)),
            other,
            proxies: Matcher::from_system(),
        }))
    }
}

type Https = HttpsConnector<TcpConnector>;

fn https(may_be_http: bool) -> Result<Https, rustls::Error> {
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
    let https = if may_be_http {
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
    places: Arc<Semaphore>,
    other: HttpClient,
    /// Those of the environment (`HTTPS_PROXY` and its like).
    proxies: Matcher,
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if self.proxies.intercept(request.uri()).is_some() {
            return self.other.execute(request).await;
        }
        request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
        // Others have small answers.
        let is_read = request.headers().contains_key(RANGE);
        let place = is_read
            .then(|| Arc::clone(&self.places).try_acquire_owned().ok())
            .flatten();
        let client = if place.is_some() {
            &self.large
        } else {
            &self.small
        };
        let patience = if request.method() == Method::POST {
            COMPLETE_TIMEOUT
        } else {
            READ_TIMEOUT
        };
        let answer = timeout(patience, client.request(request)).await;
        let answer = answer.map_err(|_| silent())?.map_err(failed)?;
        Ok(answer.map(|body| {
            HttpResponseBody::new(Answer {
                body,
                silence: None,
                _place: place,
            })
        }))
    }
}

/// The body of an answer. A server that sends nothing for too long, while somebody waits for it,
/// has failed.
#[derive(Debug)]
struct Answer {
    body: Incoming,
    silence: Option<Pin<Box<Sleep>>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.silence = None;
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| HttpError::new(kind(&error), error))),
            );
        }
        let silence = self
            .silence
            .get_or_insert_with(|| Box::pin(sleep(READ_TIMEOUT)));
        ready!(silence.as_mut().poll(context));
        self.silence = None;
        Poll::Ready(Some(Err(silent())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn silent() -> HttpError {
    HttpError::new(
        HttpErrorKind::Timeout,
        io::Error::new(io::ErrorKind::TimedOut, "the server sends nothing"),
    )
}

fn failed(error: ClientError) -> HttpError {
    let kind = if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        kind(&error)
    };
    HttpError::new(kind, error)
}

/// What an error means for whoever may try again, by the first of its causes that says it.
fn kind(error: &(dyn Error + 'static)) -> HttpErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(kind) = kind_alone(error) {
            return kind;
        }
        cause = error.source();
    }
    HttpErrorKind::Unknown
}

fn kind_alone(error: &(dyn Error + 'static)) -> Option<HttpErrorKind> {
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
        let client = SmallBuffers.connect(&options).unwrap();
        format!("{client:?}").contains("Transport")
    }

    #[test]
    fn who_configures_what_this_client_has_not_gets_the_other() {
        assert!(is_ours(remote::client()));
        assert!(is_ours(remote::client().with_allow_http(true)));
        assert!(!is_ours(
            remote::client().with_proxy_url("http://proxy.internal:3128")
        ));
        assert!(!is_ours(
            remote::client().with_allow_invalid_certificates(true)
        ));
        assert!(!is_ours(
            remote::client().with_timeout(Duration::from_secs(60))
        ));
    }

    #[test]
    fn an_error_is_of_the_kind_of_its_cause() {
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(kind(&reset), HttpErrorKind::Interrupted);
        assert_eq!(kind(&io::Error::other("who knows")), HttpErrorKind::Unknown);
        assert_eq!(silent().kind(), HttpErrorKind::Timeout);
    }
}

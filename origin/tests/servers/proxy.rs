//! A proxy in front of a server. It injects faults, and forwards conditional writes one at a time:
//! s3s-fs checks the condition and writes afterwards, so two concurrent writers could both succeed,
//! which production stores exclude.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, header};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::gcs;

/// Maximum length of a request or response body in bytes: more than a part.
const MAX_BODY_LEN: usize = 64 << 20;

/// A fault of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Rejected with 503 SlowDown.
    Throttled,
    /// Rejected with 500.
    Failed,
    /// Performed, but answered with 500.
    ResponseLost,
    /// Never forwarded and never answered.
    Hangs,
    /// The response body ends in the middle.
    Torn,
    /// A byte in the middle of the response body is changed.
    Wrong,
    /// Answered with 404.
    NotFound,
    /// Answered with 404 for the bucket.
    NoBucket,
    /// Answered with 507.
    Full,
    /// Forwarded after [`SLOW`].
    Slow,
}

/// What a server answers to all requests, until it is told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Every request is rejected with 503 SlowDown, as far as clients repeat it.
    Throttles,
    /// Every request is rejected with 500.
    Fails,
    /// The bodies of objects end in the middle.
    TearsBodies,
    /// Data objects are not found; all else works.
    LosesObjects,
    /// Writes are rejected with 507.
    IsFull,
    /// The bucket does not exist.
    HasNoBucket,
    /// Requests are not answered, except for reads of the object that probes read.
    HangsUnprobed,
    /// The same, but they are answered after 5 s.
    SlowUnprobed,
}

/// The time that [`Behaviour::SlowUnprobed`] adds.
const SLOW: Duration = Duration::from_secs(5);

impl Behaviour {
    /// The fault of a request.
    fn fault(self, method: &Method, target: &str) -> Option<Fault> {
        let path = target.split('?').next().unwrap_or_default();
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        let is_probe = is_read && path.ends_with("/format");
        let is_data = is_read && path.contains("/seg/");
        match self {
            Self::Throttles => Some(Fault::Throttled),
            Self::Fails => Some(Fault::Failed),
            Self::HasNoBucket => Some(Fault::NoBucket),
            Self::TearsBodies => (is_read && !is_probe).then_some(Fault::Torn),
            Self::LosesObjects => is_data.then_some(Fault::NotFound),
            Self::IsFull => (!is_read && *method != Method::DELETE).then_some(Fault::Full),
            Self::HangsUnprobed => (!is_probe).then_some(Fault::Hangs),
            Self::SlowUnprobed => (!is_probe).then_some(Fault::Slow),
        }
    }
}

struct ArmedFault {
    method: Method,
    part: String,
    times: u32,
    fault: Fault,
}

/// The faults of a server, shared with the test.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    armed: Arc<Mutex<Vec<ArmedFault>>>,
    /// One of this many requests is throttled; 0 for none.
    throttle: Arc<Mutex<(u32, u32)>>,
    behaviour: watch::Sender<Option<Behaviour>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Faults {
    /// Injects `fault` into the next `times` requests with this method whose path and query contain
    /// `part`.
    pub(crate) fn arm(&self, method: Method, part: &str, times: u32, fault: Fault) {
        self.armed.lock().unwrap().push(ArmedFault {
            method,
            part: part.to_owned(),
            times,
            fault,
        });
    }

    /// Removes all faults.
    pub(crate) fn disarm(&self) {
        self.armed.lock().unwrap().clear();
        self.throttle_one_in(0);
    }

    /// Throttles one of this many requests from now on.
    pub(crate) fn throttle_one_in(&self, requests: u32) {
        *self.throttle.lock().unwrap() = (requests, 0);
    }

    /// Sets what the server answers to all requests from now on; `None` if nothing is wrong.
    /// Requests that hang go on when that ends.
    pub(crate) fn set_behaviour(&self, behaviour: Option<Behaviour>) {
        self.behaviour.send_replace(behaviour);
    }

    /// Waits while requests hang: for ever, if only some do.
    async fn wait_while_hanging(&self) {
        let mut behaviour = self.behaviour.subscribe();
        if *behaviour.borrow() != Some(Behaviour::HangsUnprobed) {
            std::future::pending().await
        }
        let _ended = behaviour
            .wait_for(|behaviour| *behaviour != Some(Behaviour::HangsUnprobed))
            .await;
    }

    /// Takes the requests since the last call, including faulty ones.
    pub(crate) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// Whether all armed faults have occurred.
    pub(crate) fn are_all_used(&self) -> bool {
        self.armed
            .lock()
            .unwrap()
            .iter()
            .all(|armed| armed.times == 0)
    }

    fn take_fault(&self, method: &Method, target: &str) -> Option<Fault> {
        self.requests
            .lock()
            .unwrap()
            .push(format!("{method} {target}"));
        let behaviour = *self.behaviour.borrow();
        if let Some(fault) = behaviour.and_then(|behaviour| behaviour.fault(method, target)) {
            return Some(fault);
        }
        let (one_in, seen) = &mut *self.throttle.lock().unwrap();
        *seen += 1;
        if *one_in > 0 && seen.is_multiple_of(*one_in) {
            return Some(Fault::Throttled);
        }
        let mut armed = self.armed.lock().unwrap();
        let met = armed.iter_mut().find(|armed| {
            armed.times > 0 && armed.method == *method && target.contains(&armed.part)
        })?;
        met.times -= 1;
        Some(met.fault)
    }
}

struct Forwarder {
    client: reqwest::Client,
    upstream: SocketAddr,
    faults: Faults,
    /// The server has only the JSON API of GCS for writes.
    is_gcs: bool,
    conditional_writes: tokio::sync::Mutex<()>,
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) faults: Faults,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// Forwards to `upstream`; `is_gcs` if that has only the JSON API of GCS for writes.
    pub(crate) async fn start(upstream: SocketAddr, is_gcs: bool) -> Self {
        let faults = Faults::default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        let forwarder = Forwarder {
            client: client.build().unwrap(),
            upstream,
            faults: faults.clone(),
            is_gcs,
            conditional_writes: tokio::sync::Mutex::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new()
            .fallback(forward)
            .with_state(Arc::new(forwarder));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            faults,
            serving,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(State(forwarder): State<Arc<Forwarder>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_LEN).await else {
        return error_response(StatusCode::BAD_REQUEST, "Torn");
    };
    let target = parts
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let fault = forwarder.faults.take_fault(&parts.method, target);
    match fault {
        Some(Fault::Throttled) => {
            return error_response(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
        }
        Some(Fault::Failed) => {
            return error_response(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        Some(Fault::NotFound) => return error_response(StatusCode::NOT_FOUND, "NoSuchKey"),
        Some(Fault::NoBucket) => return error_response(StatusCode::NOT_FOUND, "NoSuchBucket"),
        Some(Fault::Full) => {
            return error_response(StatusCode::INSUFFICIENT_STORAGE, "XMinioStorageFull");
        }
        Some(Fault::Hangs) => forwarder.faults.wait_while_hanging().await,
        Some(Fault::Slow) => tokio::time::sleep(SLOW).await,
        Some(Fault::ResponseLost | Fault::Torn | Fault::Wrong) | None => {}
    }
    let answered = forwarder.send(parts, body).await;
    match (answered, fault) {
        (Err(_), _) => error_response(StatusCode::BAD_GATEWAY, "Unreachable"),
        (Ok(_), Some(Fault::ResponseLost)) => {
            error_response(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
        }
        (Ok((status, headers, body)), Some(Fault::Torn)) => {
            let half = body.slice(..body.len() / 2);
            let cut = std::io::Error::other("cut");
            response(
                status,
                headers,
                Body::from_stream(stream::iter([Ok(half), Err(cut)])),
            )
        }
        (Ok((status, headers, body)), Some(Fault::Wrong)) => {
            let mut wrong = body.to_vec();
            if let Some(byte) = wrong.get_mut(body.len() / 2) {
                *byte ^= 1;
            }
            response(status, headers, wrong.into())
        }
        (Ok((status, headers, body)), _) => response(status, headers, body.into()),
    }
}

impl Forwarder {
    /// Sends a request to the server, and reads the whole answer.
    async fn send(&self, parts: Parts, body: Bytes) -> Result<Answer, reqwest::Error> {
        let conditions = [
            header::IF_MATCH.as_str(),
            header::IF_NONE_MATCH.as_str(),
            gcs::IF_GENERATION_MATCH,
        ];
        let is_conditional = conditions
            .iter()
            .any(|name| parts.headers.contains_key(*name));
        let _alone = if is_conditional {
            Some(self.conditional_writes.lock().await)
        } else {
            None
        };
        if self.is_gcs {
            return gcs::send(&self.client, self.upstream, parts, body).await;
        }
        let target = parts
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let url = format!("http://{}{target}", self.upstream);
        let request = self.client.request(parts.method, url);
        answer(request.headers(parts.headers).body(body)).await
    }
}

/// The status, headers and body of a response.
pub(super) type Answer = (StatusCode, HeaderMap, Bytes);

/// Sends a request, and reads the whole answer.
pub(super) async fn answer(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok((status, headers, response.bytes().await?))
}

fn response(status: StatusCode, mut headers: HeaderMap, body: Body) -> Response<Body> {
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn error_response(status: StatusCode, code: &str) -> Response<Body> {
    let body = Bytes::from(format!(
        "<Error><Code>{code}</Code><Message>injected</Message></Error>"
    ));
    response(status, HeaderMap::new(), body.into())
}

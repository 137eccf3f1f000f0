//! A proxy in front of a server. It injects faults, and forwards conditional writes one at a time:
//! s3s-fs checks the condition and writes afterwards, so two concurrent writers could both succeed,
//! which production stores exclude.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Response, StatusCode, header};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

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
    conditional_writes: tokio::sync::Mutex<()>,
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) faults: Faults,
    serving: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let faults = Faults::default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        let forwarder = Forwarder {
            client: client.build().unwrap(),
            upstream,
            faults: faults.clone(),
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
        Some(Fault::Hangs) => std::future::pending().await,
        Some(Fault::ResponseLost | Fault::Torn | Fault::Wrong) | None => {}
    }
    let conditional = parts.headers.contains_key(header::IF_MATCH)
        || parts.headers.contains_key(header::IF_NONE_MATCH);
    let alone = if conditional {
        Some(forwarder.conditional_writes.lock().await)
    } else {
        None
    };
    let url = format!("http://{}{target}", forwarder.upstream);
    let request = forwarder
        .client
        .request(parts.method, url)
        .headers(parts.headers)
        .body(body);
    let answered = async {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
    };
    let answered = answered.await;
    drop(alone);
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

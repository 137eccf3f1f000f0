//! A proxy before a server: faults that a story arms, and one conditional write at a time.
//!
//! The latter because s3s-fs looks whether the condition holds and writes afterwards: of two
//! writers at once both would win, which no store does that people keep their images in.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Response, StatusCode, header};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Bytes of a request or an answer at most: a part, with room to spare.
const MAX_BODY_LEN: usize = 64 << 20;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is done; 503 SlowDown.
    Throttled,
    /// Nothing is done; 500.
    Failed,
    /// It is done; the answer is 500 all the same.
    Unheard,
    /// Nothing is done, and no answer comes.
    Hangs,
    /// The answer breaks off in the middle of its body.
    Torn,
    /// The answer's body has another byte in its middle.
    Wrong,
}

struct Armed {
    method: Method,
    part: String,
    times: u32,
    fault: Fault,
}

/// The faults of a server, shared with the story.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    armed: Arc<Mutex<Vec<Armed>>>,
    /// Of so many requests one is throttled; 0: none.
    throttle: Arc<Mutex<(u32, u32)>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Faults {
    /// The next `times` requests of this method whose path and query have this part meet the fault.
    pub(crate) fn arm(&self, method: Method, part: &str, times: u32, fault: Fault) {
        self.armed.lock().unwrap().push(Armed {
            method,
            part: part.to_owned(),
            times,
            fault,
        });
    }

    /// From now on nothing happens to anybody.
    pub(crate) fn disarm(&self) {
        self.armed.lock().unwrap().clear();
        self.throttle_one_in(0);
    }

    /// One of so many requests is throttled, from now on.
    pub(crate) fn throttle_one_in(&self, requests: u32) {
        *self.throttle.lock().unwrap() = (requests, 0);
    }

    /// The requests since they were last asked for, also those that met a fault.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// Whether all faults have been met.
    pub(crate) fn are_spent(&self) -> bool {
        self.armed
            .lock()
            .unwrap()
            .iter()
            .all(|armed| armed.times == 0)
    }

    fn meet(&self, method: &Method, target: &str) -> Option<Fault> {
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
        return told(StatusCode::BAD_REQUEST, "Torn");
    };
    let target = parts
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let fault = forwarder.faults.meet(&parts.method, target);
    match fault {
        Some(Fault::Throttled) => return told(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        Some(Fault::Failed) => return told(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Some(Fault::Hangs) => std::future::pending().await,
        Some(Fault::Unheard | Fault::Torn | Fault::Wrong) | None => {}
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
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?))
    };
    let answered = answered.await;
    drop(alone);
    match (answered, fault) {
        (Err(_), _) => told(StatusCode::BAD_GATEWAY, "Unreachable"),
        (Ok(_), Some(Fault::Unheard)) => told(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        (Ok((status, headers, body)), Some(Fault::Torn)) => {
            let half = body.slice(..body.len() / 2);
            let cut = std::io::Error::other("cut");
            answer(
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
            answer(status, headers, wrong.into())
        }
        (Ok((status, headers, body)), _) => answer(status, headers, body.into()),
    }
}

fn answer(status: StatusCode, mut headers: HeaderMap, body: Body) -> Response<Body> {
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn told(status: StatusCode, code: &str) -> Response<Body> {
    let body = Bytes::from(format!(
        "<Error><Code>{code}</Code><Message>injected</Message></Error>"
    ));
    answer(status, HeaderMap::new(), body.into())
}

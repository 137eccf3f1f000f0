//! A round-robin proxy: it streams each request to the next server, adds nothing and keeps nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use flotilla_runtime::http::serve;
use flotilla_runtime::shutdown::Shutdown;
use reqwest::{Client, header, redirect};
use tokio::net::TcpListener;

/// A running proxy, which stops when it is dropped.
pub(super) struct RoundRobin {
    address: SocketAddr,
    shutdown: Shutdown,
}

struct Servers {
    addresses: Vec<SocketAddr>,
    next: AtomicUsize,
    http: Client,
}

impl RoundRobin {
    pub(super) async fn start(addresses: Vec<SocketAddr>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .build()
            .unwrap();
        let servers = Arc::new(Servers {
            addresses,
            next: AtomicUsize::new(0),
            http,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let router = Router::new().fallback(forward).with_state(servers);
        let shutdown = Shutdown::new();
        // This server reads the rest of a request after an early response, as a proxy must: a
        // client must not be disconnected while it sends.
        let server = serve(listener, router, None, &shutdown).unwrap();
        Self {
            address: server.address(),
            shutdown,
        }
    }

    pub(super) const fn addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RoundRobin {
    fn drop(&mut self) {
        self.shutdown.abandon();
    }
}

async fn forward(State(servers): State<Arc<Servers>>, request: Request) -> Response {
    let index = servers.next.fetch_add(1, Ordering::Relaxed);
    let server = servers.addresses[index % servers.addresses.len()];
    let (mut head, body) = request.into_parts();
    head.headers.remove(header::HOST);
    head.headers.remove(header::CONNECTION);
    let length_headers =
        [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].map(|name| head.headers.remove(name));
    let mut forwarded = servers
        .http
        .request(head.method, format!("http://{server}{}", head.uri))
        .headers(head.headers);
    if let [Some(len), _] = &length_headers {
        forwarded = forwarded.header(header::CONTENT_LENGTH, len);
    }
    if length_headers.iter().any(Option::is_some) {
        forwarded = forwarded.body(reqwest::Body::wrap_stream(body.into_data_stream()));
    }
    let answer = forwarded.send().await.unwrap();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    response
}

//! Tests of the server with a raw TCP client, mostly of how connections end.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use axum::Router;
use axum::extract::Extension;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::Notify;

use super::*;

mod client_identity;
mod exhausted_files;

/// 40 bytes of the 100 that the head promises, then an error.
async fn cut_short() -> http::Response<Body> {
    let frames = stream::iter([
        Ok(Bytes::from_static(&[b'x'; 40])),
        Err(io::Error::other("the source is gone")),
    ]);
    http::Response::builder()
        .header("content-length", 100)
        .body(Body::from_stream(frames))
        .unwrap()
}

async fn start(responder: impl Into<Responder>) -> (SocketAddr, Shutdown) {
    let (server, shutdown) = start_within(responder, ListenerLimits::default()).await;
    (server.address(), shutdown)
}

async fn start_within(
    responder: impl Into<Responder>,
    limits: ListenerLimits,
) -> (HttpServer, Shutdown) {
    let shutdown = Shutdown::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = serve_with(listener, responder, None, &shutdown, limits).unwrap();
    (server, shutdown)
}

/// A router that responds with "hello".
fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

/// Sends `request` and reads until the end of the stream; an error is a reset.
async fn exchange(address: SocketAddr, request: &[u8]) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: origin\r\n\r\n";

/// A router that refuses bodies without reading them.
fn refusing() -> Router {
    Router::new().route(
        "/",
        post(|| async { http::StatusCode::RANGE_NOT_SATISFIABLE }),
    )
}

fn post_of(len: usize) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nhost: origin\r\ncontent-length: {len}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; len]].concat()
}

#[tokio::test]
async fn long_unread_body_is_answered_with_connection_close() {
    let (address, _shutdown) = start(refusing()).await;
    let answer = exchange(address, &post_of(300_000)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 416"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn short_unread_body_leaves_the_connection_usable() {
    let (address, _shutdown) = start(refusing()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = post_of(20_000);
    for round in 0..3 {
        // The rest of the body arrives after the handler has refused it.
        let (first, rest) = body.split_at(10_000);
        stream.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all(rest).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(
            answer.starts_with("HTTP/1.1 416"),
            "round {round}: {answer}"
        );
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn body_that_is_read_leaves_the_connection_usable() {
    let reads = post(|body: Bytes| async move { body.len().to_string() });
    let (address, _shutdown) = start(Router::new().route("/", reads)).await;
    let mut request = post_of(300_000);
    request.extend_from_slice(b"GET / HTTP/1.1\r\nhost: origin\r\nconnection: close\r\n\r\n");
    let answer = exchange(address, &request).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
}

#[tokio::test]
async fn aborted_body_is_flushed_and_ends_with_fin() {
    let (address, _shutdown) = start(Router::new().route("/", get(cut_short))).await;
    let answer = exchange(address, GET).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.ends_with(&format!("\r\n\r\n{}", "x".repeat(40))),
        "{answer}"
    );
}

#[tokio::test]
async fn aborted_body_ends_with_fin_despite_unread_request_bytes() {
    let (address, _shutdown) = start(Router::new().route("/", get(cut_short))).await;
    // Far more than hyper reads ahead: it is unread in the socket when the body fails.
    let mut request = GET.to_vec();
    request.extend_from_slice(
        b"POST /more HTTP/1.1\r\nhost: origin\r\ncontent-length: 1000000\r\n\r\n",
    );
    request.resize(request.len() + 1_000_000, b'y');
    let answer = exchange(address, &request).await.unwrap();
    assert!(answer.ends_with(&"x".repeat(40)), "{answer}");
}

#[tokio::test]
async fn early_refusal_of_an_upload_reaches_the_client() {
    let refuse = || async { (http::StatusCode::FORBIDDEN, "not you") };
    let (address, _shutdown) = start(Router::new().route("/", post(refuse))).await;
    let mut request =
        b"POST / HTTP/1.1\r\nhost: origin\r\ncontent-length: 3000000\r\n\r\n".to_vec();
    request.resize(request.len() + 3_000_000, b'y');
    let answer = exchange(address, &request).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.ends_with("not you"), "{answer}");
}

#[tokio::test]
async fn drain_finishes_responses_and_refuses_connections() {
    let (started, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (started, release) = (Arc::clone(&started), Arc::clone(&release));
        move || async move {
            started.notify_one();
            release.notified().await;
            "done"
        }
    };
    let (address, shutdown) = start(Router::new().route("/", get(slow))).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    let request = tokio::spawn(exchange(address, GET));
    started.notified().await;
    let draining = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { shutdown.drain(Duration::from_secs(60)).await }
    });
    // The idle connection is closed at once.
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    drop(idle);
    assert!(!draining.is_finished());
    release.notify_one();
    assert!(request.await.unwrap().unwrap().ends_with("done"));
    assert_eq!(draining.await.unwrap(), crate::shutdown::Drained::Complete);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn drain_aborts_endless_responses_after_its_timeout() {
    let endless = || async {
        let ones =
            stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"1"))]).chain(stream::pending());
        Body::from_stream(ones)
    };
    let limits = ListenerLimits {
        drain_timeout: Duration::from_millis(10),
        ..ListenerLimits::default()
    };
    let (server, shutdown) = start_within(Router::new().route("/", get(endless)), limits).await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(GET).await.unwrap();
    stream.read_exact(&mut [0; 15]).await.unwrap();
    shutdown.trigger();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    drop(stream);
    server.finished().await;
}

#[tokio::test]
async fn connections_are_kept_alive_and_limited() {
    let (server, _shutdown) = start_within(
        hello(),
        ListenerLimits {
            connections: 1,
            ..ListenerLimits::default()
        },
    )
    .await;
    let mut first = TcpStream::connect(server.address()).await.unwrap();
    let mut answer = vec![0; 1024];
    for _ in 0..2 {
        first.write_all(GET).await.unwrap();
        let mut length = 0;
        while !answer[..length].ends_with(b"hello") {
            length += first.read(&mut answer[length..]).await.unwrap();
        }
    }
    // The second waits until the first one leaves.
    let mut second = tokio::spawn(exchange(
        server.address(),
        b"GET / HTTP/1.1\r\nhost: origin\r\nconnection: close\r\n\r\n",
    ));
    let bound = Duration::from_millis(50);
    assert!(timeout(bound, &mut second).await.is_err());
    drop(first);
    assert!(second.await.unwrap().unwrap().ends_with("hello"));
}

#[tokio::test]
async fn connection_burst_waits_in_the_listen_queue() {
    let (server, _shutdown) = start_within(
        hello(),
        ListenerLimits {
            connections: 1,
            ..ListenerLimits::default()
        },
    )
    .await;
    let address = server.address();
    let burst = futures_util::future::try_join_all((0..500).map(|_| TcpStream::connect(address)));
    // One is served and never leaves. A connection that overflows the queue retries for minutes.
    let connected = timeout(Duration::from_secs(10), burst)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(connected.len(), 500);
}

#[tokio::test]
async fn handler_sees_the_client() {
    let who = |ConnectInfo(client): ConnectInfo<SocketAddr>,
               Extension(identity): Extension<ClientIdentity>| async move {
        assert_eq!(identity, ClientIdentity::default());
        client.ip().to_string()
    };
    let (address, _shutdown) = start(Router::new().route("/", get(who))).await;
    let request = b"GET / HTTP/1.1\r\nhost: origin\r\nconnection: close\r\n\r\n";
    assert!(
        exchange(address, request)
            .await
            .unwrap()
            .ends_with("127.0.0.1")
    );
}

#[tokio::test]
async fn shortcut_bypasses_the_router() {
    let responder = Responder::from(Router::new().route("/", get(|| async { "the long way" })));
    let responder = responder.with_shortcut(|request| {
        (request.method == "HEAD").then(|| Response::new(Body::from("short")))
    });
    let (address, _shutdown) = start(responder).await;
    let request =
        |method| format!("{method} / HTTP/1.1\r\nhost: origin\r\nconnection: close\r\n\r\n");
    let get = exchange(address, request("GET").as_bytes()).await.unwrap();
    let head = exchange(address, request("HEAD").as_bytes()).await.unwrap();
    assert!(get.ends_with("the long way"), "{get}");
    assert!(head.contains("content-length: 5\r\n"), "{head}");
}

#[tokio::test]
async fn workers_serve_and_drain_connections() {
    let workers = Arc::new(Workers::start(2).unwrap());
    let thread = || async { std::thread::current().name().unwrap_or_default().to_owned() };
    let router = Router::new().route("/", get(thread));
    let (address, shutdown) = start(Responder::from(router).on(Some(workers))).await;
    let mut served_by = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let mut answer = String::new();
        while !answer.contains("http-") {
            let mut bytes = [0; 1024];
            let len = stream.read(&mut bytes).await.unwrap();
            answer.push_str(std::str::from_utf8(&bytes[..len]).unwrap());
        }
        served_by.push(answer.split("http-").last().unwrap().to_owned());
        idle.push(stream);
    }
    served_by.sort();
    assert_eq!(served_by, ["0", "1"]);
    let drain = shutdown.drain(Duration::from_secs(60));
    let hang_up = async {
        for mut stream in idle {
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
    };
    assert_eq!(
        tokio::join!(drain, hang_up).0,
        crate::shutdown::Drained::Complete
    );
}

#[tokio::test]
async fn http2_preface_in_two_packets_is_detected() {
    let (address, _shutdown) = start(hello()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(b"PR").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let rest = b"I * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(rest).await.unwrap();
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(header[3], 4, "a SETTINGS frame");
}

#[tokio::test]
async fn partial_preface_does_not_keep_a_closed_connection() {
    let (address, _shutdown) = start(hello()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"P").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let closed = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), closed)
        .await
        .expect("closed long before the timeout of a request head")
        .unwrap();
}

#[tokio::test]
async fn sendfile_can_be_switched_off() {
    let has_sender = |request: axum::extract::Request| async move {
        request
            .extensions()
            .get::<FileSender>()
            .is_some()
            .to_string()
    };
    let router = Router::new().route("/", get(has_sender));
    let request = b"GET / HTTP/1.1\r\nhost: origin\r\nconnection: close\r\n\r\n";
    for is_on in [true, false] {
        let responder = Responder::from(router.clone()).with_sendfile(is_on);
        let (address, _shutdown) = start(responder).await;
        let answer = exchange(address, request).await.unwrap();
        assert!(answer.ends_with(&is_on.to_string()), "{answer}");
    }
}

/// Notifies when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn disconnect_drops_a_waiting_response() {
    let dropped = Arc::new(Notify::new());
    let waiting = {
        let dropped = Arc::clone(&dropped);
        move || async move {
            let guard = Dropped(dropped);
            let one = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"1"))]);
            let for_ever = stream::poll_fn(move |_| {
                let _until_the_body_is_dropped = &guard;
                std::task::Poll::Pending
            });
            Body::from_stream(one.chain(for_ever))
        }
    };
    let (address, _shutdown) = start(Router::new().route("/", get(waiting))).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(GET).await.unwrap();
    stream.read_exact(&mut [0; 15]).await.unwrap();
    drop(stream);
    dropped.notified().await;
}

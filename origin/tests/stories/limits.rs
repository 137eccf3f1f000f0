//! Beyond its limits an origin rejects requests at once with Retry-After, and disconnects stalled
//! clients.

use core::time::Duration;
use std::net::SocketAddr;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{MANIFEST, Region, Registry, code, header, is_unavailable, manifest, sample};

const GET: &str = "GET /v2/ HTTP/1.1\r\nhost: origin\r\n\r\n";
const SHORT_TIMEOUT: Duration = Duration::from_millis(100);

/// Opens a connection and writes `request` to it.
async fn connect_and_write(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads the head of a response.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        head.extend_from_slice(&byte);
    }
    String::from_utf8(head).unwrap()
}

/// Reads until the connection ends.
async fn read_rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    rest
}

async fn metric(client: &Registry, name: &str) -> u64 {
    let metrics = client.metrics().await;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} is missing in\n{metrics}"))
}

/// Polls until `condition` holds: an origin notices a closed connection soon, but not at once.
async fn wait_until(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::task::yield_now().await;
    }
}

/// Whether a response is 429 with Retry-After and its error code.
async fn is_too_many_requests(answer: reqwest::Response) -> bool {
    let is_throttled =
        answer.status() == StatusCode::TOO_MANY_REQUESTS && header(&answer, "retry-after") == "1";
    is_throttled && code(answer).await == "TOOMANYREQUESTS"
}

#[tokio::test]
async fn connection_limit_answers_503_and_spares_admin() {
    let region = Region::start_with(1, |config| config.limits.connections = 1).await;
    let address = region.origins[0].addr();
    let mut first = connect_and_write(address, GET).await;
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = connect_and_write(address, GET).await;
    let answer = String::from_utf8(read_rest(&mut second).await)
        .unwrap()
        .to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 503"), "{answer}");
    for part in [
        "retry-after: 1",
        "connection: close",
        "\"unavailable\"",
        "too many connections",
    ] {
        assert!(answer.contains(part), "{part} is missing in {answer}");
    }
    // A new client each time: a kept-alive connection would occupy the only connection slot.
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            region.client(0).get(path).await.status(),
            StatusCode::OK,
            "{path}"
        );
    }
    let shed = "flotilla_origin_shed_total{reason=\"connections\"}";
    assert_eq!(metric(&region.client(0), shed).await, 1);
    drop(first);
    wait_until(async || region.client(0).get("/v2/").await.status() == StatusCode::OK).await;
}

#[tokio::test]
async fn request_limit_answers_429() {
    let region = Region::start_with(1, |config| config.limits.requests = 1).await;
    let client = region.client(0);
    client.push_blob("app", "{}").await;
    let (reached, resume) = region.faults.hold("rm/");
    let pushing = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .put_manifest("/v2/app/manifests/v1", MANIFEST, manifest(b"{}", &[]))
                .await
        }
    });
    reached.notified().await;
    assert!(is_too_many_requests(client.get("/v2/").await).await);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(client.get(path).await.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(
        metric(&client, "flotilla_origin_shed_total{reason=\"requests\"}").await,
        1
    );
    assert_eq!(
        metric(&client, "flotilla_origin_requests_under_way").await,
        1
    );
    resume.notify_one();
    assert_eq!(pushing.await.unwrap().status(), StatusCode::CREATED);
    wait_until(async || client.get("/v2/").await.status() == StatusCode::OK).await;
}

#[tokio::test]
async fn pull_holds_its_request_permit_until_the_last_byte() {
    let region = Region::start_with(1, |config| config.limits.requests = 1).await;
    let client = region.client(0);
    let digest = client.push_blob("app", sample(64 << 20, 0)).await;
    let request = format!("GET /v2/app/blobs/{digest} HTTP/1.1\r\nhost: origin\r\n\r\n");
    let mut pulling = connect_and_write(region.origins[0].addr(), &request).await;
    assert!(read_head(&mut pulling).await.starts_with("HTTP/1.1 200"));
    assert!(is_too_many_requests(client.get("/v2/").await).await);
    drop(pulling);
    wait_until(async || client.get("/v2/").await.status() == StatusCode::OK).await;
}

#[tokio::test]
async fn upload_limit_spares_pulls() {
    let region = Region::start_with(1, |config| config.limits.uploads = 1).await;
    let client = region.client(0);
    let pulled = client.push_blob("app", "pulled").await;
    let (first, second) = (client.begin("app").await, client.begin("app").await);
    let request =
        format!("PATCH {first} HTTP/1.1\r\nhost: origin\r\ncontent-length: 10\r\n\r\n01234");
    let mut uploading = connect_and_write(region.origins[0].addr(), &request).await;
    wait_until(async || metric(&client, "flotilla_origin_uploads_under_way").await == 1).await;
    assert!(is_too_many_requests(client.patch(&second, "x").await).await);
    assert_eq!(
        metric(&client, "flotilla_origin_shed_total{reason=\"uploads\"}").await,
        1
    );
    assert_eq!(
        client
            .get(&format!("/v2/app/blobs/{pulled}"))
            .await
            .text()
            .await
            .unwrap(),
        "pulled"
    );
    uploading.write_all(b"56789").await.unwrap();
    assert!(read_head(&mut uploading).await.starts_with("HTTP/1.1 202"));
    wait_until(async || client.patch(&second, "x").await.status() == StatusCode::ACCEPTED).await;
}

#[tokio::test]
async fn manifest_memory_is_limited() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let mut sending = Vec::new();
    for _ in 0..16 {
        let mut request =
            "PUT /v2/app/manifests/v1 HTTP/1.1\r\nhost: origin\r\ncontent-length: 4194304\r\n\r\n"
                .to_owned();
        request.push_str(&" ".repeat((4 << 20) - 1));
        sending.push(connect_and_write(region.origins[0].addr(), &request).await);
    }
    let put = async || {
        client
            .put_manifest(
                "/v2/app/manifests/v1",
                MANIFEST,
                Bytes::from(vec![b' '; 4 << 20]),
            )
            .await
    };
    wait_until(async || put().await.status() == StatusCode::TOO_MANY_REQUESTS).await;
    drop(sending);
    wait_until(async || put().await.status() == StatusCode::BAD_REQUEST).await;
}

#[tokio::test]
async fn incomplete_request_head_times_out() {
    let region = Region::start_with(1, |config| config.limits.head_timeout = SHORT_TIMEOUT).await;
    let mut stalled = connect_and_write(region.origins[0].addr(), "GET /v2/ HTTP/1.1\r\nhos").await;
    assert!(
        !String::from_utf8(read_rest(&mut stalled).await)
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn stalled_bodies_get_408_and_can_continue() {
    let region = Region::start_with(1, |config| config.limits.stall_timeout = SHORT_TIMEOUT).await;
    let (client, address) = (region.client(0), region.origins[0].addr());
    let upload = client.begin("app").await;
    for target in [
        format!("PATCH {upload}"),
        "PUT /v2/app/manifests/v1".to_owned(),
    ] {
        let request =
            format!("{target} HTTP/1.1\r\nhost: origin\r\ncontent-length: 10\r\n\r\n01234");
        let mut stalled = connect_and_write(address, &request).await;
        let answer = read_head(&mut stalled).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        read_rest(&mut stalled).await;
    }
    assert_eq!(
        client.patch(&upload, "0123456789").await.status(),
        StatusCode::ACCEPTED
    );
}

#[tokio::test]
async fn stalled_reader_is_disconnected() {
    let region = Region::start_with(1, |config| config.limits.reader_timeout = SHORT_TIMEOUT).await;
    let client = region.client(0);
    let digest = client.push_blob("app", sample(64 << 20, 0)).await;
    let request = format!("GET /v2/app/blobs/{digest} HTTP/1.1\r\nhost: origin\r\n\r\n");
    let mut stalled = connect_and_write(region.origins[0].addr(), &request).await;
    assert!(read_head(&mut stalled).await.starts_with("HTTP/1.1 200"));
    wait_until(async || metric(&client, "flotilla_origin_requests_under_way").await == 0).await;
    let mut got = Vec::new();
    // The connection ends with a reset, because the client did not read.
    let _ = stalled.read_to_end(&mut got).await;
    assert!(got.len() < 64 << 20);
    assert_eq!(
        client
            .request(Method::GET, &format!("/v2/app/blobs/{digest}"))
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    assert_eq!(digest, Digest::sha256(&sample(64 << 20, 0)));
}

/// The storage never answers: the first attempt times out, and so does the second; there is no
/// third.
#[tokio::test]
async fn unanswered_write_is_503_within_two_storage_timeouts() {
    let region =
        Region::start_with(1, |config| config.limits.storage_timeout = SHORT_TIMEOUT).await;
    let client = region.client(0);
    client.push_blob("app", "{}").await;
    let held = [(); 3].map(|()| region.faults.hold("rm/"));
    let answer = client
        .put_manifest("/v2/app/manifests/v1", MANIFEST, manifest(b"{}", &[]))
        .await;
    assert!(is_unavailable(&answer));
    let [first, _, third] = held.map(|(reached, _)| reached);
    first.notified().await;
    assert!(
        tokio::time::timeout(Duration::ZERO, third.notified())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn responses_carry_request_ids() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let given = client
        .request(Method::GET, "/v2/")
        .header("x-request-id", "edge-1/7")
        .send()
        .await
        .unwrap();
    assert_eq!(header(&given, "x-request-id"), "edge-1/7");
    let unknown = client.get("/v2/app/manifests/v1").await;
    assert_eq!(
        (unknown.status(), header(&unknown, "x-request-id").len()),
        (StatusCode::NOT_FOUND, 16)
    );
    region.faults.set_down(true);
    let failed = client.get("/v2/app/manifests/v2").await;
    assert!(is_unavailable(&failed));
    assert_ne!(
        header(&failed, "x-request-id"),
        header(&unknown, "x-request-id")
    );
}

#[tokio::test]
async fn draining_replica_is_unready_and_still_serves() {
    let mut region = Region::start_with(1, |config| {
        config.limits.drain_delay = Duration::from_mins(5)
    })
    .await;
    let client = region.client(0);
    assert_eq!(client.get("/readyz").await.status(), StatusCode::OK);
    let draining = tokio::spawn(region.origins.remove(0).shutdown());
    wait_until(async || client.get("/readyz").await.status() == StatusCode::SERVICE_UNAVAILABLE)
        .await;
    assert_eq!(client.get("/healthz").await.status(), StatusCode::OK);
    client.push_blob("app", "{}").await;
    draining.abort();
}

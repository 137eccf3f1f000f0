//! Clients that use HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{
    CertificateAuthority, CertificateFiles, Identity, Issued, client_trusting,
};
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode, Version};
use reqwest::Body;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::support::{Region, Registry, header, location, sample};

/// More streams than an honest client opens at once.
const ABUSIVE_STREAMS: u32 = 100_000;
/// Streams after which the client yields to the connection and the origin.
const STREAMS_PER_YIELD: u32 = 100;
const DAY: Duration = Duration::from_secs(86_400);

/// A certificate authority, and a server identity in files.
struct TlsFiles {
    dir: tempfile::TempDir,
}

impl TlsFiles {
    fn create() -> Self {
        let files = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        files.renew();
        files
    }

    /// Writes a new authority and a certificate issued by it.
    fn renew(&self) {
        let fleet = CertificateAuthority::create(Clock::system()).unwrap();
        let Issued {
            certificate_pem,
            key_pem,
            ..
        } = fleet
            .issue_server(&["127.0.0.1".to_owned()], None, DAY)
            .unwrap();
        for (name, text) in [
            ("ca.pem", fleet.certificate_pem()),
            ("tls.pem", &certificate_pem),
            ("tls.key", &key_pem),
        ] {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }
    }

    fn identity(&self) -> Identity {
        let [authority, certificate, key] =
            ["ca.pem", "tls.pem", "tls.key"].map(|name| self.dir.path().join(name));
        Identity::load(
            &CertificateFiles {
                certificate,
                key,
                authority,
            },
            Clock::system(),
        )
        .unwrap()
    }

    /// A client that trusts the current authority and offers these protocols.
    fn client(&self, region: &Region, protocols: &[&[u8]]) -> Registry {
        let mut tls = client_trusting(&self.dir.path().join("ca.pem")).unwrap();
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Registry::over_tls(region.origins[0].addr(), tls)
    }
}

async fn pushes_and_pulls(client: &Registry, version: Version) {
    let layers = [sample(100, 1), sample(3 << 20, 2)];
    let manifest = client.push_image("app", "v1", &layers).await;
    let answer = client.get("/v2/app/manifests/v1").await;
    assert_eq!(
        (answer.version(), answer.status()),
        (version, StatusCode::OK)
    );
    assert_eq!(answer.bytes().await.unwrap(), manifest);
    for layer in layers {
        let answer = client
            .get(&format!("/v2/app/blobs/{}", Digest::sha256(&layer)))
            .await;
        assert_eq!(answer.version(), version);
        assert_eq!(answer.bytes().await.unwrap(), layer);
    }
    let head = client.head("/v2/app/manifests/v1").await;
    assert_eq!(header(&head, "content-length"), manifest.len().to_string());
    assert_eq!(
        client.get("/v2/app/manifests/v2").await.status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn tls_negotiates_the_http_version() {
    let files = TlsFiles::create();
    let region = Region::start_with(1, |config| config.tls = Some(files.identity())).await;
    let both: [&[u8]; 2] = [b"h2", b"http/1.1"];
    pushes_and_pulls(&files.client(&region, &both), Version::HTTP_2).await;
    pushes_and_pulls(&files.client(&region, &both[1..]), Version::HTTP_11).await;
    pushes_and_pulls(&files.client(&region, &[]), Version::HTTP_11).await;
}

#[tokio::test]
async fn http2_prior_knowledge_without_tls() {
    let region = Region::start(1).await;
    pushes_and_pulls(
        &Registry::with_prior_knowledge(region.origins[0].addr()),
        Version::HTTP_2,
    )
    .await;
    pushes_and_pulls(&region.client(0), Version::HTTP_11).await;
}

#[tokio::test]
async fn drain_finishes_push_in_flight() {
    let mut region = Region::start(1).await;
    let client = Registry::with_prior_knowledge(region.origins[0].addr());
    let upload = client.begin("app").await;
    let bytes = sample(1000, 1);
    let (begin, rest) = (bytes.slice(..500), bytes.slice(500..));
    let (began, has_begun) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let first = stream::once(async move {
        began.send(()).unwrap();
        Ok::<_, std::io::Error>(begin)
    });
    let second = stream::once(async move {
        may_go_on.await.unwrap();
        Ok(rest)
    });
    let patch = client
        .request(Method::PATCH, &upload)
        .body(Body::wrap_stream(first.chain(second)));
    let patch = tokio::spawn(patch.send());
    has_begun.await.unwrap();
    // The response to a later request on the connection shows that the origin has seen the first.
    assert_eq!(client.get("/v2/").await.status(), StatusCode::OK);
    let origin = region.origins.remove(0);
    let address = origin.addr();
    let draining = tokio::spawn(origin.shutdown());
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    go_on.send(()).unwrap();
    let answer = patch.await.unwrap().unwrap();
    assert_eq!(
        (answer.version(), answer.status()),
        (Version::HTTP_2, StatusCode::ACCEPTED)
    );
    assert_eq!(header(&answer, "range"), "0-999");
    assert!(location(&answer).starts_with("/v2/app/blobs/uploads/"));
    draining.await.unwrap();
}

#[tokio::test]
async fn certificate_reload_keeps_connections() {
    let files = TlsFiles::create();
    let identity = files.identity();
    let region = Region::start_with(1, |config| config.tls = Some(identity.clone())).await;
    let before = files.client(&region, &[b"h2"]);
    assert_eq!(before.get("/v2/").await.version(), Version::HTTP_2);
    files.renew();
    identity.reload().unwrap();
    let after = files.client(&region, &[b"h2"]);
    assert_eq!(after.get("/v2/").await.version(), Version::HTTP_2);
    assert_eq!(
        before.get("/v2/").await.status(),
        StatusCode::OK,
        "an open connection must continue"
    );
}

#[tokio::test]
async fn rapid_reset_closes_the_connection() {
    let region = Region::start(1).await;
    let stream = TcpStream::connect(region.origins[0].addr()).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut requests = requests.ready().await.unwrap();
    let mut opened = 0;
    while opened < ABUSIVE_STREAMS {
        let request = Request::get("http://origin/v2/").body(()).unwrap();
        let Ok((_response, mut stream)) = requests.send_request(request, false) else {
            break;
        };
        stream.send_reset(h2::Reason::CANCEL);
        opened += 1;
        if opened % STREAMS_PER_YIELD == 0 {
            tokio::task::yield_now().await;
        }
        match requests.ready().await {
            Ok(ready) => requests = ready,
            Err(_) => break,
        }
    }
    assert!(opened < ABUSIVE_STREAMS, "the origin accepted all of them");
    // The reason is ENHANCE_YOUR_CALM, if the client still reads.
    assert!(connection.await.unwrap().is_err());
    assert_eq!(region.client(0).get("/v2/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn header_size_is_limited() {
    let region = Region::start(1).await;
    let client = Registry::with_prior_knowledge(region.origins[0].addr());
    let long = client
        .request(Method::GET, "/v2/")
        .header("x-long", "x".repeat(100_000))
        .send()
        .await;
    let status = long.map(|answer| answer.status());
    assert!(!matches!(status, Ok(StatusCode::OK)), "{status:?}");
    assert_eq!(client.get("/v2/").await.status(), StatusCode::OK);
    assert_eq!(
        client.push_blob("app", Bytes::from_static(b"x")).await,
        Digest::sha256(b"x")
    );
}

/// Sends a request on an HTTP/2 connection. Returns the bytes received, and the reset reason if the
/// body is incomplete.
async fn receive(
    requests: &h2::client::SendRequest<Bytes>,
    request: (Method, &str),
    takes: bool,
) -> (usize, Option<h2::Reason>) {
    let (method, path) = request;
    let request = Request::builder()
        .method(method)
        .uri(format!("http://origin{path}"))
        .body(())
        .unwrap();
    let (response, _) = requests
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(request, true)
        .unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut len = 0;
    while let Some(piece) = body.data().await {
        let came = match piece {
            Ok(piece) => piece.len(),
            Err(error) => return (len, error.reason()),
        };
        len += came;
        if takes {
            body.flow_control().release_capacity(came).unwrap();
        }
    }
    (len, None)
}

#[tokio::test]
async fn stalled_stream_is_reset_and_others_continue() {
    let brief = Duration::from_millis(200);
    let region = Region::start_with(1, |config| config.limits.reader_timeout = brief).await;
    // A body that fits the window needs no timely reads, so a busy machine does not matter.
    let small = region.client(0).push_blob("app", sample(10_000, 1)).await;
    let large = region.client(0).push_blob("app", sample(1 << 20, 2)).await;
    let [small, large] = [small, large].map(|digest| format!("/v2/app/blobs/{digest}"));
    // A response without a body needs no window.
    let others = [
        (0, (Method::HEAD, &*small), 0),
        (30_000, (Method::GET, &*small), 10_000),
    ];
    for (window, other, len) in others {
        let stream = TcpStream::connect(region.origins[0].addr()).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let (requests, connection) = builder
            .initial_window_size(window)
            .handshake::<_, Bytes>(stream)
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let stalled = tokio::spawn({
            let (requests, large) = (requests.clone(), large.clone());
            async move { receive(&requests, (Method::GET, &large), false).await }
        });
        while !stalled.is_finished() {
            assert_eq!(receive(&requests, other.clone(), true).await, (len, None));
        }
        assert_eq!(
            stalled.await.unwrap(),
            (window as usize, Some(h2::Reason::CANCEL))
        );
        assert_eq!(receive(&requests, other, true).await, (len, None));
        connection.abort();
    }
    let client = region.client(0);
    while !client.metrics().await.contains("requests_under_way 0") {
        tokio::task::yield_now().await;
    }
}

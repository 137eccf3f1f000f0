//! Answers of another region's origin, made by a server that may answer anything.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use flotilla_common::stamp::Stamp;
use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{StorageStanding, encode_facts};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::http::{ClientIdentity, serve};
use flotilla_runtime::identity::{CertificateAuthority, ClientAuth, Identity};
use flotilla_runtime::shutdown::Shutdown;
use http::Response;
use tokio::net::TcpListener;

use super::*;

type Answers = Arc<Mutex<Vec<Response<Body>>>>;

/// A server of region us-1, and this region's view of it.
struct Other {
    source: RemoteSource,
    answers: Answers,
    /// Of each request: the caller's region, method, path and range.
    requests: Arc<Mutex<Vec<String>>>,
    /// The connection of the next request ends without an answer.
    breaks_next: Arc<AtomicBool>,
    _shutdown: Shutdown,
}

impl Other {
    async fn start() -> Self {
        Self::start_in("us-1").await
    }

    /// A server whose certificate names `region`, where us-1 is expected.
    async fn start_in(region: &str) -> Self {
        let fleet = CertificateAuthority::create(Clock::system()).unwrap();
        let identity = |region: &str| {
            let names = ["127.0.0.1".to_owned()];
            let region = region.parse().unwrap();
            let day = Duration::from_hours(24);
            let issued = fleet.issue_server(&names, Some(&region), day).unwrap();
            let (certificate, key) = (&issued.certificate_pem, &issued.key_pem);
            let authority = fleet.certificate_pem();
            Identity::from_pem(certificate, key, authority, Clock::system()).unwrap()
        };
        let answers = Answers::default();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let breaks_next: Arc<AtomicBool> = Arc::default();
        let (answering, seen) = (Arc::clone(&answers), Arc::clone(&requests));
        let breaks = Arc::clone(&breaks_next);
        let router = Router::new().fallback(move |request: Request| {
            seen.lock().unwrap().push(describe(&request));
            if breaks.swap(false, Ordering::Relaxed) {
                // Unwinds through the task of the connection, without a message.
                std::panic::resume_unwind(Box::new(()));
            }
            let mut answers = answering.lock().unwrap();
            let answer = (!answers.is_empty()).then(|| answers.remove(0));
            async move {
                match answer {
                    Some(answer) => answer,
                    None => core::future::pending().await,
                }
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = identity(region).https_server(ClientAuth::Optional).unwrap();
        let shutdown = Shutdown::new();
        let server = serve(listener, router, Some(tls), &shutdown).unwrap();
        let url = format!("https://{}", server.address());
        let client = RegionClient::new(&identity("eu-1"), "us-1".parse().unwrap(), &url).unwrap();
        Self {
            source: RemoteSource::new(client),
            answers,
            requests,
            breaks_next,
            _shutdown: shutdown,
        }
    }

    fn will_answer(&self, status: u16, headers: &[(&str, &str)], body: impl Into<Body>) {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        self.answers
            .lock()
            .unwrap()
            .push(answer.body(body.into()).unwrap());
    }

    fn will_send(&self, answer: &impl Encode) {
        self.will_answer(200, &[], codec::encode(answer).unwrap());
    }

    fn last_request(&self) -> String {
        self.requests.lock().unwrap().pop().unwrap()
    }

    async fn blob(&self, offset: u64) -> Result<Option<(u64, String)>, String> {
        let (repository, digest) = (repository(), Digest::sha256(b"hello"));
        let blob = self.source.blob(&repository, &digest, offset).await;
        let Some(mut blob) = blob.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let mut text = String::new();
        while let Some(piece) = blob.bytes.next().await {
            text += core::str::from_utf8(&piece?).unwrap();
        }
        Ok(Some((blob.size, text)))
    }
}

fn describe(request: &Request) -> String {
    let caller = request.extensions().get::<ClientIdentity>();
    let caller = caller.and_then(ClientIdentity::region).unwrap();
    let header = |name: &str| {
        let value = request.headers().get(name);
        value.map_or("", |value| value.to_str().unwrap())
    };
    let redirect = header("flotilla-redirect");
    let (method, path) = (request.method(), request.uri().path());
    format!("{caller} {method} {path} {redirect} {}", header("range"))
}

fn repository() -> RepositoryName {
    "app".parse().unwrap()
}

fn state(region: &str) -> RegionState {
    RegionState {
        region: region.parse().unwrap(),
        storage_id: StorageId::from_bytes([7; 16]),
        replaced: vec![StorageId::from_bytes([6; 16])],
        clock: 1,
        standing: StorageStanding::Usable,
        is_whole: true,
        owed: Vec::new(),
    }
}

fn reason<T: core::fmt::Debug>(answer: Result<T, SourceError>) -> String {
    answer.unwrap_err().to_string()
}

#[tokio::test]
async fn requests_show_the_region_and_answers_are_decoded() {
    let other = Other::start().await;
    other.will_send(&state("us-1"));
    assert_eq!(other.source.state().await.unwrap(), state("us-1"));
    assert_eq!(
        other.last_request(),
        "eu-1 GET /flotilla/v1/region/state never "
    );
    let page = JournalPage {
        more: true,
        ..JournalPage::default()
    };
    other.will_send(&page);
    assert_eq!(other.source.journal(None, 10).await.unwrap(), page);
    other.will_answer(200, &[], "");
    other.source.done(Vec::new(), Some(5)).await.unwrap();
    other.will_send(&KeysPage::default());
    let keys = other.source.keys(FactKind::Tags, None, 10);
    assert_eq!(keys.await.unwrap(), KeysPage::default());
    other.will_send(&TakeAnswer { merged: true });
    let request = TakeRequest {
        keys: Vec::new(),
        blobs: Vec::new(),
        wait: true,
    };
    assert!(other.source.take(request).await.unwrap().merged);
}

#[tokio::test]
async fn another_regions_server_is_refused() {
    let other = Other::start_in("ap-1").await;
    let error = reason(other.source.state().await);
    assert!(
        error.contains("names the origin of region ap-1") && error.contains("us-1 is expected"),
        "{error}"
    );
    assert_eq!(other.requests.lock().unwrap().len(), 0);
    // A certificate may name the region while its configuration does not.
    let other = Other::start().await;
    other.will_send(&state("ap-1"));
    let error = reason(other.source.state().await);
    assert!(error.contains("leads to region ap-1"), "{error}");
}

#[tokio::test]
async fn failures_are_errors_with_their_reason() {
    let other = Other::start().await;
    let denied = r#"{"errors":[{"code":"DENIED","message":"region eu-1 is not in the policy"}]}"#;
    other.will_answer(403, &[], denied);
    let error = reason(other.source.state().await);
    assert_eq!(
        error,
        "ask region us-1: it answered 403 Forbidden: region eu-1 is not in the policy"
    );
    // Redirects are not followed.
    other.will_answer(307, &[("location", "https://127.0.0.1:1/")], "");
    assert!(reason(other.source.state().await).contains("307"));
    other.will_answer(200, &[], "no encoding");
    assert!(reason(other.source.state().await).contains("cannot be used"));
    other.will_answer(200, &[], vec![0; codec::MAX_LEN + 1]);
    assert!(reason(other.source.state().await).contains("longer than"));
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 1 << 20])));
    other.will_answer(200, &[], Body::from_stream(endless));
    assert!(reason(other.source.journal(None, 1).await).contains("longer than"));
    // A server that hangs.
    assert!(reason(other.source.state().await).contains("no answer within 3s"));
}

#[tokio::test]
async fn request_is_repeated_after_its_connection_died() {
    let other = Other::start().await;
    other.will_send(&state("us-1"));
    other.source.state().await.unwrap();
    // The idle connection ends as the next request arrives.
    other.breaks_next.store(true, Ordering::Relaxed);
    other.will_send(&state("us-1"));
    assert!(other.source.state().await.is_ok());
    assert_eq!(other.requests.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn requests_of_clients_pass_with_their_bodies() {
    let other = Other::start().await;
    other.will_answer(503, &[("retry-after", "7")], "busy");
    let pieces = ["a", "b"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
    let request = http::Request::put("/v2/app/blobs/uploads/x?digest=y")
        .body(Body::from_stream(stream::iter(pieces)))
        .unwrap();
    let answer = other.source.send(request).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "7");
    let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
    assert_eq!(body, "busy");
    assert_eq!(
        other.last_request(),
        "eu-1 PUT /v2/app/blobs/uploads/x never "
    );
}

#[tokio::test]
async fn requests_of_clients_beyond_the_limit_are_not_sent() {
    let other = Other::start().await;
    let ask = async || {
        let request = http::Request::get("/v2/app/blobs/x").body(Body::empty());
        other.source.send(request.unwrap()).await.unwrap()
    };
    let limit = u32::try_from(REQUESTS_AT_ONCE - 1).unwrap();
    let _others = other.source.requests.acquire_many(limit).await.unwrap();
    other.will_answer(200, &[], "bytes");
    let answer = ask().await;
    assert_eq!(answer.status(), 200);
    let refused = ask().await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    // The first is under way until its last byte.
    axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
    other.will_answer(404, &[], "");
    assert_eq!(ask().await.status(), 404);
    assert_eq!(other.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn facts_must_answer_the_keys() {
    let other = Other::start().await;
    let stamp = || Stamp {
        clock: 7,
        region: "us-1".parse().unwrap(),
    };
    let manifest = |bytes: &[u8]| Fact {
        head: FactHead::Manifest {
            stamp: stamp(),
            media_type: "m".to_owned(),
            len: bytes.len() as u32,
        },
        bytes: bytes.to_vec(),
    };
    let tag = || {
        Fact::without_bytes(FactHead::Tag {
            stamp: stamp(),
            digest: None,
        })
    };
    let keys = [
        FactKey::Manifest(repository(), Digest::sha256(b"{}")),
        FactKey::Tag(repository(), "v1".parse().unwrap()),
    ];
    let ask = async |facts: &[Fact]| {
        other.will_answer(200, &[], encode_facts(facts).unwrap());
        other.source.facts(&keys).await
    };
    let right = [manifest(b"{}"), tag()];
    assert_eq!(ask(&right).await.unwrap(), right);
    assert_eq!(ask(&right[..1]).await.unwrap(), right[..1]);
    let absent = || Fact::without_bytes(FactHead::Absent);
    for wrong in [
        &[][..],
        &[manifest(b"{}"), tag(), absent()],
        &[manifest(b"[]")],
        &[tag()],
        &[manifest(b"{}"), manifest(b"{}")],
    ] {
        assert!(ask(wrong).await.is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn blobs_are_read_from_an_offset() {
    let other = Other::start().await;
    other.will_answer(200, &[], "hello");
    assert_eq!(other.blob(0).await, Ok(Some((5, "hello".to_owned()))));
    other.will_answer(206, &[("content-range", "bytes 2-4/5")], "llo");
    assert_eq!(other.blob(2).await, Ok(Some((5, "llo".to_owned()))));
    assert!(other.last_request().ends_with("never bytes=2-"));
    other.will_answer(404, &[], "");
    assert_eq!(other.blob(2).await, Ok(None));
    for (status, range, body) in [
        (200, "", "hello"),
        (206, "bytes 1-4/5", "ello"),
        (206, "bytes 2-3/5", "ll"),
        (206, "bytes 2-4/*", "llo"),
        (416, "bytes */5", ""),
        (403, "", ""),
        (503, "", ""),
    ] {
        other.will_answer(status, &[("content-range", range)], body);
        assert!(other.blob(2).await.is_err(), "{status} {range}");
    }
    // The body is shorter than its range.
    other.will_answer(206, &[("content-range", "bytes 2-4/5")], "l");
    assert_eq!(
        other.blob(2).await,
        Err("the blob ended 2 bytes early".to_owned())
    );
}

#[tokio::test]
async fn client_paths_that_would_be_rewritten_are_not_sent() {
    let other = Other::start().await;
    let send = async |path: &str| {
        let request = Request::builder().method("POST").uri(path);
        other
            .source
            .send(request.body(Body::empty()).unwrap())
            .await
    };
    other.will_answer(202, &[], "");
    let path = "/v2/app/blobs/uploads/?digest=sha256:a/../b";
    assert_eq!(send(path).await.unwrap().status(), 202);
    assert!(other.last_request().contains(" /v2/app/blobs/uploads/ "));
    for path in [
        "/v2/app/blobs/uploads/us-1.x\\..\\..\\..\\..\\..\\flotilla\\v1\\region\\done",
        "/v2/app/../../flotilla/v1/region/done",
        "/v2/%2e%2e/flotilla/v1/region/done",
    ] {
        let error = send(path).await.unwrap_err().to_string();
        assert!(error.contains("normal form"), "{path}: {error}");
    }
    assert!(other.requests.lock().unwrap().is_empty());
}

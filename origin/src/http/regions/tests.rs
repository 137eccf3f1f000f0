//! The endpoints, asked by the client that the follower uses.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName, Tag};
use flotilla_common::seal::SealKey;
use flotilla_common::wire::region::{
    FACTS_PATH, FactHead, FactKey, FactKind, JOURNAL_PATH, STATE_PATH, TAKE_PATH,
};
use flotilla_runtime::http::serve;
use flotilla_runtime::identity::{CertificateAuthority, ClientAuth, Identity};
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;

use super::*;
use crate::config::Config;
use crate::format;
use crate::http::responder;
use crate::origin::build_api;
use crate::policy;
use crate::regions::remote::{RegionClient, RemoteSource};
use crate::regions::source::Source;
use crate::regions::take::{TakeOrders, take_queue};
use crate::registry::ChangeRules;
use crate::replicas::{Invalidator, Secret};
use crate::storage;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The origin of eu-1, as the origin of us-1 sees it.
struct Asked {
    api: Arc<Api>,
    client: RegionClient,
    source: RemoteSource,
    takes: TakeOrders,
    _shutdown: Shutdown,
}

impl Asked {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(adjust: impl Fn(&mut Config)) -> Self {
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
        let own: RegionName = "eu-1".parse().unwrap();
        let mut config = Config::new(
            "127.0.0.1:0".parse().unwrap(),
            "memory:///",
            own.clone(),
            SealKey::from_secret(own.clone(), &[7; 32]),
            Clock::system(),
        );
        adjust(&mut config);
        let storage = storage::open(&config.storage, 64 << 20).unwrap();
        let format = format::read_or_create(&*storage, config.horizons)
            .await
            .unwrap();
        let entry =
            |name| format!("[[region]]\nname = \"{name}\"\nurl = \"https://{name}.example\"\n");
        let text: String = ["eu-1", "us-1", "ap-1"].map(entry).concat();
        policy::set(&*storage, &text, None).await.unwrap();
        let policy = LivePolicy::start(Arc::clone(&storage), own, config.clock);
        let policy = policy.await.unwrap();
        let secret = Secret::new(&config.seal_key, &format);
        let invalidator = Invalidator::new(config.replicas.clone(), secret, config.clock).unwrap();
        let (queue, takes) = take_queue();
        let shutdown = Shutdown::new();
        let api = build_api(
            &config,
            storage,
            format,
            &Arc::new(invalidator),
            &policy,
            queue,
            &shutdown,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = identity("eu-1").https_server(ClientAuth::Optional).unwrap();
        let server = serve(listener, responder(Arc::clone(&api)), Some(tls), &shutdown).unwrap();
        let url = format!("https://{}", server.address());
        let eu = "eu-1".parse().unwrap();
        let client = RegionClient::new(&identity("us-1"), eu, &url).unwrap();
        Self {
            api,
            source: RemoteSource::new(client.clone()),
            client,
            takes,
            _shutdown: shutdown,
        }
    }

    /// Pushes an index without manifests, which is owed to these regions.
    async fn push(&self, tag: &str, owed_to: &[&str]) -> Digest {
        let bytes = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{INDEX}\",\"manifests\":[],\"annotations\":{{\"tag\":\"{tag}\"}}}}"
        );
        let tag: Tag = tag.parse().unwrap();
        let rules = ChangeRules {
            owed_to: owed_to
                .iter()
                .map(|region| region.parse().unwrap())
                .collect(),
            ..ChangeRules::default()
        };
        let digest = Digest::sha256(bytes.as_bytes());
        let reference = Reference::Tag(tag.clone());
        self.api
            .registry
            .put_manifest(
                &app(),
                &reference,
                &[tag],
                Some(INDEX),
                bytes.into(),
                &rules,
            )
            .await
            .unwrap();
        digest
    }

    /// Sends a request as it is; the status and the text of the answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> (StatusCode, String) {
        let request = http::Request::builder().method(method).uri(path);
        let answer = self
            .client
            .send(request.body(body.into()).unwrap())
            .await
            .unwrap();
        let status = answer.status();
        let text = axum::body::to_bytes(answer.into_body(), 1 << 20)
            .await
            .unwrap();
        (status, String::from_utf8_lossy(&text).into_owned())
    }

    fn lists(&self) -> u64 {
        self.api.metrics.operations().lists()
    }
}

fn app() -> RepositoryName {
    "app".parse().unwrap()
}

fn tag(tag: &str) -> FactKey {
    FactKey::Tag(app(), tag.parse().unwrap())
}

#[tokio::test]
async fn owed_entries_are_listed_until_they_are_done() {
    let eu = Asked::start().await;
    let digest = eu.push("v1", &["us-1", "ap-1"]).await;
    eu.push("v2", &["ap-1"]).await;
    let page = eu.source.journal(None, 100).await.unwrap();
    let [entry] = &page.entries[..] else {
        panic!("{page:?}");
    };
    let keys = [(FactKey::Manifest(app(), digest), None), (tag("v1"), None)];
    assert_eq!(entry.keys, keys);
    assert!(!page.more && page.age_ms > 0 && page.age_ms < 1_000);

    let facts = eu.source.facts(&keys.map(|(key, _)| key)).await.unwrap();
    assert!(digest.matches(&facts[0].bytes));
    let FactHead::Tag {
        digest: named,
        stamp,
    } = &facts[1].head
    else {
        panic!("{facts:?}");
    };
    assert_eq!((*named, stamp.region.as_str()), (Some(digest), "eu-1"));

    let mut tags = Vec::new();
    loop {
        let page = eu
            .source
            .keys(FactKind::Tags, tags.last(), 1)
            .await
            .unwrap();
        tags.extend(page.keys);
        if !page.more {
            break;
        }
    }
    assert_eq!(tags, [tag("v1"), tag("v2")]);

    eu.source.done(vec![entry.id], None).await.unwrap();
    let state = eu.source.state().await.unwrap();
    let mut owed: Vec<_> = state
        .owed
        .iter()
        .map(|owed| (owed.region.as_str(), owed.entries))
        .collect();
    owed.sort_unstable();
    assert_eq!(
        owed,
        [("ap-1", 2), ("us-1", 0)],
        "a region drops only its own entries"
    );
    assert_eq!(state.storage_id, eu.api.registry.storage_id());
    assert!(state.clock.abs_diff(eu.api.registry.unix_nanos()) < 10_000_000_000);
}

#[tokio::test]
async fn storage_is_listed_once_a_second_whoever_asks() {
    let eu = Asked::start().await;
    eu.push("v1", &["us-1"]).await;
    let before = eu.lists();
    let asked = join_all((0..20).map(|_| eu.source.journal(None, 100))).await;
    let pages: Vec<_> = asked.into_iter().map(Result::unwrap).collect();
    assert!(pages.iter().all(|page| page.entries.len() == 1));
    assert_eq!(eu.lists() - before, 1);
    // A page states how old it is, so that its reader knows what it cannot list.
    eu.push("v2", &["us-1"]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let page = eu.source.journal(None, 100).await.unwrap();
    assert!(page.entries.len() == 1 && page.age_ms >= 100, "{page:?}");
    tokio::time::sleep(Duration::from_millis(950)).await;
    let page = eu.source.journal(None, 100).await.unwrap();
    assert!(page.entries.len() == 2 && page.age_ms < 1_000, "{page:?}");
    assert_eq!(eu.lists() - before, 2);
}

#[tokio::test]
async fn malformed_and_long_requests_are_refused() {
    let eu = Asked::start().await;
    let facts = |keys: usize| {
        let keys = vec![tag("v1"); keys];
        codec::encode(&FactsRequest { keys }).unwrap()
    };
    let (status, _) = eu.send(Method::POST, FACTS_PATH, facts(MAX_FACTS)).await;
    assert_eq!(status, StatusCode::OK);
    let long = vec![codec::VERSION; MAX_REQUEST_LEN + 1];
    for (body, reason) in [
        (
            facts(MAX_FACTS + 1),
            "65 keys in one request; the limit is 64",
        ),
        (long, "longer than 1048576 bytes"),
        (b"\x01".to_vec(), "malformed encoding"),
        (Vec::new(), "malformed encoding"),
    ] {
        let (status, text) = eu.send(Method::POST, FACTS_PATH, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        assert!(text.contains(reason), "{text}");
    }
    for (method, path) in [(Method::GET, JOURNAL_PATH), (Method::POST, STATE_PATH)] {
        let (status, _) = eu.send(method, path, "").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test]
async fn regions_use_at_most_their_share_of_the_requests() {
    let mut eu = Asked::start_with(|config| config.limits.requests = 3).await;
    let request = || TakeRequest {
        keys: vec![tag("v1")],
        blobs: Vec::new(),
        wait: true,
    };
    let waiting = tokio::spawn({
        let source = eu.source.clone();
        async move { source.take(request()).await.unwrap().merged }
    });
    let order = eu.takes.next().await.unwrap();
    assert_eq!(
        (order.from.as_str(), &order.keys[..]),
        ("us-1", &[tag("v1")][..])
    );
    let (status, text) = eu.send(Method::GET, "/v2/", "").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(
        text.contains("too many requests of other regions"),
        "{text}"
    );
    // A region without an answer to this takes the other one for out.
    assert_eq!(eu.send(Method::GET, STATE_PATH, "").await.0, StatusCode::OK);
    order.finish(true);
    assert!(waiting.await.unwrap());
    assert_eq!(eu.send(Method::GET, STATE_PATH, "").await.0, StatusCode::OK);

    let unwaited = TakeRequest {
        wait: false,
        ..request()
    };
    let body = codec::encode(&unwaited).unwrap();
    assert_eq!(
        eu.send(Method::POST, TAKE_PATH, body).await.0,
        StatusCode::OK
    );
    assert!(!eu.takes.next().await.unwrap().is_awaited());
}

//! Test harness: the replicas of a region on one storage, and a client of the OCI distribution API.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::seal::SealKey;
use flotilla_origin::storage::{self, Operations, Storage};
use flotilla_origin::{Config, Origin, Replicas};
use flotilla_runtime::clock::Clock;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::faulty_storage::{Faults, FaultyStorage};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Replicas that share a storage with injected faults.
pub(crate) struct Region {
    pub(crate) origins: Vec<Origin>,
    pub(crate) faults: Faults,
    pub(crate) storage: Arc<dyn Storage>,
}

pub(crate) fn seal_key() -> SealKey {
    SealKey::from_secret("eu-1".parse().unwrap(), &[7; 32])
}

pub(crate) fn config() -> Config {
    Config::new(
        "127.0.0.1:0".parse().unwrap(),
        "memory:///",
        "eu-1".parse().unwrap(),
        seal_key(),
        Clock::system(),
    )
}

/// Starts replicas on a storage, which list each other.
pub(crate) async fn start_replicas(
    replicas: usize,
    storage: Arc<dyn Storage>,
    adjust: impl Fn(&mut Config),
) -> Vec<Origin> {
    start_replicas_on(vec![storage; replicas], adjust).await
}

/// Starts a replica on each of these handles of one storage; they list each other.
pub(crate) async fn start_replicas_on(
    storages: Vec<Arc<dyn Storage>>,
    adjust: impl Fn(&mut Config),
) -> Vec<Origin> {
    let (list, listed) = watch::channel(Arc::default());
    let mut origins = Vec::new();
    for storage in storages {
        let mut config = config();
        config.replicas = Replicas::followed(listed.clone());
        config.replica_listen = Some("127.0.0.1:0".parse().unwrap());
        adjust(&mut config);
        origins.push(Origin::start_on(config, storage).await.unwrap());
    }
    list.send_replace(origins.iter().filter_map(Origin::replica_addr).collect());
    origins
}

impl Region {
    pub(crate) async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, |_| {}).await
    }

    pub(crate) async fn start_with(replicas: usize, adjust: impl Fn(&mut Config)) -> Self {
        Self::start_on(
            storage::open("memory:///", 64 << 20).unwrap(),
            replicas,
            adjust,
        )
        .await
    }

    /// Starts replicas on this storage.
    pub(crate) async fn start_on(
        storage: Arc<dyn Storage>,
        replicas: usize,
        adjust: impl Fn(&mut Config),
    ) -> Self {
        let faulty = FaultyStorage::new(Arc::clone(&storage));
        let faults = faulty.faults();
        let origins = start_replicas(replicas, Arc::new(faulty), adjust).await;
        Self {
            origins,
            faults,
            storage,
        }
    }

    /// A client of one replica.
    pub(crate) fn client(&self, replica: usize) -> Registry {
        Registry::of(&self.origins[replica])
    }

    /// The storage operations of a replica so far.
    pub(crate) fn operations(&self, replica: usize) -> &Operations {
        self.origins[replica].metrics().operations()
    }

    /// Asserts that a deep check finds no damage.
    pub(crate) async fn assert_sound(&self) {
        let report = flotilla_origin::check::check(Arc::clone(&self.storage), true)
            .await
            .unwrap();
        assert!(report.is_complete(), "{report:#?}");
    }

    /// The stored keys under a prefix.
    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        let prefix = storage::Prefix::new(prefix).unwrap();
        let page = self.storage.list(&prefix, None, 10_000).await.unwrap();
        page.entries
            .into_iter()
            .map(|entry| entry.key.to_string())
            .collect()
    }
}

/// A client of one origin.
#[derive(Clone)]
pub(crate) struct Registry {
    http: Client,
    base: String,
    /// The listener for operators, for clients that read metrics.
    admin: Option<SocketAddr>,
}

impl Registry {
    /// A client of an origin that also reads its metrics.
    pub(crate) fn of(origin: &Origin) -> Self {
        Self::at(origin.addr()).with_metrics_of(origin)
    }

    /// Lets the client read the metrics of an origin.
    pub(crate) fn with_metrics_of(mut self, origin: &Origin) -> Self {
        self.admin = Some(origin.admin_addr());
        self
    }

    pub(crate) fn at(address: SocketAddr) -> Self {
        // The client builder requires a TLS provider even for plain HTTP. All tests install the
        // same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self::with(Client::builder(), address)
    }

    /// A client that does not follow redirects.
    pub(crate) fn without_redirects(address: SocketAddr) -> Self {
        Self::with(
            Client::builder().redirect(reqwest::redirect::Policy::none()),
            address,
        )
    }

    fn with(builder: reqwest::ClientBuilder, address: SocketAddr) -> Self {
        let http = builder.no_proxy().build().unwrap();
        Self {
            http,
            base: format!("http://{address}"),
            admin: None,
        }
    }

    /// A client that uses HTTP/2 with prior knowledge, without TLS.
    pub(crate) fn with_prior_knowledge(address: SocketAddr) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self::with(Client::builder().http2_prior_knowledge(), address)
    }

    /// A client over HTTPS.
    pub(crate) fn over_tls(address: SocketAddr, tls: rustls::ClientConfig) -> Self {
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .build()
            .unwrap();
        Self {
            http,
            base: format!("https://{address}"),
            admin: None,
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// The text of the origin's metrics.
    pub(crate) async fn metrics(&self) -> String {
        let admin = self.admin.expect("a client with the metrics of an origin");
        let answer = self
            .http
            .get(format!("http://{admin}/metrics"))
            .send()
            .await;
        answer.unwrap().text().await.unwrap()
    }

    pub(crate) async fn head(&self, path: &str) -> Response {
        self.request(Method::HEAD, path).send().await.unwrap()
    }

    pub(crate) async fn delete(&self, path: &str) -> StatusCode {
        self.request(Method::DELETE, path)
            .send()
            .await
            .unwrap()
            .status()
    }

    /// Begins an upload by `POST`; returns its Location.
    pub(crate) async fn begin(&self, repository: &str) -> String {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let answer = self.request(Method::POST, &path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        location(&answer)
    }

    pub(crate) async fn patch(&self, upload: &str, bytes: impl Into<Bytes>) -> Response {
        self.request(Method::PATCH, upload)
            .body(bytes.into())
            .send()
            .await
            .unwrap()
    }

    /// Sends a `PATCH` with a Content-Range.
    pub(crate) async fn chunk(
        &self,
        upload: &str,
        offset: usize,
        bytes: impl Into<Bytes>,
    ) -> Response {
        let bytes: Bytes = bytes.into();
        let range = format!("{offset}-{}", offset + bytes.len() - 1);
        let request = self
            .request(Method::PATCH, upload)
            .header("content-range", range);
        request.body(bytes).send().await.unwrap()
    }

    pub(crate) async fn put(
        &self,
        upload: &str,
        digest: &Digest,
        bytes: impl Into<Bytes>,
    ) -> Response {
        let path = format!("{upload}&digest={digest}");
        self.request(Method::PUT, &path)
            .body(bytes.into())
            .send()
            .await
            .unwrap()
    }

    /// Pushes a blob as clients do: HEAD, POST, PATCH, PUT.
    pub(crate) async fn push_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes: Bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let head = self.head(&format!("/v2/{repository}/blobs/{digest}")).await;
        if head.status() == StatusCode::OK {
            return digest;
        }
        let upload = self.begin(repository).await;
        let answer = self.patch(&upload, bytes).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let answer = self.put(&location(&answer), &digest, Bytes::new()).await;
        assert_eq!(
            answer.status(),
            StatusCode::CREATED,
            "{}",
            answer.text().await.unwrap()
        );
        digest
    }

    pub(crate) async fn put_manifest(
        &self,
        path: &str,
        media_type: &str,
        body: impl Into<Bytes>,
    ) -> Response {
        let request = self
            .request(Method::PUT, path)
            .header("content-type", media_type);
        request.body(body.into()).send().await.unwrap()
    }

    /// Pushes an image with these layers under a tag; returns its manifest.
    pub(crate) async fn push_image(&self, repository: &str, tag: &str, layers: &[Bytes]) -> Bytes {
        let config = Bytes::from(format!("{{\"tag\":\"{tag}\"}}"));
        self.push_blob(repository, config.clone()).await;
        for layer in layers {
            self.push_blob(repository, layer.clone()).await;
        }
        let manifest = manifest(&config, layers);
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = self.put_manifest(&path, MANIFEST, manifest.clone()).await;
        assert_eq!(
            answer.status(),
            StatusCode::CREATED,
            "{}",
            answer.text().await.unwrap()
        );
        manifest
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len()})
}

pub(crate) fn manifest(config: &[u8], layers: &[Bytes]) -> Bytes {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer))
        .collect();
    let config = descriptor("application/vnd.oci.image.config.v1+json", config);
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
        .to_string()
        .into()
}

pub(crate) fn location(answer: &Response) -> String {
    header(answer, "location").to_owned()
}

pub(crate) fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

/// Whether a response is 503 with Retry-After.
pub(crate) fn is_unavailable(answer: &Response) -> bool {
    answer.status() == StatusCode::SERVICE_UNAVAILABLE && header(answer, "retry-after") == "1"
}

/// The first error code of a response body.
pub(crate) async fn code(answer: Response) -> String {
    let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

/// Deterministic bytes without repetitions.
pub(crate) fn sample(len: usize, salt: usize) -> Bytes {
    let byte = |index: usize| ((index + salt).wrapping_mul(2_654_435_761) >> 11) as u8;
    (0..len).map(byte).collect::<Vec<_>>().into()
}

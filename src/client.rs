//! A registry client: pushes an image layout, and pulls through a mirror as containerd does (HEAD
//! the tag, GET the manifest by digest, then the blobs, three at a time), verifying every digest.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::manifest::{ACCEPT, Descriptor, Manifest, ManifestError};
use flotilla_common::name::{NameError, RepositoryName};
use flotilla_common::wire::origin::CONTENT_DIGEST_HEADER;
use flotilla_runtime::identity::{IdentityError, client_without_trust};
use reqwest::{Body, Client, Response, StatusCode, header};
use tokio::task::JoinSet;
use tokio_util::io::ReaderStream;

use crate::image::{Layout, LayoutError};

/// Blobs fetched concurrently, as containerd's default.
const CONCURRENT_BLOBS: usize = 3;

/// Why a push or a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The image layout cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The request failed, or its response was incomplete.
    #[error("{action}: {source}")]
    Http {
        /// What was attempted.
        action: String,
        /// The HTTP client's error.
        source: reqwest::Error,
    },
    /// The registry answered with an error.
    #[error("{action}: status {status}: {message}")]
    Status {
        /// What was attempted.
        action: String,
        /// The response's status.
        status: StatusCode,
        /// The response's body.
        message: String,
    },
    /// The response lacks something that the specification requires.
    #[error("{action}: the response has no valid {what}")]
    Response {
        /// What was attempted.
        action: String,
        /// What the response lacks.
        what: &'static str,
    },
    /// The received bytes are not a valid manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The received bytes do not match the digest.
    #[error("the {received} bytes received for {digest} do not match the digest or its size")]
    Digest {
        /// The requested digest.
        digest: Digest,
        /// How many bytes were received.
        received: u64,
    },
    /// The HTTP client's TLS configuration cannot be created.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The repository's name is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A task panicked.
    #[error("a task panicked: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The result of a pull.
#[derive(Clone, Debug)]
pub struct PulledImage {
    /// The manifest's digest.
    pub digest: Digest,
    /// Bytes of all blobs.
    pub bytes: u64,
    /// From the start to the first byte of a blob.
    pub first_byte: Duration,
    /// From the start until all digests were verified.
    pub total: Duration,
}

/// Creates a client of plain HTTP for services on this machine: without proxy, with timeouts.
///
/// # Errors
/// If the TLS configuration cannot be created.
pub fn http_client() -> Result<Client, ClientError> {
    http_client_with(client_without_trust()?)
}

/// As [`http_client`], for HTTPS with the given configuration.
///
/// # Errors
/// If the client cannot be created.
pub fn http_client_with(tls: rustls::ClientConfig) -> Result<Client, ClientError> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(60))
        .build()
        .map_err(|source| ClientError::Http {
            action: "create an HTTP client".to_owned(),
            source,
        })
}

/// A client of one registry endpoint.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    http: Client,
    base: String,
    repository: RepositoryName,
    /// The name of the registry, for a mirror of several.
    namespace: Option<String>,
}

impl RegistryClient {
    /// Creates a client of the registry at `base` (`http://host:port`).
    ///
    /// # Errors
    /// As [`http_client`].
    pub fn new(base: impl Into<String>, repository: RepositoryName) -> Result<Self, ClientError> {
        Ok(Self::with_http(http_client()?, base, repository))
    }

    /// Creates a client that uses `http`, which may trust a fleet's authority.
    pub fn with_http(http: Client, base: impl Into<String>, repository: RepositoryName) -> Self {
        Self {
            http,
            base: base.into(),
            repository,
            namespace: None,
        }
    }

    /// Makes it a client of a mirror: requests name the registry `namespace`.
    pub fn through_mirror(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    fn url(&self, kind: &str, last: &str) -> String {
        let query = self
            .namespace
            .as_ref()
            .map(|name| format!("?ns={name}"))
            .unwrap_or_default();
        format!("{}/v2/{}/{kind}/{last}{query}", self.base, self.repository)
    }

    /// Pushes a layout's image under `tag`; of an index, all its images.
    ///
    /// # Errors
    /// The first request that failed.
    pub async fn push(&self, layout: &Layout, tag: &str) -> Result<Digest, ClientError> {
        let image = layout.image().clone();
        self.push_manifest(layout, &image, tag).await?;
        Ok(image.digest)
    }

    async fn push_manifest(
        &self,
        layout: &Layout,
        image: &Descriptor,
        reference: &str,
    ) -> Result<(), ClientError> {
        let (bytes, manifest) = layout.manifest(&image.digest)?;
        for blob in manifest.blobs() {
            self.push_blob(layout, &blob.digest).await?;
        }
        for child in &manifest.manifests {
            Box::pin(self.push_manifest(layout, child, &child.digest.to_string())).await?;
        }
        let media_type = manifest
            .media_type
            .unwrap_or_else(|| image.media_type.clone());
        self.put_manifest(reference, &media_type, bytes).await
    }

    /// Pushes a manifest under a tag or digest.
    ///
    /// # Errors
    /// The request that failed.
    pub async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<(), ClientError> {
        let action = format!("push manifest {reference}");
        let request = self
            .http
            .put(self.url("manifests", reference))
            .header(header::CONTENT_TYPE, media_type);
        expect_success(&action, request.body(bytes).send().await).await?;
        Ok(())
    }

    /// Whether the registry has a blob.
    ///
    /// # Errors
    /// The request failed.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, ClientError> {
        let action = format!("check for blob {digest}");
        let head = self
            .http
            .head(self.url("blobs", &digest.to_string()))
            .send()
            .await;
        let head = head.map_err(|source| ClientError::Http { action, source })?;
        Ok(head.status() == StatusCode::OK)
    }

    async fn push_blob(&self, layout: &Layout, digest: &Digest) -> Result<(), ClientError> {
        if self.has_blob(digest).await? {
            return Ok(());
        }
        let (file, len) = layout.open_blob(digest)?;
        let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10);
        self.upload(digest, len, Body::wrap_stream(stream)).await
    }

    /// Uploads a blob with POST, one PATCH, and PUT.
    ///
    /// # Errors
    /// The request that failed.
    pub async fn upload(&self, digest: &Digest, len: u64, body: Body) -> Result<(), ClientError> {
        let action = format!("upload blob {digest}");
        let opened = self
            .http
            .post(self.url("blobs", "uploads/"))
            .header(header::CONTENT_LENGTH, 0);
        let opened = expect_success(&action, opened.send().await).await?;
        let location = self.location(&action, &opened)?;
        let patch = self
            .http
            .patch(location)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, len)
            .body(body);
        let patched = expect_success(&action, patch.send().await).await?;
        let location = self.location(&action, &patched)?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let put = self
            .http
            .put(format!("{location}{separator}digest={digest}"))
            .header(header::CONTENT_LENGTH, 0);
        expect_success(&action, put.send().await).await?;
        Ok(())
    }

    fn location(&self, action: &str, response: &Response) -> Result<String, ClientError> {
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| ClientError::Response {
            action: action.to_owned(),
            what: "Location header",
        })?;
        Ok(if location.starts_with('/') {
            format!("{}{location}", self.base)
        } else {
            location.to_owned()
        })
    }

    /// Pulls an image as containerd does; `on_bytes` is called with the length of each received
    /// buffer.
    ///
    /// # Errors
    /// The request that failed.
    pub async fn pull(
        &self,
        tag: &str,
        on_bytes: impl Fn(u64) + Clone + Send + Sync + 'static,
    ) -> Result<PulledImage, ClientError> {
        let start = Instant::now();
        let mut digest = self.resolve(tag).await?;
        let mut manifest = self.manifest(&digest).await?;
        if manifest.is_index() {
            digest = pick_platform(&manifest).ok_or_else(|| ClientError::Response {
                action: format!("pull {tag}"),
                what: "manifest in the index",
            })?;
            manifest = self.manifest(&digest).await?;
        }
        let blobs: Vec<Descriptor> = manifest.blobs().into_iter().cloned().collect();
        let mut blobs = blobs.into_iter();
        let mut fetches = JoinSet::new();
        let mut bytes = 0;
        let mut first_byte = None::<Duration>;
        loop {
            while fetches.len() < CONCURRENT_BLOBS {
                let Some(blob) = blobs.next() else { break };
                let (client, on_bytes) = (self.clone(), on_bytes.clone());
                fetches.spawn(async move { client.fetch_blob(&blob, start, on_bytes).await });
            }
            let Some(fetched) = fetches.join_next().await else {
                break;
            };
            let (len, first) = fetched??;
            bytes += len;
            first_byte = Some(first_byte.map_or(first, |known| known.min(first)));
        }
        Ok(PulledImage {
            digest,
            bytes,
            first_byte: first_byte.unwrap_or_default(),
            total: start.elapsed(),
        })
    }

    /// Resolves a tag to a digest.
    ///
    /// # Errors
    /// The request that failed.
    pub async fn resolve(&self, tag: &str) -> Result<Digest, ClientError> {
        let action = format!("resolve {}:{tag}", self.repository);
        let url = self.url("manifests", tag);
        let mut sent = self
            .http
            .head(&url)
            .header(header::ACCEPT, ACCEPT)
            .send()
            .await;
        if sent
            .as_ref()
            .is_ok_and(|response| !response.status().is_success())
        {
            // A response to HEAD has no body with the cause.
            sent = self
                .http
                .get(&url)
                .header(header::ACCEPT, ACCEPT)
                .send()
                .await;
        }
        let response = expect_success(&action, sent).await?;
        let digest = response
            .headers()
            .get(CONTENT_DIGEST_HEADER)
            .and_then(|value| value.to_str().ok());
        digest
            .and_then(|digest| digest.parse().ok())
            .ok_or(ClientError::Response {
                action,
                what: "Docker-Content-Digest header",
            })
    }

    /// Gets a manifest by its digest, and verifies the digest.
    ///
    /// # Errors
    /// The request that failed.
    pub async fn manifest(&self, digest: &Digest) -> Result<Manifest, ClientError> {
        let action = format!("fetch manifest {digest}");
        let request = self
            .http
            .get(self.url("manifests", &digest.to_string()))
            .header(header::ACCEPT, ACCEPT);
        let response = expect_success(&action, request.send().await).await?;
        let bytes = response
            .bytes()
            .await
            .map_err(|source| ClientError::Http { action, source })?;
        if !digest.matches(&bytes) {
            return Err(ClientError::Digest {
                digest: *digest,
                received: bytes.len() as u64,
            });
        }
        Ok(Manifest::parse(&bytes)?)
    }

    /// Reads a blob and verifies its digest. Returns its length, and the time from `start` to its
    /// first byte.
    async fn fetch_blob(
        &self,
        blob: &Descriptor,
        start: Instant,
        on_bytes: impl Fn(u64),
    ) -> Result<(u64, Duration), ClientError> {
        let action = format!("fetch blob {}", blob.digest);
        let request = self.http.get(self.url("blobs", &blob.digest.to_string()));
        let mut response = expect_success(&action, request.send().await).await?;
        let mut hasher = DigestHasher::new(blob.digest.algorithm());
        let mut len = 0;
        let mut first_byte = None;
        while let Some(buffer) = next_buffer(&action, &mut response).await? {
            first_byte.get_or_insert_with(|| start.elapsed());
            hasher.update(&buffer);
            len += buffer.len() as u64;
            on_bytes(buffer.len() as u64);
        }
        if len != blob.size || hasher.finish() != blob.digest {
            return Err(ClientError::Digest {
                digest: blob.digest,
                received: len,
            });
        }
        Ok((len, first_byte.unwrap_or_else(|| start.elapsed())))
    }
}

async fn next_buffer(action: &str, response: &mut Response) -> Result<Option<Bytes>, ClientError> {
    response.chunk().await.map_err(|source| ClientError::Http {
        action: action.to_owned(),
        source,
    })
}

/// The manifest for linux/amd64 if the index has one, otherwise its first.
pub fn pick_platform(index: &Manifest) -> Option<Digest> {
    let is_linux_amd64 = |entry: &&Descriptor| {
        entry.platform.as_ref().is_some_and(|platform| {
            platform.get("os").is_some_and(|os| os == "linux")
                && platform
                    .get("architecture")
                    .is_some_and(|architecture| architecture == "amd64")
        })
    };
    index
        .manifests
        .iter()
        .find(is_linux_amd64)
        .or(index.manifests.first())
        .map(|entry| entry.digest)
}

async fn expect_success(
    action: &str,
    sent: reqwest::Result<Response>,
) -> Result<Response, ClientError> {
    let response = sent.map_err(|source| ClientError::Http {
        action: action.to_owned(),
        source,
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let message = response.text().await.unwrap_or_default();
    Err(ClientError::Status {
        action: action.to_owned(),
        status,
        message: message.trim().to_owned(),
    })
}

/// Opens an image layout and pushes its image.
///
/// # Errors
/// If the layout is not valid or a request fails.
pub async fn push_layout(
    origin: &str,
    repository: &str,
    tag: &str,
    dir: &Path,
) -> Result<Digest, ClientError> {
    let layout = Layout::open(dir)?;
    RegistryClient::new(origin, repository.parse()?)?
        .push(&layout, tag)
        .await
}

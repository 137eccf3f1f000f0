//! Looks at what a region has of an image.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{ACCEPT, MAX_MANIFEST_LEN, Manifest};
use flotilla_common::name::{Reference, RegionName};
use flotilla_common::wire::origin::{
    CONTENT_DIGEST_HEADER, OWN_STORAGE_HEADER, OWN_STORAGE_ONLY, REDIRECT_HEADER, REDIRECT_NEVER,
};
use flotilla_common::wire::region_list::{REGIONS_PATH, RegionList};
use flotilla_runtime::error_text::{explain, is_refused_certificate};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};

use crate::commands::peer::ImageReference;

/// Blobs asked for concurrently.
const BLOBS_AT_ONCE: usize = 8;
/// The maximum number of manifests that one image leads to: a bound on what an index can cost.
const MAX_MANIFESTS: usize = 10_000;
/// The maximum length of the list of regions in bytes.
const MAX_LIST_LEN: usize = 1 << 20;
/// Things that are named one by one.
const MAX_NAMED: usize = 5;

/// What a region has of the image.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// The manifest that the image is.
    pub(super) digest: Option<Digest>,
    /// What is missing, for people. Nothing if the region has the image.
    pub(super) missing: Vec<String>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum LookError {
    /// Waiting does not help.
    Final(String),
    /// The registry or the region did not answer this time.
    Unanswered(String),
}

/// The image in the region.
#[derive(Debug)]
pub(super) struct Replication {
    http: Client,
    registry: String,
    image: ImageReference,
    region: RegionName,
    /// The digest that the tag had at the first look.
    first: Option<Digest>,
    /// Blobs that the region has; they are not asked for again.
    found: HashSet<Digest>,
}

impl Replication {
    pub(super) fn new(
        http: Client,
        registry: String,
        image: ImageReference,
        region: RegionName,
    ) -> Self {
        Self {
            http,
            registry,
            image,
            region,
            first: None,
            found: HashSet::new(),
        }
    }

    /// Asks the registry and the region.
    pub(super) async fn look(&mut self) -> Result<Look, LookError> {
        let url = self.region_url().await?;
        let in_registry = self.in_registry().await?;
        let digest = match &self.image.reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => {
                let first = *self.first.get_or_insert(in_registry);
                let named = match self.in_region(&url).await? {
                    // A tag that has moved since the first look has only become newer.
                    Some(found) if found == in_registry || found == first => Ok(found),
                    Some(found) => Err(format!(
                        "tag {tag} names {found} in region {}, and {in_registry} in the registry",
                        self.region
                    )),
                    None => Err(format!("region {} does not have tag {tag}", self.region)),
                };
                match named {
                    Ok(found) => found,
                    Err(missing) => {
                        return Ok(Look {
                            digest: Some(in_registry),
                            missing: vec![missing],
                        });
                    }
                }
            }
        };
        Ok(Look {
            digest: Some(digest),
            missing: self.missing_of(&url, digest).await?,
        })
    }

    /// The address of the region, as the registry's policy has it.
    async fn region_url(&self) -> Result<String, LookError> {
        let repository = &self.image.repository;
        let url = format!("{}{REGIONS_PATH}?repository={repository}", self.registry);
        let response = send(self.http.get(url), "ask the registry for its regions").await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(LookError::Final(format!(
                "{} does not list regions: it is not a Flotilla origin, or an older one",
                self.registry
            )));
        }
        let response = expect_success(response, "ask the registry for its regions").await?;
        let body = read(response, MAX_LIST_LEN).await?;
        let list: RegionList = serde_json::from_slice(&body).map_err(|error| {
            LookError::Final(format!(
                "the registry's list of regions is not valid: {error}"
            ))
        })?;
        let found = list
            .regions
            .iter()
            .find(|region| region.name == self.region);
        let names: Vec<_> = list
            .regions
            .iter()
            .map(|region| region.name.as_str())
            .collect();
        match found {
            Some(region) if region.keeps == Some(false) => Err(LookError::Final(format!(
                "the policy does not keep {repository} in region {}; see the rule's `regions` (`flotilla origin policy show`)",
                self.region
            ))),
            Some(region) => Ok(region.url.clone()),
            None if names.is_empty() => Err(LookError::Final(format!(
                "the registry is in the single region {}: its storage has no policy, or the origin no certificate of its region",
                list.region
            ))),
            None => Err(LookError::Final(format!(
                "the policy has no such region; it has {}",
                names.join(", ")
            ))),
        }
    }

    /// The digest of the image in the registry.
    async fn in_registry(&self) -> Result<Digest, LookError> {
        let what = "resolve the image in the registry";
        let request = self.manifest(Method::HEAD, &self.registry, &self.image.reference);
        let response = send(request, what).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(LookError::Final(format!(
                "the registry does not have {}; is it pushed there?",
                self.image
            )));
        }
        digest_of(&expect_success(response, what).await?)
    }

    /// The digest of the tag in the region; `None` if it is not there.
    async fn in_region(&self, url: &str) -> Result<Option<Digest>, LookError> {
        let what = "ask the region for the tag";
        let request = own_only(self.manifest(Method::HEAD, url, &self.image.reference));
        let response = send(request, what).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        digest_of(&expect_success(response, what).await?).map(Some)
    }

    /// What the region lacks of the manifest and of everything that it names.
    async fn missing_of(&mut self, url: &str, image: Digest) -> Result<Vec<String>, LookError> {
        let mut open = vec![image];
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        while let Some(digest) = open.pop() {
            if !seen.insert(digest) {
                continue;
            }
            if seen.len() > MAX_MANIFESTS {
                return Err(LookError::Final(format!(
                    "it has over {MAX_MANIFESTS} manifests"
                )));
            }
            let what = "ask the region for a manifest";
            let reference = Reference::Digest(digest);
            let request = own_only(self.manifest(Method::GET, url, &reference));
            let response = send(request, what).await?;
            if response.status() == StatusCode::NOT_FOUND {
                missing.push(format!("manifest {digest}"));
                continue;
            }
            let bytes = read(expect_success(response, what).await?, MAX_MANIFEST_LEN).await?;
            if !digest.matches(&bytes) {
                return Err(LookError::Unanswered(format!(
                    "the region's answer for manifest {digest} has another digest"
                )));
            }
            let manifest = Manifest::parse(&bytes)
                .map_err(|error| LookError::Final(format!("manifest {digest}: {error}")))?;
            let children = manifest
                .manifests
                .iter()
                .filter(|child| child.urls.is_empty());
            open.extend(children.map(|child| child.digest));
            let blobs = manifest.blobs().into_iter().map(|blob| blob.digest);
            let blobs: Vec<_> = blobs.filter(|blob| !self.found.contains(blob)).collect();
            let asked = stream::iter(blobs).map(|blob| self.has_blob(url, blob));
            let asked: Vec<_> = asked.buffered(BLOBS_AT_ONCE).try_collect().await?;
            for (blob, has) in asked {
                if has {
                    self.found.insert(blob);
                } else {
                    missing.push(format!("blob {blob}"));
                }
            }
        }
        Ok(shortened(&self.region, missing))
    }

    async fn has_blob(&self, url: &str, blob: Digest) -> Result<(Digest, bool), LookError> {
        let what = "ask the region for a blob";
        let path = format!("{url}/v2/{}/blobs/{blob}", self.image.repository);
        let response = send(own_only(self.http.head(path)), what).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok((blob, false));
        }
        expect_success(response, what).await?;
        Ok((blob, true))
    }

    fn manifest(&self, method: Method, url: &str, reference: &Reference) -> RequestBuilder {
        let path = format!("{url}/v2/{}/manifests/{reference}", self.image.repository);
        self.http
            .request(method, path)
            .header(header::ACCEPT, ACCEPT)
    }
}

/// Forbids the origin to answer from another region, or by a redirect.
fn own_only(request: RequestBuilder) -> RequestBuilder {
    request
        .header(OWN_STORAGE_HEADER, OWN_STORAGE_ONLY)
        .header(REDIRECT_HEADER, REDIRECT_NEVER)
}

fn shortened(region: &RegionName, missing: Vec<String>) -> Vec<String> {
    let more = missing.len().saturating_sub(MAX_NAMED);
    let mut texts: Vec<_> = missing
        .into_iter()
        .take(MAX_NAMED)
        .map(|what| format!("region {region} does not have {what}"))
        .collect();
    if more > 0 {
        texts.push(format!("and {more} more"));
    }
    texts
}

async fn send(request: RequestBuilder, what: &str) -> Result<Response, LookError> {
    let sent = request.send().await;
    sent.map_err(|error| {
        let text = format!("{what}: {}", explain(&error));
        if is_refused_certificate(&error) {
            LookError::Final(text)
        } else {
            LookError::Unanswered(text)
        }
    })
}

/// Refusals are final; failures and overload are not.
async fn expect_success(response: Response, what: &str) -> Result<Response, LookError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = response.url().clone();
    let body = read(response, MAX_LIST_LEN).await.unwrap_or_default();
    let body = String::from_utf8_lossy(&body);
    let text = format!("{what}: {url} answered {status} {}", body.trim());
    let may_pass = status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT;
    Err(if may_pass {
        LookError::Unanswered(text)
    } else {
        LookError::Final(text)
    })
}

async fn read(mut response: Response, limit: usize) -> Result<Bytes, LookError> {
    let mut bytes = BytesMut::new();
    loop {
        let piece = response.chunk().await;
        let piece = piece.map_err(|error| LookError::Unanswered(explain(&error)))?;
        let Some(piece) = piece else {
            return Ok(bytes.freeze());
        };
        if bytes.len() + piece.len() > limit {
            let text = format!("{} answered more than {limit} bytes", response.url());
            return Err(LookError::Final(text));
        }
        bytes.extend_from_slice(&piece);
    }
}

fn digest_of(response: &Response) -> Result<Digest, LookError> {
    let digest = response.headers().get(CONTENT_DIGEST_HEADER);
    let digest = digest.and_then(|value| value.to_str().ok()?.parse().ok());
    digest.ok_or_else(|| {
        LookError::Final(format!(
            "{} answered without a valid Docker-Content-Digest header",
            response.url()
        ))
    })
}

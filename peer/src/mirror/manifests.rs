//! Manifest requests. A request for the manifest of an image also starts the pull of the image:
//! the peer wants all its blobs before the runtime requests the first of them.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_runtime::http::range::RequestedRange;
use tokio::sync::oneshot;

use super::error::MirrorError;
use super::image_names::display_name;
use super::response::{set_content_headers, set_partial, unsatisfiable};
use super::state::Mirror;
use crate::origin::{FetchedManifest, OriginError};
use crate::pull_start::PullTrigger;
use crate::store::StoredManifest;

/// A manifest as it is served.
#[derive(Debug, Clone)]
pub(super) struct ResolvedManifest {
    pub(super) digest: Digest,
    pub(super) manifest: StoredManifest,
    /// Whether no origin was available, so that this is the last known manifest of the tag.
    is_stale: bool,
}

impl ResolvedManifest {
    const fn current(digest: Digest, manifest: StoredManifest) -> Self {
        Self {
            digest,
            manifest,
            is_stale: false,
        }
    }
}

/// RFC 7234, section 5.5: the response is stale, and its revalidation at the origin failed.
const STALE_WARNINGS: [&str; 2] = [
    "110 flotilla \"Response is Stale\"",
    "111 flotilla \"Revalidation Failed\"",
];

impl Mirror {
    /// Finds the manifest of a reference. Unless it is a HEAD request, this starts the pull of the
    /// image.
    pub(super) async fn manifest(
        self: &Arc<Self>,
        repository: &RepositoryName,
        reference: &Reference,
        is_head: bool,
    ) -> Result<ResolvedManifest, MirrorError> {
        let found = self.find_manifest(repository, reference).await;
        let found = found.inspect_err(|error| {
            let image = display_name(repository, reference);
            let pulls = &self.context.telemetry.pulls;
            pulls.refuse(&image, &error.to_string());
        })?;
        self.image_names
            .remember(repository, reference, &found.digest);
        if !is_head {
            let trigger = PullTrigger::Manifest;
            self.begin_pull(repository, &found, trigger).await;
        }
        Ok(found)
    }

    /// Starts the pull of an image. Returns when the proofs of its blobs are there, or late; then
    /// they are obtained in the background.
    pub(super) async fn begin_pull(
        self: &Arc<Self>,
        repository: &RepositoryName,
        image: &ResolvedManifest,
        trigger: impl FnOnce(oneshot::Sender<()>) -> PullTrigger,
    ) {
        let (mirror, repository) = (Arc::clone(self), repository.clone());
        let (digest, bytes) = (image.digest, image.manifest.bytes.clone());
        let (hold, released) = oneshot::channel();
        let trigger = trigger(hold);
        let start = async move {
            mirror
                .start_pull(&repository, &digest, &bytes, trigger)
                .await
        };
        self.context.shutdown.spawn(start);
        let _ = released.await;
    }

    /// Starts the pull of the image that a manifest describes, and obtains the proofs of its blobs.
    async fn start_pull(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        bytes: &[u8],
        trigger: PullTrigger,
    ) {
        let manifest = match Manifest::parse(bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                return tracing::debug!(
                    manifest = %digest, %error,
                    "manifest not understood; its blobs are passed through"
                );
            }
        };
        if manifest.is_index() {
            return self.image_names.remember_children(digest, &manifest);
        }
        let image = self.image_names.get(repository, digest);
        self.pull_starter
            .start(repository, image, *digest, &manifest, trigger)
            .await;
    }

    /// Finds the manifest of a reference: in the store, at an origin, or, if no origin is
    /// available, at a neighbour.
    pub(super) async fn find_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ResolvedManifest, MirrorError> {
        let manifests = &self.context.stores.manifests;
        let stored = match reference {
            Reference::Digest(digest) => manifests.get(digest).await,
            Reference::Tag(_) => None,
        };
        if let Reference::Digest(digest) = reference
            && let Some(manifest) = stored.clone().filter(|manifest| manifest.is_confirmed)
        {
            return Ok(ResolvedManifest::current(*digest, manifest));
        }
        let key = (repository.clone(), reference.clone());
        let origins = &self.context.upstream.origins;
        let fetch = origins.manifest(repository, reference);
        match self.resolved.try_get_with(key.clone(), fetch).await {
            Ok(FetchedManifest {
                digest,
                media_type,
                bytes,
            }) => {
                let manifest = StoredManifest {
                    media_type,
                    bytes,
                    is_confirmed: true,
                };
                manifests.put(digest, manifest.clone()).await;
                self.last_known.insert(key, digest).await;
                Ok(ResolvedManifest::current(digest, manifest))
            }
            Err(error) => {
                let found = match reference {
                    Reference::Tag(_) => self.last_known_manifest(&key, &error).await,
                    Reference::Digest(digest) => {
                        self.unconfirmed_manifest(digest, stored, &error).await
                    }
                };
                let subject = || display_name(repository, reference);
                found.ok_or_else(|| MirrorError::from_origin(&subject(), &error))
            }
        }
    }

    /// The last known manifest of a tag. It is used only while every origin is unavailable; an
    /// origin that answers is right.
    async fn last_known_manifest(
        &self,
        key: &(RepositoryName, Reference),
        error: &OriginError,
    ) -> Option<ResolvedManifest> {
        if !matches!(error, OriginError::Unavailable(_)) {
            return None;
        }
        let digest = self.last_known.get(key).await?;
        let manifest = match self.context.stores.manifests.get(&digest).await {
            Some(manifest) => manifest,
            None => self.neighbour_manifest(&digest).await?,
        };
        self.context.telemetry.counters.stale_tags.add(1);
        let tag = display_name(&key.0, &key.1);
        tracing::warn!(
            tag, manifest = %digest, %error,
            "no origin available; serving the last known manifest of the tag"
        );
        Some(ResolvedManifest {
            digest,
            manifest,
            is_stale: true,
        })
    }

    /// The manifest of a digest that a neighbour sent earlier or sends now, if every origin is
    /// unavailable.
    async fn unconfirmed_manifest(
        &self,
        digest: &Digest,
        stored: Option<StoredManifest>,
        error: &OriginError,
    ) -> Option<ResolvedManifest> {
        if !matches!(error, OriginError::Unavailable(_)) {
            return None;
        }
        let manifest = match stored {
            Some(manifest) => manifest,
            None => self.neighbour_manifest(digest).await?,
        };
        Some(ResolvedManifest::current(*digest, manifest))
    }

    /// The manifest of a digest from a neighbour. Its bytes have the digest, and its media type is
    /// derived from them. It is stored so that it can be handed on, but an origin is asked for it
    /// again as soon as one answers.
    async fn neighbour_manifest(&self, digest: &Digest) -> Option<StoredManifest> {
        let image = self.pull_starter.seek_image(digest).await?;
        let parsed = Manifest::parse(&image.manifest).ok();
        let Some(media_type) = parsed.and_then(|manifest| manifest.own_media_type()) else {
            tracing::warn!(
                manifest = %digest,
                "the manifest from a neighbour has no supported media type; waiting for an origin"
            );
            return None;
        };
        let manifest = StoredManifest {
            media_type: media_type.to_owned(),
            bytes: Bytes::copy_from_slice(&image.manifest),
            is_confirmed: false,
        };
        let manifests = &self.context.stores.manifests;
        manifests.put(*digest, manifest.clone()).await;
        Some(manifest)
    }
}

/// The response for a manifest. containerd sends a `Range` header even for manifests.
pub(super) fn response(found: &ResolvedManifest, range: Option<&str>) -> Response<Body> {
    let ResolvedManifest {
        digest,
        manifest,
        is_stale,
    } = found;
    let size = manifest.bytes.len() as u64;
    let (range, is_partial) = match RequestedRange::parse(range, size) {
        RequestedRange::Whole => (0..size, false),
        RequestedRange::Part(range) => (range, true),
        RequestedRange::Unsatisfiable => return unsatisfiable(size),
    };
    // Both ends are at most the length of `bytes`, a usize.
    let bytes = manifest
        .bytes
        .slice(range.start as usize..range.end as usize);
    let length = range.end - range.start;
    let mut response = Response::new(Body::from(bytes));
    set_content_headers(response.headers_mut(), digest, &manifest.media_type, length);
    if is_partial {
        set_partial(&mut response, &range, size);
    }
    if *is_stale {
        for warning in STALE_WARNINGS {
            response
                .headers_mut()
                .append(header::WARNING, HeaderValue::from_static(warning));
        }
    }
    response
}

//! Serving manifests, and with each image's manifest the first step of its pull: all its blobs are
//! wanted before the runtime asks for the first.

use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::manifest::{Descriptor, Manifest};
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_common::proof::Proof;
use flotilla_common::wire::peer::Image;
use flotilla_runtime::http::range::{RequestedRange, content_range};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::answer::Failure;
use super::names::name;
use super::{Mirror, content_headers, unsatisfiable};
use crate::driver::Command;
use crate::origin::{FetchedManifest, OriginError};
use crate::pulls::Opened;
use crate::store::{StoreError, StoredBlob, StoredManifest};

/// How long a manifest is kept back for the proofs of its blobs. Usually one round trip.
const CLOSURE_PATIENCE: Duration = Duration::from_secs(2);

/// How long neighbours are asked for an image: they are introduced, dialled and asked within some
/// round trips, and a runtime that could go elsewhere must not wait for much longer.
const SEEK_PATIENCE: Duration = Duration::from_millis(750);

/// A manifest as it is served.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) digest: Digest,
    pub(super) manifest: StoredManifest,
    /// Every origin is out: the tag named this manifest when it was last asked for.
    is_stale: bool,
}

/// RFC 7234, section 5.5: the answer is stale, and the origin could not be asked.
const STALE_WARNINGS: [&str; 2] = [
    "110 flotilla \"Response is Stale\"",
    "111 flotilla \"Revalidation Failed\"",
];

impl Mirror {
    /// The manifest under a reference. Unless the runtime only looks, its blobs are wanted from now
    /// on.
    pub(super) async fn manifest(
        self: &Arc<Self>,
        repository: &RepositoryName,
        reference: &Reference,
        is_head: bool,
    ) -> Result<Found, Failure> {
        let found = self
            .find_manifest(repository, reference)
            .await
            .inspect_err(|failure| {
                self.shared
                    .pulls
                    .refuse(&name(repository, reference), &failure.to_string());
            })?;
        self.names.found(repository, reference, &found.digest);
        if !is_head {
            let (mirror, repository) = (Arc::clone(self), repository.clone());
            let (digest, bytes) = (found.digest, found.manifest.bytes.clone());
            let wanting = self
                .shared
                .shutdown
                .spawn(async move { mirror.want_blobs(&repository, &digest, &bytes, false).await });
            // It goes on behind the scenes if it takes longer.
            let _ = timeout(CLOSURE_PATIENCE, wanting).await;
        }
        Ok(found)
    }

    pub(super) async fn find_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Found, Failure> {
        if let Reference::Digest(digest) = reference
            && let Some(manifest) = self.shared.manifests.get(digest).await
        {
            return Ok(Found {
                digest: *digest,
                manifest,
                is_stale: false,
            });
        }
        let key = (repository.clone(), reference.clone());
        let fetch = self.shared.origins.manifest(repository, reference);
        match self.resolved.try_get_with(key.clone(), fetch).await {
            Ok(FetchedManifest {
                digest,
                media_type,
                bytes,
            }) => {
                let manifest = StoredManifest { media_type, bytes };
                self.shared.manifests.put(digest, manifest.clone()).await;
                self.last_known.insert(key, digest).await;
                Ok(Found {
                    digest,
                    manifest,
                    is_stale: false,
                })
            }
            Err(error) => {
                let found = match reference {
                    Reference::Tag(_) => self.stale(&key, &error).await,
                    Reference::Digest(digest) => self.handed_on(digest, &error).await,
                };
                found.ok_or_else(|| failure(&name(repository, reference), &error))
            }
        }
    }

    /// What a tag named when it was last asked for: only if every origin is out, and none says
    /// otherwise.
    async fn stale(&self, key: &(RepositoryName, Reference), error: &OriginError) -> Option<Found> {
        if !matches!(error, OriginError::Unavailable(_)) {
            return None;
        }
        let digest = self.last_known.get(key).await?;
        let manifest = match self.shared.manifests.get(&digest).await {
            Some(manifest) => manifest,
            None => self.handed_on(&digest, error).await?.manifest,
        };
        self.shared.counters.stale_tags.add(1);
        let tag = name(&key.0, &key.1);
        tracing::warn!(tag, manifest = %digest, %error, "every origin is out; serve the tag as it was");
        Some(Found {
            digest,
            manifest,
            is_stale: true,
        })
    }

    /// A manifest that a neighbour hands on: only if every origin is out.
    async fn handed_on(&self, digest: &Digest, error: &OriginError) -> Option<Found> {
        let image = self.seek(digest, error).await?;
        let manifest = StoredManifest {
            media_type: image.media_type.clone(),
            bytes: Bytes::copy_from_slice(&image.manifest),
        };
        self.shared.manifests.put(*digest, manifest.clone()).await;
        Some(Found {
            digest: *digest,
            manifest,
            is_stale: false,
        })
    }

    /// An image as a neighbour knows it; its manifest has the digest.
    async fn seek(&self, digest: &Digest, error: &OriginError) -> Option<Arc<Image>> {
        if !matches!(error, OriginError::Unavailable(_)) {
            return None;
        }
        let seek = async {
            let (answer, image) = oneshot::channel();
            self.command(Command::Seek {
                manifest: *digest,
                answer,
            })
            .await;
            let image = timeout(SEEK_PATIENCE, image).await.ok()?.ok()?;
            tracing::info!(manifest = %digest, "every origin is out; a neighbour handed the image on");
            Some(Arc::new(image))
        };
        self.images.optionally_get_with(*digest, seek).await
    }

    /// Wants what a neighbour's proofs prove of an image's blobs; the rest as far as it is known.
    async fn want_handed_on(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        blobs: &[&Descriptor],
        error: &OriginError,
    ) {
        let Some(image) = self.seek(digest, error).await else {
            return;
        };
        let trusted = self.shared.trusted.current();
        for proof in &image.proofs {
            let is_named = blobs
                .iter()
                .any(|b| b.digest == *proof.digest() && b.size == proof.size());
            match proof.check(&trusted) {
                Ok(_) if is_named => self.want_proved(repository, proof.clone(), None).await,
                Ok(_) => tracing::debug!(blob = %proof.digest(), "a proof of something else"),
                Err(error) => {
                    tracing::debug!(blob = %proof.digest(), %error, "check a neighbour's proof")
                }
            }
        }
    }

    /// Gets the proofs of an image's blobs, and lets the swarm have them all.
    pub(super) async fn want_blobs(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        bytes: &[u8],
        is_warming: bool,
    ) {
        let manifest = match Manifest::parse(bytes) {
            Ok(manifest) => manifest,
            Err(error) => return tracing::debug!(manifest = %digest, %error, "read manifest"),
        };
        let blobs = manifest.blobs();
        if manifest.is_index() {
            return self.names.index(digest, &manifest);
        }
        if blobs.is_empty() {
            return;
        }
        self.command(Command::Pull(Opened {
            image: self.names.of(repository, digest),
            manifest: *digest,
            blobs: blobs.iter().map(|blob| (blob.digest, blob.size)).collect(),
            is_warming,
            started: self.shared.clock.now(),
        }))
        .await;
        let known: Vec<_> = blobs
            .iter()
            .filter_map(|blob| self.shared.store.get(&blob.digest))
            .collect();
        self.shared
            .counters
            .from_store
            .add(known.iter().map(|blob| blob.held_bytes()).sum());
        let is_whole = known.len() == blobs.len() && known.iter().all(|blob| blob.is_complete());
        if is_whole {
            return self.want_all_known(repository, &known).await;
        }
        match self.shared.origins.closure(repository, digest).await {
            Ok(Some(closure)) => {
                for proof in closure.proofs {
                    self.want_proved(repository, proof, closure.grant.clone())
                        .await;
                }
            }
            Ok(None) => {
                tracing::debug!(%repository, "the origin seals nothing; blobs are shared as wholes");
                // What has other places to be fetched from need not be in the registry.
                for blob in blobs.iter().filter(|blob| blob.urls.is_empty()) {
                    let proof = Proof::DigestOnly {
                        digest: blob.digest,
                        size: blob.size,
                    };
                    self.want_proved(repository, proof, None).await;
                }
            }
            Err(error) => {
                tracing::warn!(manifest = %digest, %error, "get proofs of the blobs");
                self.want_all_known(repository, &known).await;
                if known.len() < blobs.len() {
                    self.want_handed_on(repository, digest, &blobs, &error)
                        .await;
                }
            }
        }
    }

    async fn want_proved(&self, repository: &RepositoryName, proof: Proof, grant: Option<Grant>) {
        let digest = *proof.digest();
        let geometry = match proof.check(&self.shared.trusted.current()) {
            Ok(geometry) => geometry,
            Err(error) => {
                return tracing::error!(blob = %digest, %error, "an origin sent a proof that proves nothing");
            }
        };
        if let Some(known) = self.shared.store.get(&digest) {
            if contradict(known.proof(), &proof) {
                let why = "two valid seals name different bytes under one digest".to_owned();
                return self.command(Command::Quarantine { digest, why }).await;
            }
            return self.want_known(repository, &digest, grant).await;
        }
        match self.shared.store.insert(proof, geometry) {
            Ok((pin, evicted)) => {
                if !evicted.is_empty() {
                    self.command(Command::Evicted(evicted)).await;
                }
                self.command(Command::Want {
                    pin,
                    repository: repository.clone(),
                    grant,
                })
                .await;
            }
            Err(error @ StoreError::Banned { .. }) => tracing::warn!(%error, "pass blob through"),
            Err(error) => tracing::error!(blob = %digest, %error, "the store cannot take a blob"),
        }
    }

    async fn want_all_known(&self, repository: &RepositoryName, known: &[Arc<StoredBlob>]) {
        for blob in known {
            self.want_known(repository, blob.digest(), None).await;
        }
    }

    pub(super) async fn want_known(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        grant: Option<Grant>,
    ) {
        if let Some(pin) = self.shared.store.pin(digest) {
            self.command(Command::Want {
                pin,
                repository: repository.clone(),
                grant,
            })
            .await;
        }
    }

    pub(super) async fn command(&self, command: Command) {
        // Only fails when the driver is gone; then readers are passed through.
        let _ = self.commands.send(command).await;
    }
}

/// Whether two valid seals say different things about one digest.
fn contradict(known: &Proof, new: &Proof) -> bool {
    match (known, new) {
        (Proof::Sealed { seal: known, .. }, Proof::Sealed { seal: new, .. }) => {
            known.facts != new.facts
        }
        _ => false,
    }
}

/// What a person reads if no other host has it either.
pub(super) fn failure(what: &str, error: &OriginError) -> Failure {
    match error {
        OriginError::Refused(message) => Failure::Unknown(format!("{what}: {message}")),
        _ => Failure::Unavailable(format!("{what}: {error}")),
    }
}

/// The manifest as HTTP; containerd asks even for these with a range.
pub(super) fn response(found: &Found, range: Option<&str>) -> Response<Body> {
    let Found {
        digest,
        manifest,
        is_stale,
    } = found;
    let size = manifest.bytes.len() as u64;
    let (status, part) = match RequestedRange::parse(range, size) {
        RequestedRange::Whole => (StatusCode::OK, 0..size),
        RequestedRange::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        RequestedRange::Unsatisfiable => return unsatisfiable(size),
    };
    // Both ends are within a body that is in memory.
    let bytes = manifest.bytes.slice(part.start as usize..part.end as usize);
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    content_headers(
        response.headers_mut(),
        digest,
        &manifest.media_type,
        part.end - part.start,
    );
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::from_str(&content_range(&part, size))
    {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
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

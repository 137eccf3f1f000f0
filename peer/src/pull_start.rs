//! The start of an image pull: the peer obtains the proofs of all blobs and wants the blobs, before
//! the container runtime requests the first of them.
//!
//! ```text
//! mirror          pull starter                     origin         driver
//!   start ──────▶   StartPull ──────────────────────────────────────▶
//!                   closure: seals, chunk tables, grant ──▶
//!                   (proofs are checked, blobs added to the store)
//!                   Want, for each blob ────────────────────────────▶
//! ```
//!
//! If no origin is available, neighbours are asked for the manifest and the proofs. Proofs are
//! checked no matter which side they come from.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::manifest::{Descriptor, Manifest};
use flotilla_common::name::RepositoryName;
use flotilla_common::proof::Proof;
use flotilla_common::wire::peer::ImageBundle;
use flotilla_runtime::clock::Clock;
use moka::future::Cache;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::driver::{Commands, DriverCommand};
use crate::handles::{Stores, Upstream};
use crate::origin::OriginError;
use crate::pulls::PullStart;
use crate::store::{StoreError, StoredBlob};
use crate::telemetry::Telemetry;

/// How long neighbours may take to deliver an image. Being named by the tracker, connecting and
/// asking takes some round trips; a runtime that has other hosts to try must not wait much longer.
const SEEK_TIMEOUT: Duration = Duration::from_millis(750);
/// How long an image from a neighbour is cached, and how many are.
const IMAGES_TTL: Duration = Duration::from_secs(30);
const IMAGES_CACHED: u64 = 8;

/// Starts image pulls.
#[derive(Debug)]
pub(crate) struct PullStarter {
    clock: Clock,
    stores: Stores,
    upstream: Upstream,
    telemetry: Arc<Telemetry>,
    commands: Commands,
    /// Images that neighbours delivered a short time ago.
    images: Cache<Digest, Arc<ImageBundle>>,
}

impl PullStarter {
    pub(crate) fn new(
        clock: Clock,
        stores: Stores,
        upstream: Upstream,
        telemetry: Arc<Telemetry>,
        commands: Commands,
    ) -> Self {
        Self {
            clock,
            stores,
            upstream,
            telemetry,
            commands,
            images: Cache::builder()
                .max_capacity(IMAGES_CACHED)
                .time_to_live(IMAGES_TTL)
                .build(),
        }
    }

    /// Wants all blobs of an image. `image` is its name for logs and status.
    pub(crate) async fn start(
        &self,
        repository: &RepositoryName,
        image: String,
        digest: Digest,
        manifest: &Manifest,
        is_warming: bool,
    ) {
        let blobs = manifest.blobs();
        if blobs.is_empty() {
            return;
        }
        let start = PullStart {
            image,
            manifest: digest,
            blobs: blobs.iter().map(|blob| (blob.digest, blob.size)).collect(),
            is_warming,
            started: self.clock.now(),
        };
        self.commands.send(DriverCommand::StartPull(start)).await;
        let stored: Vec<_> = blobs
            .iter()
            .filter_map(|blob| self.stores.blobs.get(&blob.digest))
            .collect();
        let held = stored.iter().map(|blob| blob.held_bytes()).sum();
        self.telemetry.counters.from_store.add(held);
        if stored.len() == blobs.len() && stored.iter().all(|blob| blob.is_complete()) {
            return self.want_all(repository, &stored).await;
        }
        let origins = &self.upstream.origins;
        match origins.closure(repository, &digest).await {
            Ok(Some(closure)) => {
                for proof in closure.proofs {
                    self.want_proved(repository, proof, closure.grant.clone())
                        .await;
                }
            }
            Ok(None) => self.want_unsealed(repository, &blobs).await,
            Err(error) => {
                tracing::warn!(manifest = %digest, %error, "could not get the proofs of an image's blobs from an origin; asking neighbours");
                self.want_all(repository, &stored).await;
                if stored.len() < blobs.len() {
                    self.want_from_neighbours(repository, &digest, &blobs, &error)
                        .await;
                }
            }
        }
    }

    /// Wants a blob, if it is in the store.
    pub(crate) async fn want(&self, repository: &RepositoryName, digest: &Digest) {
        self.want_with_grant(repository, digest, None).await;
    }

    /// Asks the neighbours for an image, if every origin is unavailable. The manifest that is
    /// returned has the digest.
    pub(crate) async fn seek_image(
        &self,
        digest: &Digest,
        error: &OriginError,
    ) -> Option<Arc<ImageBundle>> {
        if !matches!(error, OriginError::Unavailable(_)) {
            return None;
        }
        let seek = async {
            let (answer, image) = oneshot::channel();
            let manifest = *digest;
            let command = DriverCommand::SeekImage { manifest, answer };
            self.commands.send(command).await;
            let image = timeout(SEEK_TIMEOUT, image).await.ok()?.ok()?;
            tracing::info!(
                %manifest,
                "no origin available; got the image's manifest from a neighbour"
            );
            Some(Arc::new(image))
        };
        self.images.optionally_get_with(*digest, seek).await
    }

    /// Wants the blobs for which a neighbour has valid proofs.
    async fn want_from_neighbours(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        blobs: &[&Descriptor],
        error: &OriginError,
    ) {
        let Some(image) = self.seek_image(digest, error).await else {
            return;
        };
        let trusted = self.upstream.trusted_keys.current();
        for proof in &image.proofs {
            let is_of_image = blobs
                .iter()
                .any(|blob| blob.digest == *proof.digest() && blob.size == proof.size());
            let blob = proof.digest();
            match proof.check(&trusted) {
                Ok(_) if is_of_image => self.want_proved(repository, proof.clone(), None).await,
                Ok(_) => tracing::debug!(%blob, "neighbour's proof is for a blob of another image"),
                Err(error) => tracing::debug!(%blob, %error, "neighbour's proof is invalid"),
            }
        }
    }

    /// Wants the blobs of an origin without seals. They are exchanged as whole blobs.
    async fn want_unsealed(&self, repository: &RepositoryName, blobs: &[&Descriptor]) {
        tracing::debug!(%repository, "origin has no seals; blobs are exchanged as wholes");
        // Blobs with URLs of their own may be missing in the registry.
        for blob in blobs.iter().filter(|blob| blob.urls.is_empty()) {
            let proof = Proof::DigestOnly {
                digest: blob.digest,
                size: blob.size,
            };
            self.want_proved(repository, proof, None).await;
        }
    }

    /// Adds a blob to the store, if its proof is valid, and wants it.
    async fn want_proved(&self, repository: &RepositoryName, proof: Proof, grant: Option<Grant>) {
        let digest = *proof.digest();
        let geometry = match proof.check(&self.upstream.trusted_keys.current()) {
            Ok(geometry) => geometry,
            Err(error) => {
                return tracing::error!(blob = %digest, %error, "origin returned an invalid proof; passing the blob through");
            }
        };
        if let Some(stored) = self.stores.blobs.get(&digest) {
            if contradict(stored.proof(), &proof) {
                let reason = "two valid seals of the digest describe different bytes".to_owned();
                let command = DriverCommand::Quarantine { digest, reason };
                return self.commands.send(command).await;
            }
            return self.want_with_grant(repository, &digest, grant).await;
        }
        match self.stores.blobs.insert(proof, geometry) {
            Ok((pin, evicted)) => {
                if !evicted.is_empty() {
                    self.commands.send(DriverCommand::Evicted(evicted)).await;
                }
                let repository = repository.clone();
                let command = DriverCommand::Want {
                    pin,
                    repository,
                    grant,
                };
                self.commands.send(command).await;
            }
            Err(error @ StoreError::Quarantined { .. }) => {
                tracing::warn!(%error, "adding a blob to the store failed: it is in quarantine; passing it through from an origin");
            }
            Err(error) => tracing::error!(
                blob = %digest, %error,
                "the store cannot take a blob; passing it through from an origin"
            ),
        }
    }

    async fn want_all(&self, repository: &RepositoryName, blobs: &[Arc<StoredBlob>]) {
        for blob in blobs {
            self.want(repository, blob.digest()).await;
        }
    }

    async fn want_with_grant(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        grant: Option<Grant>,
    ) {
        if let Some(pin) = self.stores.blobs.pin(digest) {
            let repository = repository.clone();
            let command = DriverCommand::Want {
                pin,
                repository,
                grant,
            };
            self.commands.send(command).await;
        }
    }
}

/// Whether two valid seals of one digest describe different bytes.
fn contradict(known: &Proof, new: &Proof) -> bool {
    match (known, new) {
        (Proof::Sealed { seal: known, .. }, Proof::Sealed { seal: new, .. }) => {
            known.facts != new.facts
        }
        _ => false,
    }
}

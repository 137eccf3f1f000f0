//! `POST /flotilla/warm/REPOSITORY/manifests/REFERENCE`: downloads an image into the store before
//! it is pulled.
//!
//! The response is sent as soon as the blobs are wanted and names the digests of the manifests;
//! `/flotilla/status` shows the progress. Warming goes on while the peer runs, and is given up like
//! any other pull.

use core::time::Duration;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{Reference, RepositoryName};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::error::{ContentKind, MirrorError, error_response};
use super::manifests::ResolvedManifest;
use super::route::{MirrorRoute, route};
use super::state::Mirror;
use crate::pull_start::PullTrigger;

/// How often the blobs are wanted again. The driver stops the download of a blob without a reader
/// after a longer time.
const WANT_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of manifests below one index.
const MAX_MANIFESTS: usize = 64;

/// The response to a request to warm an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Warming {
    /// The manifests whose blobs are downloaded: one, or those below an index.
    pub manifests: Vec<Digest>,
}

pub(super) async fn warm(
    State(mirror): State<Arc<Mirror>>,
    Path(path): Path<String>,
) -> axum::response::Response {
    match route(&format!("/v2/{path}")) {
        Ok(MirrorRoute::Manifest(repository, reference)) => {
            match mirror.warm(&repository, &reference).await {
                Ok(warming) => Json(warming).into_response(),
                Err(error) => error_response(ContentKind::Manifest, &error),
            }
        }
        _ => {
            let message = format!("{path} is not an image path: use REPOSITORY/manifests/TAG");
            error_response(ContentKind::Manifest, &MirrorError::Invalid(message))
        }
    }
}

impl Mirror {
    async fn warm(
        self: &Arc<Self>,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Warming, MirrorError> {
        let images = self.images_below(repository, reference).await?;
        for image in &images {
            self.begin_pull(repository, image, PullTrigger::Warming)
                .await;
            self.keep_wanting(repository, &image.digest, &image.manifest.bytes);
        }
        Ok(Warming {
            manifests: images.into_iter().map(|image| image.digest).collect(),
        })
    }

    /// The manifest of a reference or, if that is an index, the manifests below it.
    async fn images_below(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Vec<ResolvedManifest>, MirrorError> {
        let found = self.find_manifest(repository, reference).await?;
        let digest = found.digest;
        let manifest = Manifest::parse(&found.manifest.bytes)
            .map_err(|error| MirrorError::Invalid(format!("read manifest {digest}: {error}")))?;
        if !manifest.is_index() {
            return Ok(vec![found]);
        }
        self.image_names.remember_children(&digest, &manifest);
        let mut images = Vec::new();
        for child in manifest.manifests.iter().take(MAX_MANIFESTS) {
            let child = Reference::Digest(child.digest);
            images.push(self.find_manifest(repository, &child).await?);
        }
        Ok(images)
    }

    /// Wants the blobs of an image again and again until all are stored or the pull is given up.
    fn keep_wanting(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest, bytes: &[u8]) {
        let Ok(manifest) = Manifest::parse(bytes) else {
            return;
        };
        let blobs: Vec<Digest> = manifest.blobs().iter().map(|blob| blob.digest).collect();
        let (mirror, repository, digest) = (Arc::clone(self), repository.clone(), *digest);
        self.context.shutdown.spawn(async move {
            while mirror.context.telemetry.pulls.is_warming(&digest) {
                sleep(WANT_INTERVAL).await;
                for blob in &blobs {
                    mirror.pull_starter.want(&repository, blob).await;
                }
            }
        });
    }
}

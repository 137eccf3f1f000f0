//! `POST /flotilla/warm/REPOSITORY/manifests/REFERENCE`: fetch an image into the own store without
//! emitting it, before anybody pulls it.
//!
//! It is answered as soon as the blobs are wanted, with the digests of the manifests; how far it
//! is, `/flotilla/status` says. A warming goes on while the peer lives, and is given up as every
//! pull is.

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

use super::answer::{Failure, Subject, failed};
use super::manifests::Found;
use super::{Mirror, Target, target};

/// How often the blobs are said to be wanted still: well within the time after which an unread blob
/// is let go.
const STILL_WANTED: Duration = Duration::from_secs(10);
/// Manifests below one index at most.
const MAX_MANIFESTS: usize = 64;

/// The answer to a request to warm an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Warming {
    /// The manifests whose blobs are fetched now: one, or those below an index.
    pub manifests: Vec<Digest>,
}

pub(super) async fn warm(
    State(mirror): State<Arc<Mirror>>,
    Path(path): Path<String>,
) -> axum::response::Response {
    match target(&format!("/v2/{path}")) {
        Ok(Target::Manifest(repository, reference)) => {
            match mirror.warm(&repository, &reference).await {
                Ok(warming) => Json(warming).into_response(),
                Err(failure) => failed(Subject::Manifest, &failure),
            }
        }
        _ => {
            let message = format!("{path} names no image: write REPOSITORY/manifests/TAG");
            failed(Subject::Manifest, &Failure::Invalid(message))
        }
    }
}

impl Mirror {
    async fn warm(
        self: &Arc<Self>,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Warming, Failure> {
        let Found {
            digest, manifest, ..
        } = self.find_manifest(repository, reference).await?;
        let parsed = Manifest::parse(&manifest.bytes)
            .map_err(|error| Failure::Invalid(format!("read manifest {digest}: {error}")))?;
        let mut images = vec![(digest, manifest.bytes.clone())];
        if parsed.is_index() {
            self.names.index(&digest, &parsed);
            images.clear();
            for child in parsed.manifests.iter().take(MAX_MANIFESTS) {
                let child = Reference::Digest(child.digest);
                let Found {
                    digest, manifest, ..
                } = self.find_manifest(repository, &child).await?;
                images.push((digest, manifest.bytes));
            }
        }
        for (digest, bytes) in &images {
            self.want_blobs(repository, digest, bytes, true).await;
            self.keep_wanting(repository, digest, bytes);
        }
        Ok(Warming {
            manifests: images.into_iter().map(|(digest, _)| digest).collect(),
        })
    }

    /// Says again and again that an image is wanted, until it is here or given up.
    fn keep_wanting(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest, bytes: &[u8]) {
        let Ok(manifest) = Manifest::parse(bytes) else {
            return;
        };
        let blobs: Vec<Digest> = manifest.blobs().iter().map(|blob| blob.digest).collect();
        let (mirror, repository, digest) = (Arc::clone(self), repository.clone(), *digest);
        self.shared.shutdown.spawn(async move {
            while mirror.shared.pulls.is_warming(&digest) {
                sleep(STILL_WANTED).await;
                for blob in &blobs {
                    mirror.want_known(&repository, blob, None).await;
                }
            }
        });
    }
}

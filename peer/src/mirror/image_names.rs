//! Display names of images. containerd requests a tag first and then digests only; the tag is
//! remembered, so that logs and status can show it.

use core::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{Reference, RepositoryName};
use moka::sync::Cache;

/// The longest time from the request for a tag to the last request by digest.
const TTL: Duration = Duration::from_secs(60);
/// Names that are remembered.
const CAPACITY: u64 = 1024;

/// The names of manifests that were requested by tag a short time ago.
#[derive(Debug)]
pub(super) struct ImageNames(Cache<Digest, String>);

impl Default for ImageNames {
    fn default() -> Self {
        Self(
            Cache::builder()
                .max_capacity(CAPACITY)
                .time_to_live(TTL)
                .build(),
        )
    }
}

impl ImageNames {
    /// Remembers the tag of a manifest; a digest is not a name to remember.
    pub(super) fn remember(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        manifest: &Digest,
    ) {
        if matches!(reference, Reference::Tag(_)) {
            self.0
                .insert(*manifest, display_name(repository, reference));
        }
    }

    /// Gives the manifests below an index the index's name.
    pub(super) fn remember_children(&self, digest: &Digest, index: &Manifest) {
        if let Some(name) = self.0.get(digest) {
            for child in &index.manifests {
                self.0.insert(child.digest, name.clone());
            }
        }
    }

    /// The name of a manifest: `REPOSITORY:TAG` if it is remembered, `REPOSITORY@DIGEST` if not.
    pub(super) fn get(&self, repository: &RepositoryName, manifest: &Digest) -> String {
        self.0
            .get(manifest)
            .unwrap_or_else(|| display_name(repository, &Reference::Digest(*manifest)))
    }
}

/// The name as users write it.
pub(super) fn display_name(repository: &RepositoryName, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{repository}:{tag}"),
        Reference::Digest(digest) => format!("{repository}@{digest}"),
    }
}

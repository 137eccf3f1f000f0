//! What people call a manifest: containerd asks for the tag first and then for digests only, so the
//! tag is remembered.

use core::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{Reference, RepositoryName};
use moka::sync::Cache;

/// Between the request for a tag and the last one by digest.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Names that are remembered.
const NAMES: u64 = 1024;

/// The names of manifests that were asked for by tag just now.
#[derive(Debug)]
pub(super) struct Names(Cache<Digest, String>);

impl Default for Names {
    fn default() -> Self {
        Self(
            Cache::builder()
                .max_capacity(NAMES)
                .time_to_live(REMEMBERED)
                .build(),
        )
    }
}

impl Names {
    /// A manifest was found under a reference.
    pub(super) fn found(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        manifest: &Digest,
    ) {
        if matches!(reference, Reference::Tag(_)) {
            self.0.insert(*manifest, name(repository, reference));
        }
    }

    /// The manifests that an index names are called as it is.
    pub(super) fn index(&self, digest: &Digest, index: &Manifest) {
        if let Some(name) = self.0.get(digest) {
            for child in &index.manifests {
                self.0.insert(child.digest, name.clone());
            }
        }
    }

    /// What a manifest is called.
    pub(super) fn of(&self, repository: &RepositoryName, manifest: &Digest) -> String {
        self.0
            .get(manifest)
            .unwrap_or_else(|| name(repository, &Reference::Digest(*manifest)))
    }
}

/// As people write it.
pub(super) fn name(repository: &RepositoryName, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{repository}:{tag}"),
        Reference::Digest(digest) => format!("{repository}@{digest}"),
    }
}

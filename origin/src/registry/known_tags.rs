//! The last known value of each tag. While storage is out, a tag is answered from here and from
//! other regions: the higher stamp wins, and a delete counts like any other value.
//!
//! The memory is bounded, so an unknown tag may have any value.

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::name::{RepositoryName, Tag};
use flotilla_common::stamp::Stamp;

use super::{CachedManifest, Registry};

/// A tag as this replica last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownTag {
    pub(crate) stamp: Stamp,
    /// `None` if it was deleted.
    pub(crate) digest: Option<Digest>,
}

/// A tag that names a manifest, as the own storage has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveTag {
    pub(crate) stamp: Stamp,
    pub(crate) digest: Digest,
}

impl KnownTag {
    pub(crate) const fn new(stamp: Stamp, digest: Option<Digest>) -> Self {
        Self { stamp, digest }
    }

    /// Remembers the value, unless a later one is known.
    pub(super) fn remember(
        self,
        known: &moka::sync::Cache<(RepositoryName, Tag), Self>,
        key: (RepositoryName, Tag),
    ) {
        known.entry(key).and_compute_with(|present| match present {
            Some(present) if present.value().stamp >= self.stamp => moka::ops::compute::Op::Nop,
            _ => moka::ops::compute::Op::Put(self),
        });
    }
}

impl Registry {
    /// Remembers a value of a tag that this replica wrote or was told of.
    pub(crate) fn remember_tag(&self, repository: &RepositoryName, tag: &Tag, value: KnownTag) {
        value.remember(&self.known_tags, (repository.clone(), tag.clone()));
    }

    /// The last known value of a tag, however old.
    pub(crate) fn known_tag(&self, repository: &RepositoryName, tag: &Tag) -> Option<KnownTag> {
        self.known_tags.get(&(repository.clone(), tag.clone()))
    }

    /// A manifest from memory, even if its time has passed.
    pub(crate) fn known_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Option<Arc<CachedManifest>> {
        let cached = self.manifests.peek(&(repository.clone(), *digest))?;
        Some(cached.value)
    }
}

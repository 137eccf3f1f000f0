//! Brings a key from another region: its closure first, then the key itself.
//!
//! ```text
//! tag ──▶ manifest ──▶ blobs (copied or mounted), children (the same, eight levels deep)
//!                  ──▶ merge the manifest and its referrer entry
//!     ──▶ merge the tag
//! ```
//! A region never names an image that it cannot serve. The exception is a closure that is broken
//! everywhere: what every region answered that it does not have holds no name back. What a region
//! that did not answer may have does.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{Fact, FactHead, FactKey};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::copy::BlobCopier;
use super::counts::RegionCounts;
use super::source::{Source, SourceError};
use crate::registry::{MergeReason, Merged, Need, Registry, RegistryError};

/// How deep indexes may be nested.
const MAX_DEPTH: u32 = 8;
/// Blobs of one manifest copied concurrently.
const BLOBS_AT_ONCE: usize = 8;
/// How often the blobs of one manifest are looked at again because the copies took longer than a
/// look is good for.
const MAX_ROUNDS: u32 = 4;

/// What came of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replicated {
    /// The key is at least as new here as at the source.
    Merged,
    /// The same, but something that it names is in no region.
    MergedBroken,
    /// Not yet: a region that did not answer may have what is missing.
    Blocked(String),
    /// Not yet: the stamp is ahead of this replica's clock by this much.
    Ahead(Duration),
}

/// The state of a manifest and everything that it references.
enum Closure {
    Whole,
    Broken,
    Blocked(String),
    Ahead(Duration),
}

/// Whether a blob is in this region now.
pub(super) enum Blob {
    Here,
    /// No region has it.
    Nowhere,
    Blocked(String),
}

/// Brings keys from other regions into this one.
#[derive(Debug)]
pub(crate) struct Replicator {
    pub(super) registry: Arc<Registry>,
    pub(super) copier: BlobCopier,
}

impl Replicator {
    pub(crate) fn new(registry: Arc<Registry>, copier: BlobCopier) -> Self {
        Self { registry, copier }
    }

    /// The counters.
    pub(crate) const fn counts(&self) -> &Arc<RegionCounts> {
        self.copier.counts()
    }

    /// Merges a key whose value `fact` the first of `sources` gave. The others are asked for what
    /// the first does not have.
    ///
    /// # Errors
    /// Those of this region's storage.
    pub(crate) async fn replicate(
        &self,
        sources: &[Arc<dyn Source>],
        key: &FactKey,
        fact: &Fact,
        reason: MergeReason,
    ) -> Result<Replicated, RegistryError> {
        let (repository, tag) = match key {
            FactKey::Manifest(repository, digest) => {
                let closure = self
                    .bring(sources, repository, digest, Some(fact), reason, MAX_DEPTH)
                    .await?;
                return Ok(closure.into());
            }
            FactKey::Tag(repository, tag) => (repository, tag),
        };
        let FactHead::Tag { stamp, digest } = &fact.head else {
            return Ok(Replicated::Merged);
        };
        if self.registry.has_tag_stamp(repository, tag, stamp).await? {
            return Ok(Replicated::Merged);
        }
        let mut replicated = Replicated::Merged;
        if let Some(digest) = digest {
            let closure = self
                .bring(
                    sources,
                    repository,
                    digest,
                    None,
                    MergeReason::Needed,
                    MAX_DEPTH,
                )
                .await?;
            replicated = closure.into();
            if matches!(replicated, Replicated::Blocked(_) | Replicated::Ahead(_)) {
                return Ok(replicated);
            }
        }
        Ok(
            match self
                .registry
                .merge_tag(repository, tag, stamp, *digest)
                .await?
            {
                Merged::Written | Merged::Kept => replicated,
                Merged::Ahead(by) => Replicated::Ahead(by),
            },
        )
    }

    /// Brings a manifest and everything that it references. `fact` is its value at the first
    /// source, if that is known.
    fn bring<'a>(
        &'a self,
        sources: &'a [Arc<dyn Source>],
        repository: &'a RepositoryName,
        digest: &'a Digest,
        fact: Option<&'a Fact>,
        reason: MergeReason,
        depth: u32,
    ) -> BoxFuture<'a, Result<Closure, RegistryError>> {
        async move {
            let key = FactKey::Manifest(repository.clone(), *digest);
            let own = self.registry.fact(&key).await?;
            let fact = match fact {
                Some(fact) => fact.clone(),
                None => match find_manifest(sources, &key, &own).await {
                    Found::Fact(fact) => fact,
                    Found::Nowhere => return Ok(Closure::Broken),
                    Found::Unsure(reason) => return Ok(Closure::Blocked(reason)),
                },
            };
            let is_here = matches!(own.head, FactHead::Manifest { .. });
            let is_live = matches!(fact.head, FactHead::Manifest { .. });
            // A manifest that is here may lack a blob: it was merged as broken as it was at the
            // source, or a push wrote it and is about to find that a blob has died. So its parts are looked at,
            // except in a sweep, which would read every record.
            if !is_live || (is_here && reason == MergeReason::Sweep) {
                let merged = self
                    .registry
                    .merge_manifest(repository, digest, &fact, reason)
                    .await?;
                return Ok(merged.into());
            }
            if fact.stamp() < own.stamp()
                && matches!(own.head, FactHead::DeletedManifest { .. })
            {
                // This region's delete is newer, and will reach the source.
                return Ok(Closure::Broken);
            }
            let Ok(manifest) = Manifest::parse(&fact.bytes) else {
                tracing::error!(%repository, %digest, "another region sent bytes that are not a manifest; leaving it out");
                return Ok(Closure::Broken);
            };
            self.bring_parts(sources, repository, digest, &fact, &manifest, reason, depth)
                .await
        }
        .boxed()
    }

    /// Brings one blob, if any region has it.
    ///
    /// # Errors
    /// Those of this region's storage.
    pub(crate) async fn bring_blob(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let brought = self
            .copier
            .bring(sources, repository, digest, None, Need::Live)
            .await;
        brought.map(drop)
    }

    /// Copies a blob anew whose data is missing in this region's storage.
    ///
    /// # Errors
    /// Those of this region's storage.
    pub(crate) async fn replace_lost_blob(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let replaced = self.copier.replace(sources, repository, digest).await?;
        if !replaced {
            tracing::debug!(%repository, %digest, "lost data was not copied anew: it is whole, or no region has it");
        }
        Ok(())
    }

    /// Brings what a manifest references, without the manifest itself.
    ///
    /// # Errors
    /// Those of this region's storage.
    pub(crate) async fn bring_references(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        manifest: &Manifest,
    ) -> Result<Replicated, RegistryError> {
        let children = self.bring_children(sources, repository, manifest, MAX_DEPTH);
        let is_broken = match children.await? {
            Closure::Whole => false,
            Closure::Broken => true,
            not_yet => return Ok(not_yet.into()),
        };
        let blobs = self.bring_blobs(sources, repository, manifest, Need::Live);
        Ok(match blobs.await? {
            Blob::Here if !is_broken => Replicated::Merged,
            Blob::Here | Blob::Nowhere => Replicated::MergedBroken,
            Blob::Blocked(reason) => Replicated::Blocked(reason),
        })
    }

    /// Brings the children of an index.
    async fn bring_children(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        manifest: &Manifest,
        depth: u32,
    ) -> Result<Closure, RegistryError> {
        let mut is_broken = false;
        for child in manifest
            .manifests
            .iter()
            .filter(|child| child.urls.is_empty())
        {
            if depth == 0 {
                tracing::error!(%repository, "indexes are nested too deeply; leaving out the deepest");
                return Ok(Closure::Broken);
            }
            let needed = MergeReason::Needed;
            let child = self.bring(sources, repository, &child.digest, None, needed, depth - 1);
            match child.await? {
                Closure::Whole => {}
                Closure::Broken => is_broken = true,
                not_yet => return Ok(not_yet),
            }
        }
        Ok(if is_broken {
            Closure::Broken
        } else {
            Closure::Whole
        })
    }

    /// Brings the blobs and children of a manifest, then merges it.
    #[expect(
        clippy::too_many_arguments,
        reason = "one recursive walk, split for its length"
    )]
    async fn bring_parts(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        digest: &Digest,
        fact: &Fact,
        manifest: &Manifest,
        reason: MergeReason,
        depth: u32,
    ) -> Result<Closure, RegistryError> {
        let children = self.bring_children(sources, repository, manifest, depth);
        let mut is_broken = match children.await? {
            Closure::Whole => false,
            Closure::Broken => true,
            not_yet => return Ok(not_yet),
        };
        let mut need = Need::Live;
        for _ in 0..MAX_ROUNDS {
            let started = self.registry.now();
            match self
                .bring_blobs(sources, repository, manifest, need)
                .await?
            {
                Blob::Here => {}
                Blob::Nowhere => is_broken = true,
                Blob::Blocked(reason) => return Ok(Closure::Blocked(reason)),
            }
            if let Merged::Ahead(by) = self
                .registry
                .merge_manifest(repository, digest, fact, reason)
                .await?
            {
                return Ok(Closure::Ahead(by));
            }
            // A blob that was live when it was looked at counts as live for L, and no longer.
            if self.registry.is_recent(started) {
                return Ok(if is_broken {
                    Closure::Broken
                } else {
                    Closure::Whole
                });
            }
            need = Need::LiveNow;
        }
        Ok(Closure::Blocked(format!(
            "the blobs of {repository}@{digest} take longer to copy than a look at them is good for"
        )))
    }

    /// Brings all blobs of a manifest.
    async fn bring_blobs(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        manifest: &Manifest,
        need: Need,
    ) -> Result<Blob, RegistryError> {
        let blobs = manifest.blobs();
        let blobs: Vec<(Digest, u64)> = blobs.iter().map(|blob| (blob.digest, blob.size)).collect();
        let brought = stream::iter(blobs).map(|(digest, size)| async move {
            self.copier
                .bring(sources, repository, &digest, Some(size), need)
                .await
        });
        let brought: Vec<Blob> = brought
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_collect()
            .await?;
        let mut all = Blob::Here;
        for blob in brought {
            match blob {
                Blob::Here => {}
                Blob::Nowhere => all = Blob::Nowhere,
                blocked @ Blob::Blocked(_) => return Ok(blocked),
            }
        }
        Ok(all)
    }
}

impl From<Merged> for Closure {
    fn from(merged: Merged) -> Self {
        match merged {
            Merged::Written | Merged::Kept => Self::Whole,
            Merged::Ahead(by) => Self::Ahead(by),
        }
    }
}

impl From<Closure> for Replicated {
    fn from(closure: Closure) -> Self {
        match closure {
            Closure::Whole => Self::Merged,
            Closure::Broken => Self::MergedBroken,
            Closure::Blocked(reason) => Self::Blocked(reason),
            Closure::Ahead(by) => Self::Ahead(by),
        }
    }
}

/// Where a manifest is.
enum Found {
    Fact(Fact),
    /// All regions answered that they do not have it.
    Nowhere,
    /// A region did not answer.
    Unsure(String),
}

/// Looks for a live manifest here and in the other regions.
async fn find_manifest(sources: &[Arc<dyn Source>], key: &FactKey, own: &Fact) -> Found {
    if matches!(own.head, FactHead::Manifest { .. }) {
        return Found::Fact(own.clone());
    }
    let mut unsure = None;
    for source in sources {
        match one_fact(&**source, key).await {
            Ok(fact) if matches!(fact.head, FactHead::Manifest { .. }) => {
                return Found::Fact(fact);
            }
            Ok(_) => {}
            Err(error) => unsure = Some(error.to_string()),
        }
    }
    unsure.map_or(Found::Nowhere, Found::Unsure)
}

/// The value of one key at a source.
pub(crate) async fn one_fact(source: &dyn Source, key: &FactKey) -> Result<Fact, SourceError> {
    let facts = source.facts(core::slice::from_ref(key)).await?;
    facts.into_iter().next().ok_or_else(|| SourceError {
        region: source.region().clone(),
        reason: "it answered without the fact that was asked for".to_owned(),
    })
}

/// The sources, the region `first` before the others.
pub(crate) fn ordered(sources: &[Arc<dyn Source>], first: &RegionName) -> Vec<Arc<dyn Source>> {
    let mut ordered = sources.to_vec();
    ordered.sort_by_key(|source| source.region() != first);
    ordered
}

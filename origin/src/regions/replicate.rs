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

use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{Fact, FactHead, FactKey};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::copy::BlobCopier;
use super::copy_turns::Urgency;
use super::counts::RegionCounts;
use super::recent_merges::RecentMerges;
use super::source::{Source, one_fact};
use super::walk::{MAX_DEPTH, OnBroken, Walk};
use crate::registry::{MergeReason, Merged, Need, Registry, RegistryError};

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

/// Brings keys from other regions into this one. Clones share their copies.
#[derive(Clone, Debug)]
pub(crate) struct Replicator {
    pub(super) registry: Arc<Registry>,
    pub(super) copier: Arc<BlobCopier>,
    urgency: Urgency,
    recent: RecentMerges,
}

impl Replicator {
    pub(crate) fn new(registry: Arc<Registry>, copier: BlobCopier) -> Self {
        Self {
            registry,
            copier: Arc::new(copier),
            urgency: Urgency::Background,
            recent: RecentMerges::new(),
        }
    }

    /// The same for keys that a client or another region waits for.
    pub(crate) fn awaited(&self) -> Self {
        Self {
            urgency: Urgency::Awaited,
            ..self.clone()
        }
    }

    /// The counters.
    pub(crate) fn counts(&self) -> &Arc<RegionCounts> {
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
        let mut walk = Walk::new(sources, key.repository(), OnBroken::Continue);
        self.replicate_in(&mut walk, key, fact, reason).await
    }

    /// The same for a key that a journal entry is going to name: [`Self::has_merged`] remembers it.
    ///
    /// # Errors
    /// Those of this region's storage.
    pub(crate) async fn replicate_ahead(
        &self,
        sources: &[Arc<dyn Source>],
        key: &FactKey,
        fact: &Fact,
    ) -> Result<Replicated, RegistryError> {
        let needed = MergeReason::Needed;
        let replicated = self.replicate(sources, key, fact, needed).await?;
        if replicated == Replicated::Merged
            && let Some(source) = sources.first()
        {
            self.recent.note(source.region(), key, fact);
        }
        Ok(replicated)
    }

    /// Whether a key of an entry of `region` was reached and merged a moment ago. `seen` is the
    /// stamp that the entry's writer saw.
    pub(crate) fn has_merged(
        &self,
        region: &RegionName,
        key: &FactKey,
        seen: Option<&Stamp>,
    ) -> bool {
        self.recent.is_reached(region, key, seen)
    }

    /// Merges a key in a walk, which knows the manifests that it has just brought: a tag of one of
    /// them needs no second look at it.
    pub(super) async fn replicate_in(
        &self,
        walk: &mut Walk<'_>,
        key: &FactKey,
        fact: &Fact,
        reason: MergeReason,
    ) -> Result<Replicated, RegistryError> {
        let (repository, tag) = match key {
            FactKey::Manifest(_, digest) => {
                // Whatever the walk has brought: this value has a stamp of its own.
                let closure = self
                    .bring_manifest(walk, digest, Some(fact), reason, MAX_DEPTH)
                    .await?;
                if matches!(closure, Closure::Whole)
                    && matches!(fact.head, FactHead::Manifest { .. })
                {
                    walk.finish(digest, MAX_DEPTH, false);
                }
                return Ok(closure.into());
            }
            FactKey::Tag(repository, tag) => (repository, tag),
        };
        let FactHead::Tag { stamp, digest } = &fact.head else {
            return Ok(Replicated::Merged);
        };
        let own = self.registry.stored_tag(repository, tag).await?;
        if let Some(own) = own.filter(|own| own.stamp >= *stamp) {
            return self.keep_whole(walk, own.digest).await;
        }
        let mut replicated = Replicated::Merged;
        if let Some(digest) = digest {
            let closure = self
                .bring(walk, digest, None, MergeReason::Needed, MAX_DEPTH)
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

    /// Brings back what a tag of this region names, if it is missing here: a replica may have
    /// stopped between the eviction of a manifest and its return.
    async fn keep_whole(
        &self,
        walk: &mut Walk<'_>,
        named: Option<Digest>,
    ) -> Result<Replicated, RegistryError> {
        let Some(digest) = named else {
            return Ok(Replicated::Merged);
        };
        let key = FactKey::Manifest(walk.repository.clone(), digest);
        match self.registry.fact(&key).await?.head {
            FactHead::Absent | FactHead::Evicted { .. } => {}
            // A client may delete a manifest and leave its tags.
            FactHead::Manifest { .. } | FactHead::DeletedManifest { .. } | FactHead::Tag { .. } => {
                return Ok(Replicated::Merged);
            }
        }
        let needed = MergeReason::Needed;
        let closure = self.bring(walk, &digest, None, needed, MAX_DEPTH);
        Ok(closure.await?.into())
    }

    /// Brings a manifest and everything that it references, unless this walk has done so. `fact` is
    /// its value at the first source, if that is known.
    fn bring<'a>(
        &'a self,
        walk: &'a mut Walk<'_>,
        digest: &'a Digest,
        fact: Option<&'a Fact>,
        reason: MergeReason,
        depth: u32,
    ) -> BoxFuture<'a, Result<Closure, RegistryError>> {
        async move {
            if let Some(is_broken) = walk.is_broken(digest, depth) {
                return Ok(Closure::finished(is_broken));
            }
            if !walk.may_visit() {
                tracing::error!(repository = %walk.repository, "an index names too many manifests; leaving out the rest");
                return Ok(Closure::Broken);
            }
            let brought = self.bring_manifest(walk, digest, fact, reason, depth).await?;
            match brought {
                Closure::Whole => walk.finish(digest, depth, false),
                Closure::Broken => walk.finish(digest, depth, true),
                Closure::Blocked(_) | Closure::Ahead(_) => {}
            }
            Ok(brought)
        }
        .boxed()
    }

    async fn bring_manifest(
        &self,
        walk: &mut Walk<'_>,
        digest: &Digest,
        fact: Option<&Fact>,
        reason: MergeReason,
        depth: u32,
    ) -> Result<Closure, RegistryError> {
        let repository = walk.repository;
        let key = FactKey::Manifest(repository.clone(), *digest);
        let own = self.registry.fact(&key).await?;
        let fact = match fact {
            Some(fact) => fact.clone(),
            None => match find_manifest(walk.sources, &key, &own).await {
                Found::Fact(fact) => fact,
                Found::Nowhere => return Ok(Closure::Broken),
                Found::Unsure(reason) => return Ok(Closure::Blocked(reason)),
            },
        };
        let is_here = matches!(own.head, FactHead::Manifest { .. });
        let is_live = matches!(fact.head, FactHead::Manifest { .. });
        // A manifest that is here may lack a blob: it was merged as broken as it was at the source,
        // or a push wrote it and is about to find that a blob has died. So its parts are looked at,
        // except in a sweep, which would read every record.
        if !is_live || (is_here && reason == MergeReason::Sweep) {
            let others = names(walk.sources);
            let merged = self
                .registry
                .merge_manifest(repository, digest, &fact, reason, &others)
                .await?;
            return Ok(merged.into());
        }
        if fact.stamp() < own.stamp() && matches!(own.head, FactHead::DeletedManifest { .. }) {
            // This region's delete is newer, and will reach the source.
            return Ok(Closure::Broken);
        }
        let Ok(manifest) = Manifest::parse(&fact.bytes) else {
            tracing::error!(%repository, %digest, "another region sent bytes that are not a manifest; leaving it out");
            return Ok(Closure::Broken);
        };
        self.bring_parts(walk, digest, &fact, &manifest, reason, depth)
            .await
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
            .bring(sources, repository, digest, None, Need::Live, self.urgency)
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

    /// Brings what a manifest references, without the manifest itself. Ends at the first part that
    /// no region has.
    ///
    /// # Errors
    /// Those of this region's storage.
    pub(crate) async fn bring_references(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
        manifest: &Manifest,
    ) -> Result<Replicated, RegistryError> {
        let mut walk = Walk::new(sources, repository, OnBroken::Stop);
        match self.bring_children(&mut walk, manifest, MAX_DEPTH).await? {
            Closure::Whole => {}
            broken_or_not_yet => return Ok(broken_or_not_yet.into()),
        }
        let blobs = self.bring_blobs(&walk, manifest, Need::Live);
        Ok(match blobs.await? {
            Blob::Here => Replicated::Merged,
            Blob::Nowhere => Replicated::MergedBroken,
            Blob::Blocked(reason) => Replicated::Blocked(reason),
        })
    }

    /// Brings the children of an index.
    async fn bring_children(
        &self,
        walk: &mut Walk<'_>,
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
                tracing::error!(repository = %walk.repository, "indexes are nested too deeply; leaving out the deepest");
                return Ok(Closure::Broken);
            }
            let needed = MergeReason::Needed;
            match self
                .bring(walk, &child.digest, None, needed, depth - 1)
                .await?
            {
                Closure::Whole => {}
                Closure::Broken if walk.on_broken == OnBroken::Stop => return Ok(Closure::Broken),
                Closure::Broken => is_broken = true,
                not_yet => return Ok(not_yet),
            }
        }
        Ok(Closure::finished(is_broken))
    }

    /// Brings the blobs and children of a manifest, then merges it.
    async fn bring_parts(
        &self,
        walk: &mut Walk<'_>,
        digest: &Digest,
        fact: &Fact,
        manifest: &Manifest,
        reason: MergeReason,
        depth: u32,
    ) -> Result<Closure, RegistryError> {
        let mut is_broken = match self.bring_children(walk, manifest, depth).await? {
            Closure::Whole => false,
            Closure::Broken => true,
            not_yet => return Ok(not_yet),
        };
        let repository = walk.repository;
        let mut need = Need::Live;
        for _ in 0..MAX_ROUNDS {
            let started = self.registry.now();
            match self.bring_blobs(walk, manifest, need).await? {
                Blob::Here => {}
                Blob::Nowhere => is_broken = true,
                Blob::Blocked(reason) => return Ok(Closure::Blocked(reason)),
            }
            let others = names(walk.sources);
            if let Merged::Ahead(by) = self
                .registry
                .merge_manifest(repository, digest, fact, reason, &others)
                .await?
            {
                return Ok(Closure::Ahead(by));
            }
            // A blob that was live when it was looked at counts as live for L, and no longer.
            if self.registry.is_recent(started) {
                return Ok(Closure::finished(is_broken));
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
        walk: &Walk<'_>,
        manifest: &Manifest,
        need: Need,
    ) -> Result<Blob, RegistryError> {
        let (sources, repository) = (walk.sources, walk.repository);
        let blobs = manifest.blobs();
        let blobs: Vec<(Digest, u64)> = blobs.iter().map(|blob| (blob.digest, blob.size)).collect();
        let is_stopped = AtomicBool::new(false);
        let blobs = stream::iter(blobs)
            .take_while(|_| core::future::ready(!is_stopped.load(Ordering::Relaxed)));
        let urgency = self.urgency;
        let brought = blobs.map(|(digest, size)| async move {
            self.copier
                .bring(sources, repository, &digest, Some(size), need, urgency)
                .await
        });
        let mut brought = pin!(brought.buffer_unordered(BLOBS_AT_ONCE));
        let mut all = Blob::Here;
        while let Some(blob) = brought.try_next().await? {
            let is_here = matches!(blob, Blob::Here);
            match blob {
                Blob::Here => {}
                Blob::Nowhere if walk.on_broken == OnBroken::Stop => return Ok(Blob::Nowhere),
                Blob::Nowhere if matches!(all, Blob::Blocked(_)) => {}
                nowhere_or_blocked => all = nowhere_or_blocked,
            }
            if !is_here && walk.on_broken == OnBroken::Stop {
                // Copies that have begun end.
                is_stopped.store(true, Ordering::Relaxed);
            }
        }
        Ok(all)
    }
}

impl Closure {
    const fn finished(is_broken: bool) -> Self {
        if is_broken { Self::Broken } else { Self::Whole }
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

fn names(sources: &[Arc<dyn Source>]) -> Vec<RegionName> {
    let names = sources.iter().map(|source| source.region().clone());
    names.collect()
}

/// A source, then all other regions.
pub(crate) fn led_by(first: &Arc<dyn Source>, all: &[Arc<dyn Source>]) -> Vec<Arc<dyn Source>> {
    let others = all.iter().filter(|it| it.region() != first.region());
    core::iter::once(first).chain(others).cloned().collect()
}

/// The sources, the region `first` before the others.
pub(crate) fn ordered(sources: &[Arc<dyn Source>], first: &RegionName) -> Vec<Arc<dyn Source>> {
    let mut ordered = sources.to_vec();
    ordered.sort_by_key(|source| source.region() != first);
    ordered
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use core::sync::atomic::Ordering;

    use super::super::test_regions::{TestRegion, TestSource, index_of, repository, tag, tag_key};
    use super::*;

    /// Indexes that name one child hundreds of times, four levels deep, cost one visit each.
    #[tokio::test]
    async fn repeated_children_are_brought_once() {
        let (eu, us) = (
            TestRegion::start("eu-1").await,
            TestRegion::start("us-1").await,
        );
        let mut manifest = index_of(&[]);
        for _ in 0..4 {
            eu.push(&manifest, &[], &[&us]).await;
            manifest = index_of(&[&manifest; 300]);
        }
        eu.push(&manifest, &["v1"], &[&us]).await;
        let sources: [Arc<dyn Source>; 1] = [eu.source_of(&us)];
        let fact = one_fact(&*sources[0], &tag_key("v1")).await.unwrap();
        let before = us.operations.total();
        let replicator = us.replicator();
        let needed = MergeReason::Needed;
        let key = tag_key("v1");
        let brought = replicator.replicate(&sources, &key, &fact, needed);
        assert_eq!(brought.await.unwrap(), Replicated::Merged);
        let operations = us.operations.total() - before;
        assert!(operations < 100, "{operations} operations");
        let merged = us.registry.stored_tag(&repository(), &tag("v1")).await;
        let merged = merged.unwrap().unwrap();
        assert_eq!(Some(&merged.stamp), fact.stamp());
    }

    /// A push that names thousands of blobs which no region has costs a few questions.
    #[tokio::test]
    async fn pushes_of_unknown_blobs_ask_little_of_other_regions() {
        let (eu, us) = (
            TestRegion::start("eu-1").await,
            TestRegion::start("us-1").await,
        );
        let source = eu.source_of(&us);
        let sources: [Arc<dyn Source>; 1] = [Arc::<TestSource>::clone(&source)];
        let layer = |number: u32| {
            let digest = Digest::sha256(&number.to_le_bytes());
            serde_json::json!({"mediaType": "x/y", "digest": digest, "size": 4})
        };
        let layers: Vec<_> = (0..2_000).map(layer).collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "layers": layers}).to_string();
        let manifest = Manifest::parse(manifest.as_bytes()).unwrap();
        let brought = us
            .replicator()
            .bring_references(&sources, &repository(), &manifest)
            .await;
        assert_eq!(brought.unwrap(), Replicated::MergedBroken);
        let asked = source.faults.blob_calls.load(Ordering::Relaxed);
        assert!(asked <= 2 * BLOBS_AT_ONCE, "{asked} questions");
    }
}

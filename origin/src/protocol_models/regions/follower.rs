//! A follower: reads its journal at each source, merges the entries with the shipped code and drops
//! those that are done. Each variant breaks one rule.

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{Reference, RegionName, RepositoryName};
use flotilla_common::wire::region::{Fact, FactHead, FactKey, FactKind, OwedEntry};
use flotilla_runtime::rate::Limiter;

use super::super::explorer::Settle;
use super::super::storage_model::ModelStorage;
use super::world::{Region, owed_to};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{Pointer, TagValue};
use crate::regions::copy::BlobCopier;
use crate::regions::counts::RegionCounts;
use crate::regions::entry::{EntryOutcome, EntryRules, merge_entry};
use crate::regions::replicate::{Replicated, Replicator, ordered};
use crate::regions::source::Source;
use crate::registry::{MergeReason, Need, Registry};
use crate::storage::Storage;

/// The behaviour of a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// As shipped.
    Shipped,
    /// Violates "an entry whose keys are not reached is kept": drops it, as failed.
    DropsUnreached,
    /// Violates "a key is reached above the stamp that its writer saw": compares the stamp with the
    /// clock of the entry.
    ComparesClocks,
    /// Violates "the higher stamp stays": writes whatever the source had.
    Overwrites,
    /// Violates "a closure is whole before its name appears".
    TagFirst,
    /// Violates "what a key names comes first": merges manifests without their blobs.
    WithoutBlobs,
    /// Violates "a manifest that came from elsewhere is never deleted": deletes one whose blob has
    /// died.
    BuriesReplicated,
    /// Violates "a closure that is broken everywhere blocks nothing".
    BlocksOnBroken,
    /// Violates "each key is merged as soon as it is reached": merges all keys of an entry or none,
    /// and drops an expired one.
    AllOrNothing,
    /// Violates "a stamp ahead of the clock is not merged yet".
    MergesAhead,
    /// Violates "tombstones are merged wherever the key is present": leaves out what its policy
    /// leaves out.
    LeavesOutTombstones,
    /// Violates "an evicted manifest ends no entry": drops an entry whose manifest is evicted.
    EndsAtEvicted,
    /// Violates "a key is reached above the stamp that its writer saw": drops an entry whose tag an
    /// order has copied before, whatever it copied.
    EndsAtOrders,
    /// Violates "a manifest that comes back with a higher stamp is owed to the others".
    RevivesSilently,
    /// Violates "a tag with its stamp may lack its manifest": looks no further in a sweep.
    TrustsTags,
}

/// Whether a write of an entry can still be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Young,
    /// Older than H.
    Expired,
}

/// The follower of one region.
pub(super) struct Follower {
    pub(super) model: ModelStorage,
    pub(super) region: Region,
    pub(super) registry: Arc<Registry>,
    pub(super) replicator: Replicator,
    pub(super) sources: Vec<Arc<dyn Source>>,
    follows: Follows,
    /// Whether the policy of the region selects the repository.
    pub(super) is_selected: bool,
}

impl Follower {
    /// A follower of `sources`, through new replicas.
    pub(super) async fn new(
        model: &ModelStorage,
        region: Region,
        sources: &[Region],
        follows: Follows,
    ) -> Self {
        let registry = region.replica(model).await;
        let mut opened = Vec::new();
        for source in sources {
            opened.push(source.source(model, region).await);
        }
        Self::of(model, region, registry, opened, follows)
    }

    pub(super) fn of(
        model: &ModelStorage,
        region: Region,
        registry: Arc<Registry>,
        sources: Vec<Arc<dyn Source>>,
        follows: Follows,
    ) -> Self {
        let counts = Arc::new(RegionCounts::default());
        let copier = BlobCopier::new(Arc::clone(&registry), Limiter::unlimited(), counts);
        Self {
            model: model.clone(),
            region,
            replicator: Replicator::new(Arc::clone(&registry), copier),
            registry,
            sources,
            follows,
            is_selected: true,
        }
    }

    /// Looks once at everything that is owed. Returns the outcomes.
    pub(super) async fn follow(&self, age: Age) -> Vec<EntryOutcome> {
        let mut outcomes = Vec::new();
        for source in &self.sources {
            let Ok(page) = source.journal(None, 99).await else {
                continue;
            };
            for entry in page.entries {
                let outcome = self.merge(source.region(), &entry, age).await;
                if outcome == EntryOutcome::Done {
                    source.done(vec![entry.id], None).await.expect("no faults");
                }
                outcomes.push(outcome);
            }
        }
        outcomes
    }

    async fn merge(&self, from: &RegionName, entry: &OwedEntry, age: Age) -> EntryOutcome {
        let sources = ordered(&self.sources, from);
        let is_expired = age == Age::Expired;
        let shipped = async || {
            let selects = |_: &FactKey| self.is_selected;
            let rules = EntryRules {
                selects: &selects,
                is_expired,
            };
            let merged = merge_entry(&self.replicator, &sources, entry, rules).await;
            merged.unwrap_or_else(|error| EntryOutcome::Blocked(error.to_string()))
        };
        match self.follows {
            Follows::Shipped => shipped().await,
            Follows::DropsUnreached => match shipped().await {
                EntryOutcome::Unreached => EntryOutcome::Done,
                outcome => outcome,
            },
            Follows::AllOrNothing => {
                if is_expired {
                    return EntryOutcome::Done;
                }
                for (key, seen) in &entry.keys {
                    if self.fact(&sources, key).await.stamp() <= seen.as_ref() {
                        return EntryOutcome::Unreached;
                    }
                }
                shipped().await
            }
            Follows::LeavesOutTombstones if !self.is_selected => EntryOutcome::Done,
            Follows::LeavesOutTombstones | Follows::TrustsTags => shipped().await,
            Follows::EndsAtEvicted => {
                let mut is_evicted = false;
                for (key, _) in &entry.keys {
                    let head = self.fact(&sources, key).await.head;
                    is_evicted |= matches!(head, FactHead::Evicted { .. });
                }
                let outcome = shipped().await;
                match outcome {
                    EntryOutcome::Unreached if is_evicted => EntryOutcome::Done,
                    outcome => outcome,
                }
            }
            Follows::EndsAtOrders => {
                let mut tags = entry.keys.iter().map(|(key, _)| key);
                let is_copied = tags.any(|key| {
                    matches!(key, FactKey::Tag(..)) && self.replicator.has_merged(from, key, None)
                });
                match is_copied {
                    true => EntryOutcome::Done,
                    false => shipped().await,
                }
            }
            Follows::RevivesSilently => {
                for (key, _) in &entry.keys {
                    self.revive_children(&sources, key).await;
                }
                shipped().await
            }
            _ => self.merge_keys(&sources, entry).await,
        }
    }

    /// Copies keys as an order of the first source asks, before their entry is listed.
    pub(super) async fn take(&self, keys: &[FactKey]) {
        for key in keys {
            let fact = self.fact(&self.sources, key).await;
            let taken = self
                .replicator
                .replicate_ahead(&self.sources, key, &fact)
                .await;
            taken.expect("no faults");
        }
    }

    async fn fact(&self, sources: &[Arc<dyn Source>], key: &FactKey) -> Fact {
        let facts = sources[0].facts(core::slice::from_ref(key)).await;
        facts.expect("no faults").remove(0)
    }

    /// Merges the children of an index, and owes them to no region.
    async fn revive_children(&self, sources: &[Arc<dyn Source>], key: &FactKey) {
        let Ok(manifest) = Manifest::parse(&self.fact(sources, key).await.bytes) else {
            return;
        };
        for child in &manifest.manifests {
            let key = FactKey::Manifest(key.repository().clone(), child.digest);
            let fact = self.fact(sources, &key).await;
            let needed = MergeReason::Needed;
            let repository = key.repository();
            let merged =
                self.registry
                    .merge_manifest(repository, &child.digest, &fact, needed, &[]);
            merged.await.expect("no faults");
        }
    }

    /// Merges an entry key by key, with the follower's one mistake.
    async fn merge_keys(&self, sources: &[Arc<dyn Source>], entry: &OwedEntry) -> EntryOutcome {
        let mut outcome = EntryOutcome::Done;
        let mut keys: Vec<_> = entry.keys.iter().collect();
        if self.follows == Follows::TagFirst {
            keys.reverse();
        }
        for (key, seen) in keys {
            let fact = self.fact(sources, key).await;
            let is_reached = if self.follows == Follows::ComparesClocks {
                fact.stamp()
                    .is_some_and(|stamp| stamp.clock >= entry.id.created)
            } else {
                fact.stamp() > seen.as_ref()
            };
            if !is_reached {
                outcome = EntryOutcome::Unreached;
                continue;
            }
            if let Some(blocked) = self.merge_key(sources, key, &fact).await {
                outcome = blocked;
            }
        }
        outcome
    }

    async fn merge_key(
        &self,
        sources: &[Arc<dyn Source>],
        key: &FactKey,
        fact: &Fact,
    ) -> Option<EntryOutcome> {
        if let (FactKey::Tag(repository, tag), FactHead::Tag { stamp, digest }) = (key, &fact.head)
        {
            match self.follows {
                Follows::Overwrites | Follows::MergesAhead => {
                    self.overwrite(key, fact).await;
                    return None;
                }
                Follows::TagFirst | Follows::WithoutBlobs => {
                    let merged = self.registry.merge_tag(repository, tag, stamp, *digest);
                    merged.await.expect("no faults");
                    if self.follows == Follows::WithoutBlobs {
                        return None;
                    }
                }
                Follows::BlocksOnBroken => {
                    let digest = (*digest)?;
                    let named = FactKey::Manifest(repository.clone(), digest);
                    let named = self.fact(sources, &named).await;
                    if !matches!(named.head, FactHead::Manifest { .. }) {
                        return Some(EntryOutcome::Blocked("its manifest is deleted".to_owned()));
                    }
                }
                _ => {}
            }
        }
        if let FactKey::Manifest(repository, digest) = key
            && self.follows == Follows::WithoutBlobs
        {
            let needed = MergeReason::Needed;
            let merged = self
                .registry
                .merge_manifest(repository, digest, fact, needed, &[]);
            merged.await.expect("no faults");
            return None;
        }
        if let FactKey::Manifest(repository, digest) = key
            && self.follows == Follows::BuriesReplicated
        {
            self.merge_and_check(repository, digest, fact).await;
            return None;
        }
        let needed = MergeReason::Needed;
        let replicated = self.replicator.replicate(sources, key, fact, needed).await;
        match replicated.expect("no faults") {
            Replicated::Merged | Replicated::MergedBroken => None,
            Replicated::Blocked(reason) => Some(EntryOutcome::Blocked(reason)),
            Replicated::Ahead(by) => Some(EntryOutcome::Ahead(by)),
        }
    }

    /// Merges a manifest whose blobs are here, checks them again as a push does, and deletes the
    /// manifest if one has died.
    async fn merge_and_check(&self, repository: &RepositoryName, digest: &Digest, fact: &Fact) {
        let needed = MergeReason::Needed;
        let merged = self
            .registry
            .merge_manifest(repository, digest, fact, needed, &[]);
        merged.await.expect("no faults");
        let manifest = Manifest::parse(&fact.bytes).expect("a manifest");
        for blob in manifest.blobs() {
            let found = self.registry.blob(repository, &blob.digest, Need::LiveNow);
            if found.await.expect("no faults").is_none() {
                let rules = owed_to(&[Region::A]);
                let reference = Reference::Digest(*digest);
                let deleted = self
                    .registry
                    .delete_manifest(repository, &reference, &rules);
                deleted.await.expect("no faults");
            }
        }
    }

    /// Writes the tag of a source, whatever is here.
    async fn overwrite(&self, key: &FactKey, fact: &Fact) {
        let FactHead::Tag { stamp, digest } = &fact.head else {
            return;
        };
        let storage = self.region.storage(&self.model);
        let key = layout::fact(key);
        let pointer = Pointer {
            stamp: stamp.clone(),
            turn: 0,
            value: digest.map(|digest| TagValue { digest }),
            nonce: nonce(),
        };
        let body = bytes::Bytes::from(pointer.body(&key).expect("a body"));
        let present = storage.read(&key).await.expect("no faults");
        let _ = match present {
            Some(object) => storage.swap(&key, &object.version, body).await,
            None => storage.create(&key, body).await,
        };
    }
}

impl Follower {
    /// Whether a key has the stamp of the source here.
    async fn has(&self, key: &FactKey, fact: &Fact) -> bool {
        let own = self.registry.fact(key).await.expect("no faults");
        own.stamp() >= fact.stamp()
    }

    /// Merges all keys of the sources, tombstones too.
    pub(super) async fn sweep(&self) {
        for source in &self.sources {
            let sources = ordered(&self.sources, source.region());
            for kind in [FactKind::Manifests, FactKind::Tags] {
                let page = source.keys(kind, None, 99).await.expect("no faults");
                for key in page.keys {
                    let fact = self.fact(&sources, &key).await;
                    if self.follows == Follows::TrustsTags && self.has(&key, &fact).await {
                        continue;
                    }
                    let sweep = MergeReason::Sweep;
                    let merged = self.replicator.replicate(&sources, &key, &fact, sweep);
                    merged.await.expect("no faults");
                }
            }
        }
    }
}

/// [`settle`], as the step of a scenario between its actors and its check.
pub(super) fn settling(
    model: &ModelStorage,
    regions: &'static [Region],
    follows: Follows,
) -> Option<Settle> {
    let model = model.clone();
    Some(Box::pin(async move {
        settle(&model, regions, follows).await;
        Ok(())
    }))
}

/// Follows in all directions until nothing can be in flight any more, through new replicas.
pub(super) async fn settle(model: &ModelStorage, regions: &[Region], follows: Follows) {
    let mut followers = Vec::new();
    for region in regions {
        let others = regions.iter().filter(|other| *other != region);
        let others: Vec<Region> = others.copied().collect();
        followers.push(Follower::new(model, *region, &others, follows).await);
    }
    for age in [Age::Young, Age::Young, Age::Expired] {
        for follower in &followers {
            follower.follow(age).await;
        }
    }
}

//! Copies that requests of clients and of other regions ask for, beside the followers.

use std::sync::{Arc, PoisonError};

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{Fact, FactKey, MAX_FACTS};

use super::push_copies::Copied;
use super::regional::Regional;
use super::replicate::{Replicated, Replicator, ordered};
use super::source::{Source, one_fact, readable_facts};
use super::take::{TakeOrder, TakeOrders};

/// Copies that reads have asked for and that run at once; more reads start none.
const MAX_COPIES: usize = 32;

/// Something that a read found in another region.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CopyJob {
    Key(FactKey),
    Blob(RepositoryName, Digest),
    /// A blob whose data is missing in the own storage.
    LostBlob(RepositoryName, Digest),
}

impl Regional {
    /// Brings something from a region in the background, unless that is under way, or too much is.
    pub(crate) fn copy_behind(self: &Arc<Self>, region: &RegionName, job: CopyJob) {
        {
            let mut copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
            if copying.len() >= MAX_COPIES || !copying.insert(job.clone()) {
                return;
            }
        }
        let (regional, region) = (Arc::clone(self), region.clone());
        self.shutdown.spawn(async move {
            let stop = regional.shutdown.clone();
            tokio::select! {
                () = stop.wait() => {}
                result = regional.copy(&region, &job) => if let Err(error) = result {
                    tracing::debug!(%region, error, "a copy behind a read failed");
                }
            }
            let mut copying = regional
                .copying
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            copying.remove(&job);
            drop(copying);
            if let CopyJob::Blob(_, digest) | CopyJob::LostBlob(_, digest) = job {
                regional.foreign_streams().copy_ended(&digest);
            }
        });
    }

    /// Copies a blob anew whose data is missing in the own storage, at most once in a while: another
    /// region serves it meanwhile.
    pub(crate) fn replace_lost(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest) {
        let others = self.routes.load().usable_others();
        let Some(other) = others.first() else {
            return;
        };
        let entry = self.replaced.entry(*digest);
        if entry.or_insert(()).is_fresh() {
            let job = CopyJob::LostBlob(repository.clone(), *digest);
            self.copy_behind(other.region(), job);
        }
    }

    async fn copy(&self, region: &RegionName, job: &CopyJob) -> Result<(), String> {
        match job {
            CopyJob::Key(key) => self.bring(region, key).await.map(drop),
            CopyJob::Blob(repository, digest) => {
                let policy = self.members.policy();
                if !policy.policy().is_replicated_here(self.own(), repository) {
                    return Ok(());
                }
                let sources = ordered(&self.routes.load().others, region);
                let brought = self.replicator.bring_blob(&sources, repository, digest);
                brought.await.map_err(|error| error.to_string())
            }
            CopyJob::LostBlob(repository, digest) => {
                let sources = ordered(&self.routes.load().others, region);
                let replaced = self
                    .replicator
                    .replace_lost_blob(&sources, repository, digest);
                replaced.await.map_err(|error| error.to_string())
            }
        }
    }

    /// Brings a key from a region. Returns once it is merged, or says why it is not.
    pub(crate) async fn bring(&self, region: &RegionName, key: &FactKey) -> Result<bool, String> {
        let sources = ordered(&self.routes.load().others, region);
        let Some(source) = sources.first().filter(|source| source.region() == region) else {
            return Err(format!("the policy has no region {region}"));
        };
        if !(self.members.policy().selects())(key) {
            return Ok(false);
        }
        let fact = one_fact(&**source, key)
            .await
            .map_err(|error| error.to_string())?;
        merge_ahead(&self.replicator, &sources, key, &fact).await
    }

    /// Brings keys of an order from the first of `sources`, whose values are asked for together.
    /// Returns whether all are merged.
    async fn bring_ordered(
        &self,
        replicator: &Replicator,
        sources: &[Arc<dyn Source>],
        keys: &[FactKey],
    ) -> bool {
        let Some(source) = sources.first() else {
            return false;
        };
        let region = source.region();
        let selects = self.members.policy().selects();
        let selected = keys.iter().filter(|key| selects(key)).cloned();
        let selected: Vec<FactKey> = selected.collect();
        let mut is_merged = selected.len() == keys.len();
        let mut rest = &selected[..];
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(MAX_FACTS)];
            let facts = match readable_facts(&**source, batch).await {
                Ok(facts) => facts,
                Err(error) => {
                    tracing::debug!(%region, %error, "keys that a region asked to copy are not merged");
                    return false;
                }
            };
            let answered = facts.len().min(batch.len());
            for (key, fact) in batch.iter().zip(facts) {
                let merged = match fact {
                    Ok(fact) => merge_ahead(replicator, sources, key, &fact).await,
                    Err(error) => Err(error.to_string()),
                };
                match merged {
                    Ok(merged) => is_merged &= merged,
                    Err(reason) => {
                        tracing::debug!(%region, reason, "a key that a region asked to copy is not merged");
                        is_merged = false;
                    }
                }
            }
            rest = &rest[answered..];
        }
        is_merged
    }

    /// Copies what other regions ask for, a few orders at once.
    pub(super) async fn take_all(self: Arc<Self>, mut orders: TakeOrders) {
        let permits = Arc::new(tokio::sync::Semaphore::new(MAX_COPIES));
        loop {
            let order = tokio::select! {
                () = self.shutdown.wait() => return,
                order = orders.next() => order,
            };
            let (Some(order), Ok(permit)) = (order, Arc::clone(&permits).acquire_owned().await)
            else {
                return;
            };
            let regional = Arc::clone(&self);
            self.shutdown.spawn(async move {
                let _permit = permit;
                regional.take(order).await;
            });
        }
    }

    async fn take(&self, order: TakeOrder) {
        let sources = ordered(&self.routes.load().others, &order.from);
        let policy = self.members.policy();
        for (repository, digest) in &order.blobs {
            if !policy.policy().is_replicated_here(self.own(), repository) {
                continue;
            }
            let brought = self.replicator.bring_blob(&sources, repository, digest);
            if let Err(error) = brought.await {
                tracing::debug!(region = %order.from, %error, "a blob that a region announced is not copied yet");
            }
        }
        let is_awaited = order.is_awaited();
        if is_awaited {
            order.expect_bytes(bytes_to_copy(&sources, &order.keys).await);
        }
        let replicator = match is_awaited {
            true => self.replicator.awaited(),
            false => Replicator::clone(&self.replicator),
        };
        let is_known = sources
            .first()
            .is_some_and(|source| *source.region() == order.from);
        let is_merged = is_known && self.bring_ordered(&replicator, &sources, &order.keys).await;
        order.finish(is_merged);
    }

    /// Brings what a manifest references. `false` if something of it is in no region. The copy goes
    /// on if the caller is dropped; it is one for all callers with the same manifest.
    ///
    /// # Errors
    /// A region that may have something does not answer, this region's storage failed, or too many
    /// manifests wait for copies.
    pub(crate) async fn bring_references(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
        manifest: Manifest,
    ) -> Copied {
        let Some((running, begun)) = self.push_copies.join(repository, digest) else {
            return Err("too many pushes wait for copies".to_owned());
        };
        if let Some(copy) = begun {
            let (regional, repository) = (Arc::clone(self), repository.clone());
            self.shutdown.spawn(async move {
                let copied = regional.copy_references(&repository, &manifest);
                let copied = tokio::select! {
                    () = regional.shutdown.wait() => Err("this replica is stopping".to_owned()),
                    copied = copied => copied,
                };
                copy.finish(copied);
            });
        }
        running.outcome().await
    }

    async fn copy_references(&self, repository: &RepositoryName, manifest: &Manifest) -> Copied {
        let routes = self.routes();
        // A region that is away must not leave a push undecided for days. But a client whose
        // requests were forwarded knows from another region that it need not send a blob.
        let sources = if self.has_forwarded_lately() {
            routes.others.clone()
        } else {
            routes.usable_others()
        };
        let replicator = self.replicator.awaited();
        let brought = replicator
            .bring_references(&sources, repository, manifest)
            .await
            .map_err(|error| error.to_string())?;
        match brought {
            Replicated::Merged => Ok(true),
            Replicated::MergedBroken => Ok(false),
            Replicated::Blocked(reason) => Err(reason),
            Replicated::Ahead(by) => Err(format!("a stamp is {} s ahead", by.as_secs())),
        }
    }
}

/// Merges a key that a region asked to copy, or a client waits for.
async fn merge_ahead(
    replicator: &Replicator,
    sources: &[Arc<dyn Source>],
    key: &FactKey,
    fact: &Fact,
) -> Result<bool, String> {
    let replicated = replicator.replicate_ahead(sources, key, fact).await;
    match replicated.map_err(|error| error.to_string())? {
        Replicated::Merged | Replicated::MergedBroken => Ok(true),
        Replicated::Blocked(reason) => Err(reason),
        Replicated::Ahead(by) => Err(format!("its stamp is {} s ahead", by.as_secs())),
    }
}

/// The sum of the blobs that the manifests among the keys name.
async fn bytes_to_copy(sources: &[Arc<dyn Source>], keys: &[FactKey]) -> u64 {
    let Some(source) = sources.first() else {
        return 0;
    };
    let mut bytes: u64 = 0;
    for key in keys {
        if matches!(key, FactKey::Manifest(..))
            && let Ok(fact) = one_fact(&**source, key).await
            && let Ok(manifest) = Manifest::parse(&fact.bytes)
        {
            bytes = bytes.saturating_add(manifest.stated_bytes());
        }
    }
    bytes
}

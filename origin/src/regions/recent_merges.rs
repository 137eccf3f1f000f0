//! Which keys of other regions were merged a moment ago, because a region asked for it or a client
//! waited: the journal entry of such a key follows, and asks no more about it.
//!
//! An entry's key is reached once its stamp at the source is above the one that the entry's writer
//! saw. Stamps of a key only grow, so a value that was above it when it was merged still is.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{Fact, FactHead, FactKey};

/// Keys that are remembered: those of the orders that fit into a few queues.
const MAX_KEYS: u64 = 10_000;
/// How long: a follower lists its journal more often.
const FOR: Duration = Duration::from_mins(1);

/// Keys with the region and the stamp of their merged value. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct RecentMerges(moka::sync::Cache<(RegionName, FactKey), Arc<Stamp>>);

impl RecentMerges {
    pub(super) fn new() -> Self {
        let merges = moka::sync::Cache::builder()
            .max_capacity(MAX_KEYS)
            .time_to_live(FOR)
            .build();
        Self(merges)
    }

    /// Takes note that the value of a key of a region was merged, and everything that it names. An
    /// evicted manifest ends no entry, so it is left out.
    pub(super) fn note(&self, region: &RegionName, key: &FactKey, fact: &Fact) {
        if let Some(stamp) = fact.stamp()
            && !matches!(fact.head, FactHead::Evicted { .. })
        {
            let merged = (region.clone(), key.clone());
            self.0.insert(merged, Arc::new(stamp.clone()));
        }
    }

    /// Whether a value of a key of a region was merged that is above the stamp which the writer of
    /// an entry saw.
    pub(super) fn is_reached(
        &self,
        region: &RegionName,
        key: &FactKey,
        seen: Option<&Stamp>,
    ) -> bool {
        let merged = self.0.get(&(region.clone(), key.clone()));
        merged.is_some_and(|stamp| Some(&*stamp) > seen)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use core::sync::atomic::Ordering;

    use flotilla_common::digest::Digest;

    use super::super::entry::{EntryOutcome, EntryRules, merge_entry};
    use super::super::replicate::Replicated;
    use super::super::source::{Source, one_fact};
    use super::super::test_regions::{TestRegion, index_of, repository, tag_key};

    /// The entry of a push that was copied for an order asks the source nothing. That of the next
    /// push does.
    #[tokio::test]
    async fn entries_of_copied_pushes_need_no_question() {
        let (eu, us) = (
            TestRegion::start("eu-1").await,
            TestRegion::start("us-1").await,
        );
        let source = eu.source_of(&us);
        let asked = || source.faults.fact_calls.load(Ordering::Relaxed);
        let sources = [std::sync::Arc::clone(&source) as std::sync::Arc<dyn Source>];
        let replicator = us.replicator();
        let rules = EntryRules {
            selects: &|_| true,
            is_expired: false,
        };
        let first = index_of(&[]);
        let second = index_of(&[&first]);
        for (number, manifest) in [first, second].iter().enumerate() {
            eu.push(manifest, &["v1"], &[&us]).await;
            let page = source.journal(None, 9).await.unwrap();
            let is_taken = number == 0;
            if is_taken {
                let digest = Digest::sha256(manifest);
                let manifest = super::FactKey::Manifest(repository(), digest);
                for key in [manifest, tag_key("v1")] {
                    let fact = one_fact(&*source, &key).await.unwrap();
                    let taken = replicator.replicate_ahead(&sources, &key, &fact).await;
                    assert_eq!(taken.unwrap(), Replicated::Merged);
                }
            }
            let before = asked();
            let entry = page.entries.last().unwrap();
            let outcome = merge_entry(&replicator, &sources, entry, rules).await;
            assert_eq!(outcome.unwrap(), EntryOutcome::Done);
            assert_eq!(asked() == before, is_taken, "push {number}");
            let (here, there) = (
                us.registry.fact(&tag_key("v1")).await.unwrap(),
                eu.registry.fact(&tag_key("v1")).await.unwrap(),
            );
            assert_eq!(here, there);
        }
    }
}

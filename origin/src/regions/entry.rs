//! Merges the keys of one journal entry.
//!
//! A key is merged as soon as its stamp at the source is above the one that the entry's writer saw:
//! then this write or a later one has applied. Until then the write may still be in flight, or it
//! never happened. A manifest that the source has evicted is not reached either. The entry is done
//! when all keys are merged; after the horizon, when no write can be in flight any more, it is done
//! when those that were reached are.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{Fact, FactHead, FactKey, MAX_FACTS, OwedEntry};

use super::replicate::{Replicated, Replicator};
use super::source::{Source, SourceError, readable_facts};
use super::walk::{OnBroken, Walk};
use crate::registry::{MergeReason, RegistryError};

/// What came of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryOutcome {
    /// All is merged: the source may drop the entry.
    Done,
    /// A key is not written yet.
    Unreached,
    /// A stamp is ahead of this replica's clock by this much.
    Ahead(Duration),
    /// What a key names may be in a region that did not answer.
    Blocked(String),
}

/// Why an entry could not be looked at.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EntryError {
    /// The other region did not answer.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// This region's storage failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Whether this region's policy selects the repository of a key.
pub(crate) type Selects<'a> = &'a (dyn Fn(&FactKey) -> bool + Send + Sync);

/// How an entry is merged.
#[derive(Clone, Copy)]
pub(crate) struct EntryRules<'a> {
    pub(crate) selects: Selects<'a>,
    /// Whether the entry is older than the horizon, so that no write can be in flight.
    pub(crate) is_expired: bool,
}

/// Merges what is reached of an entry of the first of `sources`.
///
/// # Errors
/// [`EntryError`]; keys that were merged before it stay merged.
pub(crate) async fn merge_entry(
    replicator: &Replicator,
    sources: &[Arc<dyn Source>],
    entry: &OwedEntry,
    rules: EntryRules<'_>,
) -> Result<EntryOutcome, EntryError> {
    let Some(source) = sources.first() else {
        return Ok(EntryOutcome::Unreached);
    };
    let unmerged = entry
        .keys
        .iter()
        .filter(|(key, seen)| !replicator.has_merged(source.region(), key, seen.as_ref()));
    let unmerged: Vec<_> = unmerged.collect();
    let mut walk: Option<Walk<'_>> = None;
    let mut outcome = EntryOutcome::Done;
    let mut failure = None;
    let mut at = 0;
    while at < unmerged.len() {
        let batch = &unmerged[at..(at + MAX_FACTS).min(unmerged.len())];
        let keys: Vec<FactKey> = batch.iter().map(|(key, _)| key.clone()).collect();
        let facts = readable_facts(&**source, &keys).await?;
        at += facts.len().min(batch.len());
        for ((key, seen), fact) in batch.iter().zip(facts) {
            let fact = match fact {
                Ok(fact) => fact,
                Err(error) => {
                    outcome = EntryOutcome::Blocked(error.to_string());
                    continue;
                }
            };
            if !is_reached(&fact, seen.as_ref()) {
                if !rules.is_expired && outcome == EntryOutcome::Done {
                    outcome = EntryOutcome::Unreached;
                }
                continue;
            }
            // All keys of a change are of one repository.
            let walk = match &mut walk {
                Some(walk) if walk.repository == key.repository() => walk,
                walk => walk.insert(Walk::new(sources, key.repository(), OnBroken::Continue)),
            };
            match merge_key(replicator, walk, key, &fact, rules).await {
                Ok(Replicated::Merged) => {}
                Ok(Replicated::MergedBroken) => replicator.counts().broken_closure(),
                Ok(Replicated::Blocked(reason)) => outcome = EntryOutcome::Blocked(reason),
                Ok(Replicated::Ahead(by)) => {
                    if !matches!(outcome, EntryOutcome::Blocked(_)) {
                        outcome = EntryOutcome::Ahead(by);
                    }
                }
                // The other keys are merged nevertheless.
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(outcome),
    }
}

/// Merges a key that is reached, unless the policy leaves it out.
async fn merge_key(
    replicator: &Replicator,
    walk: &mut Walk<'_>,
    key: &FactKey,
    fact: &Fact,
    rules: EntryRules<'_>,
) -> Result<Replicated, RegistryError> {
    let is_kept =
        (rules.selects)(key) || (is_tombstone(fact) && replicator.registry.has_fact(key).await?);
    if !is_kept {
        return Ok(Replicated::Merged);
    }
    replicator
        .replicate_in(walk, key, fact, MergeReason::Needed)
        .await
}

/// Whether the write of an entry, or a later one, has applied.
///
/// An evicted manifest is not reached, although it has the stamp of a write: a push whose
/// references were missing for a moment comes back with the same stamp.
fn is_reached(fact: &Fact, seen: Option<&Stamp>) -> bool {
    !matches!(fact.head, FactHead::Evicted { .. }) && fact.stamp() > seen
}

const fn is_tombstone(fact: &Fact) -> bool {
    matches!(
        fact.head,
        FactHead::DeletedManifest { .. } | FactHead::Tag { digest: None, .. }
    )
}

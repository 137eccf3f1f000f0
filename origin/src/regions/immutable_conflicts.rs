//! Counts first pushes of an immutable tag that were replaced here.
//!
//! Two regions that cannot reach each other may both accept a first push of an immutable tag. The
//! later one wins everywhere, so an image that some client has seen under the tag is replaced. That
//! is told by the entry of the later push: its writer saw an older value of the tag than the one
//! here, or none.

use flotilla_common::digest::Digest;
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{FactHead, FactKey, OwedEntry};

use super::members::RegionPolicy;
use crate::registry::Registry;

/// A live value of an immutable tag.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    stamp: Stamp,
    digest: Digest,
}

/// Values of immutable tags before an entry is merged that the entry's writer did not know.
#[derive(Debug, Default)]
pub(super) struct UnseenValues(Vec<(FactKey, Value)>);

impl UnseenValues {
    /// Reads the tags of an entry. What storage does not tell is left out: this only counts.
    pub(super) async fn read(
        registry: &Registry,
        policy: &RegionPolicy,
        entry: &OwedEntry,
    ) -> Self {
        let mut unseen = Vec::new();
        for (key, seen) in &entry.keys {
            if policy.is_immutable(key)
                && let Some(value) = value_of(registry, key).await
                && seen.as_ref() < Some(&value.stamp)
            {
                unseen.push((key.clone(), value));
            }
        }
        Self(unseen)
    }

    /// How many of the values were replaced by another digest since.
    pub(super) async fn replaced(self, registry: &Registry) -> u64 {
        let mut replaced = 0;
        for (key, before) in self.0 {
            let after = value_of(registry, &key).await;
            replaced += u64::from(after.is_some_and(|after| is_replaced(&before, &after)));
        }
        replaced
    }
}

fn is_replaced(before: &Value, after: &Value) -> bool {
    after.stamp > before.stamp && after.digest != before.digest
}

async fn value_of(registry: &Registry, key: &FactKey) -> Option<Value> {
    match registry.fact(key).await.ok()?.head {
        FactHead::Tag {
            stamp,
            digest: Some(digest),
        } => Some(Value { stamp, digest }),
        _ => None,
    }
}

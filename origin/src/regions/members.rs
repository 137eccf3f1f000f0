//! The other regions of the policy, and how to reach them. Follows the policy as it changes.

use std::sync::{Arc, Mutex, PoisonError};

use flotilla_common::name::RegionName;
use flotilla_common::wire::region::FactKey;
use tokio::sync::watch;

use super::source::Source;
use crate::policy::{LivePolicy, Policy, Region};
use crate::record::Selection;

/// Connects to a region.
pub(crate) type Connect = Box<dyn Fn(&Region) -> Arc<dyn Source> + Send + Sync>;

/// The policy as one region reads it.
#[derive(Clone, Debug)]
pub(crate) struct RegionPolicy {
    own: RegionName,
    policy: Arc<Policy>,
}

impl RegionPolicy {
    pub(crate) const fn new(own: RegionName, policy: Arc<Policy>) -> Self {
        Self { own, policy }
    }

    /// Whether this region keeps the repository of a key.
    pub(crate) fn selects(&self) -> Box<dyn Fn(&FactKey) -> bool + Send + Sync> {
        let Self { own, policy } = self.clone();
        Box::new(move |key| policy.is_replicated_here(&own, key.repository()))
    }

    /// Whether a key is a tag that keeps the digest that it was first given.
    pub(crate) fn is_immutable(&self, key: &FactKey) -> bool {
        match key {
            FactKey::Tag(repository, tag) => self.policy.rule_for(repository).is_immutable(tag),
            FactKey::Manifest(..) => false,
        }
    }

    /// What a sweep depends on.
    pub(crate) fn selection(&self) -> Selection {
        let regions = self.policy.regions().iter();
        let mut regions: Vec<RegionName> = regions.map(|region| region.name.clone()).collect();
        regions.sort_unstable();
        Selection {
            repositories: self.policy.selection_hash(&self.own),
            regions,
        }
    }

    pub(crate) const fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }
}

/// The other regions.
pub(crate) struct Members {
    own: RegionName,
    live: LivePolicy,
    connect: Connect,
    /// Connections, kept while a region's entry in the policy stays the same.
    connected: Mutex<Vec<(Region, Arc<dyn Source>)>>,
}

impl core::fmt::Debug for Members {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Members")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Members {
    pub(crate) fn new(own: RegionName, live: LivePolicy, connect: Connect) -> Self {
        Self {
            own,
            live,
            connect,
            connected: Mutex::default(),
        }
    }

    /// The policy as it is now.
    pub(crate) fn policy(&self) -> RegionPolicy {
        RegionPolicy::new(self.own.clone(), self.live.current())
    }

    /// Notifies of changes of the policy.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Policy>> {
        self.live.subscribe()
    }

    /// All other regions, in the order of the policy.
    pub(crate) fn sources(&self) -> Vec<Arc<dyn Source>> {
        let policy = self.live.current();
        let mut connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = core::mem::take(&mut *connected);
        for region in policy.others(&self.own) {
            let known = before.iter().find(|(known, _)| known == region);
            let source =
                known.map_or_else(|| (self.connect)(region), |(_, source)| Arc::clone(source));
            connected.push((region.clone(), source));
        }
        connected
            .iter()
            .map(|(_, source)| Arc::clone(source))
            .collect()
    }

    /// Returns once the policy no longer lists the region of a source, or lists another address of
    /// it.
    pub(crate) async fn left(&self, source: &Arc<dyn Source>) {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let sources = self.sources();
            if !sources.iter().any(|known| Arc::ptr_eq(known, source)) {
                return;
            }
            if changes.changed().await.is_err() {
                return core::future::pending().await;
            }
        }
    }
}

//! The own storage and the other regions, as sources of one failover machine.

use std::sync::Arc;

use arc_swap::ArcSwap;
use flotilla_common::failover::{Failover, FailoverConfig, SourceId, Standing};
use flotilla_common::name::RegionName;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::failover::Sources;
use flotilla_runtime::shutdown::Shutdown;

use super::source::Source;

/// The source of the failover machine that is this region's own storage.
pub(crate) const OWN: SourceId = SourceId(0);

/// The routes as they are now.
pub(crate) type LiveRoutes = Arc<ArcSwap<Routes>>;

/// The own storage and the other regions, as sources of one failover machine. Replaced when the
/// regions of the policy change.
#[derive(Debug)]
pub(crate) struct Routes {
    /// [`OWN`], then the other regions in the order of the policy.
    pub(crate) failover: Sources,
    pub(crate) others: Vec<Arc<dyn Source>>,
    pub(super) stop: Shutdown,
}

impl Routes {
    /// The other region that is a source of the failover machine.
    pub(crate) fn other(&self, source: SourceId) -> Option<&Arc<dyn Source>> {
        self.others.get((source.0 as usize).checked_sub(1)?)
    }

    /// The source of the failover machine that is another region.
    pub(crate) fn id_of(&self, region: &RegionName) -> Option<SourceId> {
        let mut others = (OWN.0 + 1..).zip(&self.others);
        let (id, _) = others.find(|(_, source)| source.region() == region)?;
        Some(SourceId(id))
    }

    /// How far this replica uses its own storage.
    pub(crate) fn own_standing(&self) -> Standing {
        self.failover.standing(OWN)
    }

    /// Whether the own storage is out, or returns in steps.
    pub(crate) fn is_own_out(&self) -> bool {
        matches!(
            self.own_standing(),
            Standing::Out | Standing::Returning { .. }
        )
    }

    /// Whether another region is out, as far as is known.
    pub(crate) fn is_other_out(&self, region: &RegionName) -> bool {
        let id = self.id_of(region);
        id.is_some_and(|id| self.failover.standing(id) == Standing::Out)
    }

    /// Makes a call to another region; a failed or slow one makes the machine probe the region.
    /// One that is no longer in the policy is not probed.
    ///
    /// # Errors
    /// Those of the call.
    pub(crate) async fn observe<T, E>(
        &self,
        region: &RegionName,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match self.id_of(region) {
            Some(id) => self.failover.observe(id, call).await,
            None => call.await,
        }
    }

    /// The other regions that `is_meant` names, in the order of the policy.
    pub(crate) fn others_where(
        &self,
        is_meant: impl Fn(&RegionName) -> bool,
    ) -> Vec<Arc<dyn Source>> {
        let others = self.others.iter();
        others
            .filter(|source| is_meant(source.region()))
            .map(Arc::clone)
            .collect()
    }

    /// Another region, if it answers, as far as is known.
    pub(crate) fn usable(&self, region: &RegionName) -> Option<Arc<dyn Source>> {
        let id = self.id_of(region)?;
        let is_usable = self.failover.standing(id) != Standing::Out;
        self.other(id).filter(|_| is_usable).map(Arc::clone)
    }

    /// The other regions that answer, as far as is known, in the order of the policy.
    pub(crate) fn usable_others(&self) -> Vec<Arc<dyn Source>> {
        // One look at the machine: [`OWN`] first, then the others.
        let standings = self.failover.read_status(|status| status.standing);
        let others = self.others.iter().zip(standings.into_iter().skip(1));
        others
            .filter(|(_, standing)| *standing != Standing::Out)
            .map(|(source, _)| Arc::clone(source))
            .collect()
    }
}

/// A single region.
pub(crate) fn no_routes(clock: Clock) -> Routes {
    let machine = Failover::new(FailoverConfig::default(), &[0], 0);
    let names = vec!["the storage of this region".to_owned()];
    Routes {
        failover: Sources::new(machine, names, clock),
        others: Vec::new(),
        stop: Shutdown::new(),
    }
}

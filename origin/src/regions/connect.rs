//! Connects to the other regions of the policy: probes them and the own storage, follows them, and
//! notes each outage of the own storage.

use std::sync::{Arc, PoisonError};

use flotilla_common::failover::{Failover, FailoverConfig, SourceId};
use flotilla_common::wire::region::StorageStanding;
use flotilla_runtime::failover::Sources;

use super::follower::Follower;
use super::lease::Lease;
use super::regional::Regional;
use super::routes::{Routes, no_routes};
use super::sweep::Sweeper;

impl Regional {
    /// Connects to the regions of the policy, as it is now.
    pub(super) fn connect(self: &Arc<Self>) {
        let others = self.members.sources();
        let before = self.routes.load_full();
        let is_same = others.len() == before.others.len()
            && others
                .iter()
                .zip(&before.others)
                .all(|(now, before)| Arc::ptr_eq(now, before));
        if is_same && !others.is_empty() {
            return;
        }
        before.stop.trigger();
        if others.is_empty() {
            self.routes.store(Arc::new(no_routes(self.clock)));
            return;
        }
        let regions: Vec<u32> = (0..=others.len() as u32).collect();
        let machine = Failover::new(FailoverConfig::of_origins(), &regions, rand::random());
        let names = core::iter::once("the storage of this region".to_owned())
            .chain(
                others
                    .iter()
                    .map(|other| format!("region {}", other.region())),
            )
            .collect();
        let routes = Arc::new(Routes {
            failover: Sources::new(machine, names, self.clock),
            others,
            stop: self.shutdown.child(),
        });
        self.routes.store(Arc::clone(&routes));
        self.spawn_probes(&routes);
        self.spawn_followers(&routes, &before);
        self.watch_outages(routes);
    }

    fn spawn_probes(self: &Arc<Self>, routes: &Arc<Routes>) {
        let failover = routes.failover.clone();
        let (regional, routes) = (Arc::clone(self), Arc::clone(routes));
        let stop = routes.stop.clone();
        self.shutdown.spawn(async move {
            let probe = |source: SourceId| {
                let (regional, routes) = (Arc::clone(&regional), Arc::clone(&routes));
                async move { regional.probe(&routes, source).await }
            };
            failover.run_probes(probe, stop).await;
        });
    }

    /// Whether a source can serve.
    async fn probe(&self, routes: &Routes, source: SourceId) -> Result<(), String> {
        let Some(other) = routes.other(source) else {
            let probed = self.registry.probe_storage().await;
            return probed.map_err(|error| error.to_string());
        };
        let state = other.state().await.map_err(|error| error.to_string())?;
        match state.standing {
            StorageStanding::Usable => Ok(()),
            StorageStanding::Out => Err("its storage is out".to_owned()),
        }
    }

    fn spawn_followers(self: &Arc<Self>, routes: &Routes, before: &Routes) {
        for source in &routes.others {
            if before.others.iter().any(|known| Arc::ptr_eq(known, source)) {
                continue;
            }
            let region = source.region();
            let sweeper = Sweeper::new(
                Arc::clone(&self.replicator),
                Arc::clone(&self.members),
                region,
                self.config.sweeps,
            );
            let follower = Follower::new(
                Arc::clone(&self.replicator),
                Arc::clone(&self.members),
                Arc::clone(&self.routes),
                Arc::clone(source),
                sweeper,
                self.config.horizon,
            );
            let storage = Arc::clone(self.registry.storage());
            let lease = Lease::new(storage, self.clock, &format!("follow-{region}"));
            let stop = self.shutdown.clone();
            self.shutdown.spawn(follower.run(lease, stop));
        }
    }

    /// From each outage of the own storage on, tags count as owed for a while.
    fn watch_outages(self: &Arc<Self>, routes: Arc<Routes>) {
        let regional = Arc::clone(self);
        let mut changes = routes.failover.changes();
        self.shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = routes.stop.wait() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                if routes.is_own_out() {
                    let now = regional.clock.now();
                    regional.freshest.begin(now, regional.registry.unix_nanos());
                    let last = regional.last_out.lock();
                    *last.unwrap_or_else(PoisonError::into_inner) = Some(now);
                }
            }
        });
    }
}

//! Several regions in one process: each with its own storage, all with certificates of one
//! authority and one policy.

use std::path::PathBuf;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_origin::storage::{self, Prefix, Storage};
use flotilla_origin::{Config, Origin};
use flotilla_runtime::identity::Identity;

pub(crate) use super::network::NAMES;
use super::network::Network;
use crate::faulty_storage::{Faults, FaultyStorage};
use crate::servers::Gate;
use crate::support::{Registry, config, start_replicas_on};

/// One region.
pub(crate) struct RegionSite {
    pub(crate) name: RegionName,
    /// Its replicas, which list each other.
    pub(crate) origins: Vec<Origin>,
    /// The faults of its storage.
    pub(crate) faults: Faults,
    /// The faults of each replica's own path to the storage.
    replica_faults: Vec<Faults>,
    /// Its storage, without faults.
    pub(crate) storage: Arc<dyn Storage>,
}

/// Regions that list each other in their policies.
pub(crate) struct Regions {
    pub(crate) sites: Vec<RegionSite>,
    network: Network,
}

impl Regions {
    /// Starts `count` regions of one replica each, on storages in memory. `adjust` gets the number
    /// of the region.
    pub(crate) async fn start(count: usize, adjust: impl Fn(usize, &mut Config)) -> Self {
        Self::start_with(count, 1, "", adjust).await
    }

    /// The same with several replicas each, and with rules of the policy (`[[repository]]`).
    pub(crate) async fn start_with(
        count: usize,
        replicas: usize,
        rules: &str,
        adjust: impl Fn(usize, &mut Config),
    ) -> Self {
        let storages = (0..count).map(|_| storage::open("memory:///", 64 << 20).unwrap());
        Self::start_on(storages.collect(), replicas, rules, adjust).await
    }

    /// Starts a region on each of these storages.
    pub(crate) async fn start_on(
        storages: Vec<Arc<dyn Storage>>,
        replicas: usize,
        rules: &str,
        adjust: impl Fn(usize, &mut Config),
    ) -> Self {
        let mut regions = Self {
            sites: Vec::new(),
            network: Network::start(storages.len()).await,
        };
        for (number, storage) in storages.into_iter().enumerate() {
            let site = regions
                .start_site(number, storage, replicas, rules, &adjust)
                .await;
            regions.sites.push(site);
        }
        regions
    }

    /// Stops the replicas of a region, and starts one on another storage.
    pub(crate) async fn restart_on(&mut self, region: usize, storage: Arc<dyn Storage>) {
        self.sites[region].origins.clear();
        self.sites[region] = self
            .start_site(region, storage, 1, "", &|_: usize, _: &mut Config| {})
            .await;
    }

    async fn start_site(
        &self,
        number: usize,
        storage: Arc<dyn Storage>,
        replicas: usize,
        rules: &str,
        adjust: &impl Fn(usize, &mut Config),
    ) -> RegionSite {
        self.network
            .store_policy(number, &storage, rules, |config| adjust(number, config))
            .await;
        let faulty = FaultyStorage::new(Arc::clone(&storage));
        let faults = faulty.faults();
        let shared: Arc<dyn Storage> = Arc::new(faulty);
        let identity = self.identity_of(NAMES[number]);
        let replica_faults: Vec<_> = (0..replicas).map(|_| Faults::default()).collect();
        let paths = replica_faults.iter().map(|faults| {
            let path = FaultyStorage::sharing(Arc::clone(&shared), faults.clone());
            Arc::new(path) as Arc<dyn Storage>
        });
        let origins = start_replicas_on(paths.collect(), |config| {
            Network::configure(number, config);
            adjust(number, config);
            config.tls = Some(identity.clone());
        });
        let origins = origins.await;
        let addresses: Vec<_> = origins.iter().map(Origin::addr).collect();
        self.network.set_targets(number, &addresses);
        RegionSite {
            origins,
            name: NAMES[number].parse().unwrap(),
            faults,
            replica_faults,
            storage,
        }
    }

    /// The file with the certificate of the authority that clients must trust.
    pub(crate) fn authority_file(&self) -> PathBuf {
        self.network.authority_file()
    }

    /// The gate through which one region reaches another one.
    pub(crate) fn gate(&self, from: usize, to: usize) -> &Gate {
        self.network.gate(from, to)
    }

    /// An anonymous client of the first replica of a region, over TLS.
    pub(crate) fn client(&self, region: usize) -> Registry {
        self.client_of_replica(region, 0)
    }

    /// An anonymous client of one replica, over TLS.
    pub(crate) fn client_of_replica(&self, region: usize, replica: usize) -> Registry {
        let origin = &self.sites[region].origins[replica];
        let client = Registry::over_tls(origin.addr(), self.network.anonymous_tls());
        client.with_metrics_of(origin)
    }

    /// A client of the first replica of a region, with a certificate.
    pub(crate) fn client_as(&self, identity: &Identity, region: usize) -> Registry {
        let origin = &self.sites[region].origins[0];
        let client = Registry::over_tls(origin.addr(), identity.https_client().unwrap());
        client.with_metrics_of(origin)
    }

    /// A client of one more replica of a region, which has nothing in memory. Its siblings do not
    /// list it.
    pub(crate) async fn cold_client(&mut self, region: usize) -> Registry {
        let site = &self.sites[region];
        let storage = FaultyStorage::sharing(Arc::clone(&site.storage), site.faults.clone());
        let mut config = config();
        Network::configure(region, &mut config);
        config.tls = Some(self.identity_of(NAMES[region]));
        let origin = Origin::start_on(config, Arc::new(storage)).await.unwrap();
        self.sites[region].origins.push(origin);
        self.client_of_replica(region, self.sites[region].origins.len() - 1)
    }

    /// Whether a region's storage has a tag of `app`, whatever other regions would answer.
    pub(crate) async fn stores_tag(&self, region: usize, tag: &str) -> bool {
        let key = format!("tag/app/_/{tag}").parse().unwrap();
        let stored = self.sites[region].storage.read(&key).await.unwrap();
        stored.is_some()
    }

    /// The keys of a region's storage under a prefix.
    pub(crate) async fn keys(&self, region: usize, prefix: &str) -> Vec<String> {
        let prefix = Prefix::new(prefix).unwrap();
        let storage = &self.sites[region].storage;
        let page = storage.list(&prefix, None, 10_000).await.unwrap();
        let keys = page.entries.into_iter();
        keys.map(|entry| entry.key.to_string()).collect()
    }

    /// Stores a policy with these rules for a region, and lets its replicas read it.
    pub(crate) async fn set_rules(&self, region: usize, rules: &str) {
        let site = &self.sites[region];
        self.network
            .replace_policy(region, &site.storage, rules)
            .await;
        for origin in &site.origins {
            origin.policy().read_now().await.unwrap();
        }
    }

    /// The faults of a region's storage.
    pub(crate) fn faults(&self, region: usize) -> &Faults {
        &self.sites[region].faults
    }

    /// The faults between one replica of a region and the region's storage.
    pub(crate) fn replica_faults(&self, region: usize, replica: usize) -> &Faults {
        &self.sites[region].replica_faults[replica]
    }

    /// A certificate of an origin of a region, whether the policy lists it or not.
    pub(crate) fn identity_of(&self, region: &str) -> Identity {
        self.network.identity_of(region)
    }

    /// A server certificate without a region.
    pub(crate) fn identity_without_region(&self) -> Identity {
        self.network.identity_without_region()
    }

    /// A certificate of a peer.
    pub(crate) fn identity_of_peer(&self, peer: &str) -> Identity {
        self.network.identity_of_peer(peer)
    }
}

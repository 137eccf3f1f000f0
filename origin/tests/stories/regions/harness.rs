//! Several regions in one process: each with its own storage, all with certificates of one
//! authority and one policy.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flotilla_common::name::RegionName;
use flotilla_common::seal::SealKey;
use flotilla_origin::storage::{self, Storage};
use flotilla_origin::{Config, Origin, policy};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, Identity, Issued, client_trusting};

use super::gate::Gate;
use crate::faulty_storage::{Faults, FaultyStorage};
use crate::support::{Registry, config, start_replicas_on};

/// The names of the regions, in the order of their numbers in tests.
pub(crate) const NAMES: [&str; 3] = ["eu-1", "us-1", "ap-1"];
const DAY: Duration = Duration::from_hours(24);

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
    fleet: CertificateAuthority,
    /// `gates[from][to]`: through which region `from` reaches region `to`.
    gates: Vec<Vec<Gate>>,
    authority: tempfile::TempDir,
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

    /// Starts a region on each of these storages, which must be empty.
    pub(crate) async fn start_on(
        storages: Vec<Arc<dyn Storage>>,
        replicas: usize,
        rules: &str,
        adjust: impl Fn(usize, &mut Config),
    ) -> Self {
        let fleet = CertificateAuthority::create(Clock::system()).unwrap();
        let authority = tempfile::tempdir().unwrap();
        std::fs::write(authority.path().join("ca.pem"), fleet.certificate_pem()).unwrap();
        let mut regions = Self {
            sites: Vec::new(),
            gates: gates(storages.len()).await,
            fleet,
            authority,
        };
        for (number, storage) in storages.into_iter().enumerate() {
            let site = regions
                .start_site(number, storage, replicas, rules, &adjust)
                .await;
            for gates in &regions.gates {
                gates[number].set_targets(site.origins.iter().map(Origin::addr));
            }
            regions.sites.push(site);
        }
        regions
    }

    async fn start_site(
        &self,
        number: usize,
        storage: Arc<dyn Storage>,
        replicas: usize,
        rules: &str,
        adjust: &impl Fn(usize, &mut Config),
    ) -> RegionSite {
        let name: RegionName = NAMES[number].parse().unwrap();
        let adjust = |config: &mut Config| {
            config.region = name.clone();
            config.seal_key = SealKey::from_secret(name.clone(), &[7 + number as u8; 32]);
            adjust(number, config);
        };
        // The first start writes the format, without which no policy can be stored.
        let mut first = config();
        adjust(&mut first);
        drop(Origin::start_on(first, Arc::clone(&storage)).await.unwrap());
        let policy = self.policy(number, rules);
        policy::set(&*storage, &policy, None).await.unwrap();

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
            adjust(config);
            config.tls = Some(identity.clone());
        });
        RegionSite {
            origins: origins.await,
            name,
            faults,
            replica_faults,
            storage,
        }
    }

    /// The policy of a region. It reaches each other region through a gate of its own.
    fn policy(&self, from: usize, rules: &str) -> String {
        let entry = |to: usize| {
            let address = self.gate(from, to).address;
            format!(
                "[[region]]\nname = \"{}\"\nurl = \"https://{address}\"\n",
                NAMES[to]
            )
        };
        let regions: String = (0..self.gates.len()).map(entry).collect();
        regions + rules
    }

    /// The file with the certificate of the authority that clients must trust.
    pub(crate) fn authority_file(&self) -> PathBuf {
        self.authority.path().join("ca.pem")
    }

    /// The gate through which one region reaches another one.
    pub(crate) fn gate(&self, from: usize, to: usize) -> &Gate {
        // A region never calls itself, but its policy has an entry of it. Between two regions both
        // policies are equal.
        let from = if from == to {
            (to + 1) % self.gates.len()
        } else {
            from
        };
        &self.gates[from][to]
    }

    /// An anonymous client of the first replica of a region, over TLS.
    pub(crate) fn client(&self, region: usize) -> Registry {
        self.client_of_replica(region, 0)
    }

    /// An anonymous client of one replica, over TLS.
    pub(crate) fn client_of_replica(&self, region: usize, replica: usize) -> Registry {
        let tls = client_trusting(&self.authority_file()).unwrap();
        Registry::over_tls(self.sites[region].origins[replica].addr(), tls)
    }

    /// A client of the first replica of a region, with a certificate.
    pub(crate) fn client_as(&self, identity: &Identity, region: usize) -> Registry {
        let address = self.sites[region].origins[0].addr();
        Registry::over_tls(address, identity.https_client().unwrap())
    }

    /// A client of one more replica of a region, which has nothing in memory. Its siblings do not
    /// list it.
    pub(crate) async fn cold_client(&mut self, region: usize) -> Registry {
        let site = &self.sites[region];
        let storage = FaultyStorage::sharing(Arc::clone(&site.storage), site.faults.clone());
        let mut config = config();
        config.region = site.name.clone();
        config.seal_key = SealKey::from_secret(site.name.clone(), &[7 + region as u8; 32]);
        config.tls = Some(self.identity_of(NAMES[region]));
        let origin = Origin::start_on(config, Arc::new(storage)).await.unwrap();
        self.sites[region].origins.push(origin);
        self.client_of_replica(region, self.sites[region].origins.len() - 1)
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
        let region = region.parse().unwrap();
        self.identity(
            &self
                .fleet
                .issue_server(&local(), Some(&region), DAY)
                .unwrap(),
        )
    }

    /// A server certificate without a region.
    pub(crate) fn identity_without_region(&self) -> Identity {
        self.identity(&self.fleet.issue_server(&local(), None, DAY).unwrap())
    }

    /// A certificate of a peer.
    pub(crate) fn identity_of_peer(&self, peer: &str) -> Identity {
        let issued = self.fleet.issue_peer(&peer.parse().unwrap(), DAY);
        self.identity(&issued.unwrap())
    }

    fn identity(&self, issued: &Issued) -> Identity {
        let (certificate, key) = (&issued.certificate_pem, &issued.key_pem);
        let authority = self.fleet.certificate_pem();
        Identity::from_pem(certificate, key, authority, Clock::system()).unwrap()
    }
}

fn local() -> [String; 1] {
    ["127.0.0.1".to_owned()]
}

async fn gates(regions: usize) -> Vec<Vec<Gate>> {
    let mut gates = Vec::new();
    for _ in 0..regions {
        let mut row = Vec::new();
        for _ in 0..regions {
            row.push(Gate::start().await);
        }
        gates.push(row);
    }
    gates
}

//! Two regions, each with replicas that crash and pause, and the network between them, which is
//! cut from time to time.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use flotilla_origin::check::check;
use flotilla_origin::storage::{self, Key, PAGE_LEN, Prefix, Storage};
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tokio::time::timeout_at;

use super::Plan;
use super::checker::History;
use super::stored::{Stored, decode};
use crate::faulty_storage::{Faults, FaultyStorage, Outage};
use crate::history::fleet::{Fleet, Listing, Site};
use crate::history::recording_storage::AppliedChange;
use crate::regions::network::{NAMES, Network};
use crate::servers::GateState;
use crate::support::Registry;

/// Within this time after the last disturbance both regions have the same values.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(30);

/// The regions.
pub(super) struct RegionPair {
    pub(super) fleets: Vec<Fleet>,
    /// Without faults.
    storages: Vec<Arc<dyn Storage>>,
    faults: Vec<Faults>,
    network: Arc<Network>,
}

impl RegionPair {
    pub(super) async fn start(replicas: usize, time_to_live: Duration) -> Self {
        let network = Arc::new(Network::start(2).await);
        let mut regions = Self {
            fleets: Vec::new(),
            storages: Vec::new(),
            faults: Vec::new(),
            network: Arc::clone(&network),
        };
        for region in [0, 1] {
            let storage = storage::open("memory:///", 64 << 20).unwrap();
            network.store_policy(region, &storage, "", |_| {}).await;
            regions.storages.push(Arc::clone(&storage));
            let faulty = FaultyStorage::new(storage);
            regions.faults.push(faulty.faults());
            let identity = network.identity_of(NAMES[region]);
            let (clients, targets) = (Arc::clone(&network), Arc::clone(&network));
            let site = Site {
                storage: Arc::new(faulty),
                configure: Box::new(move |config| {
                    Network::configure(region, config);
                    config.tls = Some(identity.clone());
                }),
                connect: Box::new(move |address| {
                    Registry::over_tls(address, clients.anonymous_tls())
                }),
                publish: Box::new(move |addresses| targets.set_targets(region, addresses)),
            };
            let fleet = Fleet::start_at(site, replicas, time_to_live, Listing::AllReplicas).await;
            regions.fleets.push(fleet);
        }
        regions
    }

    /// Crashes and pauses replicas of both regions, cuts the network between them, and makes their
    /// storages fail.
    pub(super) async fn disturb(&mut self, until: Instant, plan: Plan) {
        let rng_seed = plan.rng_seed;
        let (network, faults) = (&self.network, &self.faults);
        let [first, second] = &mut self.fleets[..] else {
            panic!("two regions");
        };
        let replicas = async |fleet: &mut Fleet, rng_seed: u64| {
            let mut rng = Pcg64Mcg::seed_from_u64(rng_seed);
            while Instant::now() < until {
                fleet.disturb(&mut rng).await;
                pause(&mut rng, 20..200).await;
            }
        };
        let cuts = async {
            let mut rng = Pcg64Mcg::seed_from_u64(rng_seed + 2);
            while Instant::now() < until {
                pause(&mut rng, 100..600).await;
                let state = match rng.random_bool(0.5) {
                    true => GateState::Closed,
                    false => GateState::Hanging,
                };
                let cut = match rng.random_range(0..3) {
                    0 => &[(0, 1)][..],
                    1 => &[(1, 0)][..],
                    _ => &[(0, 1), (1, 0)][..],
                };
                for (from, to) in cut {
                    network.gate(*from, *to).set(state);
                }
                pause(&mut rng, 100..900).await;
                for (from, to) in cut {
                    network.gate(*from, *to).set(GateState::Open);
                }
            }
        };
        let outages = async {
            let mut rng = Pcg64Mcg::seed_from_u64(rng_seed + 3);
            while plan.outages && Instant::now() < until {
                pause(&mut rng, 500..3_000).await;
                let faults = &faults[rng.random_range(0..2)];
                let outages = [Outage::Refuses, Outage::Hangs, Outage::Throttles];
                faults.set_outage(Some(outages[rng.random_range(0..outages.len())]));
                pause(&mut rng, 500..6_000).await;
                faults.set_outage(None);
                // Longer than a storage needs to return in steps, or not.
                pause(&mut rng, 500..25_000).await;
            }
        };
        let failing = async {
            let failing = async { tokio::join!(cuts, outages) };
            let _ended = timeout_at(until.into(), failing).await;
            network.set_all_gates(GateState::Open);
            for faults in faults {
                faults.set_outage(None);
            }
        };
        tokio::join!(
            replicas(first, rng_seed),
            replicas(second, rng_seed + 1),
            failing
        );
    }

    /// The changes that each region's storage applied.
    pub(super) async fn applied(&self) -> Vec<Vec<AppliedChange>> {
        let mut applied = Vec::new();
        for fleet in &self.fleets {
            applied.push(fleet.log.lock().await.clone());
        }
        applied
    }

    /// How the regions still differ some time after the last disturbance.
    pub(super) async fn differences_at_last(&self) -> Vec<String> {
        let deadline = Instant::now() + CONVERGENCE_LIMIT;
        let started = Instant::now();
        loop {
            let differences = self.differences().await;
            if differences.is_empty() {
                eprintln!("equal after {:?}", started.elapsed());
            }
            if differences.is_empty() || Instant::now() > deadline {
                return differences;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How the regions differ from the highest stamp of every key. Requests whose clients gave up may
    /// still change some.
    pub(super) async fn differences(&self) -> Vec<String> {
        let highest = History::new(Vec::new(), self.applied().await).highest();
        let mut differences = Vec::new();
        for (region, storage) in self.storages.iter().enumerate() {
            let now = values(&**storage).await;
            differences.extend(differences_from(&highest, &now, region));
        }
        differences
    }

    /// Cuts the regions off from each other, or connects them.
    pub(super) fn cut(&self, is_cut: bool) {
        let state = match is_cut {
            true => GateState::Closed,
            false => GateState::Open,
        };
        self.network.set_all_gates(state);
    }

    /// Deletes all journal entries of a region.
    pub(super) async fn lose_journal(&self, region: usize) {
        let storage = &self.storages[region];
        for key in keys(&**storage, "journal/").await {
            storage.delete(&key).await.unwrap();
        }
    }

    /// What a deep check finds in each region: manifests that are not whole.
    pub(super) async fn damage(&self) -> Vec<String> {
        let mut damage = Vec::new();
        for (region, storage) in self.storages.iter().enumerate() {
            let report = check(Arc::clone(storage), true).await.unwrap();
            if !report.is_complete() {
                damage.push(format!("region {region}: {report:#?}"));
            }
        }
        damage
    }
}

async fn pause(rng: &mut impl Rng, millis: core::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(millis))).await;
}

/// All keys of a storage under a prefix.
async fn keys(storage: &dyn Storage, prefix: &str) -> Vec<Key> {
    let prefix = Prefix::new(prefix).unwrap();
    let mut keys: Vec<Key> = Vec::new();
    loop {
        let page = storage.list(&prefix, keys.last(), PAGE_LEN).await.unwrap();
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        if !page.more {
            return keys;
        }
    }
}

/// The tags and manifests of a region, and its live referrers.
async fn values(storage: &dyn Storage) -> BTreeMap<String, Stored> {
    let mut values = BTreeMap::new();
    for prefix in ["rm/", "tag/", "ref/"] {
        for key in keys(storage, prefix).await {
            let object = storage.read(&key).await.unwrap().unwrap();
            let key = key.to_string();
            let value = decode(&key, &object.body);
            values.insert(key, value);
        }
    }
    values
}

/// How a region's values differ from the highest ones. A region in which a referrer was never
/// there needs no tombstone of it. If a replica stops in the middle of a change, the referrer in
/// its region waits for the client to repeat the change, which was not acknowledged.
pub(super) fn differences_from(
    highest: &BTreeMap<String, Stored>,
    now: &BTreeMap<String, Stored>,
    region: usize,
) -> Vec<String> {
    let is_absent_referrer =
        |key: &str, wanted: &Stored| key.starts_with("ref/") && wanted.value.is_none();
    let may_be_unfinished = |key: &str, wanted: &Stored| {
        key.starts_with("ref/") && wanted.stamp.region.as_str() == NAMES[region]
    };
    let wrong = highest.iter().filter_map(|(key, wanted)| {
        let found = now.get(key);
        let is_equal = found == Some(wanted)
            || (found.is_none() && is_absent_referrer(key, wanted))
            || may_be_unfinished(key, wanted);
        (!is_equal).then(|| format!("region {region}: {key} is {found:?}, should be {wanted:?}"))
    });
    wrong.collect()
}

//! Replicas that start, crash and pause while clients use them.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use flotilla_origin::storage::{self, Prefix, Storage};
use flotilla_origin::{Config, Origin, Replicas};
use rand::{Rng, RngExt};
use tokio::sync::watch;

use super::recording_storage::{ChangeLog, RecordingStorage};
use crate::support::{Registry, config};

/// How often a replica that does not start is started again.
const MAX_STARTS: u32 = 100;

/// Which replicas list each other, and so send invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    AllReplicas,
    /// The broken variant: no replica sends invalidations.
    None,
}

/// Gets addresses.
pub(super) type Publish = Box<dyn Fn(&[SocketAddr]) + Send + Sync>;

/// Where the replicas are.
pub(super) struct Site {
    pub(super) storage: Arc<dyn Storage>,
    /// Completes the configuration of a replica.
    pub(super) configure: Box<dyn Fn(&mut Config) + Send + Sync>,
    /// A client of a replica.
    pub(super) connect: Box<dyn Fn(SocketAddr) -> Registry + Send + Sync>,
    /// Gets the addresses of all replicas that are up, whenever they change.
    pub(super) publish: Publish,
}

impl Site {
    /// A single region without TLS.
    fn single_region() -> Self {
        Self {
            storage: storage::open("memory:///", 64 << 20).unwrap(),
            configure: Box::new(|_| {}),
            connect: Box::new(Registry::at),
            publish: Box::new(|_| {}),
        }
    }
}

/// The replicas.
pub(super) struct Fleet {
    site: Site,
    pub(super) log: ChangeLog,
    time_to_live: Duration,
    listing: Listing,
    list: watch::Sender<Arc<[SocketAddr]>>,
    members: Vec<Member>,
    /// The replicas that clients may use.
    pub(super) replicas: ReplicaClients,
}

/// A client for each replica; `None` while it is down.
pub(super) type ReplicaClients = Arc<RwLock<Vec<Option<Registry>>>>;

struct Member {
    origin: Option<Origin>,
    paused: watch::Sender<bool>,
}

impl Fleet {
    pub(super) async fn start(replicas: usize, time_to_live: Duration, listing: Listing) -> Self {
        Self::start_at(Site::single_region(), replicas, time_to_live, listing).await
    }

    pub(super) async fn start_at(
        site: Site,
        replicas: usize,
        time_to_live: Duration,
        listing: Listing,
    ) -> Self {
        let clients = Arc::new(RwLock::new(vec![None; replicas]));
        let list = watch::Sender::new(Arc::default());
        let log = ChangeLog::default();
        let mut fleet = Self {
            site,
            log,
            time_to_live,
            listing,
            list,
            members: Vec::new(),
            replicas: clients,
        };
        for index in 0..replicas {
            fleet.members.push(Member {
                origin: None,
                paused: watch::Sender::new(false),
            });
            fleet.start_replica(index).await;
        }
        fleet
    }

    async fn start_replica(&mut self, index: usize) {
        let mut config = config();
        config.limits.tag_time_to_live = self.time_to_live;
        config.limits.repository_time_to_live = self.time_to_live;
        config.replicas = Replicas::followed(self.list.subscribe());
        config.replica_listen = Some("127.0.0.1:0".parse().unwrap());
        (self.site.configure)(&mut config);
        let member = &mut self.members[index];
        let (inner, log, paused) = (
            Arc::clone(&self.site.storage),
            Arc::clone(&self.log),
            member.paused.subscribe(),
        );
        let storage: Arc<dyn Storage> = Arc::new(RecordingStorage { inner, log, paused });
        let mut attempt = 1;
        let origin = loop {
            match Origin::start_on(config.clone(), Arc::clone(&storage)).await {
                Ok(origin) => break origin,
                // Its storage may be out at present.
                Err(error) => assert!(attempt < MAX_STARTS, "{error}"),
            }
            attempt += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let client = (self.site.connect)(origin.addr());
        member.origin = Some(origin);
        // A client may use the replica only after all others send it invalidations, so it is listed
        // first.
        self.publish();
        self.replicas.write().unwrap()[index] = Some(client);
    }

    fn publish(&self) {
        if self.listing == Listing::AllReplicas {
            let up = self
                .members
                .iter()
                .filter_map(|member| member.origin.as_ref()?.replica_addr());
            self.list.send_replace(up.collect());
        }
        let up = self
            .members
            .iter()
            .filter_map(|member| member.origin.as_ref());
        (self.site.publish)(&up.map(Origin::addr).collect::<Vec<_>>());
    }

    /// Asserts that a deep check finds no damage.
    pub(super) async fn assert_sound(&self) {
        let report = flotilla_origin::check::check(Arc::clone(&self.site.storage), true)
            .await
            .unwrap();
        assert!(report.is_complete(), "{report:#?}");
    }

    /// Pauses or crashes one of the replicas.
    pub(super) async fn disturb(&mut self, rng: &mut impl Rng) {
        let index = rng.random_range(0..self.members.len());
        if rng.random_bool(0.7) {
            self.members[index].paused.send_replace(true);
            tokio::time::sleep(Duration::from_millis(rng.random_range(20..200))).await;
            self.members[index].paused.send_replace(false);
        } else {
            self.crash(index).await;
        }
    }

    /// Ends the leases of jobs, as if a dead holder had been silent for long enough. A holder that
    /// lives takes its lease again.
    async fn end_leases(&self) {
        let prefix = Prefix::new("lease/").unwrap();
        // The storage may be out at present; then the lease ends by time.
        let Ok(page) = self.site.storage.list(&prefix, None, 100).await else {
            return;
        };
        for entry in page.entries {
            let _out = self.site.storage.delete(&entry.key).await;
        }
    }

    /// Crashes a replica, which breaks its connections, and restarts it. It stays listed meanwhile.
    async fn crash(&mut self, index: usize) {
        self.replicas.write().unwrap()[index] = None;
        let dead = self.members[index].origin.take();
        drop(dead);
        tokio::time::sleep(self.time_to_live * 2).await;
        self.end_leases().await;
        self.start_replica(index).await;
    }
}

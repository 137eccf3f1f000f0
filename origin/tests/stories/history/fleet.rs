//! Replicas that start, crash and pause while clients use them.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use flotilla_origin::storage::{self, Storage};
use flotilla_origin::{Origin, Replicas};
use rand::{Rng, RngExt};
use tokio::sync::watch;

use super::recording_storage::{ChangeLog, RecordingStorage};
use crate::support::{Registry, config};

/// Which replicas list each other, and so send invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    AllReplicas,
    /// The broken variant: no replica sends invalidations.
    None,
}

/// The replicas.
pub(super) struct Fleet {
    storage: Arc<dyn Storage>,
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
        let storage = storage::open("memory:///", 64 << 20).unwrap();
        let clients = Arc::new(RwLock::new(vec![None; replicas]));
        let list = watch::Sender::new(Arc::default());
        let log = ChangeLog::default();
        let mut fleet = Self {
            storage,
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
        let member = &mut self.members[index];
        let (inner, log, paused) = (
            Arc::clone(&self.storage),
            Arc::clone(&self.log),
            member.paused.subscribe(),
        );
        let origin = Origin::start_on(config, Arc::new(RecordingStorage { inner, log, paused }))
            .await
            .unwrap();
        let client = Registry::at(origin.addr());
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
    }

    /// Asserts that a deep check finds no damage.
    pub(super) async fn assert_sound(&self) {
        let report = flotilla_origin::check::check(Arc::clone(&self.storage), true)
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

    /// Crashes a replica, which breaks its connections, and restarts it. It stays listed meanwhile.
    async fn crash(&mut self, index: usize) {
        self.replicas.write().unwrap()[index] = None;
        let dead = self.members[index].origin.take();
        drop(dead);
        tokio::time::sleep(self.time_to_live * 2).await;
        self.start_replica(index).await;
    }
}

//! Replicas that come, go and hang while clients use them.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use flotilla_origin::storage::{self, Storage};
use flotilla_origin::{Origin, Replicas};
use rand::{Rng, RngExt};
use tokio::sync::watch;

use super::recording_storage::{ChangeLog, RecordingStorage};
use crate::support::{Registry, config};

/// Who tells whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    Everybody,
    /// The mutation: as if nobody sent invalidations.
    Nobody,
}

/// The replicas.
pub(super) struct Fleet {
    storage: Arc<dyn Storage>,
    pub(super) log: ChangeLog,
    time_to_live: Duration,
    listing: Listing,
    list: watch::Sender<Arc<[SocketAddr]>>,
    members: Vec<Member>,
    /// What clients know.
    pub(super) entrances: Entrances,
}

/// Clients of the replicas that are up.
pub(super) type Entrances = Arc<RwLock<Vec<Option<Registry>>>>;

struct Member {
    origin: Option<Origin>,
    paused: watch::Sender<bool>,
}

impl Fleet {
    pub(super) async fn start(replicas: usize, time_to_live: Duration, listing: Listing) -> Self {
        let storage = storage::open("memory:///", 64 << 20).unwrap();
        let entrances = Arc::new(RwLock::new(vec![None; replicas]));
        let list = watch::Sender::new(Arc::default());
        let log = ChangeLog::default();
        let mut fleet = Self {
            storage,
            log,
            time_to_live,
            listing,
            list,
            members: Vec::new(),
            entrances,
        };
        for index in 0..replicas {
            fleet.members.push(Member {
                origin: None,
                paused: watch::Sender::new(false),
            });
            fleet.begin(index).await;
        }
        fleet
    }

    async fn begin(&mut self, index: usize) {
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
        let entrance = Registry::at(origin.addr());
        member.origin = Some(origin);
        // Listed first: a client may use it only after everybody tells it.
        self.publish();
        self.entrances.write().unwrap()[index] = Some(entrance);
    }

    fn publish(&self) {
        if self.listing == Listing::Everybody {
            let up = self
                .members
                .iter()
                .filter_map(|member| member.origin.as_ref()?.replica_addr());
            self.list.send_replace(up.collect());
        }
    }

    /// Asserts that everything that was acknowledged is whole.
    pub(super) async fn is_sound(&self) {
        let report = flotilla_origin::check::check(Arc::clone(&self.storage), true)
            .await
            .unwrap();
        assert!(report.is_sound(), "{report:#?}");
    }

    /// Something happens to one of the replicas.
    pub(super) async fn disturb(&mut self, rng: &mut impl Rng) {
        let index = rng.random_range(0..self.members.len());
        if rng.random_bool(0.7) {
            self.members[index].paused.send_replace(true);
            tokio::time::sleep(Duration::from_millis(rng.random_range(20..200))).await;
            self.members[index].paused.send_replace(false);
        } else {
            self.kill(index).await;
        }
    }

    /// Its connections break where they are. It stays listed for a while, as the dead do.
    async fn kill(&mut self, index: usize) {
        self.entrances.write().unwrap()[index] = None;
        let dead = self.members[index].origin.take();
        drop(dead);
        tokio::time::sleep(self.time_to_live * 2).await;
        self.begin(index).await;
    }
}

//! A minimal tracker: a handout contains all peers of the swarm, and each chunk is leased once. It
//! knows version 1 of announces only, as trackers of older builds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::wire::tracker::v1::{
    ANNOUNCE_PATH, AnnounceAnswer, AnnounceRequest, Handout, LEASE_PATH, LeaseAnswer, LeaseAsk,
    LeaseRequest,
};
use flotilla_common::wire::tracker::{BlobState, PeerInfo};
use flotilla_runtime::http;
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;

#[derive(Default)]
struct TrackerState {
    peers: BTreeMap<PeerId, PeerInfo>,
    swarms: BTreeMap<Digest, BTreeSet<PeerId>>,
    leases: BTreeMap<(Digest, u32), PeerId>,
}

pub(crate) struct FakeTracker {
    url: String,
    state: Mutex<TrackerState>,
}

impl FakeTracker {
    pub(crate) async fn start(shutdown: &Shutdown) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let tracker = Arc::new(Self {
            url,
            state: Mutex::default(),
        });
        let router = Router::new()
            .route(ANNOUNCE_PATH, post(announce))
            .route(LEASE_PATH, post(lease))
            .with_state(Arc::clone(&tracker));
        http::serve(listener, router, None, shutdown).unwrap();
        tracker
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// The number of peers that hold or want a blob.
    pub(crate) fn swarm_size(&self, digest: &Digest) -> usize {
        self.state
            .lock()
            .unwrap()
            .swarms
            .get(digest)
            .map_or(0, BTreeSet::len)
    }
}

async fn announce(State(tracker): State<Arc<FakeTracker>>, body: Bytes) -> Vec<u8> {
    let request: AnnounceRequest = codec::decode(&body).unwrap();
    let mut state = tracker.state.lock().unwrap();
    let own = request.peer.id.clone();
    if request.leaving {
        state.peers.remove(&own);
        state
            .swarms
            .values_mut()
            .for_each(|swarm| _ = swarm.remove(&own));
    } else {
        state.peers.insert(own.clone(), request.peer);
    }
    let mut handouts = Vec::new();
    for change in request.changes {
        let swarm = state.swarms.entry(change.digest).or_default();
        if change.state == BlobState::Gone {
            swarm.remove(&own);
            continue;
        }
        swarm.insert(own.clone());
        let others: Vec<PeerId> = swarm.iter().filter(|id| **id != own).cloned().collect();
        let peers: Vec<PeerInfo> = others
            .iter()
            .filter_map(|id| state.peers.get(id).cloned())
            .collect();
        if matches!(change.state, BlobState::Wanted { .. }) {
            handouts.push(Handout {
                digest: change.digest,
                peers,
            });
        }
    }
    codec::encode(&AnnounceAnswer::Accepted {
        epoch: 1,
        next_ms: 200,
        handouts,
    })
    .unwrap()
}

async fn lease(State(tracker): State<Arc<FakeTracker>>, body: Bytes) -> Vec<u8> {
    let request: LeaseRequest = codec::decode(&body).unwrap();
    let mut state = tracker.state.lock().unwrap();
    let answer = match request.ask {
        LeaseAsk::Take {
            missing,
            starving,
            unreachable,
            ..
        } => {
            // A lease is free if its holder has left, or cannot be reached by a peer that gets no
            // chunks from anywhere else.
            let is_gone = |holder: &PeerId| {
                !state.peers.contains_key(holder) || (starving && unreachable.contains(holder))
            };
            let is_free = |chunk: &u32| {
                state
                    .leases
                    .get(&(request.digest, *chunk))
                    .is_none_or(is_gone)
            };
            match missing.iter().find(is_free) {
                Some(chunk) => {
                    state.leases.insert((request.digest, chunk), request.peer);
                    LeaseAnswer::Granted {
                        chunk,
                        term_ms: 1000,
                    }
                }
                None => LeaseAnswer::Wait { retry_ms: 100 },
            }
        }
        LeaseAsk::Failed { chunk } => {
            state.leases.remove(&(request.digest, chunk));
            LeaseAnswer::Noted
        }
        LeaseAsk::Drop
        | LeaseAsk::Renew { .. }
        | LeaseAsk::Waiting { .. }
        | LeaseAsk::Done { .. } => LeaseAnswer::Noted,
    };
    codec::encode(&answer).unwrap()
}

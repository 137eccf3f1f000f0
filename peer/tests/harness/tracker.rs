//! A tracker of a few lines: everybody is everybody's neighbour, each chunk is leased once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::wire::tracker::{
    ANNOUNCE_PATH, AnnounceAnswer, AnnounceRequest, BlobState, Handout, LEASE_PATH, LeaseAnswer,
    LeaseAsk, LeaseRequest, PeerInfo,
};
use flotilla_runtime::http;
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;

#[derive(Default)]
struct Roster {
    peers: BTreeMap<PeerId, PeerInfo>,
    swarms: BTreeMap<Digest, BTreeSet<PeerId>>,
    granted: BTreeMap<(Digest, u32), PeerId>,
}

pub(crate) struct FakeTracker {
    url: String,
    roster: Mutex<Roster>,
}

impl FakeTracker {
    pub(crate) async fn start(shutdown: &Shutdown) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let tracker = Arc::new(Self {
            url,
            roster: Mutex::default(),
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

    /// How many peers have to do with a blob.
    pub(crate) fn swarm_of(&self, digest: &Digest) -> usize {
        self.roster
            .lock()
            .unwrap()
            .swarms
            .get(digest)
            .map_or(0, BTreeSet::len)
    }
}

async fn announce(State(tracker): State<Arc<FakeTracker>>, body: Bytes) -> Vec<u8> {
    let request: AnnounceRequest = codec::decode(&body).unwrap();
    let mut roster = tracker.roster.lock().unwrap();
    let own = request.peer.id.clone();
    if request.leaving {
        roster.peers.remove(&own);
        roster
            .swarms
            .values_mut()
            .for_each(|swarm| _ = swarm.remove(&own));
    } else {
        roster.peers.insert(own.clone(), request.peer);
    }
    let mut handouts = Vec::new();
    for change in request.changes {
        let swarm = roster.swarms.entry(change.digest).or_default();
        if change.state == BlobState::Gone {
            swarm.remove(&own);
            continue;
        }
        swarm.insert(own.clone());
        let others: Vec<PeerId> = swarm.iter().filter(|id| **id != own).cloned().collect();
        let peers: Vec<PeerInfo> = others
            .iter()
            .filter_map(|id| roster.peers.get(id).cloned())
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
    let mut roster = tracker.roster.lock().unwrap();
    let answer = match request.ask {
        LeaseAsk::Take {
            missing,
            starving,
            unreachable,
            ..
        } => {
            // Who is gone, or of no use to the one who starves, holds nothing.
            let is_lost = |holder: &PeerId| {
                !roster.peers.contains_key(holder) || (starving && unreachable.contains(holder))
            };
            let is_free = |chunk: &u32| {
                roster
                    .granted
                    .get(&(request.digest, *chunk))
                    .is_none_or(is_lost)
            };
            match missing.iter().find(is_free) {
                Some(chunk) => {
                    roster.granted.insert((request.digest, chunk), request.peer);
                    LeaseAnswer::Granted {
                        chunk,
                        term_ms: 1000,
                    }
                }
                None => LeaseAnswer::Wait { retry_ms: 100 },
            }
        }
        LeaseAsk::Failed { chunk } => {
            roster.granted.remove(&(request.digest, chunk));
            LeaseAnswer::Noted
        }
        LeaseAsk::Drop | LeaseAsk::Renew { .. } | LeaseAsk::Done { .. } => LeaseAnswer::Noted,
    };
    codec::encode(&answer).unwrap()
}

//! A tracker and clients that act as peers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::wire::tracker::{
    ANNOUNCE_PATH, AnnounceAnswer, AnnounceRequest, BlobState, Change, LEASE_PATH, LeaseAnswer,
    LeaseAsk, LeaseRequest, NeighboursWanted, PeerInfo,
};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::client_without_trust;
use flotilla_runtime::shutdown::{Drained, Shutdown};
use flotilla_tracker::{Config, Tracker};
use reqwest::StatusCode;

pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// A running tracker.
pub(crate) struct Region {
    pub(crate) tracker: Tracker,
    pub(crate) shutdown: Shutdown,
}

impl Region {
    pub(crate) async fn start(config: Config) -> Self {
        let shutdown = Shutdown::new();
        let tracker = Tracker::start(config, None, Clock::system(), &shutdown)
            .await
            .unwrap();
        Self { tracker, shutdown }
    }

    pub(crate) fn peer(&self, name: &str, zone: &str) -> Peer {
        Peer::new(name, zone, self.tracker.addr())
    }

    /// The answer of the port for operators.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        get(self.tracker.admin_addr(), path).await
    }

    /// The answer of the public port.
    pub(crate) async fn get_public(&self, path: &str) -> (StatusCode, String) {
        get(self.tracker.addr(), path).await
    }

    pub(crate) async fn stop(self) {
        assert_eq!(self.shutdown.drain(DRAIN).await, Drained::Complete);
    }
}

/// A client of the tracker that acts as a peer.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) http: reqwest::Client,
    pub(crate) tracker: SocketAddr,
    pub(crate) info: PeerInfo,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
}

impl Peer {
    pub(crate) fn new(name: &str, zone: &str, tracker: SocketAddr) -> Self {
        Self {
            http: client(client_without_trust().unwrap()),
            tracker,
            info: PeerInfo {
                id: name.parse().unwrap(),
                addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 4_000)),
                region: "here".parse().unwrap(),
                zone: zone.parse().unwrap(),
            },
            epoch: 0,
            sequence: 0,
        }
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let url = format!("http://{}{path}", self.tracker);
        let answer = self.http.post(url).body(body).send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap().to_vec())
    }

    pub(crate) async fn refused(&self, path: &str, body: Vec<u8>) -> (StatusCode, String) {
        let (status, body) = self.post(path, body).await;
        (status, String::from_utf8(body).unwrap())
    }

    pub(crate) fn request(&self, full: bool, changes: Vec<Change>) -> AnnounceRequest {
        AnnounceRequest {
            peer: self.info.clone(),
            epoch: self.epoch,
            sequence: self.sequence,
            full,
            neighbours: sought(&changes),
            changes,
            leases: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        }
    }

    pub(crate) async fn announce(&mut self, request: AnnounceRequest) -> AnnounceAnswer {
        let (status, body) = self
            .post(ANNOUNCE_PATH, codec::encode(&request).unwrap())
            .await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        let answer = codec::decode(&body).unwrap();
        if let AnnounceAnswer::Accepted { epoch, .. } = &answer {
            self.epoch = *epoch;
            self.sequence += 1;
        }
        answer
    }

    /// Announces in full that the peer wants `digest`. Returns the ids in the handout.
    pub(crate) async fn want(&mut self, digest: Digest) -> Vec<String> {
        let request = self.request(true, vec![wanted(digest, 0)]);
        let AnnounceAnswer::Accepted {
            handouts, peers, ..
        } = self.announce(request).await
        else {
            panic!("a full announce is accepted")
        };
        let named = handouts[0].peers.iter();
        named
            .map(|named| peers[usize::from(named.index)].id.to_string())
            .collect()
    }

    pub(crate) async fn ask(&self, digest: Digest, ask: LeaseAsk) -> LeaseAnswer {
        let request = LeaseRequest {
            peer: self.info.id.clone(),
            digest,
            first_unreachable: false,
            ask,
        };
        let (status, body) = self
            .post(LEASE_PATH, codec::encode(&request).unwrap())
            .await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        codec::decode(&body).unwrap()
    }

    pub(crate) async fn take(&self, digest: Digest, missing: ChunkMap) -> LeaseAnswer {
        self.ask(digest, take(1, missing, false)).await
    }
}

async fn get(address: SocketAddr, path: &str) -> (StatusCode, String) {
    let http = client(client_without_trust().unwrap());
    let url = format!("http://{address}{path}");
    let answer = http.get(url).send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

pub(crate) fn client(tls: rustls::ClientConfig) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .build()
        .unwrap()
}

pub(crate) fn blob() -> Digest {
    Digest::sha256(b"a layer")
}

pub(crate) fn take(number: u64, missing: ChunkMap, starving: bool) -> LeaseAsk {
    LeaseAsk::Take {
        number,
        missing,
        starving,
        unreachable: Vec::new(),
        origins: 0,
    }
}

/// Sixteen neighbours for each wanted blob.
fn sought(changes: &[Change]) -> Vec<NeighboursWanted> {
    let wanted = changes
        .iter()
        .filter(|change| matches!(change.state, BlobState::Wanted { .. }));
    wanted
        .map(|change| NeighboursWanted {
            digest: change.digest,
            count: 16,
        })
        .collect()
}

pub(crate) fn wanted(digest: Digest, progress: u8) -> Change {
    Change {
        digest,
        state: BlobState::Wanted { progress },
    }
}

pub(crate) fn config() -> Config {
    Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..Config::default()
    }
}

/// Waits until another task has changed something.
pub(crate) async fn wait_until(is_done: impl Fn() -> bool) {
    let waiting = async {
        while !is_done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .expect("timed out");
}

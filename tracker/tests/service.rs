//! A tracker over real HTTP on loopback: what peers see.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::map::ChunkMap;
use flotilla_common::wire::tracker::{
    ANNOUNCE_PATH, AnnounceAnswer, AnnounceRequest, BlobState, Change, HeldLease, LEASE_PATH,
    LeaseAnswer, LeaseAsk, LeaseRequest, PeerInfo,
};
use flotilla_runtime::identity::{
    Authority, Identity, Issued, client_trusting, client_without_trust,
};
use flotilla_runtime::shutdown::{Drained, Shutdown};
use flotilla_tracker::{Config, LeaseConfig, StartError, Tracker};
use reqwest::StatusCode;

const DAY: Duration = Duration::from_secs(86_400);
const DRAIN: Duration = Duration::from_secs(10);

/// A tracker that a test may stop.
struct Region {
    tracker: Tracker,
    shutdown: Shutdown,
}

impl Region {
    async fn start(config: Config) -> Self {
        let shutdown = Shutdown::new();
        let tracker = Tracker::start(config, None, &shutdown).await.unwrap();
        Self { tracker, shutdown }
    }

    fn peer(&self, name: &str, zone: &str) -> Peer {
        Peer::new(name, zone, self.tracker.addr())
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let http = client(client_without_trust().unwrap());
        let answer = http
            .get(format!("http://{}{path}", self.tracker.addr()))
            .send()
            .await
            .unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn stop(self) {
        assert_eq!(self.shutdown.drain(DRAIN).await, Drained::Complete);
    }
}

/// A peer as the tracker sees one.
#[derive(Clone)]
struct Peer {
    http: reqwest::Client,
    tracker: SocketAddr,
    info: PeerInfo,
    epoch: u64,
    sequence: u64,
}

impl Peer {
    fn new(name: &str, zone: &str, tracker: SocketAddr) -> Self {
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

    async fn post(&self, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let url = format!("http://{}{path}", self.tracker);
        let answer = self.http.post(url).body(body).send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap().to_vec())
    }

    async fn refused(&self, path: &str, body: Vec<u8>) -> (StatusCode, String) {
        let (status, body) = self.post(path, body).await;
        (status, String::from_utf8(body).unwrap())
    }

    fn request(&self, full: bool, changes: Vec<Change>) -> AnnounceRequest {
        AnnounceRequest {
            peer: self.info.clone(),
            epoch: self.epoch,
            sequence: self.sequence,
            full,
            changes,
            leases: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        }
    }

    async fn announce(&mut self, request: AnnounceRequest) -> AnnounceAnswer {
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

    /// Announces in full that it wants `digest`; the ids handed out.
    async fn want(&mut self, digest: Digest) -> Vec<String> {
        let request = self.request(true, vec![wanted(digest, 0)]);
        let AnnounceAnswer::Accepted { handouts, .. } = self.announce(request).await else {
            panic!("a full announce is accepted")
        };
        handouts[0]
            .peers
            .iter()
            .map(|peer| peer.id.to_string())
            .collect()
    }

    async fn ask(&self, digest: Digest, ask: LeaseAsk) -> LeaseAnswer {
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

    async fn take(&self, digest: Digest, missing: ChunkMap) -> LeaseAnswer {
        self.ask(digest, take(1, missing, false)).await
    }
}

fn client(tls: rustls::ClientConfig) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .build()
        .unwrap()
}

fn blob() -> Digest {
    Digest::sha256(b"a layer")
}

fn take(number: u64, missing: ChunkMap, starving: bool) -> LeaseAsk {
    LeaseAsk::Take {
        number,
        missing,
        starving,
        unreachable: Vec::new(),
    }
}

fn wanted(digest: Digest, progress: u8) -> Change {
    Change {
        digest,
        state: BlobState::Wanted { progress },
    }
}

fn config() -> Config {
    Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..Config::default()
    }
}

#[tokio::test]
async fn peers_that_want_the_same_blob_get_each_other_near_ones_first() {
    let region = Region::start(config()).await;
    for peer in 0..40 {
        let zone = if peer % 2 == 0 { "even" } else { "odd" };
        region
            .peer(&format!("{zone}-{peer}"), zone)
            .want(blob())
            .await;
    }
    let handout = region.peer("newcomer", "even").want(blob()).await;
    assert_eq!(handout.len(), 16);
    assert_eq!(
        handout.iter().filter(|id| id.starts_with("even")).count(),
        12
    );
    assert!(
        region
            .peer("elsewhere", "even")
            .want(Digest::sha256(b"another"))
            .await
            .is_empty()
    );

    let (status, text) = region.get("/admin/swarms").await;
    let swarms: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(swarms[0]["digest"], blob().to_string());
    assert_eq!(
        (&swarms[0]["peers"], &swarms[0]["seeders"]),
        (&41.into(), &0.into())
    );
    assert_eq!(region.get("/healthz").await.0, StatusCode::OK);
    assert_eq!(region.get("/readyz").await.0, StatusCode::OK);
    let metrics = region.get("/metrics").await.1;
    assert!(metrics.contains("flotilla_tracker_peers 42"), "{metrics}");
    assert!(
        metrics.contains("flotilla_tracker_announces_total{answer=\"accepted\"} 42"),
        "{metrics}"
    );
    region.stop().await;
}

#[tokio::test]
async fn a_parked_request_gets_the_lease_that_another_peer_ends() {
    let region = Region::start(Config {
        lease: LeaseConfig {
            open: 1,
            term_ms: 60_000,
            longest_ms: 60_000,
            ..LeaseConfig::default()
        },
        ..config()
    })
    .await;
    let (mut one, mut two) = (region.peer("one", "a"), region.peer("two", "a"));
    one.want(blob()).await;
    two.want(blob()).await;
    let granted = one.take(blob(), ChunkMap::full(3)).await;
    assert_eq!(
        granted,
        LeaseAnswer::Granted {
            chunk: 0,
            term_ms: 60_000
        }
    );
    let waiting = tokio::spawn(async move { two.take(blob(), ChunkMap::full(3)).await });
    until(|| region.tracker.swarms(1)[0].leases_parked == 1).await;
    assert_eq!(
        one.ask(
            blob(),
            LeaseAsk::Renew {
                chunk: 0,
                received: 5
            }
        )
        .await,
        LeaseAnswer::Noted
    );
    assert_eq!(
        one.ask(blob(), LeaseAsk::Done { chunk: 0 }).await,
        LeaseAnswer::Noted
    );
    assert_eq!(
        waiting.await.unwrap(),
        LeaseAnswer::Granted {
            chunk: 1,
            term_ms: 60_000
        }
    );
    assert_eq!(
        one.ask(
            blob(),
            LeaseAsk::Renew {
                chunk: 1,
                received: 5
            }
        )
        .await,
        LeaseAnswer::NotHeld
    );
    region.stop().await;
}

#[tokio::test]
async fn a_holder_that_goes_silent_is_replaced() {
    let lease = LeaseConfig {
        term_ms: 100,
        ..LeaseConfig::default()
    };
    let region = Region::start(Config { lease, ..config() }).await;
    let (mut silent, mut next) = (region.peer("silent", "a"), region.peer("next", "a"));
    silent.want(blob()).await;
    next.want(blob()).await;
    assert_eq!(
        silent.take(blob(), ChunkMap::full(1)).await,
        LeaseAnswer::Granted {
            chunk: 0,
            term_ms: 100
        }
    );
    assert_eq!(
        next.take(blob(), ChunkMap::full(1)).await,
        LeaseAnswer::Granted {
            chunk: 0,
            term_ms: 100
        }
    );
    assert_eq!(region.tracker.counts().expired, 1);
    region.stop().await;
}

#[tokio::test]
async fn a_starving_peer_is_told_whom_to_dial_and_gets_the_chunk_when_that_peer_leaves() {
    let lease = LeaseConfig {
        term_ms: 50,
        ..LeaseConfig::default()
    };
    let region = Region::start(Config { lease, ..config() }).await;
    let (mut holder, mut starving) = (region.peer("holder", "a"), region.peer("starving", "a"));
    holder.want(blob()).await;
    starving.want(blob()).await;
    holder.take(blob(), ChunkMap::full(1)).await;
    holder.ask(blob(), LeaseAsk::Done { chunk: 0 }).await;
    let take = || take(1, ChunkMap::full(1), true);
    assert_eq!(
        starving.ask(blob(), take()).await,
        LeaseAnswer::Dial {
            peer: holder.info.clone()
        }
    );
    let mut farewell = holder.request(false, Vec::new());
    farewell.leaving = true;
    holder.announce(farewell).await;
    loop {
        match starving.ask(blob(), take()).await {
            LeaseAnswer::Wait { .. } => {}
            answer => break assert!(matches!(answer, LeaseAnswer::Granted { chunk: 0, .. })),
        }
    }
    region.stop().await;
}

#[tokio::test]
async fn a_tracker_that_restarts_asks_for_everything_and_takes_up_leases() {
    let region = Region::start(config()).await;
    let mut peer = region.peer("peer", "a");
    peer.want(blob()).await;
    peer.take(blob(), ChunkMap::full(9)).await;
    region.stop().await;

    let region = Region::start(config()).await;
    peer.tracker = region.tracker.addr();
    assert_eq!(
        peer.ask(
            blob(),
            LeaseAsk::Renew {
                chunk: 0,
                received: 7
            }
        )
        .await,
        LeaseAnswer::Unknown
    );
    let delta = peer.request(false, Vec::new());
    let AnnounceAnswer::Resync { epoch } = peer.announce(delta).await else {
        panic!("an old epoch is noticed")
    };
    assert_ne!(epoch, peer.epoch);
    (peer.epoch, peer.sequence) = (epoch, 0);
    let mut full = peer.request(true, vec![wanted(blob(), 1)]);
    full.leases.push(HeldLease {
        digest: blob(),
        chunk: 0,
        chunks: 9,
    });
    assert!(matches!(
        peer.announce(full).await,
        AnnounceAnswer::Accepted { .. }
    ));
    assert_eq!(
        peer.ask(
            blob(),
            LeaseAsk::Renew {
                chunk: 0,
                received: 8
            }
        )
        .await,
        LeaseAnswer::Noted
    );
    assert_eq!(region.tracker.counts().adopted, 1);
    let delta = peer.request(
        false,
        vec![Change {
            digest: blob(),
            state: BlobState::Gone,
        }],
    );
    assert!(matches!(
        peer.announce(delta).await,
        AnnounceAnswer::Accepted { .. }
    ));
    assert!(region.tracker.swarms(9).is_empty());
    region.stop().await;
}

#[tokio::test]
async fn what_waits_is_answered_when_the_tracker_drains_or_the_peer_needs_nothing_more() {
    let region = Region::start(Config {
        lease: LeaseConfig {
            open: 1,
            ..LeaseConfig::default()
        },
        ..config()
    })
    .await;
    let mut peers = Vec::new();
    for name in ["one", "two", "three"] {
        let mut peer = region.peer(name, "a");
        peer.want(blob()).await;
        peers.push(peer);
    }
    assert!(matches!(
        peers[0].take(blob(), ChunkMap::full(2)).await,
        LeaseAnswer::Granted { .. }
    ));
    let wait = |peer: Peer| tokio::spawn(async move { peer.take(blob(), ChunkMap::full(2)).await });
    let (two, three) = (wait(peers[1].clone()), wait(peers[2].clone()));
    until(|| region.tracker.swarms(1)[0].leases_parked == 2).await;
    assert_eq!(
        peers[1].ask(blob(), LeaseAsk::Drop).await,
        LeaseAnswer::Noted
    );
    assert_eq!(two.await.unwrap(), LeaseAnswer::Wait { retry_ms: 0 });
    region.stop().await;
    assert!(matches!(three.await.unwrap(), LeaseAnswer::Wait { .. }));
}

#[tokio::test]
async fn a_bad_request_is_told_what_is_wrong() {
    let limits = flotilla_tracker::LimitsConfig {
        peers: 1,
        announce_bytes: 4_096,
        ..Default::default()
    };
    let region = Region::start(Config { limits, ..config() }).await;
    let mut peer = region.peer("peer", "a");
    let (status, text) = peer.refused(ANNOUNCE_PATH, vec![9, 9]).await;
    assert_eq!(
        (status, text.as_str()),
        (
            StatusCode::BAD_REQUEST,
            "decode body: encoded with version 9, this build reads version 1\n"
        )
    );
    let bad = codec::encode(&peer.request(true, vec![wanted(blob(), 16)])).unwrap();
    let (status, text) = peer.refused(ANNOUNCE_PATH, bad).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        text.starts_with("progress 16 of sha256:") && text.ends_with("is above 15\n"),
        "{text}"
    );
    let (status, text) = peer.refused(ANNOUNCE_PATH, vec![1; 5_000]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{text}");
    let mut many = peer.request(true, Vec::new());
    many.connected = vec!["p".parse().unwrap(); 300];
    let (status, text) = peer
        .refused(ANNOUNCE_PATH, codec::encode(&many).unwrap())
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        text,
        "connected: 300 are more than the 256 that one message may carry\n"
    );

    peer.want(blob()).await;
    peer.take(blob(), ChunkMap::full(3)).await;
    let take = take(1, ChunkMap::full(4), false);
    let request = LeaseRequest {
        peer: peer.info.id.clone(),
        digest: blob(),
        first_unreachable: false,
        ask: take,
    };
    let (status, text) = peer
        .refused(LEASE_PATH, codec::encode(&request).unwrap())
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("request says 4"), "{text}");
    let other = region.peer("other", "a");
    let body = codec::encode(&other.request(true, Vec::new())).unwrap();
    assert_eq!(
        other.refused(ANNOUNCE_PATH, body).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    region.stop().await;
}

#[tokio::test]
async fn only_the_first_tracker_of_a_blob_grants_until_it_cannot_be_reached() {
    let trackers = vec!["http://t1".to_owned(), "http://t2".to_owned()];
    let mut granted = Vec::new();
    for own in &trackers {
        let config = Config {
            trackers: trackers.clone(),
            own_url: Some(own.clone()),
            ..config()
        };
        let region = Region::start(config).await;
        let mut peer = region.peer("peer", "a");
        peer.want(blob()).await;
        granted.push(match peer.take(blob(), ChunkMap::full(1)).await {
            LeaseAnswer::Granted { .. } => true,
            answer => {
                assert_eq!(answer, LeaseAnswer::NotFirst);
                let ask = take(1, ChunkMap::full(1), false);
                let request = LeaseRequest {
                    peer: peer.info.id.clone(),
                    digest: blob(),
                    first_unreachable: true,
                    ask,
                };
                let (_, body) = peer
                    .post(LEASE_PATH, codec::encode(&request).unwrap())
                    .await;
                assert!(matches!(
                    codec::decode(&body).unwrap(),
                    LeaseAnswer::Granted { .. }
                ));
                false
            }
        });
        region.stop().await;
    }
    assert_eq!(granted.iter().filter(|granted| **granted).count(), 1);
}

#[tokio::test]
async fn a_peer_that_listens_everywhere_is_found_where_it_announced_from() {
    let region = Region::start(config()).await;
    let mut everywhere = region.peer("everywhere", "a");
    everywhere.info.addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4_001));
    everywhere.want(blob()).await;
    let mut other = region.peer("other", "a");
    let request = other.request(true, vec![wanted(blob(), 0)]);
    let AnnounceAnswer::Accepted { handouts, .. } = other.announce(request).await else {
        panic!("accepted")
    };
    assert_eq!(
        handouts[0].peers[0].addr,
        SocketAddr::from((Ipv4Addr::LOCALHOST, 4_001))
    );
    region.stop().await;
}

#[tokio::test]
async fn with_certificates_a_peer_speaks_only_for_itself() {
    let fleet = Authority::create().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca.pem");
    std::fs::write(&authority, fleet.certificate_pem()).unwrap();
    let identity = |issued: Issued| {
        Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            fleet.certificate_pem(),
        )
        .unwrap()
    };
    let server = identity(fleet.issue_server(&["127.0.0.1".to_owned()], DAY).unwrap());
    let shutdown = Shutdown::new();
    let tracker = Tracker::start(config(), Some(server), &shutdown)
        .await
        .unwrap();
    let url = format!("https://{}{ANNOUNCE_PATH}", tracker.addr());
    let announced_as = async |claimed: &str, tls: rustls::ClientConfig| {
        let http = client(tls);
        let request = Peer::new(claimed, "a", tracker.addr()).request(true, Vec::new());
        let answer = http
            .post(&url)
            .body(codec::encode(&request).unwrap())
            .send()
            .await
            .unwrap();
        (answer.status(), answer.text().await.unwrap_or_default())
    };
    let peer = identity(fleet.issue_peer(&"peer".parse().unwrap(), DAY).unwrap());
    assert_eq!(
        announced_as("peer", peer.https_client().unwrap()).await.0,
        StatusCode::OK
    );
    let (status, text) = announced_as("other", peer.https_client().unwrap()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        text,
        "the certificate is of peer peer, the message of peer other\n"
    );
    let (status, text) = announced_as("peer", client_trusting(&authority).unwrap()).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
    assert_eq!(tracker.peer_count(), 1);
    assert_eq!(shutdown.drain(DRAIN).await, Drained::Complete);
}

#[tokio::test]
async fn a_taken_address_and_a_bad_setting_are_clear_errors() {
    let region = Region::start(config()).await;
    let taken = Config {
        listen: region.tracker.addr(),
        ..config()
    };
    let error = Tracker::start(taken, None, &Shutdown::new())
        .await
        .unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }));
    assert!(
        error.to_string().starts_with("listen on 127.0.0.1:"),
        "{error}"
    );
    let bad = Config {
        handout: 0,
        ..config()
    };
    let error = Tracker::start(bad, None, &Shutdown::new())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tracker configuration: handout must be at least 1"
    );
    region.stop().await;
}

/// Waits for what another task brings about.
async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .expect("it comes about");
}

//! Announces and handouts.

use std::net::{Ipv4Addr, SocketAddr};

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::wire::tracker::{
    ANNOUNCE_PATH, AnnounceAnswer, BlobState, Change, HeldLease, LeaseAnswer, LeaseAsk, v1,
};
use flotilla_tracker::{Config, LimitsConfig};
use reqwest::StatusCode;

use crate::harness::{Peer, Region, blob, config, wanted};

#[tokio::test]
async fn handout_prefers_peers_of_the_same_zone() {
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
async fn restarted_tracker_resyncs_and_adopts_leases() {
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
                received: 7,
                from: None
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
                received: 8,
                from: None
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
async fn unspecified_address_becomes_the_client_address() {
    let region = Region::start(config()).await;
    let mut everywhere = region.peer("everywhere", "a");
    everywhere.info.addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4_001));
    everywhere.want(blob()).await;
    let mut other = region.peer("other", "a");
    let request = other.request(true, vec![wanted(blob(), 0)]);
    let AnnounceAnswer::Accepted { peers, .. } = other.announce(request).await else {
        panic!("accepted")
    };
    assert_eq!(
        peers[0].addr,
        SocketAddr::from((Ipv4Addr::LOCALHOST, 4_001))
    );
    region.stop().await;
}

#[tokio::test]
async fn peer_elsewhere_than_its_source_address_needs_a_configured_range() {
    let announce = async |region: &Region, address: &str| {
        let mut peer = region.peer("peer", "a");
        peer.info.addr = address.parse().unwrap();
        let request = codec::encode(&peer.request(true, Vec::new())).unwrap();
        let (status, body) = peer.post(ANNOUNCE_PATH, request).await;
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    let region = Region::start(config()).await;
    for address in ["10.0.0.53:53", "224.0.0.1:5002", "[::ffff:10.0.0.53]:53"] {
        let (status, text) = announce(&region, address).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{address}");
        let is_explained =
            text.contains("comes from 127.0.0.1") && text.contains("advertised-from");
        assert!(text.contains(address) && is_explained, "{text}");
    }
    assert_eq!(region.tracker.peer_count(), 0);
    for address in ["127.0.0.1:4000", "127.0.0.9:4000", "[::1]:4000"] {
        assert_eq!(announce(&region, address).await.0, StatusCode::OK);
    }
    region.stop().await;

    let advertised_from = vec!["10.0.0.0/8".parse().unwrap()];
    let region = Region::start(Config {
        advertised_from,
        ..config()
    })
    .await;
    assert_eq!(announce(&region, "10.0.0.53:53").await.0, StatusCode::OK);
    let (status, _) = announce(&region, "192.0.2.1:53").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    region.stop().await;
}

#[tokio::test]
async fn zone_makes_room_with_its_last_peer() {
    let limits = LimitsConfig {
        zones: 1,
        ..LimitsConfig::default()
    };
    let region = Region::start(Config { limits, ..config() }).await;
    let announce = async |peer: &Peer, leaving: bool| {
        let mut request = peer.request(true, Vec::new());
        request.leaving = leaving;
        let request = codec::encode(&request).unwrap();
        peer.post(ANNOUNCE_PATH, request).await.0
    };
    let (first, second) = (region.peer("first", "a"), region.peer("second", "b"));
    assert_eq!(announce(&first, false).await, StatusCode::OK);
    let full = StatusCode::SERVICE_UNAVAILABLE;
    assert_eq!(announce(&second, false).await, full);
    assert_eq!(announce(&first, true).await, StatusCode::OK);
    assert_eq!(announce(&second, false).await, StatusCode::OK);
    assert_eq!(announce(&first, false).await, full);
    region.stop().await;
}

#[tokio::test]
async fn peers_of_older_builds_are_served() {
    let region = Region::start(config()).await;
    let mut new = region.peer("new", "a");
    new.want(blob()).await;
    let old = region.peer("old", "a");
    let request = v1::AnnounceRequest::from(old.request(true, vec![wanted(blob(), 0)]));
    let body = codec::encode(&request).unwrap();
    let (status, body) = old.post(v1::ANNOUNCE_PATH, body).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let v1::AnnounceAnswer::Accepted { handouts, .. } = codec::decode(&body).unwrap() else {
        panic!("accepted")
    };
    assert_eq!(handouts[0].peers, [new.info.clone()]);
    assert_eq!(new.want(blob()).await, ["old"]);
    region.stop().await;
}

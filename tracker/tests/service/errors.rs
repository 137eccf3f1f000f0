//! Requests and configurations that are rejected.

use std::time::Duration;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::wire::tracker::{ANNOUNCE_PATH, LEASE_PATH, LeaseRequest};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use flotilla_tracker::{Config, LimitsConfig, StartError, Tracker};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Region, blob, config, take, wanted};

#[tokio::test]
async fn bad_requests_get_status_and_reason() {
    let limits = LimitsConfig {
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
            "decode request body: encoded with version 9, this build reads version 1\n"
        )
    );
    let bad = codec::encode(&peer.request(true, vec![wanted(blob(), 16)])).unwrap();
    let (status, text) = peer.refused(ANNOUNCE_PATH, bad).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        text.starts_with("invalid progress 16 for sha256:")
            && text.ends_with("the largest is 15\n"),
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
        "too many connected: 300, but one message may carry at most 256\n"
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
async fn request_whose_body_does_not_arrive_ends() {
    let region = Region::start(config()).await;
    let mut connection = TcpStream::connect(region.tracker.addr()).await.unwrap();
    let half = format!("POST {ANNOUNCE_PATH} HTTP/1.1\r\nhost: t\r\ncontent-length: 1000\r\n\r\nx");
    connection.write_all(half.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = connection.read_to_string(&mut answer);
    timeout(Duration::from_secs(10), read)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("not complete after 5 s"), "{answer}");
    region.stop().await;
}

#[tokio::test]
async fn start_errors_name_the_address_or_setting() {
    let region = Region::start(config()).await;
    let taken = Config {
        listen: region.tracker.addr(),
        ..config()
    };
    let error = Tracker::start(taken, None, Clock::system(), &Shutdown::new())
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
    let error = Tracker::start(bad, None, Clock::system(), &Shutdown::new())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tracker configuration: handout must be at least 1"
    );
    region.stop().await;
}

//! The endpoints for other regions, and their refusals.

use std::time::Duration;

use bincode::{Decode, Encode};
use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::wire::region::{
    DONE_PATH, FACTS_PATH, JOURNAL_PATH, JournalPage, JournalRequest, KEYS_PATH, RegionState,
    STATE_PATH, StorageStanding, TAKE_PATH,
};
use reqwest::{Method, Response, StatusCode};

use super::harness::{NAMES, Regions};
use crate::support::{Region, Registry, header, is_unavailable, sample};

const PATHS: [&str; 6] = [
    STATE_PATH,
    JOURNAL_PATH,
    DONE_PATH,
    FACTS_PATH,
    KEYS_PATH,
    TAKE_PATH,
];

async fn post(client: &Registry, path: &str, request: &impl Encode) -> Response {
    let body = codec::encode(request).unwrap();
    let request = client.request(Method::POST, path).body(body);
    request.send().await.unwrap()
}

async fn decoded<T: Decode<()>>(answer: Response) -> T {
    assert_eq!(answer.status(), StatusCode::OK);
    codec::decode(&answer.bytes().await.unwrap()).unwrap()
}

/// Asserts that every endpoint refuses a client, and says why.
async fn assert_refused(client: &Registry, reason: &str) {
    for path in PATHS {
        for method in [Method::GET, Method::POST] {
            let request = client.request(method, path).body("x");
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
            let text = answer.text().await.unwrap();
            assert!(text.contains("DENIED") && text.contains(reason), "{text}");
        }
    }
}

#[tokio::test]
async fn only_other_regions_of_the_policy_are_answered() {
    let regions = Regions::start(2, |_, _| {}).await;
    for (identity, reason) in [
        (regions.identity_of_peer("vm-1"), "names peer vm-1"),
        (regions.identity_of(NAMES[0]), "the region that was asked"),
        (
            regions.identity_of("xx-1"),
            "xx-1, which is not in the policy of eu-1",
        ),
    ] {
        assert_refused(&regions.client_as(&identity, 0), reason).await;
    }
    assert_refused(&regions.client(0), "none that is valid now").await;
    let plain = Region::start(1).await;
    assert_refused(&plain.client(0), "none that is valid now").await;
    // It is no certificate of a client at all, so the handshake fails.
    let server = regions.client_as(&regions.identity_without_region(), 0);
    assert!(
        server
            .request(Method::GET, STATE_PATH)
            .send()
            .await
            .is_err()
    );

    let other = regions.client_as(&regions.identity_of(NAMES[1]), 0);
    let state: RegionState = decoded(other.get(STATE_PATH).await).await;
    assert_eq!(state.region.as_str(), NAMES[0]);
    let journal = JournalRequest {
        after: None,
        limit: 10,
    };
    let page: JournalPage = decoded(post(&other, JOURNAL_PATH, &journal).await).await;
    assert_eq!(page.entries, []);
}

#[tokio::test]
async fn state_arrives_while_storage_is_out() {
    let regions = Regions::start(3, |_, _| {}).await;
    let other = regions.client_as(&regions.identity_of(NAMES[1]), 0);
    regions.faults(0).set_down(true);
    let state: RegionState = decoded(other.get(STATE_PATH).await).await;
    assert_eq!(state.owed, [], "what is owed is not known");
    let journal = JournalRequest {
        after: None,
        limit: 10,
    };
    assert!(is_unavailable(&post(&other, JOURNAL_PATH, &journal).await));
    regions.faults(0).set_down(false);
    // If the outage lasted long enough to be noticed, the region returns to its storage in steps.
    let state = loop {
        let state: RegionState = decoded(other.get(STATE_PATH).await).await;
        if state.standing == StorageStanding::Usable && !state.owed.is_empty() {
            break state;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let owed: Vec<_> = state.owed.iter().map(|owed| owed.region.as_str()).collect();
    assert_eq!(owed, NAMES[1..]);
    // The other region's bucket is another one.
    let first = regions.client_as(&regions.identity_of(NAMES[0]), 1);
    let second: RegionState = decoded(first.get(STATE_PATH).await).await;
    assert_ne!(state.storage_id, second.storage_id);
}

#[tokio::test]
async fn other_regions_read_blobs_with_ranges() {
    let regions = Regions::start(2, |_, _| {}).await;
    let bytes = sample(200_000, 1);
    let digest = regions.client(0).push_blob("app", bytes.clone()).await;
    let path = format!("/v2/app/blobs/{digest}");
    // Through the gate, as the other region's origin does.
    let address = regions.gate(1, 0).address;
    let tls = regions.identity_of(NAMES[1]).https_client().unwrap();
    let other = Registry::over_tls(address, tls);
    assert_eq!(other.get(&path).await.bytes().await.unwrap(), bytes);
    let request = other.request(Method::GET, &path);
    let part = request
        .header("range", "bytes=150000-")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(header(&part, "content-range"), "bytes 150000-199999/200000");
    assert_eq!(part.bytes().await.unwrap(), bytes.slice(150_000..));
    let absent = Digest::sha256(&Bytes::from_static(b"absent"));
    let answer = other.get(&format!("/v2/app/blobs/{absent}")).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

//! Leases.

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::recording::replay;
use flotilla_common::wire::tracker::{LEASE_PATH, LeaseAnswer, LeaseAsk, LeaseRequest};
use flotilla_tracker::{Config, LeaseConfig};

use crate::harness::{Peer, Region, blob, config, take, wait_until};

#[tokio::test]
async fn parked_request_gets_the_next_free_lease() {
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
            term_ms: 60_000,
            from: None
        }
    );
    let waiting = tokio::spawn(async move { two.take(blob(), ChunkMap::full(3)).await });
    wait_until(|| region.tracker.swarms(1)[0].leases_parked == 1).await;
    assert_eq!(
        one.ask(
            blob(),
            LeaseAsk::Renew {
                chunk: 0,
                received: 5,
                from: None
            }
        )
        .await,
        LeaseAnswer::Noted
    );
    assert_eq!(
        one.ask(
            blob(),
            LeaseAsk::Done {
                chunk: 0,
                from: None
            }
        )
        .await,
        LeaseAnswer::Noted
    );
    assert_eq!(
        waiting.await.unwrap(),
        LeaseAnswer::Granted {
            chunk: 1,
            term_ms: 60_000,
            from: None
        }
    );
    assert_eq!(
        one.ask(
            blob(),
            LeaseAsk::Renew {
                chunk: 1,
                received: 5,
                from: None
            }
        )
        .await,
        LeaseAnswer::NotHeld
    );
    region.stop().await;
}

#[tokio::test]
async fn recorded_leases_replay_to_the_same_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::start(Config {
        record: Some(dir.path().to_owned()),
        ..config()
    })
    .await;
    let mut one = region.peer("one", "a");
    one.want(blob()).await;
    for chunk in 0..3 {
        let granted = one.take(blob(), ChunkMap::full(3)).await;
        assert!(
            matches!(granted, LeaseAnswer::Granted { .. }),
            "{granted:?}"
        );
        one.ask(blob(), LeaseAsk::Done { chunk, from: None }).await;
    }
    region.stop().await;
    let recording = std::fs::read(dir.path().join("tracker.recording")).unwrap();
    let replayed = replay(&recording).unwrap();
    assert_eq!(replayed.machine, "tracker");
    assert!(replayed.inputs >= 7, "{replayed:?}");
    assert!(replayed.outputs >= 7, "{replayed:?}");
}

#[tokio::test]
async fn expired_lease_is_granted_to_the_next_peer() {
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
            term_ms: 100,
            from: None
        }
    );
    assert_eq!(
        next.take(blob(), ChunkMap::full(1)).await,
        LeaseAnswer::Granted {
            chunk: 0,
            term_ms: 100,
            from: None
        }
    );
    assert_eq!(region.tracker.counts().expired, 1);
    region.stop().await;
}

#[tokio::test]
async fn starving_peer_is_named_the_holder_until_it_leaves() {
    let lease = LeaseConfig {
        term_ms: 50,
        ..LeaseConfig::default()
    };
    let region = Region::start(Config { lease, ..config() }).await;
    let (mut holder, mut starving) = (region.peer("holder", "a"), region.peer("starving", "a"));
    holder.want(blob()).await;
    starving.want(blob()).await;
    holder.take(blob(), ChunkMap::full(1)).await;
    holder
        .ask(
            blob(),
            LeaseAsk::Done {
                chunk: 0,
                from: None,
            },
        )
        .await;
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
async fn parked_requests_are_answered_on_drop_and_drain() {
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
    wait_until(|| region.tracker.swarms(1)[0].leases_parked == 2).await;
    assert_eq!(
        peers[1].ask(blob(), LeaseAsk::Drop).await,
        LeaseAnswer::Noted
    );
    assert_eq!(two.await.unwrap(), LeaseAnswer::Wait { retry_ms: 0 });
    region.stop().await;
    assert!(matches!(three.await.unwrap(), LeaseAnswer::Wait { .. }));
}

#[tokio::test]
async fn second_tracker_grants_only_when_the_first_is_unreachable() {
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

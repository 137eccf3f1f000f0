//! Neighbours with a valid certificate that violate the protocol: another version, malformed
//! frames, announced chunks that are never sent, floods of messages. Pulls complete within a bound,
//! and no bytes of such a neighbour are stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::seal::SealKey;
use flotilla_common::wire::frame::Message;
use flotilla_common::wire::peer::{
    About, Ask, AskImage, Chunk, Control, Have, Hello, Holding, Holds, ImageBundle, ProofWanted,
};
use flotilla_peer::{Config, Peer, QuicSettings, quic_endpoint};
use flotilla_runtime::identity::peer_name;
use quinn::{Connection, Endpoint, RecvStream, SendStream};

use crate::harness::{Fleet, digest, get, pull, random_bytes, wait_until};

const MIB: usize = 1 << 20;
/// Upper bound for a pull, which takes a fraction of a second without a hostile neighbour. A
/// stalled transfer is waited for twice, at most 2 s.
const MAX_PULL_TIME: Duration = Duration::from_secs(10);

fn image() -> Vec<Bytes> {
    vec![
        random_bytes(700, 1),
        random_bytes(MIB + 77, 2),
        random_bytes(6 * MIB + 5, 3),
    ]
}

/// A peer with a valid certificate whose messages the test chooses.
struct HostilePeer {
    connection: Connection,
    control: SendStream,
    _receive: RecvStream,
    _endpoint: Endpoint,
}

impl HostilePeer {
    /// Dials a peer and sends `hello`.
    async fn dial(fleet: &Fleet, victim: &Peer, hello: Hello) -> Self {
        let identity = fleet.config("vm-hostile").identity;
        let endpoint = quic_endpoint(
            ([127, 0, 0, 1], 0).into(),
            &identity,
            QuicSettings::default(),
        )
        .unwrap();
        let dialled = endpoint
            .connect(victim.quic_addr(), &peer_name(victim.id()))
            .unwrap();
        let connection = dialled.await.unwrap();
        let (mut control, receive) = connection.open_bi().await.unwrap();
        control
            .write_all(&Control::Hello(hello).to_frame().unwrap())
            .await
            .unwrap();
        Self {
            connection,
            control,
            _receive: receive,
            _endpoint: endpoint,
        }
    }

    /// Dials a peer and completes the exchange of Hello and About.
    async fn connect(fleet: &Fleet, victim: &Peer) -> Self {
        let mut hostile = Self::dial(fleet, victim, Hello::ours()).await;
        let region = "eu".parse().unwrap();
        let zone = "eu-a".parse().unwrap();
        let about = About {
            region,
            zone,
            up_bits_per_second: Some(1_000_000_000_000),
        };
        hostile.send(&Control::About(about)).await.unwrap();
        wait_until("the hostile peer is a neighbour", || {
            victim.stats().neighbours == 1
        })
        .await;
        hostile
    }

    async fn send(&mut self, message: &Control) -> Result<(), quinn::WriteError> {
        self.control.write_all(&message.to_frame().unwrap()).await
    }

    /// Announces that it holds these blobs.
    async fn announce(&mut self, blobs: &[Digest]) -> Result<(), quinn::WriteError> {
        for digest in blobs {
            self.send(&Control::Holds(Holds {
                digest: *digest,
                holding: Holding::Complete,
            }))
            .await?;
        }
        Ok(())
    }
}

/// Pulls the image and checks time, bytes, and that all bytes came from the origin.
async fn pull_and_check(peer: &Peer, image: &[Bytes]) {
    let started = Instant::now();
    assert_eq!(pull(peer).await, image);
    let took = started.elapsed();
    assert!(took < MAX_PULL_TIME, "the pull took {took:?}");
    let stats = peer.stats();
    assert_eq!(stats.bytes_from_peers, 0, "{stats:?}");
    wait_until("all blobs are complete", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_with_unsupported_version_is_closed() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let hello = Hello {
        oldest: 900,
        newest: 999,
        features: u64::MAX,
    };
    let hostile = HostilePeer::dial(&fleet, &peer, hello).await;
    tokio::time::timeout(MAX_PULL_TIME, hostile.connection.closed())
        .await
        .expect("the connection is closed");
    pull_and_check(&peer, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_with_malformed_frame_is_closed() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let mut hostile = HostilePeer::connect(&fleet, &peer).await;
    // The header of a frame of four gigabytes.
    let _ = hostile.control.write_all(&[2, 255, 255, 255, 255]).await;
    tokio::time::timeout(MAX_PULL_TIME, hostile.connection.closed())
        .await
        .expect("the connection is closed");
    pull_and_check(&peer, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalling_neighbour_does_not_delay_the_pull_much() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let mut hostile = HostilePeer::connect(&fleet, &peer).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let connection = hostile.connection.clone();
    let count = Arc::clone(&requests);
    let stalling = tokio::spawn(async move {
        let mut open_streams = Vec::new();
        while let Ok(streams) = connection.accept_bi().await {
            count.fetch_add(1, Ordering::Relaxed);
            open_streams.push(streams);
        }
    });
    let blobs: Vec<Digest> = image.iter().map(|blob| digest(blob)).collect();
    // Announcements of blobs that the peer does not know yet are ignored.
    let announcing = tokio::spawn(async move {
        while hostile.announce(&blobs).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    pull_and_check(&peer, &image).await;
    assert!(
        requests.load(Ordering::Relaxed) > 0,
        "no chunk was requested from the hostile peer"
    );
    announcing.abort();
    stalling.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn flooding_neighbour_does_not_harm_the_pull() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let mut hostile = HostilePeer::connect(&fleet, &peer).await;
    let connection = hostile.connection.clone();
    let blobs: Vec<Digest> = image.iter().map(|blob| digest(blob)).collect();
    let requesting = tokio::spawn(async move {
        let ask = Ask {
            digest: Digest::sha256(b"nothing"),
            chunk: u32::MAX,
            grant: None,
        };
        let ask = Chunk::Ask(ask).to_frame().unwrap();
        // Responses are not read, and streams are not finished.
        let mut open_streams = Vec::new();
        while let Ok((mut send, receive)) = connection.open_bi().await {
            let _ = send.write_all(&ask).await;
            open_streams.push((send, receive));
        }
    });
    let sending = tokio::spawn(async move {
        for round in 0_u32.. {
            let chunks = (0..1000).map(|chunk| chunk ^ round).collect();
            let digest = blobs[round as usize % blobs.len()];
            let wrong_map = Holding::Partial(ChunkMap::full(round % 5000));
            let is_open = hostile
                .send(&Control::Have(Have { digest, chunks }))
                .await
                .is_ok()
                && hostile
                    .send(&Control::Holds(Holds {
                        digest,
                        holding: wrong_map,
                    }))
                    .await
                    .is_ok();
            if !is_open {
                return;
            }
        }
    });
    pull_and_check(&peer, &image).await;
    sending.abort();
    requesting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn media_type_from_a_neighbour_is_not_believed() {
    let fleet = Fleet::new().await;
    let manifest = fleet.origin.push(&image());
    let bytes = fleet.origin.manifest_bytes();
    fleet.origin.is_unavailable.store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    let hostile = HostilePeer::connect(&fleet, &peer).await;
    let connection = hostile.connection.clone();
    let lying = tokio::spawn(async move {
        while let Ok((mut send, _receive)) = connection.accept_bi().await {
            let image = ImageBundle {
                media_type: "text/plain".to_owned(),
                manifest: bytes.to_vec(),
                proofs: Vec::new(),
            };
            let frame = Chunk::Image(image).to_frame().unwrap();
            let _ = send.write_all(&frame).await;
            let _ = send.finish();
        }
    });
    let path = format!("/v2/app/manifests/{manifest}");
    let media_type = async || {
        let response = get(&peer, &path).await;
        assert!(response.status().is_success(), "{response:?}");
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(media_type().await, OCI_MANIFEST);
    lying.abort();
    assert_eq!(media_type().await, OCI_MANIFEST, "kept for the outage");

    // As soon as an origin answers, it confirms the manifest, once.
    fleet.origin.is_unavailable.store(false, Ordering::Relaxed);
    let asked = || {
        let requests = fleet.origin.requests.lock().unwrap();
        let asked = requests.iter().filter(|request| request.contains(&path));
        asked.count()
    };
    let before = asked();
    let confirmed = async {
        while asked() == before {
            assert_eq!(media_type().await, OCI_MANIFEST);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let confirmed = tokio::time::timeout(Duration::from_secs(20), confirmed).await;
    assert!(confirmed.is_ok(), "the origin was not asked");
    let after = asked();
    for _ in 0..3 {
        assert_eq!(media_type().await, OCI_MANIFEST);
    }
    assert_eq!(asked(), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_has_two_connections_at_most() {
    let fleet = Fleet::new().await;
    let peer = fleet.peer("vm-1").await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(HostilePeer::connect(&fleet, &peer).await);
    }
    let open = || {
        let mut open = connections.iter();
        let is_open = |hostile: &&HostilePeer| hostile.connection.close_reason().is_none();
        open.by_ref().filter(is_open).count()
    };
    wait_until("the surplus ones are closed", || open() <= 2).await;
    let last = connections.last().unwrap();
    assert!(last.connection.close_reason().is_none(), "the newest stays");
    assert_eq!(peer.stats().neighbours, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbour_that_forges_grants_is_disconnected() {
    let fleet = Fleet::with_tls().await;
    let config = Config {
        requires_grants: true,
        ..fleet.config("vm-1")
    };
    let peer = fleet.start(config).await;
    let hostile = HostilePeer::connect(&fleet, &peer).await;
    let manifest = digest(b"manifest");
    let forger = SealKey::from_secret("eu-1".parse().unwrap(), &[9; 32]);
    let end = u64::MAX / 2;
    let forged = Grant {
        key_id: fleet.key.key_id(),
        ..Grant::sign(&forger, "vm-hostile".parse().unwrap(), vec![manifest], end)
    };
    let ask = Chunk::AskImage(AskImage {
        manifest,
        grant: Some(forged),
    });
    let ask = ask.to_frame().unwrap();
    let mut refused = 0;
    while let Ok((mut send, mut receive)) = hostile.connection.open_bi().await {
        if send.write_all(&ask).await.is_err() || receive.read_to_end(100).await.is_err() {
            break;
        }
        refused += 1;
        assert!(refused < 10, "the connection stays open");
    }
    assert!(refused <= 3, "{refused}");
    assert!(hostile.connection.close_reason().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_for_proofs_are_not_answered() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(pull(&peer).await, image);
    let mut hostile = HostilePeer::connect(&fleet, &peer).await;
    let digest = digest(&image[2]);
    for _ in 0..5000 {
        let question = Control::ProofWanted(ProofWanted { digest });
        hostile.send(&question).await.unwrap();
    }
    // The hostile peer reads nothing. Unread answers would have closed the connection.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(hostile.connection.close_reason(), None);
    assert_eq!(peer.stats().neighbours, 1);
}

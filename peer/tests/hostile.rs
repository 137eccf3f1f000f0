//! Neighbours with a good certificate and bad manners: they speak another version, say nonsense,
//! promise and do not deliver, or talk without end. A pull completes all the same, soon, and
//! nothing they sent is kept.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::map::ChunkMap;
use flotilla_common::wire::frame::Message;
use flotilla_common::wire::peer::{About, Ask, Chunk, Control, Have, Hello, Holding, Holds};
use flotilla_peer::{Peer, QuicSettings, quic_endpoint};
use flotilla_runtime::identity::peer_name;
use harness::{Fleet, digest, noise, pull, until};
use quinn::{Connection, Endpoint, RecvStream, SendStream};

const MIB: usize = 1 << 20;
/// What bad company may cost a pull that takes a fraction of a second alone: a promise is waited
/// for twice, at most 2 s.
const BOUND: Duration = Duration::from_secs(10);

fn image() -> Vec<Bytes> {
    vec![noise(700, 1), noise(MIB + 77, 2), noise(6 * MIB + 5, 3)]
}

/// A peer of the fleet by its certificate, which does as its story says.
struct Hostile {
    connection: Connection,
    control: SendStream,
    _receive: RecvStream,
    _endpoint: Endpoint,
}

impl Hostile {
    /// Dials a peer and says `hello`.
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

    /// Dials, and is a neighbour like any other so far.
    async fn neighbour(fleet: &Fleet, victim: &Peer) -> Self {
        let mut hostile = Self::dial(fleet, victim, Hello::ours()).await;
        let (region, zone) = ("eu".parse().unwrap(), "eu-a".parse().unwrap());
        let about = About {
            region,
            zone,
            up_bits_per_second: Some(1_000_000_000_000),
        };
        hostile.say(&Control::About(about)).await.unwrap();
        until("it is a neighbour", || victim.stats().neighbours == 1).await;
        hostile
    }

    async fn say(&mut self, message: &Control) -> Result<(), quinn::WriteError> {
        self.control.write_all(&message.to_frame().unwrap()).await
    }

    async fn promise(&mut self, blobs: &[Digest]) -> Result<(), quinn::WriteError> {
        for digest in blobs {
            self.say(&Control::Holds(Holds {
                digest: *digest,
                holding: Holding::Complete,
            }))
            .await?;
        }
        Ok(())
    }
}

/// The pull completes within the bound, with the right bytes, all of them the origin's.
async fn completes(peer: &Peer, image: &[Bytes]) {
    let begun = Instant::now();
    assert_eq!(pull(peer).await, image);
    let took = begun.elapsed();
    assert!(took < BOUND, "bad company cost {took:?}");
    let stats = peer.stats();
    assert_eq!(stats.bytes_from_peers, 0, "{stats:?}");
    until("what is stored is right", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_version_is_hung_up_on() {
    let (fleet, image) = (Fleet::new().await, image());
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let hello = Hello {
        oldest: 900,
        newest: 999,
        features: u64::MAX,
    };
    let hostile = Hostile::dial(&fleet, &peer, hello).await;
    tokio::time::timeout(BOUND, hostile.connection.closed())
        .await
        .expect("it is hung up on");
    completes(&peer, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_talks_nonsense_is_hung_up_on() {
    let (fleet, image) = (Fleet::new().await, image());
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let mut hostile = Hostile::neighbour(&fleet, &peer).await;
    // A frame that says it has four gigabytes.
    let _ = hostile.control.write_all(&[2, 255, 255, 255, 255]).await;
    tokio::time::timeout(BOUND, hostile.connection.closed())
        .await
        .expect("it is hung up on");
    completes(&peer, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_promises_and_stalls_is_done_without() {
    let (fleet, image) = (Fleet::new().await, image());
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let mut hostile = Hostile::neighbour(&fleet, &peer).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (connection, count) = (hostile.connection.clone(), Arc::clone(&asked));
    let silent = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok(streams) = connection.accept_bi().await {
            count.fetch_add(1, Ordering::Relaxed);
            kept.push(streams);
        }
    });
    let blobs: Vec<Digest> = image.iter().map(|blob| digest(blob)).collect();
    // A blob must be known before anybody can promise it.
    let promising = tokio::spawn(async move {
        while hostile.promise(&blobs).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    completes(&peer, &image).await;
    assert!(
        asked.load(Ordering::Relaxed) > 0,
        "its promise was believed at first"
    );
    promising.abort();
    silent.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_floods_harms_nobody_but_itself() {
    let (fleet, image) = (Fleet::new().await, image());
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let mut hostile = Hostile::neighbour(&fleet, &peer).await;
    let connection = hostile.connection.clone();
    let blobs: Vec<Digest> = image.iter().map(|blob| digest(blob)).collect();
    let asking = tokio::spawn(async move {
        let ask = Ask {
            digest: Digest::sha256(b"nothing"),
            chunk: u32::MAX,
            grant: None,
        };
        let ask = Chunk::Ask(ask).to_frame().unwrap();
        // Answers are not read, and streams are not ended.
        let mut kept = Vec::new();
        while let Ok((mut send, receive)) = connection.open_bi().await {
            let _ = send.write_all(&ask).await;
            kept.push((send, receive));
        }
    });
    let talking = tokio::spawn(async move {
        for round in 0_u32.. {
            let chunks = (0..1000).map(|chunk| chunk ^ round).collect();
            let digest = blobs[round as usize % blobs.len()];
            let nonsense = Holding::Partial(ChunkMap::full(round % 5000));
            let said = hostile
                .say(&Control::Have(Have { digest, chunks }))
                .await
                .is_ok()
                && hostile
                    .say(&Control::Holds(Holds {
                        digest,
                        holding: nonsense,
                    }))
                    .await
                    .is_ok();
            if !said {
                return;
            }
        }
    });
    completes(&peer, &image).await;
    talking.abort();
    asking.abort();
}

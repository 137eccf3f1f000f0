//! Writes the seed corpora, `corpus/TARGET/NAME`: one valid example of each message for the fuzzer
//! to mutate.

use std::fs;
use std::path::Path;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::grant::Grant;
use flotilla_common::hash_tree::TreeHasher;
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::proof::Proof;
use flotilla_common::seal::{BlobFacts, SealKey};
use flotilla_common::wire::frame::Message;
use flotilla_common::wire::origin::{ClosureAnswer, ClosureRequest};
use flotilla_common::wire::peer::{
    About, Ask, AskImage, Chunk, Claim, Claims, Control, Forgot, Have, Hello, Holding, Holds,
    ImageBundle, Parts, ProofWanted, Refusal, SlotFree,
};
use flotilla_common::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, BlobState, Change, Handout, HeldLease, LeaseAnswer, LeaseAsk,
    LeaseRequest, NamedPeer, NeighboursWanted, PeerInfo, v1,
};

fn main() -> std::io::Result<()> {
    for (target, name, bytes) in [
        peer_frames(),
        tracker_messages(),
        closures(),
        manifests(),
        texts(),
        hash_states(),
    ]
    .concat()
    {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

type Seeds = Vec<(&'static str, &'static str, Vec<u8>)>;

fn digest() -> Digest {
    Digest::sha256(b"x")
}

fn label<T: core::str::FromStr<Err: core::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a label")
}

fn key() -> SealKey {
    SealKey::from_secret(label("eu-1"), &[1; 32])
}

fn proof() -> Proof {
    let mut hasher = TreeHasher::new();
    hasher.update(&vec![5; 600 << 10]);
    let tree = hasher.finish();
    let (size, chunk_log2) = (tree.geometry.size(), tree.geometry.chunk_log2());
    let seal = key().seal(BlobFacts {
        digest: digest(),
        size,
        chunk_log2,
        root: tree.root,
    });
    Proof::Sealed {
        seal,
        table: tree.table,
    }
}

fn grant() -> Grant {
    Grant::sign(
        &key(),
        label("vm-1"),
        vec![digest(), Digest::of(Algorithm::Sha512, b"y")],
        2_000_000_000,
    )
}

fn peer_frames() -> Seeds {
    let mut map = ChunkMap::empty(100);
    map.insert(70);
    let digest = digest();
    let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
    let image = ImageBundle {
        media_type,
        manifest: b"{}".to_vec(),
        proofs: vec![proof()],
    };
    let control = [
        ("hello", Control::Hello(Hello::ours())),
        (
            "about",
            Control::About(About {
                region: label("eu"),
                zone: label("eu-a"),
                up_bits_per_second: Some(1),
            }),
        ),
        (
            "holds-all",
            Control::Holds(Holds {
                digest,
                holding: Holding::Complete,
            }),
        ),
        (
            "holds-some",
            Control::Holds(Holds {
                digest,
                holding: Holding::Partial(map),
            }),
        ),
        (
            "have",
            Control::Have(Have {
                digest,
                chunks: vec![1, 70_000],
            }),
        ),
        ("forgot", Control::Forgot(Forgot { digest })),
        ("proof-wanted", Control::ProofWanted(ProofWanted { digest })),
        ("proof", Control::Proof(proof())),
        ("slot-free", Control::SlotFree(SlotFree)),
        (
            "claims",
            Control::Claims(Claims {
                digest,
                claims: vec![Claim {
                    chunk: 70_000,
                    term_ms: 2_000,
                }],
            }),
        ),
    ];
    let chunk = [
        (
            "ask",
            Chunk::Ask(Ask {
                digest,
                chunk: 3,
                grant: None,
            }),
        ),
        (
            "ask-granted",
            Chunk::Ask(Ask {
                digest,
                chunk: 3,
                grant: Some(grant()),
            }),
        ),
        ("refused", Chunk::Refused(Refusal::NotPermitted)),
        (
            "parts",
            Chunk::Parts(Parts {
                values: vec![[7; 32]; 2],
            }),
        ),
        (
            "ask-image",
            Chunk::AskImage(AskImage {
                manifest: digest,
                grant: Some(grant()),
            }),
        ),
        ("image", Chunk::Image(image)),
    ];
    let control =
        control.map(|(name, message)| ("peer_frames", name, message.to_frame().expect("encode")));
    let chunk =
        chunk.map(|(name, message)| ("peer_frames", name, message.to_frame().expect("encode")));
    control.into_iter().chain(chunk).collect()
}

/// An encoded message after the byte that selects its type.
fn with_selector<T: bincode::Encode>(selector: u8, message: &T) -> Vec<u8> {
    [&[selector], &codec::encode(message).expect("encode")[..]].concat()
}

fn tracker_messages() -> Seeds {
    let digest = digest();
    let info = || PeerInfo {
        id: label("vm-1"),
        addr: ([10, 0, 0, 1], 4001).into(),
        region: label("eu"),
        zone: label("eu-a"),
    };
    let announce = AnnounceRequest {
        peer: info(),
        epoch: 7,
        sequence: 3,
        full: false,
        changes: vec![Change {
            digest,
            state: BlobState::Wanted { progress: 3 },
        }],
        leases: vec![HeldLease {
            digest,
            chunk: 4,
            chunks: 9,
        }],
        neighbours: vec![NeighboursWanted { digest, count: 16 }],
        connected: vec![label("vm-2")],
        unreachable: vec![label("vm-3")],
        leaving: false,
    };
    let named = NamedPeer {
        index: 0,
        progress: 3,
    };
    let accepted = AnnounceAnswer::Accepted {
        epoch: 7,
        next_ms: 900,
        lease_delay_ms: 300,
        peers: vec![info()],
        handouts: vec![Handout {
            digest,
            peers: vec![named],
        }],
    };
    let announce_v1 = v1::AnnounceRequest::from(announce.clone());
    let accepted_v1 = v1::AnnounceAnswer::from(accepted.clone());
    let take = LeaseAsk::Take {
        number: 5,
        missing: ChunkMap::full(9),
        starving: true,
        unreachable: vec![label("vm-3")],
        origins: 2,
    };
    let granted = LeaseAnswer::Granted {
        chunk: 1,
        term_ms: 9,
        from: Some(OriginRegion(1)),
    };
    let to = OriginRegion(1);
    let lease = |ask| LeaseRequest {
        peer: label("vm-1"),
        digest,
        first_unreachable: false,
        ask,
    };
    vec![
        ("tracker_messages", "announce", with_selector(0, &announce)),
        (
            "tracker_messages",
            "resync",
            with_selector(1, &AnnounceAnswer::Resync { epoch: 1 }),
        ),
        ("tracker_messages", "accepted", with_selector(1, &accepted)),
        (
            "tracker_messages",
            "announce-v1",
            with_selector(4, &announce_v1),
        ),
        (
            "tracker_messages",
            "accepted-v1",
            with_selector(5, &accepted_v1),
        ),
        (
            "tracker_messages",
            "take-v1",
            with_selector(6, &v1::LeaseRequest::from(lease(take.clone()))),
        ),
        (
            "tracker_messages",
            "granted-v1",
            with_selector(7, &v1::LeaseAnswer::from(granted.clone())),
        ),
        (
            "tracker_messages",
            "moved",
            with_selector(3, &LeaseAnswer::Moved { to }),
        ),
        ("tracker_messages", "take", with_selector(2, &lease(take))),
        (
            "tracker_messages",
            "renew",
            with_selector(
                2,
                &lease(LeaseAsk::Renew {
                    chunk: 1,
                    received: 9,
                    from: Some(OriginRegion::OWN),
                }),
            ),
        ),
        (
            "tracker_messages",
            "waiting",
            with_selector(
                2,
                &lease(LeaseAsk::Waiting {
                    chunk: 1,
                    from: None,
                }),
            ),
        ),
        ("tracker_messages", "granted", with_selector(3, &granted)),
        (
            "tracker_messages",
            "dial",
            with_selector(3, &LeaseAnswer::Dial { peer: info() }),
        ),
    ]
}

fn closures() -> Seeds {
    let whole = Proof::DigestOnly {
        digest: digest(),
        size: 9,
    };
    let request = ClosureRequest {
        repository: label("library/app"),
        manifest: digest(),
    };
    let answer = ClosureAnswer {
        proofs: vec![proof(), whole.clone()],
        grant: Some(grant()),
    };
    vec![
        ("closure", "request", with_selector(0, &request)),
        ("closure", "answer", with_selector(1, &answer)),
        ("closure", "sealed", with_selector(2, &proof())),
        ("closure", "digest-only", with_selector(2, &whole)),
        ("closure", "grant", with_selector(3, &grant())),
    ]
}

fn manifests() -> Seeds {
    let descriptor = format!(
        r#"{{"mediaType":"x","digest":"{}","size":5,"annotations":{{"a":"b"}}}}"#,
        digest()
    );
    let image = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
    let index =
        format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}],"subject":{descriptor}}}"#);
    vec![
        ("manifest", "image", image.into_bytes()),
        ("manifest", "index", index.into_bytes()),
    ]
}

fn texts() -> Seeds {
    let sha512 = Digest::of(Algorithm::Sha512, b"y").to_string().into_bytes();
    vec![
        ("text", "sha256", digest().to_string().into_bytes()),
        ("text", "sha512", sha512),
        ("text", "repository", b"library/a.b_c__d--e".to_vec()),
        ("text", "label", b"eu-1".to_vec()),
        ("text", "tag", b"v1.0_RC-1".to_vec()),
        ("text", "size", b"1.5 GiB".to_vec()),
        ("text", "rate", b"50Mbit".to_vec()),
        ("text", "hex", b"00ff00ff00ff00ff".to_vec()),
    ]
}

fn hash_states() -> Seeds {
    let mut tree = TreeHasher::new();
    tree.update(&vec![5; 600 << 10]);
    let midstate = |algorithm| {
        let mut hasher = DigestHasher::new(algorithm);
        hasher.update(b"some bytes");
        hasher.midstate()
    };
    vec![
        (
            "hash_state",
            "tree",
            codec::encode(&tree.state()).expect("encode"),
        ),
        ("hash_state", "sha256", midstate(Algorithm::Sha256)),
        ("hash_state", "sha512", midstate(Algorithm::Sha512)),
    ]
}

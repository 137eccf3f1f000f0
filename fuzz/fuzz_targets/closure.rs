//! Closure requests and answers between peers and origins, and the checks of their contents: seals,
//! chunk tables, geometries, grants. The first byte selects the message type.
#![no_main]

use flotilla_common::chunk_map::MAX_CHUNKS;
use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::proof::Proof;
use flotilla_common::seal::{SealKey, TrustedKeys};
use flotilla_common::wire::origin::{ClosureAnswer, ClosureRequest};
use flotilla_fuzz::round_trip;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((selector, bytes)) = bytes.split_first() else {
        return;
    };
    match selector % 4 {
        0 => drop(round_trip::<ClosureRequest>(bytes)),
        1 => {
            if let Some(answer) = round_trip::<ClosureAnswer>(bytes) {
                answer.proofs.iter().for_each(check_proof);
                answer.grant.iter().for_each(check_grant);
            }
        }
        2 => round_trip::<Proof>(bytes).iter().for_each(check_proof),
        _ => round_trip::<Grant>(bytes).iter().for_each(check_grant),
    }
});

fn key() -> SealKey {
    SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32])
}

fn trusted() -> TrustedKeys {
    let mut trusted = TrustedKeys::none();
    trusted.add(key().issuer(), &key().public()).expect("a key");
    trusted
}

/// Checks the proof as decoded, and again with a valid signature over its facts.
fn check_proof(proof: &Proof) {
    let signed = match proof {
        Proof::Sealed { seal, table } => {
            let seal = key().seal(seal.facts.clone());
            Proof::Sealed {
                seal,
                table: table.clone(),
            }
        }
        whole @ Proof::DigestOnly { .. } => whole.clone(),
    };
    for proof in [proof, &signed] {
        let Ok(geometry) = proof.check(&trusted()) else {
            continue;
        };
        let chunks = geometry.chunks();
        assert!((1..=MAX_CHUNKS).contains(&chunks));
        let last = geometry.chunk_range(chunks - 1);
        assert_eq!(last.end, geometry.size());
        assert!(geometry.chunk_range(chunks).is_empty());
        assert!(geometry.part_count(chunks - 1) >= 1);
    }
}

fn check_grant(grant: &Grant) {
    let digest = grant.manifest().copied().unwrap_or(Digest::Sha256([0; 32]));
    let _ = grant.check(&trusted(), &grant.peer, &digest, 0);
    let _ = grant.is_due(u64::MAX);
    let signed = Grant::sign(
        &key(),
        grant.peer.clone(),
        grant.digests.clone(),
        grant.expires_unix_s,
    );
    let permitted = signed.check(&trusted(), &grant.peer, &digest, 0);
    assert_eq!(permitted.is_ok(), grant.digests.contains(&digest));
}

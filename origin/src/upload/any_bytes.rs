//! Whatever a storage gives back where a record should be, and whatever a client calls an upload,
//! is an error at worst. (The codecs below are fuzzed in `fuzz/`; these types would drag the whole
//! origin into it.)
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::seal::BlobFacts;
use proptest::prelude::*;

use super::chain::Chain;
use super::hash::{Hashes, Midstates};
use super::id::Signer;
use super::link::{Act, Link};
use crate::record::{
    BlobRecord, ManifestRecord, MembershipRecord, Pointer, ReferrerValue, Segment, State, TableAt,
    TagValue,
};
use crate::storage::Key;

fn key() -> Key {
    "blob/x/y".parse().unwrap()
}

/// Everything that is decoded from storage.
fn decode_all(body: &[u8]) {
    let (key, bytes) = (key(), Bytes::copy_from_slice(body));
    let _ = codec::decode::<BlobRecord>(body);
    let _ = codec::decode::<MembershipRecord>(body);
    let _ = Pointer::<TagValue>::of(&key, body);
    let _ = Pointer::<ReferrerValue>::of(&key, body);
    let _ = ManifestRecord::of(&key, &bytes);
    if let Ok(midstates) = codec::decode::<Midstates>(body) {
        let _ = midstates.covered();
        let _ = Hashes::resume(midstates, body);
    }
    if let Ok(link) = codec::decode::<Link>(body) {
        let _ = link.record(1);
        let _ = Chain::after(0, link, &[]);
    }
}

fn samples() -> Vec<Vec<u8>> {
    let mut hashes = Hashes::new(true);
    hashes.update(&vec![5; 600 << 10]);
    let segments = vec![Segment {
        nonce: 3,
        size: 600 << 10,
    }];
    let facts = BlobFacts {
        digest: Digest::sha256(b"x"),
        size: 600 << 10,
        chunk_log2: 18,
        root: [7; 32],
    };
    let data = Chain::default().data(&segments, hashes.midstates(), 9);
    let finish = Chain::default().finish(&segments, facts.clone(), TableAt::Nowhere, 9);
    let record = BlobRecord {
        state: State::Live,
        facts,
        segments,
        table: TableAt::Nowhere,
        nonce: 4,
    };
    let encoded = [
        codec::encode(&data),
        codec::encode(&finish),
        codec::encode(&record),
    ];
    let midstates = codec::encode(&hashes.midstates());
    encoded
        .into_iter()
        .chain([midstates])
        .map(Result::unwrap)
        .collect()
}

proptest! {
    #[test]
    fn any_body_is_decoded_or_refused(mut body: Vec<u8>) {
        decode_all(&body);
        body.insert(0, codec::VERSION);
        decode_all(&body);
        body.splice(0..0, (body.len() as u32).to_le_bytes());
        decode_all(&body);
    }

    #[test]
    fn a_bent_record_is_decoded_or_refused(
        which: prop::sample::Index,
        bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
        is_cut: bool,
    ) {
        let mut body = which.get(&samples()).clone();
        for (place, byte) in bends {
            let place = place.index(body.len());
            body[place] = byte;
        }
        if is_cut {
            body.truncate(cut.index(body.len()));
        }
        decode_all(&body);
    }

    #[test]
    fn any_link_follows_or_is_a_misfit(offset: u64, end: u64, index: u32, base: Option<u64>, sizes: Vec<u64>) {
        let segments = |sizes: &[u64]| sizes.iter().map(|size| Segment { nonce: 1, size: *size }).collect::<Vec<_>>();
        let act = Act::Data { midstates: Hashes::new(false).midstates() };
        let link = Link { act, end, index, base, segments: segments(&sizes), nonce: 2 };
        let _ = Chain::after(offset, link, &segments(&sizes));
    }

    #[test]
    fn any_text_is_an_upload_of_ours_or_not(text in ".{0,100}", hex in "[0-9a-f]{80}", now: u64) {
        let (signer, repository) = (Signer::new([1; 32]), "app".parse().unwrap());
        prop_assert!(signer.check(&repository, &text, now).is_err());
        prop_assert!(signer.check(&repository, &hex, now).is_err());
    }
}

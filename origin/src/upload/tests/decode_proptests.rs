//! Decoding arbitrary stored bytes and arbitrary upload ids never panics. (`fuzz/` fuzzes the
//! codecs below these types; the types themselves would pull the whole origin into it.)
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::seal::BlobFacts;
use proptest::prelude::*;

use crate::record::{
    BlobRecord, ManifestRecord, MembershipRecord, Pointer, RecordState, ReferrerValue, Segment,
    TableLocation, TagValue,
};
use crate::storage::Key;
use crate::upload::hash::{Hashes, Midstates};
use crate::upload::id::UploadIdSigner;
use crate::upload::log::UploadLog;
use crate::upload::log_entry::{EntryKind, LogEntry};

fn key() -> Key {
    "blob/x/y".parse().unwrap()
}

/// Decodes `body` as every type that is read from storage.
fn decode_all(body: &[u8]) {
    let key = key();
    let bytes = Bytes::copy_from_slice(body);
    let _ = codec::decode::<BlobRecord>(body);
    let _ = codec::decode::<MembershipRecord>(body);
    let _ = Pointer::<TagValue>::of(&key, body);
    let _ = Pointer::<ReferrerValue>::of(&key, body);
    let _ = ManifestRecord::of(&key, &bytes);
    if let Ok(midstates) = codec::decode::<Midstates>(body) {
        let _ = midstates.covered();
        let _ = Hashes::resume(midstates, body);
    }
    if let Ok(entry) = codec::decode::<LogEntry>(body) {
        let _ = entry.record(1);
        let _ = UploadLog::after(0, entry, &[]);
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
    let data = UploadLog::default().data_entry(&segments, hashes.midstates(), 9);
    let finish =
        UploadLog::default().finish_entry(&segments, facts.clone(), TableLocation::None, 9);
    let record = BlobRecord {
        state: RecordState::Live,
        facts,
        segments,
        table: TableLocation::None,
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
    fn arbitrary_bodies(mut body: Vec<u8>) {
        decode_all(&body);
        body.insert(0, codec::VERSION);
        decode_all(&body);
        body.splice(0..0, (body.len() as u32).to_le_bytes());
        decode_all(&body);
    }

    #[test]
    fn mutated_records(
        sample: prop::sample::Index,
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        new_len: prop::sample::Index,
        is_truncated: bool,
    ) {
        let mut body = sample.get(&samples()).clone();
        for (index, byte) in mutations {
            let index = index.index(body.len());
            body[index] = byte;
        }
        if is_truncated {
            body.truncate(new_len.index(body.len()));
        }
        decode_all(&body);
    }

    #[test]
    fn arbitrary_log_entries(offset: u64, end: u64, index: u32, base: Option<u64>, sizes: Vec<u64>) {
        let segments = |sizes: &[u64]| sizes.iter().map(|size| Segment { nonce: 1, size: *size }).collect::<Vec<_>>();
        let kind = EntryKind::Data { midstates: Hashes::new(false).midstates() };
        let entry = LogEntry { kind, end, index, base, segments: segments(&sizes), nonce: 2 };
        let _ = UploadLog::after(offset, entry, &segments(&sizes));
    }

    #[test]
    fn arbitrary_upload_ids(text in ".{0,100}", hex in "[0-9a-f]{80}", now: u64) {
        let signer = UploadIdSigner::new([1; 32]);
        let repository = "app".parse().unwrap();
        prop_assert!(signer.verify(&repository, &text, now).is_err());
        prop_assert!(signer.verify(&repository, &hex, now).is_err());
    }
}

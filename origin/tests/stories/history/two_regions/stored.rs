//! Decodes stored tags, manifests and referrers: a second decoder, which shares no code with the
//! one of the origin.

use bincode::Decode;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::stamp::Stamp;

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) stamp: Stamp,
    /// What a tag names, the digest of a live manifest or referrer; `None` if it was deleted.
    pub(super) value: Option<Digest>,
}

#[derive(Decode)]
struct Pointer<T> {
    stamp: Stamp,
    _turn: u32,
    value: Option<T>,
    _nonce: u128,
}

#[derive(Decode)]
struct ManifestHead {
    stamp: Stamp,
    _turn: u32,
    state: ManifestState,
    _media_type: Option<String>,
    _subject: Option<Digest>,
    _nonce: u128,
}

#[derive(Clone, Copy, PartialEq, Eq, Decode)]
enum ManifestState {
    Live,
    Condemned,
    Evicted,
    Deleted,
}

/// Decodes the object at a key.
pub(super) fn decode(key: &str, body: &[u8]) -> Stored {
    let (len, rest) = body.split_first_chunk::<4>().unwrap();
    let encoded = &rest[..u32::from_le_bytes(*len) as usize];
    let own_digest = || -> Digest { key.rsplit('/').next().unwrap().parse().unwrap() };
    match key.split('/').next() {
        Some("tag") => {
            let pointer: Pointer<Digest> = codec::decode(encoded).unwrap();
            Stored {
                stamp: pointer.stamp,
                value: pointer.value,
            }
        }
        Some("ref") => {
            let pointer: Pointer<String> = codec::decode(encoded).unwrap();
            Stored {
                stamp: pointer.stamp,
                value: pointer.value.map(|_| own_digest()),
            }
        }
        Some("rm") => {
            let head: ManifestHead = codec::decode(encoded).unwrap();
            let is_served = matches!(head.state, ManifestState::Live | ManifestState::Condemned);
            Stored {
                stamp: head.stamp,
                value: is_served.then(own_digest),
            }
        }
        _ => panic!("{key} has no stamp"),
    }
}

//! Tags and referrers: pointers that can be moved and deleted.
//!
//! A listing distinguishes a tombstone from a live pointer by its size: under 128 bytes, or at
//! least 128.

use bincode::{Decode, Encode};
use flotilla_common::digest::Digest;

use super::{Stamp, decode, encode};
use crate::storage::{Key, StorageError};

/// Bytes; a shorter body is a tombstone.
pub(crate) const TOMBSTONE_LIMIT: u64 = 128;

/// The value of a live tag.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct TagValue {
    pub(crate) digest: Digest,
}

/// The value of a live referrer: its descriptor in the referrers list.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ReferrerValue {
    /// JSON of the OCI descriptor.
    pub(crate) descriptor: String,
}

/// The body of a pointer: its value, or `None` in a tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Pointer<T> {
    pub(crate) stamp: Stamp,
    /// A referrer has the turn of its manifest; a tag has 0.
    pub(crate) turn: u32,
    pub(crate) value: Option<T>,
    pub(crate) nonce: u128,
}

impl<T: Encode + Decode<()>> Pointer<T> {
    /// The body: a length, the encoded pointer, and zeros up to 128 bytes if it is live.
    pub(crate) fn body(&self, key: &Key) -> Result<Vec<u8>, StorageError> {
        let encoded = encode(key, self)?;
        let len = u32::try_from(encoded.len());
        let len = len.map_err(|error| StorageError::unavailable("encode record", key, error))?;
        let mut body = len.to_le_bytes().to_vec();
        body.extend(encoded);
        let min_len = if self.value.is_some() {
            TOMBSTONE_LIMIT as usize
        } else {
            0
        };
        body.resize(body.len().max(min_len), 0);
        Ok(body)
    }

    /// Decodes a body.
    pub(crate) fn of(key: &Key, body: &[u8]) -> Result<Self, StorageError> {
        let cut = body.split_first_chunk::<4>().and_then(|(len, rest)| {
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            rest.get(..len)
        });
        let encoded = cut.ok_or_else(|| {
            StorageError::unavailable("decode record", key, "the object is truncated")
        })?;
        decode(key, encoded)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn key() -> Key {
        "tag/app/_/v1".parse().unwrap()
    }

    fn pointer<T>(region: &str, value: Option<T>) -> Pointer<T> {
        let stamp = Stamp {
            clock: u64::MAX,
            region: region.parse().unwrap(),
        };
        Pointer {
            stamp,
            turn: u32::MAX,
            value,
            nonce: u128::MAX,
        }
    }

    #[test]
    fn size_distinguishes_tombstones_from_live_pointers() {
        let long = "r".repeat(63);
        let tombstone = pointer::<TagValue>(&long, None).body(&key()).unwrap();
        assert!(
            (tombstone.len() as u64) < TOMBSTONE_LIMIT,
            "{} bytes",
            tombstone.len()
        );
        let live = pointer(
            "r",
            Some(TagValue {
                digest: Digest::sha256(b""),
            }),
        );
        let body = live.body(&key()).unwrap();
        assert_eq!(body.len() as u64, TOMBSTONE_LIMIT);
        assert_eq!(Pointer::of(&key(), &body).unwrap(), live);
        let referrer = pointer(
            "r",
            Some(ReferrerValue {
                descriptor: "x".repeat(999),
            }),
        );
        assert_eq!(
            Pointer::of(&key(), &referrer.body(&key()).unwrap()).unwrap(),
            referrer
        );
    }

    #[test]
    fn truncated_bodies_are_errors() {
        for body in [
            &[][..],
            &[1, 0, 0],
            &[9, 0, 0, 0, 1],
            &[0, 0, 0, 0],
            &[255; 200],
        ] {
            assert!(Pointer::<TagValue>::of(&key(), body).is_err());
        }
    }
}

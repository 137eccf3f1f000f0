//! `rm/<name>/_/<digest>`: a manifest of a repository. A small head, then the bytes of the manifest
//! as they were pushed.

use bincode::{Decode, Encode};
use bytes::Bytes;
use flotilla_common::digest::Digest;

use super::{Stamp, decode, encode};
use crate::storage::{Key, StorageError};

/// Maximum bytes of a head: a stamp, a nonce and a media type.
const MAX_HEAD_LEN: usize = 4096;

/// Precedes the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct ManifestHead {
    stamp: Stamp,
    /// The media type; `None` in a tombstone.
    media_type: Option<String>,
    /// The subject of a deleted manifest.
    deleted_subject: Option<Digest>,
    nonce: u128,
}

/// A manifest, or the tombstone of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestRecord {
    pub(crate) stamp: Stamp,
    /// The media type and the bytes; `None` in a tombstone.
    pub(crate) content: Option<(String, Bytes)>,
    /// The subject of a deleted manifest: a reader of the tombstone can complete the removal from
    /// the referrers of that subject.
    pub(crate) deleted_subject: Option<Digest>,
    pub(crate) nonce: u128,
}

impl ManifestRecord {
    /// The body of the object.
    pub(crate) fn body(&self, key: &Key) -> Result<Bytes, StorageError> {
        let (media_type, bytes) = self.content.clone().unzip();
        let stamp = self.stamp.clone();
        let deleted_subject = self.deleted_subject;
        let head = ManifestHead {
            stamp,
            media_type,
            deleted_subject,
            nonce: self.nonce,
        };
        let head = encode(key, &head)?;
        let bytes = bytes.unwrap_or_default();
        let mut body = Vec::with_capacity(4 + head.len() + bytes.len());
        body.extend_from_slice(&(head.len() as u32).to_le_bytes());
        body.extend_from_slice(&head);
        body.extend_from_slice(&bytes);
        Ok(body.into())
    }

    /// Decodes a body; the bytes of the manifest are a slice of it.
    pub(crate) fn of(key: &Key, body: &Bytes) -> Result<Self, StorageError> {
        let torn = || StorageError::unavailable("decode record", key, "the object is truncated");
        let (len, _) = body.split_first_chunk::<4>().ok_or_else(torn)?;
        let end = 4 + (u32::from_le_bytes(*len) as usize).min(MAX_HEAD_LEN);
        let head: ManifestHead = decode(key, body.get(4..end).ok_or_else(torn)?)?;
        let content = head
            .media_type
            .clone()
            .map(|media_type| (media_type, body.slice(end..)));
        let ManifestHead {
            stamp,
            media_type: _,
            deleted_subject,
            nonce,
        } = head;
        Ok(Self {
            stamp,
            content,
            deleted_subject,
            nonce,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn manifests_and_tombstones_round_trip() {
        let key: Key = "rm/app/_/x".parse().unwrap();
        let stamp = Stamp {
            clock: 7,
            region: "eu-1".parse().unwrap(),
        };
        let content = Some(("m".to_owned(), "{}".into()));
        let live = ManifestRecord {
            stamp,
            content,
            deleted_subject: None,
            nonce: 9,
        };
        assert_eq!(
            ManifestRecord::of(&key, &live.body(&key).unwrap()).unwrap(),
            live
        );
        let dead = ManifestRecord {
            content: None,
            deleted_subject: Some(Digest::sha256(b"subject")),
            ..live
        };
        assert_eq!(
            ManifestRecord::of(&key, &dead.body(&key).unwrap()).unwrap(),
            dead
        );
        for torn in [&[][..], &[9, 0, 0, 0, 1], &[255; 9]] {
            assert!(ManifestRecord::of(&key, &Bytes::copy_from_slice(torn)).is_err());
        }
    }
}

//! `rm/<name>/_/<digest>`: a manifest of a repository. A small head, then the bytes of the manifest
//! as they were pushed.
//!
//! ```text
//! Live ──collector──▶ Condemned (served; a PUT or an index that names it makes it live)
//!   ▲                     │ collector
//!   │ PUT, or needed      ▼
//!   └──────────────── Evicted   (absent in this region; same stamp, next turn)
//! any state ──DELETE──▶ Deleted (a tombstone with a new stamp; replicated)
//! ```

use bincode::{Decode, Encode};
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::stamp::Stamp;

use super::{decode, encode};
use crate::storage::{Key, StorageError};

/// Maximum bytes of a head: a stamp, a nonce and a media type.
const MAX_HEAD_LEN: usize = 4096;

/// The state of a manifest in one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(crate) enum ManifestState {
    /// In use.
    Live,
    /// Found unreachable by the collector; still served.
    Condemned,
    /// Removed by the collector of this region. Other regions may have it.
    Evicted,
    /// Deleted by a client, in all regions.
    Deleted,
}

impl ManifestState {
    /// Whether the bytes are stored and may be served.
    pub(crate) const fn is_served(self) -> bool {
        matches!(self, Self::Live | Self::Condemned)
    }
}

/// Precedes the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct ManifestHead {
    stamp: Stamp,
    turn: u32,
    state: ManifestState,
    media_type: Option<String>,
    subject: Option<Digest>,
    nonce: u128,
}

/// A manifest, or the tombstone of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestRecord {
    pub(crate) stamp: Stamp,
    /// Counts evictions and revivals within one stamp.
    pub(crate) turn: u32,
    pub(crate) state: ManifestState,
    /// The media type and the bytes, exactly if the state is served.
    pub(crate) content: Option<(String, Bytes)>,
    /// The manifest to which it refers: a reader of a tombstone can complete the removal from the
    /// referrers of that subject.
    pub(crate) subject: Option<Digest>,
    pub(crate) nonce: u128,
}

impl ManifestRecord {
    /// The body of the object.
    pub(crate) fn body(&self, key: &Key) -> Result<Bytes, StorageError> {
        let (media_type, bytes) = self.content.clone().unzip();
        let head = ManifestHead {
            stamp: self.stamp.clone(),
            turn: self.turn,
            state: self.state,
            media_type,
            subject: self.subject,
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
            .filter(|_| head.state.is_served())
            .map(|media_type| (media_type, body.slice(end..)));
        Ok(Self {
            stamp: head.stamp,
            turn: head.turn,
            state: head.state,
            content,
            subject: head.subject,
            nonce: head.nonce,
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
        let live = ManifestRecord {
            stamp,
            turn: 3,
            state: ManifestState::Live,
            content: Some(("m".to_owned(), "{}".into())),
            subject: None,
            nonce: 9,
        };
        assert_eq!(
            ManifestRecord::of(&key, &live.body(&key).unwrap()).unwrap(),
            live
        );
        let dead = ManifestRecord {
            state: ManifestState::Deleted,
            content: None,
            subject: Some(Digest::sha256(b"subject")),
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

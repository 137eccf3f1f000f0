//! The messages between replicas, and how sender and receiver prove that they belong to one region.
//!
//! ```text
//! request   mac 32 | encoded message      mac = SHA-256(secret | SHA-256(encoded message))
//! answer    mac 32 | encoded answer       mac = SHA-256(secret | SHA-256(mac of the request | encoded answer))
//! ```
//! The hashed lengths are fixed, so this plain hash is a sound MAC. Every message has a nonce of
//! its own, so a recorded answer proves nothing later. A replayed message costs a read.

use bincode::{Decode, Encode};
use flotilla_common::codec::{self, CodecError};
use flotilla_common::digest::Digest;
use flotilla_common::name::{RepositoryName, Tag};
use flotilla_common::seal::SealKey;
use flotilla_common::stamp::Stamp;
use sha2::{Digest as _, Sha256};

use super::leases::ProcessId;
use crate::format::Format;

/// Maximum bytes of a request.
pub(crate) const MAX_LEN: usize = 64 << 10;
/// Maximum bytes of an answer.
pub(crate) const MAX_ANSWER_LEN: usize = 256;
const MAC_LEN: usize = 32;
/// Separates the key of replica messages from others that derive from the seal key.
const CONTEXT: &str = "flotilla 2 replica messages";

/// A key whose cached value may be outdated.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Changed {
    /// A tag was moved or deleted.
    Tag(RepositoryName, Tag),
    /// A manifest was deleted, or got another media type.
    Manifest(RepositoryName, Digest),
    /// The membership of a blob in a repository was deleted.
    Blob(RepositoryName, Digest),
    /// Another region changed a tag for this one, and the storage here does not have it yet.
    ForwardedTag {
        repository: RepositoryName,
        tag: Tag,
        /// Of the change.
        stamp: Stamp,
        /// The manifest that it names; `None` if it was deleted.
        digest: Option<Digest>,
    },
    /// The same for a manifest by its digest.
    ForwardedManifest {
        repository: RepositoryName,
        digest: Digest,
        /// Of the change.
        stamp: Stamp,
        is_deleted: bool,
    },
}

/// What one replica says to another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Content {
    /// Drop the cached values of these keys.
    Invalidate(Vec<Changed>),
    /// Grant the sender a lease.
    Renew,
    /// The sender drains: it gives its leases back.
    Leave,
    /// Can you reach storage?
    Standing,
}

/// The body of one request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Message {
    /// The process that sent it.
    pub(crate) sender: ProcessId,
    pub(crate) nonce: u128,
    pub(crate) content: Content,
}

/// The body of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Answer {
    /// The process that answers.
    pub(crate) process: ProcessId,
    /// Whether it reaches storage; only in the answer to [`Content::Standing`].
    pub(crate) reaches_storage: Option<bool>,
}

/// The MAC of a request.
pub(crate) type RequestMac = [u8; MAC_LEN];

/// A key that only the replicas of a region share: it takes the region's seal key, and not only
/// access to the bucket.
#[derive(Clone)]
pub(crate) struct Secret([u8; 32]);

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Derives it from the region's seal key and the secret in the `format` object.
    pub(crate) fn new(seal_key: &SealKey, format: &Format) -> Self {
        Self(seal_key.derive_secret(CONTEXT, &format.upload_secret))
    }

    fn mac(&self, bytes: &[u8]) -> [u8; MAC_LEN] {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update(Sha256::digest(bytes));
        hasher.finalize().into()
    }

    /// The body of a request, and its MAC, to which the answer refers.
    pub(crate) fn seal(&self, message: &Message) -> Result<(Vec<u8>, RequestMac), CodecError> {
        let encoded = codec::encode(message)?;
        let mac = self.mac(&encoded);
        Ok(([&mac[..], &encoded].concat(), mac))
    }

    /// The message of a request, and its MAC. `None` if it was sealed with another secret.
    pub(crate) fn open(&self, body: &[u8]) -> Option<(Message, RequestMac)> {
        let (mac, encoded) = body.split_first_chunk::<MAC_LEN>()?;
        if !is_equal(mac, &self.mac(encoded)) {
            return None;
        }
        Some((codec::decode(encoded).ok()?, *mac))
    }

    /// The body of the answer to a request.
    pub(crate) fn seal_answer(
        &self,
        request: &RequestMac,
        answer: &Answer,
    ) -> Result<Vec<u8>, CodecError> {
        let encoded = codec::encode(answer)?;
        let mac = self.mac(&[request, &encoded[..]].concat());
        Ok([&mac[..], &encoded].concat())
    }

    /// The answer to a request. `None` if it was sealed with another secret, or answers another
    /// request.
    pub(crate) fn open_answer(&self, request: &RequestMac, body: &[u8]) -> Option<Answer> {
        let (mac, encoded) = body.split_first_chunk::<MAC_LEN>()?;
        if !is_equal(mac, &self.mac(&[request, encoded].concat())) {
            return None;
        }
        codec::decode(encoded).ok()
    }
}

/// Compares in constant time.
fn is_equal(a: &[u8], b: &[u8; MAC_LEN]) -> bool {
    a.len() == MAC_LEN
        && a.iter()
            .zip(b)
            .fold(0, |difference, (a, b)| difference | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn altered_truncated_and_foreign_messages_are_refused() {
        let changed = vec![
            Changed::Tag("app".parse().unwrap(), "v1".parse().unwrap()),
            Changed::Blob("app".parse().unwrap(), Digest::sha256(b"x")),
        ];
        let message = Message {
            sender: 7,
            nonce: 1,
            content: Content::Invalidate(changed),
        };
        let (body, mac) = Secret([1; 32]).seal(&message).unwrap();
        assert_eq!(Secret([1; 32]).open(&body), Some((message, mac)));
        assert_eq!(Secret([2; 32]).open(&body), None);
        for at in [0, 31, 32, body.len() - 1] {
            let mut altered = body.clone();
            altered[at] ^= 1;
            assert_eq!(Secret([1; 32]).open(&altered), None, "byte {at}");
        }
        for len in [0, 31, 32, body.len() - 1] {
            assert_eq!(Secret([1; 32]).open(&body[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn answer_proves_receipt_of_its_own_request_only() {
        let secret = Secret([1; 32]);
        let mac_of = |nonce| {
            let (sender, content) = (7, Content::Renew);
            let message = Message {
                sender,
                nonce,
                content,
            };
            secret.seal(&message).unwrap().1
        };
        let answer = Answer {
            process: 9,
            reaches_storage: Some(true),
        };
        let body = secret.seal_answer(&mac_of(1), &answer).unwrap();
        assert!(body.len() <= MAX_ANSWER_LEN);
        assert_eq!(secret.open_answer(&mac_of(1), &body), Some(answer));
        assert_eq!(secret.open_answer(&mac_of(2), &body), None, "recorded");
        assert_eq!(Secret([2; 32]).open_answer(&mac_of(1), &body), None);
        assert_eq!(secret.open_answer(&mac_of(1), &body[..31]), None);
    }

    #[test]
    fn secret_takes_seal_key_and_bucket() {
        let key = |secret: u8| SealKey::from_secret("eu-1".parse().unwrap(), &[secret; 32]);
        let format = |upload_secret| Format {
            horizons: crate::config::Horizons::default(),
            storage_id: flotilla_common::storage_id::StorageId::from_bytes([0; 16]),
            replaced: Vec::new(),
            upload_secret,
        };
        let secret = Secret::new(&key(1), &format([1; 32]));
        assert_eq!(secret.0, Secret::new(&key(1), &format([1; 32])).0);
        assert_ne!(secret.0, Secret::new(&key(2), &format([1; 32])).0);
        assert_ne!(secret.0, Secret::new(&key(1), &format([2; 32])).0);
    }
}

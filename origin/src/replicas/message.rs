//! What a replica tells another, and how either knows that the other one belongs to the same
//! storage.
//!
//! ```text
//! request   mac 32 | encoded message          mac = SHA-256(secret | SHA-256(encoded message))
//! answer    SHA-256(secret | SHA-256(mac of the request))
//! ```
//! The hashed lengths are fixed, so the plain hash is a sound MAC. A message that is sent again
//! later only costs a read.

use bincode::{Decode, Encode};
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RepositoryName, Tag};
use sha2::{Digest as _, Sha256};

use crate::format::Format;
use crate::storage::StorageError;

/// Bytes of a request at most.
pub(crate) const MAX_LEN: usize = 64 << 10;
pub(crate) const MAC_LEN: usize = 32;

/// A key whose value in caches is no longer the newest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Changed {
    /// A tag was moved or deleted.
    Tag(RepositoryName, Tag),
    /// A manifest was deleted, or has another media type.
    Manifest(RepositoryName, Digest),
    /// A repository's claim to a blob was deleted.
    Blob(RepositoryName, Digest),
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Message {
    /// The process that sends it, which is told of its own changes by nobody.
    pub(crate) sender: u128,
    pub(crate) changed: Vec<Changed>,
}

/// What all replicas of a storage know, and nobody else.
#[derive(Clone)]
pub(crate) struct Secret([u8; 32]);

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Derived from the secret in the storage's `format` object.
    pub(crate) fn of(format: &Format) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"flotilla: what replicas tell each other");
        hasher.update(format.upload_secret);
        Self(hasher.finalize().into())
    }

    fn mac(&self, bytes: &[u8]) -> [u8; MAC_LEN] {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update(Sha256::digest(bytes));
        hasher.finalize().into()
    }

    /// The body of a request, and the answer that it must have.
    pub(crate) fn seal(&self, message: &Message) -> Result<(Vec<u8>, [u8; MAC_LEN]), StorageError> {
        let encoded = codec::encode(message)
            .map_err(|error| StorageError::unavailable("encode message", "replicas", error))?;
        let mac = self.mac(&encoded);
        Ok(([&mac[..], &encoded].concat(), self.mac(&mac)))
    }

    /// The message of a request and its answer; `None` unless it was sealed with the same secret.
    pub(crate) fn open(&self, body: &[u8]) -> Option<(Message, [u8; MAC_LEN])> {
        let (mac, encoded) = body.split_first_chunk::<MAC_LEN>()?;
        if !is_same(mac, &self.mac(encoded)) {
            return None;
        }
        Some((codec::decode(encoded).ok()?, self.mac(mac)))
    }
}

/// Compares in a time that does not depend on the bytes.
pub(crate) fn is_same(a: &[u8], b: &[u8; MAC_LEN]) -> bool {
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
    fn only_the_same_secret_opens_and_only_the_whole_message() {
        let changed = vec![
            Changed::Tag("app".parse().unwrap(), "v1".parse().unwrap()),
            Changed::Blob("app".parse().unwrap(), Digest::sha256(b"x")),
        ];
        let message = Message { sender: 7, changed };
        let (body, answer) = Secret([1; 32]).seal(&message).unwrap();
        assert_eq!(Secret([1; 32]).open(&body), Some((message, answer)));
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
}

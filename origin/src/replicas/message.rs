//! The invalidation message, and how sender and receiver prove that they share a storage.
//!
//! ```text
//! request   mac 32 | encoded message          mac = SHA-256(secret | SHA-256(encoded message))
//! answer    SHA-256(secret | SHA-256(mac of the request))
//! ```
//! The hashed lengths are fixed, so this plain hash is a sound MAC. A replayed message only costs a
//! read.

use bincode::{Decode, Encode};
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RepositoryName, Tag};
use flotilla_common::seal::SealKey;
use flotilla_common::stamp::Stamp;
use sha2::{Digest as _, Sha256};

use crate::format::Format;
use crate::storage::StorageError;

/// Maximum bytes of a request.
pub(crate) const MAX_LEN: usize = 64 << 10;
pub(crate) const MAC_LEN: usize = 32;
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
}

/// The body of one request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct InvalidationMessage {
    /// The process that sent it, so that it can ignore its own requests.
    pub(crate) sender: u128,
    pub(crate) changed: Vec<Changed>,
}

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

    /// The body of a request, and the answer that proves its receipt.
    pub(crate) fn seal(
        &self,
        message: &InvalidationMessage,
    ) -> Result<(Vec<u8>, [u8; MAC_LEN]), StorageError> {
        let encoded = codec::encode(message)
            .map_err(|error| StorageError::unavailable("encode message", "replicas", error))?;
        let mac = self.mac(&encoded);
        Ok(([&mac[..], &encoded].concat(), self.mac(&mac)))
    }

    /// The message of a request, and the answer to it. `None` if it was sealed with another secret.
    pub(crate) fn open(&self, body: &[u8]) -> Option<(InvalidationMessage, [u8; MAC_LEN])> {
        let (mac, encoded) = body.split_first_chunk::<MAC_LEN>()?;
        if !is_equal(mac, &self.mac(encoded)) {
            return None;
        }
        Some((codec::decode(encoded).ok()?, self.mac(mac)))
    }
}

/// Compares in constant time.
pub(crate) fn is_equal(a: &[u8], b: &[u8; MAC_LEN]) -> bool {
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
        let message = InvalidationMessage { sender: 7, changed };
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

//! Upload ids. They are signed and carry their expiry, so that beginning an upload writes nothing
//! and any replica can verify an id.
//!
//! ```text
//! id = hex( flags 1 | expiry 8 | random 15 | mac 16 )      mac = SHA-256(secret | SHA-256(repository) | the first 24)
//! ```
//! All lengths are fixed, so a plain hash of secret and message is a sound MAC (there is no length
//! extension). An id is valid within one repository. It is also the generation of the blob that the
//! upload becomes, so every attempt to finish writes the same record.

use core::fmt;
use core::str::FromStr;

use bincode::{Decode, Encode};
use flotilla_common::hex;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::SealKey;
use sha2::{Digest, Sha256};

use crate::format::Format;
use crate::nonce::random_bytes;

const SIGNED_LEN: usize = 24;
const MAC_LEN: usize = 16;
const LEN: usize = SIGNED_LEN + MAC_LEN;
const HASH_SHA512: u8 = 1;
/// Separates the key of upload ids from others that derive from the seal key.
const CONTEXT: &str = "flotilla 2 upload ids";

/// The id of an upload, and the generation of the blob that it becomes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub(crate) struct Generation([u8; LEN]);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[9..15]))
    }
}

impl FromStr for Generation {
    type Err = UnknownUpload;

    fn from_str(text: &str) -> Result<Self, UnknownUpload> {
        hex::decode_exact(text).map(Self).ok_or(UnknownUpload)
    }
}

/// The id was not issued for this bucket and repository, or has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown or expired upload id")]
pub(crate) struct UnknownUpload;

/// An upload whose id was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UploadTicket {
    pub(crate) id: Generation,
    /// Whether sha512 is hashed while the bytes stream in.
    pub(crate) hash_sha512: bool,
}

/// Issues and verifies upload ids.
#[derive(Clone)]
pub(crate) struct UploadIdSigner {
    secret: [u8; 32],
}

impl fmt::Debug for UploadIdSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UploadIdSigner")
    }
}

impl UploadIdSigner {
    /// A signer for the replicas of a region. Its secret derives from the region's seal key and the
    /// secret in the bucket, so that access to the bucket alone forges no ids.
    pub(crate) fn of(seal_key: &SealKey, format: &Format) -> Self {
        Self::new(seal_key.derive_secret(CONTEXT, &format.upload_secret))
    }

    pub(crate) const fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    /// Issues an id for a new upload in `repository`, valid until `expires_unix_s`.
    pub(crate) fn issue(
        &self,
        repository: &RepositoryName,
        expires_unix_s: u64,
        hash_sha512: bool,
    ) -> UploadTicket {
        let mut id = [0; LEN];
        id[0] = if hash_sha512 { HASH_SHA512 } else { 0 };
        id[1..9].copy_from_slice(&expires_unix_s.to_be_bytes());
        id[9..SIGNED_LEN].copy_from_slice(&random_bytes::<15>());
        let mac = self.mac(repository, &id);
        id[SIGNED_LEN..].copy_from_slice(&mac);
        UploadTicket {
            id: Generation(id),
            hash_sha512,
        }
    }

    /// Verifies the id of a request.
    pub(crate) fn verify(
        &self,
        repository: &RepositoryName,
        id: &str,
        now_unix_s: u64,
    ) -> Result<UploadTicket, UnknownUpload> {
        let id: Generation = id.parse()?;
        let mac = self.mac(repository, &id.0);
        let difference = id.0[SIGNED_LEN..]
            .iter()
            .zip(mac)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        let expiry =
            id.0.get(1..9)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_be_bytes);
        if difference != 0 || now_unix_s >= expiry {
            return Err(UnknownUpload);
        }
        Ok(UploadTicket {
            id,
            hash_sha512: id.0[0] & HASH_SHA512 != 0,
        })
    }

    fn mac(&self, repository: &RepositoryName, id: &[u8; LEN]) -> [u8; MAC_LEN] {
        let mut hasher = Sha256::new();
        hasher.update(self.secret);
        hasher.update(Sha256::digest(repository.as_str()));
        hasher.update(&id[..SIGNED_LEN]);
        let full: [u8; 32] = hasher.finalize().into();
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&full[..MAC_LEN]);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_valid_in_their_repository_until_expiry() {
        let signer = UploadIdSigner::new([1; 32]);
        let app: RepositoryName = "app".parse().expect("a name");
        let other: RepositoryName = "other".parse().expect("a name");
        let ticket = signer.issue(&app, 100, true);
        let text = ticket.id.to_string();
        assert_eq!(signer.verify(&app, &text, 99), Ok(ticket));
        assert!(ticket.hash_sha512);
        assert_eq!(signer.verify(&app, &text, 100), Err(UnknownUpload));
        assert_eq!(signer.verify(&other, &text, 99), Err(UnknownUpload));
        assert_eq!(
            UploadIdSigner::new([2; 32]).verify(&app, &text, 99),
            Err(UnknownUpload)
        );
        for digit in [0, 5, 40, 79] {
            let mut altered = text.clone().into_bytes();
            altered[digit] = if altered[digit] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).expect("hex");
            assert_eq!(
                signer.verify(&app, &altered, 99),
                Err(UnknownUpload),
                "digit {digit}"
            );
        }
        assert_eq!(signer.verify(&app, "", 99), Err(UnknownUpload));
    }

    /// Access to the bucket alone, or to the seal key alone, forges no ids.
    #[test]
    fn secret_takes_seal_key_and_bucket() {
        let key = |secret: u8| SealKey::from_secret("eu-1".parse().expect("a name"), &[secret; 32]);
        let format = |upload_secret| Format {
            horizons: crate::config::Horizons::default(),
            storage_id: flotilla_common::storage_id::StorageId::from_bytes([0; 16]),
            replaced: Vec::new(),
            upload_secret,
        };
        let app: RepositoryName = "app".parse().expect("a name");
        let signer = UploadIdSigner::of(&key(1), &format([1; 32]));
        let ticket = signer.issue(&app, 100, false);
        let id = ticket.id.to_string();
        let verified =
            |key, format: &Format| UploadIdSigner::of(&key, format).verify(&app, &id, 99);
        assert_eq!(verified(key(1), &format([1; 32])), Ok(ticket));
        assert_eq!(verified(key(2), &format([1; 32])), Err(UnknownUpload));
        assert_eq!(verified(key(1), &format([2; 32])), Err(UnknownUpload));
        // The bucket's secret is not the signer's.
        let from_bucket = UploadIdSigner::new([1; 32]);
        assert_eq!(from_bucket.verify(&app, &id, 99), Err(UnknownUpload));
    }
}

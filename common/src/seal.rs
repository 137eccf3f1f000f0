//! Seals: an origin's signature over the identity of a blob.
//!
//! With a seal, a peer can verify a chunk table from an untrusted source. The signature is Ed25519
//! (RFC 8032) over a fixed byte layout, so that it does not depend on a codec.

use core::fmt;

use bincode::{Decode, Encode};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::chunk::Geometry;
use crate::digest::Digest;
use crate::hash_tree::ChainingValue;
use crate::name::RegionName;

/// Separates a seal's signature from every other use of the key.
const CONTEXT: &[u8] = b"flotilla seal 1\0";

/// The properties of a blob that a seal signs; stored unsigned, signed when served.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BlobFacts {
    /// The digest by which manifests name it.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// log2 of its chunk size.
    pub chunk_log2: u8,
    /// Its BLAKE3 hash.
    pub root: ChainingValue,
}

impl BlobFacts {
    /// The geometry of the blob; `None` if the chunk size is not the one of its size.
    pub fn geometry(&self) -> Option<Geometry> {
        Geometry::checked(self.size, self.chunk_log2)
    }
}

/// Which key of an issuer signed: the first 8 bytes of the BLAKE3 hash of the public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct KeyId(pub [u8; 8]);

impl KeyId {
    /// The id of a public key.
    pub fn of(key: &[u8; 32]) -> Self {
        let hash = *blake3::hash(key).as_bytes();
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex::encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An origin's signature over {issuer, key id, digest, size, log2 chunk size, root}.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Seal {
    /// The region whose origin signed.
    pub issuer: RegionName,
    /// The key that signed.
    pub key_id: KeyId,
    /// The signed properties.
    pub facts: BlobFacts,
    /// Ed25519.
    pub signature: [u8; 64],
}

/// Why a seal or a grant is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Signed by a key that is not configured.
    #[error("signed with key {0}, which is not among the trusted origin keys")]
    UnknownKey(KeyId),
    /// Signed by a key of another region than the seal names.
    #[error("signed with key {0}, which trusted-keys lists for another region than the seal names")]
    WrongRegion(KeyId),
    /// The signature is not valid.
    #[error("the signature is not valid for its content")]
    BadSignature,
    /// The chunk size does not match the size.
    #[error("the chunk size does not match the blob's size")]
    BadGeometry,
    /// The grant has expired.
    #[error("the grant has expired; check the clocks of origin and peers")]
    Expired,
}

/// An origin's private key.
#[derive(Clone)]
pub struct SealKey {
    issuer: RegionName,
    key: SigningKey,
}

impl SealKey {
    /// A key from its 32 secret bytes.
    pub fn from_secret(issuer: RegionName, secret: &[u8; 32]) -> Self {
        Self {
            issuer,
            key: SigningKey::from_bytes(secret),
        }
    }

    /// The public key, for peers' configuration.
    pub fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// The id that its signatures carry.
    pub fn key_id(&self) -> KeyId {
        KeyId::of(&self.public())
    }

    /// The region that issues with this key.
    pub const fn issuer(&self) -> &RegionName {
        &self.issuer
    }

    /// Signs a blob's facts.
    pub fn seal(&self, facts: BlobFacts) -> Seal {
        let key_id = self.key_id();
        let signature = self.sign(&signed_bytes(&self.issuer, key_id, &facts));
        Seal {
            issuer: self.issuer.clone(),
            key_id,
            facts,
            signature,
        }
    }

    /// Derives a secret that takes both this key and `input` to know. `context` names its use;
    /// secrets of different uses are independent (BLAKE3's key derivation mode).
    pub fn derive_secret(&self, context: &str, input: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(self.key.as_bytes());
        hasher.update(input);
        hasher.finalize().into()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({}, {})", self.issuer, self.key_id())
    }
}

/// The origin keys that a peer accepts; several at once are rotation, or several regions.
#[derive(Clone, Debug, Default)]
pub struct TrustedKeys {
    keys: Vec<TrustedKey>,
}

#[derive(Clone, Debug)]
struct TrustedKey {
    id: KeyId,
    /// The region that may issue with it.
    issuer: RegionName,
    key: VerifyingKey,
}

impl TrustedKeys {
    /// No key: nothing is accepted.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a public key of a region.
    ///
    /// # Errors
    /// [`TrustError::BadSignature`] if the bytes are no point of the curve.
    pub fn add(&mut self, issuer: &RegionName, public: &[u8; 32]) -> Result<(), TrustError> {
        let key = VerifyingKey::from_bytes(public).map_err(|_| TrustError::BadSignature)?;
        let id = KeyId::of(public);
        let is_known = |known: &TrustedKey| known.id == id && known.issuer == *issuer;
        if !self.keys.iter().any(is_known) {
            self.keys.push(TrustedKey {
                id,
                issuer: issuer.clone(),
                key,
            });
        }
        Ok(())
    }

    /// Checks a seal: its key and that key's region, its signature, its chunk size.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn check(&self, seal: &Seal) -> Result<Geometry, TrustError> {
        let mut with_id = self
            .keys
            .iter()
            .filter(|key| key.id == seal.key_id)
            .peekable();
        if with_id.peek().is_some() && with_id.all(|key| key.issuer != seal.issuer) {
            return Err(TrustError::WrongRegion(seal.key_id));
        }
        self.verify(
            seal.key_id,
            &signed_bytes(&seal.issuer, seal.key_id, &seal.facts),
            &seal.signature,
        )?;
        seal.facts.geometry().ok_or(TrustError::BadGeometry)
    }

    pub(crate) fn verify(
        &self,
        key_id: KeyId,
        message: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), TrustError> {
        let known = self.keys.iter().find(|key| key.id == key_id);
        let known = known.ok_or(TrustError::UnknownKey(key_id))?;
        known
            .key
            .verify_strict(message, &Signature::from_bytes(signature))
            .map_err(|_| TrustError::BadSignature)
    }
}

/// The ids of the keys, for people.
impl fmt::Display for TrustedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for TrustedKey { id, .. } in &self.keys {
            write!(f, "{separator}{id}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// What a seal signs: context, length-prefixed issuer, key id, algorithm, hash, size, log2 chunk
/// size, root.
fn signed_bytes(issuer: &RegionName, key_id: KeyId, facts: &BlobFacts) -> Vec<u8> {
    let mut bytes = CONTEXT.to_vec();
    push_text(&mut bytes, issuer.as_str());
    bytes.extend_from_slice(&key_id.0);
    push_digest(&mut bytes, &facts.digest);
    bytes.extend_from_slice(&facts.size.to_be_bytes());
    bytes.push(facts.chunk_log2);
    bytes.extend_from_slice(&facts.root);
    bytes
}

/// A label of at most 63 bytes behind its length.
pub(crate) fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(text.len() as u8);
    bytes.extend_from_slice(text.as_bytes());
}

/// A digest behind its length, which tells the algorithm.
pub(crate) fn push_digest(bytes: &mut Vec<u8>, digest: &Digest) {
    bytes.push(digest.hash().len() as u8);
    bytes.extend_from_slice(digest.hash());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> BlobFacts {
        BlobFacts {
            digest: Digest::sha256(b"x"),
            size: 64 << 20,
            chunk_log2: 18,
            root: [7; 32],
        }
    }

    fn key(secret: u8) -> SealKey {
        SealKey::from_secret("eu-1".parse().expect("a label"), &[secret; 32])
    }

    fn trust(trusted: &mut TrustedKeys, key: &SealKey) {
        trusted.add(key.issuer(), &key.public()).expect("a key");
    }

    #[test]
    fn a_seal_is_accepted_only_from_a_trusted_key_and_unaltered() {
        let seal = key(1).seal(facts());
        let mut trusted = TrustedKeys::none();
        assert_eq!(
            trusted.check(&seal),
            Err(TrustError::UnknownKey(seal.key_id))
        );
        trust(&mut trusted, &key(2));
        trust(&mut trusted, &key(1));
        assert_eq!(trusted.check(&seal), Ok(Geometry::for_size(64 << 20)));
        for alter in [
            |seal: &mut Seal| seal.facts.size += 1,
            |seal: &mut Seal| seal.facts.root[0] ^= 1,
            |seal: &mut Seal| seal.facts.digest = Digest::sha256(b"y"),
            |seal: &mut Seal| seal.signature[9] ^= 1,
        ] {
            let mut altered = seal.clone();
            alter(&mut altered);
            assert_eq!(trusted.check(&altered), Err(TrustError::BadSignature));
        }
    }

    /// A key signs what it is told to: the region must come from the list of trusted keys.
    #[test]
    fn key_of_one_region_cannot_seal_for_another() {
        let other: RegionName = "us-1".parse().expect("a label");
        let seal = SealKey::from_secret(other.clone(), &[1; 32]).seal(facts());
        let mut trusted = TrustedKeys::none();
        trust(&mut trusted, &key(1));
        let wrong_region = Err(TrustError::WrongRegion(seal.key_id));
        assert_eq!(trusted.check(&seal), wrong_region);
        let mut renamed = key(1).seal(facts());
        renamed.issuer = other.clone();
        assert_eq!(trusted.check(&renamed), wrong_region);
        // The same key may be listed for both.
        trusted.add(&other, &key(1).public()).expect("a key");
        assert!(trusted.check(&seal).is_ok());
        assert!(trusted.check(&key(1).seal(facts())).is_ok());
        assert_eq!(trusted.check(&renamed), Err(TrustError::BadSignature));
    }

    #[test]
    fn derived_secrets_depend_on_key_context_and_input() {
        let derived = key(1).derive_secret("one use", &[1; 32]);
        assert_eq!(derived, key(1).derive_secret("one use", &[1; 32]));
        for other in [
            key(2).derive_secret("one use", &[1; 32]),
            key(1).derive_secret("other use", &[1; 32]),
            key(1).derive_secret("one use", &[2; 32]),
        ] {
            assert_ne!(derived, other);
        }
    }

    #[test]
    fn a_signed_but_wrong_chunk_size_is_refused() {
        let mut trusted = TrustedKeys::none();
        trust(&mut trusted, &key(1));
        let seal = key(1).seal(BlobFacts {
            chunk_log2: 20,
            ..facts()
        });
        assert_eq!(trusted.check(&seal), Err(TrustError::BadGeometry));
    }

    #[test]
    fn a_seal_is_small() {
        let bytes = crate::codec::encode(&key(1).seal(facts())).expect("encodes");
        assert!(bytes.len() <= 160, "{} bytes", bytes.len());
    }
}

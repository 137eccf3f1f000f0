//! Grants: an origin's permission for one peer to receive the digests of one manifest's closure.

use bincode::{Decode, Encode};

use crate::digest::Digest;
use crate::name::PeerId;
use crate::seal::{KeyId, SealKey, TrustError, TrustedKeys, push_digest, push_text};

/// Separates a grant's signature from every other use of the key.
const CONTEXT: &[u8] = b"flotilla grant 1\0";

/// Who may receive what, until when; signed by an origin.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// The peer that may receive.
    pub peer: PeerId,
    /// What it may receive: a manifest and all that it names.
    pub digests: Vec<Digest>,
    /// Seconds since the Unix epoch at which the grant ends.
    pub expires_unix_s: u64,
    /// The key that signed.
    pub key_id: KeyId,
    /// Ed25519.
    pub signature: [u8; 64],
}

impl Grant {
    /// Signs a grant.
    pub fn sign(key: &SealKey, peer: PeerId, digests: Vec<Digest>, expires_unix_s: u64) -> Self {
        let key_id = key.key_id();
        let signature = key.sign(&signed_bytes(&peer, &digests, expires_unix_s, key_id));
        Self { peer, digests, expires_unix_s, key_id, signature }
    }

    /// Checks that an origin among `trusted` permits `peer` to receive `digest` at `now_unix_s`.
    ///
    /// # Errors
    /// [`TrustError::Expired`] after its end; [`TrustError::BadSignature`] also if the grant is for another
    /// peer or does not name the digest.
    pub fn check(
        &self,
        trusted: &TrustedKeys,
        peer: &PeerId,
        digest: &Digest,
        now_unix_s: u64,
    ) -> Result<(), TrustError> {
        let signed = signed_bytes(&self.peer, &self.digests, self.expires_unix_s, self.key_id);
        trusted.verify(self.key_id, &signed, &self.signature)?;
        if now_unix_s >= self.expires_unix_s {
            return Err(TrustError::Expired);
        }
        if self.peer != *peer || !self.digests.contains(digest) {
            return Err(TrustError::BadSignature);
        }
        Ok(())
    }
}

fn signed_bytes(peer: &PeerId, digests: &[Digest], expires_unix_s: u64, key_id: KeyId) -> Vec<u8> {
    let mut bytes = CONTEXT.to_vec();
    push_text(&mut bytes, peer.as_str());
    bytes.extend_from_slice(&key_id.0);
    bytes.extend_from_slice(&expires_unix_s.to_be_bytes());
    bytes.extend_from_slice(&(digests.len() as u64).to_be_bytes());
    for digest in digests {
        push_digest(&mut bytes, digest);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_a_peer_digests_and_an_end() {
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let mut trusted = TrustedKeys::none();
        trusted.add(&key.public()).expect("a key");
        let peer: PeerId = "vm-1".parse().expect("a label");
        let other: PeerId = "vm-2".parse().expect("a label");
        let (inside, outside) = (Digest::sha256(b"in"), Digest::sha256(b"out"));
        let grant = Grant::sign(&key, peer.clone(), vec![inside], 100);
        assert_eq!(grant.check(&trusted, &peer, &inside, 99), Ok(()));
        assert_eq!(grant.check(&trusted, &peer, &inside, 100), Err(TrustError::Expired));
        assert_eq!(grant.check(&trusted, &other, &inside, 99), Err(TrustError::BadSignature));
        assert_eq!(grant.check(&trusted, &peer, &outside, 99), Err(TrustError::BadSignature));
        let longer = Grant { expires_unix_s: 1_000, ..grant };
        assert_eq!(longer.check(&trusted, &peer, &inside, 99), Err(TrustError::BadSignature));
    }
}

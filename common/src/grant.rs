//! Grants: an origin's permission for one peer to receive the digests of one manifest's closure.
//!
//! ```text
//! origin                      peer                          neighbour, which requires grants
//!   | <-- closure, mTLS ------- |                               |
//!   | --- proofs, grant ------> | --- Ask with the grant -----> |   its own certificate, signature, digest, end
//!   | <-- closure again ------- |                               |   when RENEW_BEFORE_S is left
//! ```
//!
//! Clocks may differ: a grant is honoured until [`CLOCK_TOLERANCE_S`] after its expiry, and renewed
//! so early that a clock of the holder or of a neighbour that is an hour off does not interrupt a
//! pull.

use bincode::{Decode, Encode};

use crate::digest::Digest;
use crate::name::PeerId;
use crate::seal::{KeyId, SealKey, TrustError, TrustedKeys, push_digest, push_text};

/// Separates a grant's signature from every other use of the key.
const CONTEXT: &[u8] = b"flotilla grant 1\0";

/// The validity of a grant. A withdrawn permission takes effect after this time and the tolerance.
pub const LIFETIME_S: u64 = 12 * 60 * 60;
/// A holder requests a new grant when less than this is left.
pub const RENEW_BEFORE_S: u64 = 4 * 60 * 60;
/// How far clocks may differ.
pub const CLOCK_TOLERANCE_S: u64 = 60 * 60;

/// The permission of one peer to receive some digests, with an expiry, signed by an origin.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// The permitted peer.
    pub peer: PeerId,
    /// The permitted digests: a manifest, which comes first, and the blobs that it names.
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
        Self {
            peer,
            digests,
            expires_unix_s,
            key_id,
            signature,
        }
    }

    /// The manifest whose closure it is.
    pub fn manifest(&self) -> Option<&Digest> {
        self.digests.first()
    }

    /// Whether a new grant should be requested.
    pub const fn is_due(&self, now_unix_s: u64) -> bool {
        self.expires_unix_s.saturating_sub(now_unix_s) < RENEW_BEFORE_S
    }

    /// Checks that an origin among `trusted` permits `peer` to receive `digest` at `now_unix_s`.
    ///
    /// # Errors
    /// [`TrustError::Expired`] more than the tolerance after its end; [`TrustError::BadSignature`]
    /// also if the grant is for another peer or does not name the digest.
    pub fn check(
        &self,
        trusted: &TrustedKeys,
        peer: &PeerId,
        digest: &Digest,
        now_unix_s: u64,
    ) -> Result<(), TrustError> {
        self.verify(trusted)?;
        self.permits(peer, digest, now_unix_s)
    }

    /// The expensive part of [`Self::check`], whose result depends only on the grant and the keys:
    /// that an origin among `trusted` signed it.
    ///
    /// # Errors
    /// [`TrustError::UnknownKey`], [`TrustError::BadSignature`].
    pub fn verify(&self, trusted: &TrustedKeys) -> Result<(), TrustError> {
        let signed = signed_bytes(&self.peer, &self.digests, self.expires_unix_s, self.key_id);
        trusted.verify(self.key_id, &signed, &self.signature)
    }

    /// The cheap part of [`Self::check`]: whether the grant, if its signature is valid, is for this
    /// peer, digest and time.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn permits(
        &self,
        peer: &PeerId,
        digest: &Digest,
        now_unix_s: u64,
    ) -> Result<(), TrustError> {
        if now_unix_s >= self.expires_unix_s.saturating_add(CLOCK_TOLERANCE_S) {
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
    fn grant_renewal_tolerates_clocks_an_hour_off() {
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let issued_at = 1_000_000;
        let grant = Grant::sign(
            &key,
            "vm-1".parse().expect("a label"),
            Vec::new(),
            issued_at + LIFETIME_S,
        );
        let hour = 60 * 60;
        for wrong in [issued_at - hour, issued_at, issued_at + hour] {
            assert!(!grant.is_due(wrong), "not at once");
        }
        let last_moment = grant.expires_unix_s - RENEW_BEFORE_S + 1;
        // The slowest holder renews while the fastest neighbour would still serve it for hours.
        assert!(grant.is_due(last_moment) && last_moment + 2 * hour < grant.expires_unix_s);
    }

    #[test]
    fn grant_is_bound_to_peer_digest_and_expiry() {
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let mut trusted = TrustedKeys::none();
        trusted.add(key.issuer(), &key.public()).expect("a key");
        let peer: PeerId = "vm-1".parse().expect("a label");
        let other: PeerId = "vm-2".parse().expect("a label");
        let (inside, outside) = (Digest::sha256(b"in"), Digest::sha256(b"out"));
        let grant = Grant::sign(&key, peer.clone(), vec![inside], 100);
        assert_eq!(grant.check(&trusted, &peer, &inside, 99), Ok(()));
        let clock_ahead = 99 + CLOCK_TOLERANCE_S;
        assert_eq!(grant.check(&trusted, &peer, &inside, clock_ahead), Ok(()));
        assert_eq!(
            grant.check(&trusted, &peer, &inside, clock_ahead + 1),
            Err(TrustError::Expired)
        );
        assert_eq!(
            grant.check(&trusted, &other, &inside, 99),
            Err(TrustError::BadSignature)
        );
        assert_eq!(
            grant.check(&trusted, &peer, &outside, 99),
            Err(TrustError::BadSignature)
        );
        let foreign_key = SealKey::from_secret("eu-1".parse().expect("a label"), &[2; 32]);
        let foreign = Grant::sign(&foreign_key, peer.clone(), vec![inside], 100);
        let unknown = TrustError::UnknownKey(foreign_key.key_id());
        assert_eq!(foreign.check(&trusted, &peer, &inside, 99), Err(unknown));
        let longer = Grant {
            expires_unix_s: 1_000,
            ..grant
        };
        assert_eq!(
            longer.check(&trusted, &peer, &inside, 99),
            Err(TrustError::BadSignature)
        );
    }
}

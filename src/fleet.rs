//! A fleet's keys in memory: its certificate authority and an origin's seal key.

use flotilla_common::name::{PeerId, RegionName};
use flotilla_common::seal::{SealKey, TrustedKeys};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{
    CertificateAuthority, Identity, IdentityError, SealSecret, parse_trusted_keys, trusted_key_line,
};

/// A certificate authority and a seal key: enough to start a region.
#[derive(Debug)]
pub struct Fleet {
    authority: CertificateAuthority,
    seal_key: SealKey,
}

impl Fleet {
    /// Generates the keys of a new fleet whose only origin is that of `region`.
    ///
    /// # Errors
    /// If a key cannot be generated.
    pub fn create(region: RegionName) -> Result<Self, IdentityError> {
        Ok(Self {
            authority: CertificateAuthority::create(Clock::system())?,
            seal_key: SealSecret::generate(region)?.key(),
        })
    }

    /// A fleet with existing keys.
    pub const fn from_keys(authority: CertificateAuthority, seal_key: SealKey) -> Self {
        Self {
            authority,
            seal_key,
        }
    }

    /// The key that the origin signs seals with.
    pub const fn seal_key(&self) -> &SealKey {
        &self.seal_key
    }

    /// The keys that peers trust: the public part of the seal key.
    ///
    /// # Errors
    /// Never: the public key of a seal key is valid.
    pub fn trusted_keys(&self) -> Result<TrustedKeys, IdentityError> {
        parse_trusted_keys(&trusted_key_line(&self.seal_key))
    }

    /// A peer's identity, with a new certificate.
    ///
    /// # Errors
    /// If the certificate cannot be issued.
    pub fn peer(&self, id: &PeerId) -> Result<Identity, IdentityError> {
        let issued = self
            .authority
            .issue_peer(id, CertificateAuthority::DEFAULT_VALIDITY)?;
        Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            self.authority.certificate_pem(),
            Clock::system(),
        )
    }
}

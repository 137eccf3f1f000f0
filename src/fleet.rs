//! A fleet's trust for development: an authority, an origin's seal key, certificates for peers.

use flotilla_common::name::{PeerId, RegionName};
use flotilla_common::seal::{SealKey, TrustedKeys};
use flotilla_runtime::identity::{
    Authority, Identity, IdentityError, SealSecret, parse_trusted_keys, trusted_key_line,
};

/// The trust of a fleet that lives and dies with this process.
#[derive(Debug)]
pub struct Fleet {
    authority: Authority,
    seal_key: SealKey,
}

impl Fleet {
    /// A new fleet whose only origin is that of `region`.
    ///
    /// # Errors
    /// If keys cannot be made.
    pub fn create(region: RegionName) -> Result<Self, IdentityError> {
        Ok(Self {
            authority: Authority::create()?,
            seal_key: SealSecret::generate(region)?.key(),
        })
    }

    /// A fleet of keys that are on disk.
    pub const fn of(authority: Authority, seal_key: SealKey) -> Self {
        Self {
            authority,
            seal_key,
        }
    }

    /// What the origin signs seals with.
    pub const fn seal_key(&self) -> &SealKey {
        &self.seal_key
    }

    /// The origin keys that peers accept.
    ///
    /// # Errors
    /// If the own public key is none.
    pub fn trusted_keys(&self) -> Result<TrustedKeys, IdentityError> {
        parse_trusted_keys(&trusted_key_line(&self.seal_key))
    }

    /// A peer's identity, with a certificate made for it now.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn peer(&self, id: &PeerId) -> Result<Identity, IdentityError> {
        let issued = self.authority.issue_peer(id, Authority::DEFAULT_VALIDITY)?;
        Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            self.authority.certificate_pem(),
        )
    }
}

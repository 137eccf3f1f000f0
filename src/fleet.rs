//! A fleet's keys in memory: its certificate authority and the seal keys of its origins.

use std::sync::Arc;

use flotilla_common::name::{PeerId, RegionName};
use flotilla_common::seal::{SealKey, TrustedKeys};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{
    CertificateAuthority, Identity, IdentityError, Issued, SealSecret, client_trusting_pem,
    parse_trusted_keys, trusted_key_line,
};
use rustls::ClientConfig;

/// A certificate authority, the seal key of one region, and those of the fleet's other regions:
/// enough to start that region.
#[derive(Clone, Debug)]
pub struct Fleet {
    authority: Arc<CertificateAuthority>,
    seal_key: SealKey,
    /// The seal keys of the other regions.
    others: Vec<SealKey>,
}

impl Fleet {
    /// Generates the keys of a new fleet whose only origin is that of `region`.
    ///
    /// # Errors
    /// If a key cannot be generated.
    pub fn create(region: RegionName) -> Result<Self, IdentityError> {
        Ok(Self::from_keys(
            CertificateAuthority::create(Clock::system())?,
            SealSecret::generate(region)?.key(),
        ))
    }

    /// A fleet with existing keys.
    pub fn from_keys(authority: CertificateAuthority, seal_key: SealKey) -> Self {
        Self {
            authority: Arc::new(authority),
            seal_key,
            others: Vec::new(),
        }
    }

    /// The same fleet for each of several regions, in their order, with existing keys.
    pub fn of_regions(authority: CertificateAuthority, seal_keys: &[SealKey]) -> Vec<Self> {
        let authority = Arc::new(authority);
        let others = |own: usize| {
            let keys = seal_keys.iter().enumerate();
            keys.filter(|(at, _)| *at != own)
                .map(|(_, key)| key.clone())
                .collect()
        };
        let of = |(own, seal_key): (usize, &SealKey)| Self {
            authority: Arc::clone(&authority),
            seal_key: seal_key.clone(),
            others: others(own),
        };
        seal_keys.iter().enumerate().map(of).collect()
    }

    /// The key that the region's origin signs seals with.
    pub const fn seal_key(&self) -> &SealKey {
        &self.seal_key
    }

    /// The configuration of an HTTPS client without a certificate that trusts the authority.
    ///
    /// # Errors
    /// If the configuration cannot be created.
    pub fn client(&self) -> Result<ClientConfig, IdentityError> {
        client_trusting_pem(self.authority.certificate_pem())
    }

    /// The keys that peers trust: the public parts of all seal keys.
    ///
    /// # Errors
    /// Never: the public key of a seal key is valid.
    pub fn trusted_keys(&self) -> Result<TrustedKeys, IdentityError> {
        let keys = core::iter::once(&self.seal_key).chain(&self.others);
        parse_trusted_keys(&keys.map(trusted_key_line).collect::<String>())
    }

    /// A peer's identity, with a new certificate.
    ///
    /// # Errors
    /// If the certificate cannot be issued.
    pub fn peer(&self, id: &PeerId) -> Result<Identity, IdentityError> {
        self.identity(
            &self
                .authority
                .issue_peer(id, CertificateAuthority::DEFAULT_VALIDITY)?,
        )
    }

    /// The identity of the region's origin, with a new certificate for `names` (DNS names and IP
    /// addresses) that also names the region.
    ///
    /// # Errors
    /// If the certificate cannot be issued.
    pub fn origin(&self, names: &[String]) -> Result<Identity, IdentityError> {
        self.identity(&self.authority.issue_server(
            names,
            Some(self.seal_key.issuer()),
            CertificateAuthority::DEFAULT_VALIDITY,
        )?)
    }

    fn identity(&self, issued: &Issued) -> Result<Identity, IdentityError> {
        Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            self.authority.certificate_pem(),
            Clock::system(),
        )
    }
}

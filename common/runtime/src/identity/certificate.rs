//! The identity that a verified certificate carries: a peer of the fleet, or the origin of a
//! region.
//!
//! ```text
//! DNS name in the certificate's subject alternative names      identity
//! <id>.peer.flotilla.internal                                  CertificateName::Peer
//! <region>.origin.flotilla.internal                            CertificateName::Origin
//! <name>.client.flotilla.internal                              reserved: no identity
//! any other DNS name or IP address                             no identity
//! ```
//!
//! Only the fleet's authority issues names in these domains, and server names never lie in them. A
//! certificate with two of these names has no identity.

use std::fmt;
use std::path::Path;

use flotilla_common::digest::Digest;
use flotilla_common::name::{PeerId, RegionName};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::files::{self, ContentSource, FileKind, IdentityError};

/// The domain in which peers have their names: `<id>.peer.flotilla.internal`.
pub const PEER_DOMAIN: &str = "peer.flotilla.internal";
/// The domain in which origins have the names of their regions:
/// `<region>.origin.flotilla.internal`.
pub const ORIGIN_DOMAIN: &str = "origin.flotilla.internal";
/// The domain that is reserved for the names of clients.
pub const CLIENT_DOMAIN: &str = "client.flotilla.internal";

/// The TLS server name of a peer.
pub fn peer_name(peer: &PeerId) -> String {
    format!("{peer}.{PEER_DOMAIN}")
}

/// The name that certificates of the origin of a region carry.
pub fn origin_name(region: &RegionName) -> String {
    format!("{region}.{ORIGIN_DOMAIN}")
}

/// A member of the fleet that a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// A peer.
    Peer(PeerId),
    /// The origin of a region.
    Origin(RegionName),
}

/// The name as people read it: `peer vm-1`, `the origin of region eu-1`.
impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => write!(f, "peer {peer}"),
            Self::Origin(region) => write!(f, "the origin of region {region}"),
        }
    }
}

/// A certificate that names a member of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The member.
    pub name: CertificateName,
    /// When the certificate expires, in seconds since 1970.
    pub ends_unix_s: u64,
    /// The SHA-256 digest of the certificate's DER form, as `openssl x509 -fingerprint -sha256`
    /// prints it.
    pub fingerprint: Digest,
}

impl Certificate {
    /// Reads the identity of a certificate; `None` unless it names exactly one member of the fleet.
    ///
    /// This does not verify the certificate: pass only certificates that a TLS session has
    /// verified.
    pub fn parse(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        Some(Self {
            name: name(&parsed)?,
            ends_unix_s: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0),
            fingerprint: Digest::sha256(certificate),
        })
    }

    /// Reads the identity of the first certificate in a PEM file, whether it has expired or not;
    /// `None` if it has none.
    ///
    /// # Errors
    /// The file cannot be read, or contains no certificate.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let text = files::read(FileKind::Certificate, path)?;
        let source = ContentSource::File(path.to_owned());
        let certificates = source.certificates(FileKind::Certificate, &text)?;
        Ok(certificates.first().and_then(Self::parse))
    }

    /// The peer that it names, if any.
    pub const fn peer(&self) -> Option<&PeerId> {
        match &self.name {
            CertificateName::Peer(peer) => Some(peer),
            CertificateName::Origin(_) => None,
        }
    }

    /// The region whose origin it names, if any.
    pub const fn region(&self) -> Option<&RegionName> {
        match &self.name {
            CertificateName::Origin(region) => Some(region),
            CertificateName::Peer(_) => None,
        }
    }
}

/// The peer that a certificate names, as [`Certificate::parse`] reads it.
pub fn peer_id(certificate: &CertificateDer<'_>) -> Option<PeerId> {
    Certificate::parse(certificate)?.peer().cloned()
}

/// Whether a DNS name lies in a domain that only members of the fleet have names in.
pub(super) fn is_member_name(name: &str) -> bool {
    [PEER_DOMAIN, ORIGIN_DOMAIN, CLIENT_DOMAIN]
        .iter()
        .any(|domain| label_in(name, domain).is_some())
}

/// The part of `name` before `domain`: empty for the domain itself, `None` outside of it. DNS names
/// are equal whatever their case.
fn label_in<'n>(name: &'n str, domain: &str) -> Option<&'n str> {
    let (label, suffix) = name.split_at_checked(name.len().checked_sub(domain.len())?)?;
    if !suffix.eq_ignore_ascii_case(domain) {
        return None;
    }
    if label.is_empty() {
        return Some(label);
    }
    label.strip_suffix('.')
}

fn name(certificate: &X509Certificate<'_>) -> Option<CertificateName> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut members = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) if is_member_name(name) => Some(*name),
            _ => None,
        });
    let only = members.next()?;
    if members.next().is_some() {
        return None;
    }
    if let Some(id) = label_in(only, PEER_DOMAIN) {
        return id.parse().ok().map(CertificateName::Peer);
    }
    let region = label_in(only, ORIGIN_DOMAIN)?;
    region.parse().ok().map(CertificateName::Origin)
}

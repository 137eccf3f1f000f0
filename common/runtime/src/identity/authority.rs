//! The certificate authority of a fleet: one root that issues certificates to peers and servers.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use flotilla_common::name::{PeerId, RegionName};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls::pki_types::{IpAddr, ServerName};

use super::certificate::{is_member_name, origin_name, peer_name};
use super::files::{self, ContentSource, FileKind, IdentityError};
use crate::clock::Clock;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Ten years.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(3650 * DAY.as_secs());
/// Certificates start in the past, because the clock of a VM that just booted may be behind by an
/// hour or by a time zone.
const BACKDATED: Duration = DAY;

/// The root of a fleet's trust, with its private key.
#[derive(Debug)]
pub struct CertificateAuthority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    clock: Clock,
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate; public.
    pub certificate_pem: String,
    /// The private key; secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// The default validity of certificates: one year.
    pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(365 * DAY.as_secs());

    /// Creates an authority that is valid for ten years.
    ///
    /// # Errors
    /// The key cannot be generated.
    pub fn create(clock: Clock) -> Result<Self, IdentityError> {
        let mut params = params("Flotilla fleet CA", AUTHORITY_VALIDITY, clock);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate_pem,
            issuer: Issuer::new(params, key),
            clock,
        })
    }

    /// Loads the authority from two PEM files.
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the key does not match the certificate.
    pub fn load(certificate: &Path, key: &Path, clock: Clock) -> Result<Self, IdentityError> {
        let certificate_pem = files::read(FileKind::Authority, certificate)?;
        let key_pem = files::read(FileKind::AuthorityKey, key)?;
        let key_source = ContentSource::File(key.to_owned());
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| key_source.fault(FileKind::AuthorityKey, error))?;
        let source = ContentSource::File(certificate.to_owned());
        check_pair(&source, &certificate_pem, &key)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(|error| source.fault(FileKind::Authority, error))?;
        Ok(Self {
            certificate_pem,
            issuer,
            clock,
        })
    }

    /// The root certificate, which all members of the fleet trust; public.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key; secret.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate to a peer, as client and as server.
    ///
    /// # Errors
    /// The certificate cannot be issued.
    pub fn issue_peer(&self, peer: &PeerId, validity: Duration) -> Result<Issued, IdentityError> {
        let usages = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.issue(peer.as_str(), vec![peer_name(peer)], &usages, validity)
    }

    /// Issues a certificate to an origin or a tracker, for DNS names and IP addresses. With a
    /// region, it also names the origin of that region, which may use it as a client of other
    /// regions.
    ///
    /// # Errors
    /// [`IdentityError::ServerName`] for any other name, or one in a domain of the fleet's members;
    /// or the certificate cannot be issued.
    pub fn issue_server(
        &self,
        names: &[String],
        region: Option<&RegionName>,
        validity: Duration,
    ) -> Result<Issued, IdentityError> {
        let first = names
            .first()
            .ok_or_else(|| IdentityError::ServerName(String::new()))?;
        for name in names {
            check_server_name(name)?;
        }
        let mut usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut all_names = names.to_vec();
        if let Some(region) = region {
            usages.push(ExtendedKeyUsagePurpose::ClientAuth);
            all_names.push(origin_name(region));
        }
        self.issue(first, all_names, &usages, validity)
    }

    fn issue(
        &self,
        common_name: &str,
        names: Vec<String>,
        usages: &[ExtendedKeyUsagePurpose],
        validity: Duration,
    ) -> Result<Issued, IdentityError> {
        let mut params = params(common_name, validity, self.clock);
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn params(common_name: &str, validity: Duration, clock: Clock) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(clock.unix_seconds());
    params.not_before = now - BACKDATED;
    params.not_after = now + validity;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

fn check_pair(
    source: &ContentSource,
    certificate_pem: &str,
    key: &KeyPair,
) -> Result<(), IdentityError> {
    let certificates = source.certificates(FileKind::Authority, certificate_pem)?;
    let fault = |fault: &str| source.fault(FileKind::Authority, fault);
    let first = certificates
        .first()
        .ok_or_else(|| fault("contains no certificate"))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(first).map_err(|error| fault(&error.to_string()))?;
    if !parsed.is_ca() {
        return Err(fault("is not the certificate of an authority"));
    }
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(fault("does not belong to the authority's private key"));
    }
    Ok(())
}

/// Checks that a certificate of a server may be issued for a name.
///
/// # Errors
/// [`IdentityError::ServerName`] unless it is an IP address, or a DNS name outside the domains of
/// the fleet's members.
pub fn check_server_name(name: &str) -> Result<(), IdentityError> {
    let refused = || IdentityError::ServerName(name.to_owned());
    match ServerName::try_from(name).map_err(|_| refused())? {
        ServerName::DnsName(name) if is_member_name(name.as_ref()) => Err(refused()),
        ServerName::DnsName(_) => Ok(()),
        ServerName::IpAddress(IpAddr::V4(_) | IpAddr::V6(_))
            if std::net::IpAddr::from_str(name).is_ok() =>
        {
            Ok(())
        }
        _ => Err(refused()),
    }
}

//! TLS configurations with mutual authentication, whose certificates are reloaded from disk.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_common::name::{PeerId, RegionName};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version,
};
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::certificate::{Certificate, CertificateName, origin_name};
use super::crypto::{ClientAuth, provider, tls_error};
use super::files::{self, ContentSource, FileKind, IdentityError};
use super::live_identity::{IdentityState, LiveClients, LiveIdentity, LiveOrigin, Validity};
use crate::clock::Clock;
use crate::metrics::MetricWriter;

/// QUIC requires TLS 1.3.
static QUIC_VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13];
static HTTPS_VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// The files of an identity, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The trusted authorities.
    pub authority: PathBuf,
}

/// A certificate with its key and the trusted authorities. Clones share them, also after a reload.
#[derive(Clone, Debug)]
pub struct Identity {
    live: Arc<LiveIdentity>,
    /// The region whose origin uses this identity, once it is known.
    bound_region: Arc<OnceLock<RegionName>>,
    files: Option<CertificateFiles>,
    clock: Clock,
}

impl Identity {
    /// Loads the identity from three files.
    ///
    /// # Errors
    /// The error names the file, the fault and the fix: unreadable, not PEM, a key that does not
    /// match the certificate, or an expired certificate.
    pub fn load(files: &CertificateFiles, clock: Clock) -> Result<Self, IdentityError> {
        Ok(Self::new(load(files, clock)?, Some(files.clone()), clock))
    }

    /// Makes the identity from three PEM texts, for services that create their own fleet.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn from_pem(
        certificate: &str,
        key: &str,
        authority: &str,
        clock: Clock,
    ) -> Result<Self, IdentityError> {
        let source = ContentSource::Memory;
        let (certified, validity) = certified(&source, certificate, &source, key, clock)?;
        Ok(Self::new(
            IdentityState::new(certified, validity, roots(&source, authority)?)?,
            None,
            clock,
        ))
    }

    fn new(state: IdentityState, files: Option<CertificateFiles>, clock: Clock) -> Self {
        Self {
            live: Arc::new(LiveIdentity(ArcSwap::from_pointee(state))),
            bound_region: Arc::default(),
            files,
            clock,
        }
    }

    /// Its files; `None` for an identity in memory, which never changes.
    pub const fn files(&self) -> Option<&CertificateFiles> {
        self.files.as_ref()
    }

    /// Reads certificate, key and authorities again. New connections use them; open connections
    /// continue.
    ///
    /// # Errors
    /// As [`Identity::load`], and a certificate of another peer or region, because a process keeps
    /// its name. On an error the previous identity stays in use.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        let state = load(files, self.clock)?;
        let named = name_of(&state);
        if let Some(current) = self
            .name()
            .filter(|current| named.as_ref() != Some(current))
        {
            let named =
                named.map_or_else(|| "no member of the fleet".to_owned(), |it| it.to_string());
            let fault =
                format!("names {named}, but this process is {current}: restart it to rename it");
            return Err(self.certificate_fault(fault));
        }
        self.check_region(named.as_ref())?;
        self.live.0.store(Arc::new(state));
        Ok(())
    }

    /// Binds the identity to the region whose origin uses it: a certificate that names the origin
    /// of another region is refused, now and at every reload. Without effect if it is bound.
    ///
    /// # Errors
    /// The current certificate names the origin of another region.
    pub fn bind_region(&self, region: &RegionName) -> Result<(), IdentityError> {
        self.bound_region.get_or_init(|| region.clone());
        self.check_region(self.name().as_ref())
    }

    fn check_region(&self, named: Option<&CertificateName>) -> Result<(), IdentityError> {
        match (self.bound_region.get(), named) {
            (Some(own), Some(CertificateName::Origin(region))) if region != own => {
                let fault = format!("names region {region}, but this origin is in region {own}");
                Err(self.certificate_fault(fault))
            }
            _ => Ok(()),
        }
    }

    /// Verifies that the certificate, which names the origin of `region`, was issued by the trusted
    /// authorities, may be used by clients and servers, and is valid now. Origins of other regions
    /// verify it so.
    ///
    /// # Errors
    /// [`IdentityError::Untrusted`]: it names both files.
    pub fn verify_origin(&self, region: &RegionName) -> Result<(), IdentityError> {
        let name = origin_name(region);
        let files = self.files.as_ref();
        let source = |path: fn(&CertificateFiles) -> &PathBuf| {
            files.map_or(ContentSource::Memory, |files| {
                ContentSource::File(path(files).clone())
            })
        };
        let untrusted = |fault: String| IdentityError::Untrusted {
            certificate: source(|files| &files.certificate),
            authority: source(|files| &files.authority),
            region: region.clone(),
            fault,
        };
        let server = ServerName::try_from(name).map_err(|error| untrusted(error.to_string()))?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.clock.unix_seconds()));
        let verified = self.live.0.load().verify_own(&server, now);
        verified.map_err(|error| untrusted(explained(&error)))
    }

    fn certificate_fault(&self, fault: String) -> IdentityError {
        let files = self.files.as_ref();
        let source = files.map_or(ContentSource::Memory, |files| {
            ContentSource::File(files.certificate.clone())
        });
        source.fault(FileKind::Certificate, fault)
    }

    /// The member of the fleet that the certificate names, if any.
    fn name(&self) -> Option<CertificateName> {
        name_of(&self.live.0.load())
    }

    /// The peer that the certificate names, if any.
    pub fn peer_id(&self) -> Option<PeerId> {
        match self.name()? {
            CertificateName::Peer(peer) => Some(peer),
            CertificateName::Origin(_) => None,
        }
    }

    /// The region whose origin the certificate names, if any.
    pub fn region(&self) -> Option<RegionName> {
        match self.name()? {
            CertificateName::Origin(region) => Some(region),
            CertificateName::Peer(_) => None,
        }
    }

    /// When the current certificate expires, in seconds since 1970.
    pub fn ends_unix_s(&self) -> u64 {
        self.live.0.load().validity.ends_unix_s
    }

    /// Writes the metrics of the identity.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn write_metrics(&self, writer: &mut MetricWriter<'_>) -> fmt::Result {
        let help = "When the current certificate expires, in seconds since 1970";
        writer.gauge(
            "certificate_ends_timestamp_seconds",
            help,
            self.ends_unix_s(),
        )
    }

    pub(super) const fn clock(&self) -> Clock {
        self.clock
    }

    pub(super) fn validity(&self) -> Validity {
        self.live.0.load().validity
    }

    /// Configures a QUIC server: TLS 1.3, required client certificates, the protocol `alpn`.
    ///
    /// # Errors
    /// The provider lacks TLS 1.3.
    pub fn quic_server(&self, alpn: &[u8]) -> Result<ServerConfig, IdentityError> {
        self.server(QUIC_VERSIONS, ClientAuth::Required, &[alpn])
    }

    /// Configures a QUIC client: TLS 1.3, this certificate, the protocol `alpn`.
    ///
    /// # Errors
    /// The provider lacks TLS 1.3.
    pub fn quic_client(&self, alpn: &[u8]) -> Result<ClientConfig, IdentityError> {
        self.client(QUIC_VERSIONS, Arc::<LiveIdentity>::clone(&self.live), alpn)
    }

    /// Configures an HTTPS server: HTTP/2 for clients that offer it, otherwise HTTP/1.1.
    ///
    /// # Errors
    /// The provider lacks a protocol version.
    pub fn https_server(&self, clients: ClientAuth) -> Result<Arc<ServerConfig>, IdentityError> {
        self.server(HTTPS_VERSIONS, clients, &[b"h2", b"http/1.1"])
            .map(Arc::new)
    }

    /// Configures an HTTPS client that shows its certificate.
    ///
    /// # Errors
    /// The provider lacks a protocol version.
    pub fn https_client(&self) -> Result<ClientConfig, IdentityError> {
        self.client(
            HTTPS_VERSIONS,
            Arc::<LiveIdentity>::clone(&self.live),
            b"http/1.1",
        )
    }

    /// Configures an HTTPS client that shows its certificate, and connects only to the origin of
    /// one region: the server's certificate must carry the region's name beside that of its host.
    ///
    /// # Errors
    /// The provider lacks a protocol version.
    pub fn https_client_of_origin(
        &self,
        region: &RegionName,
    ) -> Result<ClientConfig, IdentityError> {
        let verifier = LiveOrigin {
            live: Arc::clone(&self.live),
            region: region.clone(),
        };
        self.client(HTTPS_VERSIONS, Arc::new(verifier), b"http/1.1")
    }

    fn server(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        clients: ClientAuth,
        alpn: &[&[u8]],
    ) -> Result<ServerConfig, IdentityError> {
        let verifier = LiveClients {
            live: Arc::clone(&self.live),
            clients,
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(tls_error)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::<LiveIdentity>::clone(&self.live));
        // A resumed session would continue with a certificate that is not verified again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        servers: Arc<dyn ServerCertVerifier>,
        alpn: &[u8],
    ) -> Result<ClientConfig, IdentityError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(tls_error)?
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_cert_resolver(Arc::<LiveIdentity>::clone(&self.live));
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }
}

/// Configures an HTTPS client without a certificate that trusts the authorities of a PEM file.
///
/// # Errors
/// The file cannot be read, or contains no certificate.
pub fn client_trusting(authority: &std::path::Path) -> Result<ClientConfig, IdentityError> {
    let text = files::read(FileKind::Authority, authority)?;
    anonymous_client(roots(&ContentSource::File(authority.to_owned()), &text)?)
}

/// As [`client_trusting`], for authorities in memory.
///
/// # Errors
/// The text contains no certificate.
pub fn client_trusting_pem(authority: &str) -> Result<ClientConfig, IdentityError> {
    anonymous_client(roots(&ContentSource::Memory, authority)?)
}

/// Configures an HTTPS client without a certificate that trusts the authorities of the operating
/// system.
///
/// # Errors
/// The system's authorities cannot be used.
pub fn client_trusting_system() -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(HTTPS_VERSIONS)
        .map_err(tls_error)?
        .with_platform_verifier()
        .map_err(tls_error)?
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Configures a client of plain HTTP, whose library requires a TLS configuration. It trusts no
/// server, so every handshake fails.
///
/// # Errors
/// The provider lacks a protocol version.
pub fn client_without_trust() -> Result<ClientConfig, IdentityError> {
    anonymous_client(RootCertStore::empty())
}

fn anonymous_client(roots: RootCertStore) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(HTTPS_VERSIONS)
        .map_err(tls_error)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn load(files: &CertificateFiles, clock: Clock) -> Result<IdentityState, IdentityError> {
    let certificate = files::read(FileKind::Certificate, &files.certificate)?;
    let key = files::read(FileKind::PrivateKey, &files.key)?;
    let authority = files::read(FileKind::Authority, &files.authority)?;
    let [certificate_source, key_source, authority_source] =
        [&files.certificate, &files.key, &files.authority]
            .map(|path| ContentSource::File(path.clone()));
    let (certified, validity) =
        certified(&certificate_source, &certificate, &key_source, &key, clock)?;
    IdentityState::new(certified, validity, roots(&authority_source, &authority)?)
}

/// Why a certificate is refused, in words.
fn explained(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "another authority issued it".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            "another authority of the same name issued it".to_owned()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "it is not valid yet by the clock of this machine, which may be wrong".to_owned(),
        error => error.to_string(),
    }
}

fn name_of(state: &IdentityState) -> Option<CertificateName> {
    let certificate = Certificate::parse(state.certified.cert.first()?)?;
    Some(certificate.name)
}

fn certified(
    certificate_source: &ContentSource,
    certificate: &str,
    key_source: &ContentSource,
    key: &str,
    clock: Clock,
) -> Result<(CertifiedKey, Validity), IdentityError> {
    let chain = certificate_source.certificates(FileKind::Certificate, certificate)?;
    let key = key_source.private_key(key)?;
    let certified =
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => key_source.fault(
                FileKind::PrivateKey,
                format!("does not belong to the certificate in {certificate_source}"),
            ),
            error => key_source.fault(FileKind::PrivateKey, error),
        })?;
    let fault = |fault: String| certificate_source.fault(FileKind::Certificate, fault);
    let end_entity = certified
        .end_entity_cert()
        .map_err(|error| fault(error.to_string()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(end_entity)
        .map_err(|error| fault(error.to_string()))?;
    let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
    let unix_s = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = Validity {
        begins_unix_s: unix_s(not_before),
        ends_unix_s: unix_s(not_after),
    };
    if validity.ends_unix_s <= clock.unix_seconds() {
        return Err(fault(format!("expired on {not_after}")));
    }
    Ok((certified, validity))
}

/// A bundle may contain certificates that the provider cannot parse; one usable certificate is
/// enough.
fn roots(source: &ContentSource, text: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    let (usable, unusable) =
        roots.add_parsable_certificates(source.certificates(FileKind::Authority, text)?);
    if usable == 0 {
        return Err(source.fault(FileKind::Authority, "contains no usable certificate"));
    }
    if unusable > 0 {
        tracing::debug!(%source, usable, unusable, "some authorities in the bundle cannot be parsed and are ignored");
    }
    Ok(roots)
}

//! TLS configurations: both ways authenticated, by `ring`, with certificates that are reloaded from
//! disk.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use flotilla_common::name::PeerId;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};

use super::files::{self, ContentSource, FileKind, IdentityError};
use super::live::{Live, LiveClients, Moment, Validity};
use crate::clock::Clock;
use crate::metrics::MetricWriter;

/// QUIC knows no older version.
static QUIC_VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13];
static HTTPS_VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// The cryptography that every configuration names.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Where an identity is on disk; all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that are trusted.
    pub authority: PathBuf,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without a certificate gets no connection.
    Required,
    /// The server asks for a certificate, and verifies one that is shown.
    Optional,
}

/// A certificate with its key, and whom it trusts. Clones share all of it, also after a reload.
#[derive(Clone, Debug)]
pub struct Identity {
    live: Arc<Live>,
    files: Option<CertificateFiles>,
}

impl Identity {
    /// The identity in three files.
    ///
    /// # Errors
    /// Which file is wrong, why, and the cure: unreadable, no PEM, key and certificate that do not
    /// belong together, a certificate that is over.
    pub fn load(files: &CertificateFiles) -> Result<Self, IdentityError> {
        Ok(Self::new(load(files)?, Some(files.clone())))
    }

    /// The identity in three PEM texts, for services that make their own fleet.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn from_pem(certificate: &str, key: &str, authority: &str) -> Result<Self, IdentityError> {
        let place = ContentSource::Memory;
        let (certified, validity) = certified(&place, certificate, &place, key)?;
        Ok(Self::new(
            Moment::new(certified, validity, roots(&place, authority)?)?,
            None,
        ))
    }

    fn new(moment: Moment, files: Option<CertificateFiles>) -> Self {
        Self {
            live: Arc::new(Live(ArcSwap::from_pointee(moment))),
            files,
        }
    }

    /// The files it is in; `None` for one that was made in memory and never changes.
    pub const fn files(&self) -> Option<&CertificateFiles> {
        self.files.as_ref()
    }

    /// Reads certificate, key and authorities again; connections from now on use them, those that
    /// stand go on.
    ///
    /// # Errors
    /// As [`Identity::load`], and a certificate of another peer: a name lasts as long as its
    /// process. What was in use stays in use.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        let moment = load(files)?;
        let named = peer_of(&moment);
        if let Some(id) = self.peer_id().filter(|id| named.as_ref() != Some(id)) {
            let named = named.map_or_else(|| "no peer".to_owned(), |named| format!("peer {named}"));
            let fault =
                format!("names {named}, and this process is peer {id}: restart it to rename it");
            return Err(
                ContentSource::File(files.certificate.clone()).fault(FileKind::Certificate, fault)
            );
        }
        self.live.0.store(Arc::new(moment));
        Ok(())
    }

    /// The peer that the certificate names, if it is a peer's.
    pub fn peer_id(&self) -> Option<PeerId> {
        peer_of(&self.live.0.load())
    }

    /// When the certificate in use is over, in seconds since 1970.
    pub fn ends_unix_s(&self) -> u64 {
        self.live.0.load().validity.ends_unix_s
    }

    /// What a service shows of it as metrics.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn figures(&self, figures: &mut MetricWriter<'_>) -> fmt::Result {
        let help = "When the certificate in use is over, in seconds since 1970";
        figures.gauge(
            "certificate_ends_timestamp_seconds",
            help,
            self.ends_unix_s(),
        )
    }

    pub(super) fn validity(&self) -> Validity {
        self.live.0.load().validity
    }

    /// For a listener of QUIC: TLS 1.3, clients authenticated, the protocol `alpn`.
    ///
    /// # Errors
    /// The authorities cannot verify anybody.
    pub fn quic_server(&self, alpn: &[u8]) -> Result<ServerConfig, IdentityError> {
        self.server(QUIC_VERSIONS, ClientAuth::Required, &[alpn])
    }

    /// For dialling by QUIC: TLS 1.3, with the own certificate, the protocol `alpn`.
    ///
    /// # Errors
    /// The provider lacks TLS 1.3.
    pub fn quic_client(&self, alpn: &[u8]) -> Result<ClientConfig, IdentityError> {
        self.client(QUIC_VERSIONS, alpn)
    }

    /// For a listener of HTTPS: HTTP/2 for whoever offers it, or HTTP/1.1.
    ///
    /// # Errors
    /// The authorities cannot verify anybody.
    pub fn https_server(&self, clients: ClientAuth) -> Result<Arc<ServerConfig>, IdentityError> {
        self.server(HTTPS_VERSIONS, clients, &[b"h2", b"http/1.1"])
            .map(Arc::new)
    }

    /// For an HTTPS client that shows its certificate.
    ///
    /// # Errors
    /// The provider lacks a protocol version.
    pub fn https_client(&self) -> Result<ClientConfig, IdentityError> {
        self.client(HTTPS_VERSIONS, b"http/1.1")
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
            .with_cert_resolver(Arc::<Live>::clone(&self.live));
        // A resumed session would carry on with a certificate that nobody checks any more.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[u8],
    ) -> Result<ClientConfig, IdentityError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(tls_error)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Live>::clone(&self.live))
            .with_client_cert_resolver(Arc::<Live>::clone(&self.live));
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }
}

/// For an HTTPS client without a certificate of its own that trusts the authorities of a PEM file.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn client_trusting(authority: &std::path::Path) -> Result<ClientConfig, IdentityError> {
    let text = files::read(FileKind::Authority, authority)?;
    anonymous_client(roots(&ContentSource::File(authority.to_owned()), &text)?)
}

/// For clients of plain HTTP, whose library wants a TLS configuration all the same: every handshake
/// fails.
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

fn load(files: &CertificateFiles) -> Result<Moment, IdentityError> {
    let certificate = files::read(FileKind::Certificate, &files.certificate)?;
    let key = files::read(FileKind::PrivateKey, &files.key)?;
    let authority = files::read(FileKind::Authority, &files.authority)?;
    let [certificate_place, key_place, authority_place] =
        [&files.certificate, &files.key, &files.authority]
            .map(|path| ContentSource::File(path.clone()));
    let (certified, validity) = certified(&certificate_place, &certificate, &key_place, &key)?;
    Moment::new(certified, validity, roots(&authority_place, &authority)?)
}

fn peer_of(moment: &Moment) -> Option<PeerId> {
    super::peer_id(moment.certified.cert.first()?)
}

fn certified(
    certificate_place: &ContentSource,
    certificate: &str,
    key_place: &ContentSource,
    key: &str,
) -> Result<(CertifiedKey, Validity), IdentityError> {
    let chain = certificate_place.certificates(FileKind::Certificate, certificate)?;
    let key = key_place.private_key(key)?;
    let certified =
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => key_place.fault(
                FileKind::PrivateKey,
                format!("does not belong to the certificate in {certificate_place}"),
            ),
            error => key_place.fault(FileKind::PrivateKey, error),
        })?;
    let fault = |fault: String| certificate_place.fault(FileKind::Certificate, fault);
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
    if validity.ends_unix_s <= Clock::system().unix_seconds() {
        return Err(fault(format!("expired on {not_after}")));
    }
    Ok((certified, validity))
}

/// A bundle may hold certificates that this cryptography cannot read; one good one is enough.
fn roots(place: &ContentSource, text: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    let (usable, unusable) =
        roots.add_parsable_certificates(place.certificates(FileKind::Authority, text)?);
    if usable == 0 {
        return Err(place.fault(
            FileKind::Authority,
            "holds no certificate that can be trusted",
        ));
    }
    if unusable > 0 {
        tracing::debug!(%place, usable, unusable, "some authorities cannot be used");
    }
    Ok(roots)
}

pub(super) fn tls_error(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

//! The current state of an identity: every handshake reads it, and a reload replaces it as a whole.
//!
//! TLS configurations hold it through the resolvers and verifiers below, which delegate to the
//! standard ones of the current state. New connections of an existing configuration therefore
//! follow every rotation, while open connections continue. Everything is verified by the standard
//! verifiers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use flotilla_common::name::RegionName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::certificate::{Certificate, CertificateName};
use super::crypto::{ClientAuth, provider, tls_error};
use super::files::IdentityError;

/// A certificate with its key, and verifiers for the trusted authorities.
#[derive(Debug)]
pub(super) struct IdentityState {
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) validity: Validity,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// The validity period of a certificate, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) begins_unix_s: u64,
    pub(super) ends_unix_s: u64,
}

impl IdentityState {
    pub(super) fn new(
        certified: CertifiedKey,
        validity: Validity,
        roots: RootCertStore,
    ) -> Result<Self, IdentityError> {
        let roots = Arc::new(roots);
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider());
        Ok(Self {
            certified: Arc::new(certified),
            validity,
            servers: servers.build().map_err(tls_error)?,
            clients: clients.build().map_err(tls_error)?,
        })
    }

    /// Verifies the own certificate as other members of the fleet do that trust the same
    /// authorities: as a client's, and as that of a server with this name.
    pub(super) fn verify_own(&self, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        let (end_entity, intermediates) = self
            .certified
            .cert
            .split_first()
            .ok_or(Error::NoCertificatesPresented)?;
        self.clients
            .verify_client_cert(end_entity, intermediates, now)?;
        self.servers
            .verify_server_cert(end_entity, intermediates, name, &[], now)?;
        Ok(())
    }
}

/// The current identity state, as certificate resolver of both sides and as the verifier of
/// servers.
#[derive(Debug)]
pub(super) struct LiveIdentity(pub(super) ArcSwap<IdentityState>);

impl ResolvesServerCert for LiveIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }
}

impl ResolvesClientCert for LiveIdentity {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ServerCertVerifier for LiveIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0
            .load()
            .servers
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .load()
            .servers
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .load()
            .servers
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().servers.supported_verify_schemes()
    }
}

/// The verifier of the origin of one region. Beside the name of its host, the certificate must
/// carry the name of the region, so a host that serves another region is refused.
#[derive(Debug)]
pub(super) struct LiveOrigin {
    pub(super) live: Arc<LiveIdentity>,
    pub(super) region: RegionName,
}

impl ServerCertVerifier for LiveOrigin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .live
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)?;
        let named = Certificate::parse(end_entity).map(|certificate| certificate.name);
        if named == Some(CertificateName::Origin(self.region.clone())) {
            return Ok(verified);
        }
        let named = named.map_or_else(|| "no region's origin".to_owned(), |it| it.to_string());
        Err(Error::General(format!(
            "the certificate of {} names {named}, but the origin of region {} is expected",
            name.to_str(),
            self.region
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.live
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.live
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.live.supported_verify_schemes()
    }
}

/// The verifier of clients.
#[derive(Debug)]
pub(super) struct LiveClients {
    pub(super) live: Arc<LiveIdentity>,
    pub(super) clients: ClientAuth,
}

impl ClientCertVerifier for LiveClients {
    fn client_auth_mandatory(&self) -> bool {
        self.clients == ClientAuth::Required
    }

    /// Empty, because the list could change during the handshake, and a client of this fleet has
    /// only one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.live
            .0
            .load()
            .clients
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.live
            .0
            .load()
            .clients
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.live
            .0
            .load()
            .clients
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.live.0.load().clients.supported_verify_schemes()
    }
}

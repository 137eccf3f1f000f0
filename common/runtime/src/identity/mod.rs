//! Identities: the fleet's certificate authority, its certificates, the TLS configurations made of
//! them, and the seal keys of origins.
//!
//! ```text
//! CertificateAuthority ---issues---> certificate of a peer:   <id>.peer.flotilla.internal, client and server
//!     |                   certificate of a server: names and addresses, server only
//!     '---trusted by----> Identity: own certificate and the authority ---> TLS configurations
//! ```
//!
//! A peer's id is the label in front of [`PEER_DOMAIN`] in its certificate's subject alternative
//! names. The standard verifier checks it, and a renewed certificate keeps it. Server certificates
//! are never issued for that domain.
//!
//! Every configuration names `ring` as its crypto provider. Nothing here installs a process-wide
//! default provider or weakens a verification.

mod authority;
mod crypto;
mod files;
mod live_identity;
mod seal_keys;
mod tls;
mod watch;

use flotilla_common::name::PeerId;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

pub use authority::{CertificateAuthority, Issued};
pub use crypto::ClientAuth;
pub use files::{ContentSource, FileKind, IdentityError, replace, write_new};
pub use seal_keys::{
    SealSecret, load_seal_key, load_trusted_keys, parse_trusted_keys, trusted_key_line,
};
pub use tls::{CertificateFiles, Identity, client_trusting, client_without_trust};
pub use watch::{LiveKeys, ReloadTiming, Reloadable, reload_on_change};

/// The domain in which peers have their names: `<id>.peer.flotilla.internal`.
pub const PEER_DOMAIN: &str = "peer.flotilla.internal";

/// The TLS server name of a peer.
pub fn peer_name(peer: &PeerId) -> String {
    format!("{peer}.{PEER_DOMAIN}")
}

/// The peer that a certificate names; `None` unless it names exactly one.
///
/// This does not verify the certificate: pass only certificates that a TLS session has verified.
pub fn peer_id(certificate: &CertificateDer<'_>) -> Option<PeerId> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut peers = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => name.strip_suffix(PEER_DOMAIN)?.strip_suffix('.'),
            _ => None,
        });
    let id = peers.next()?;
    if peers.next().is_some() {
        return None;
    }
    id.parse().ok()
}

#[cfg(test)]
mod tests;

//! Identities: the fleet's certificate authority, its certificates, the TLS configurations made of
//! them, and the seal keys of origins.
//!
//! ```text
//! CertificateAuthority ---issues---> certificate of a peer:   <id>.peer.flotilla.internal, client and server
//!     |                   certificate of a server: names and addresses, server only
//!     |                   certificate of a region's origin: the same and <region>.origin.flotilla.internal,
//!     |                                                     client and server
//!     '---trusted by----> Identity: own certificate and the authority ---> TLS configurations
//! ```
//!
//! A peer's id is the label in front of [`PEER_DOMAIN`] in its certificate's subject alternative
//! names. The standard verifier checks it, and a renewed certificate keeps it. The region of an
//! origin is the label in front of [`ORIGIN_DOMAIN`]. Names of servers never lie in these domains.
//!
//! Every configuration names `ring` as its crypto provider. Nothing here installs a process-wide
//! default provider or weakens a verification.

mod authority;
mod certificate;
mod crypto;
mod files;
mod live_identity;
mod seal_keys;
mod tls;
mod watch;

pub use authority::{CertificateAuthority, Issued, check_server_name};
pub use certificate::{
    CLIENT_DOMAIN, Certificate, CertificateName, ORIGIN_DOMAIN, PEER_DOMAIN, origin_name, peer_id,
    peer_name,
};
pub use crypto::ClientAuth;
pub use files::{ContentSource, FileKind, IdentityError, replace, write_new};
pub use seal_keys::{
    SealSecret, load_seal_key, load_trusted_keys, parse_trusted_keys, trusted_key_line,
};
pub use tls::{
    CertificateFiles, Identity, client_trusting, client_trusting_pem, client_trusting_system,
    client_without_trust,
};
pub use watch::{LiveKeys, ReloadTiming, Reloadable, reload_on_change};

#[cfg(test)]
mod tests;

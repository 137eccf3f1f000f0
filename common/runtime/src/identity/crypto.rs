//! The crypto provider, its errors, and the policy for client certificates.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

use super::files::IdentityError;

/// Whether a server requires client certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without a certificate gets no connection.
    Required,
    /// The server asks for a certificate, and verifies one that is shown.
    Optional,
}

/// The crypto provider that every configuration names.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub(super) fn tls_error(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

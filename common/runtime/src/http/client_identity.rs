//! The client's identity, as handlers see it.

use std::sync::Arc;
use std::time::Duration;

use flotilla_common::name::{PeerId, RegionName};
use rustls::{ServerConfig, ServerConnection};

use crate::identity::Certificate;

/// The client's verified certificate, if it names a peer or the origin of a region; in the
/// extensions of every request.
///
/// `None` without TLS, without a client certificate, for a certificate that names no member of the
/// fleet, and for a request that arrives after the certificate has expired. (Such a connection is
/// closed as soon as its requests in flight are answered, so a client that renewed its certificate
/// connects again with the new one.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientIdentity(pub Option<Arc<Certificate>>);

impl ClientIdentity {
    /// The peer that the certificate names, if any.
    pub fn peer(&self) -> Option<&PeerId> {
        self.0.as_deref()?.peer()
    }

    /// The region whose origin the certificate names, if any.
    pub fn region(&self) -> Option<&RegionName> {
        self.0.as_deref()?.region()
    }

    /// The identity of the client of a TLS session.
    pub(super) fn of(session: &ServerConnection) -> Self {
        let certificates = session.peer_certificates();
        let certificate = certificates.and_then(|chain| Certificate::parse(chain.first()?));
        Self(certificate.map(Arc::new))
    }

    /// How long the certificate is still valid by the clock that TLS sessions of `config` use;
    /// `None` without an identity, or if the clock cannot be read.
    pub(super) fn valid_for(&self, config: &ServerConfig) -> Option<Duration> {
        let certificate = self.0.as_deref()?;
        let now = config.time_provider.current_time()?;
        let left = certificate.ends_unix_s.saturating_sub(now.as_secs());
        Some(Duration::from_secs(left))
    }
}

//! The listener for operators: `/metrics` and `/admin`, apart from the service's public port.
//!
//! | `admin-listen`, other keys             | protocol | `/metrics` and `/admin` are for |
//! |----------------------------------------|----------|---------------------------------|
//! | with `admin-clients`                   | HTTPS    | the certificates that it names  |
//! | a loopback address                     | HTTP     | all processes of this machine   |
//! | another address, with `admin-open`     | HTTPS with the service's certificate, if it has one | all clients |
//! | another address, with neither          | none: the service does not start | |
//!
//! `/healthz` and `/readyz` are for all clients in each case.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::http::{ClientIdentity, HttpServer, ListenerLimits, serve_with};
use crate::identity::{CertificateName, ClientAuth, Identity, IdentityError};
use crate::listen::listen_hint;
use crate::shutdown::Shutdown;

/// Connections at once: monitoring and some operators. Further ones wait.
const CONNECTIONS: usize = 32;

/// The settings of the listener. Each is also a key of the service: `admin-listen` and so on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// The address. Default a free port on loopback.
    pub listen: SocketAddr,
    /// Whether all clients may read `/metrics` and `/admin`, although the address is not on
    /// loopback. Default no.
    pub open: bool,
    /// The certificates that may read `/metrics` and `/admin`. Default none.
    pub clients: Vec<AdminClient>,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            open: false,
            clients: Vec::new(),
        }
    }
}

/// The name of a certificate in `admin-clients`. As text: `peer:ID` or `origin:REGION`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdminClient(CertificateName);

impl FromStr for AdminClient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text.split_once(':') {
            Some(("peer", id)) => id.parse().ok().map(CertificateName::Peer),
            Some(("origin", region)) => region.parse().ok().map(CertificateName::Origin),
            _ => None,
        };
        name.map(Self).ok_or_else(|| {
            format!(
                "'{text}' does not name a certificate; write peer:ID or origin:REGION, as \
                 `flotilla pki issue` named it"
            )
        })
    }
}

impl TryFrom<String> for AdminClient {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AdminClient> for String {
    fn from(client: AdminClient) -> Self {
        match client.0 {
            CertificateName::Peer(id) => format!("peer:{id}"),
            CertificateName::Origin(region) => format!("origin:{region}"),
        }
    }
}

/// Why the listener does not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Other machines could read the metrics.
    #[error(
        "admin-listen {0} is not a loopback address, so other machines could read /metrics and \
         /admin: name the certificates that may in admin-clients, set admin-open for all clients, \
         or listen on 127.0.0.1"
    )]
    Exposed(SocketAddr),
    /// Two settings contradict each other.
    #[error("admin-open admits all clients, and admin-clients only some: remove one of the two")]
    OpenAndClients,
    /// No client can show a certificate over plain HTTP.
    #[error("admin-clients needs HTTPS: set tls-cert, tls-key and tls-ca, or remove admin-clients")]
    ClientsWithoutTls,
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The address cannot be bound.
    #[error("listen on admin-listen {address}: {source}{}", listen_hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl AdminSettings {
    /// Checks the settings of a service that has a certificate, or none.
    ///
    /// # Errors
    /// [`AdminError::Exposed`], [`AdminError::OpenAndClients`] or
    /// [`AdminError::ClientsWithoutTls`].
    pub fn check(&self, has_tls: bool) -> Result<(), AdminError> {
        match (self.clients.is_empty(), self.open) {
            (false, true) => Err(AdminError::OpenAndClients),
            (false, false) if !has_tls => Err(AdminError::ClientsWithoutTls),
            (true, false) if !self.is_loopback() => Err(AdminError::Exposed(self.listen)),
            _ => Ok(()),
        }
    }

    /// Serves `health` to all clients and `private` to those that the settings admit, until
    /// `shutdown`. `private` must have a route.
    ///
    /// # Errors
    /// As [`AdminSettings::check`]; or the address cannot be bound.
    pub async fn serve(
        &self,
        health: Router,
        private: Router,
        identity: Option<&Identity>,
        shutdown: &Shutdown,
    ) -> Result<HttpServer, AdminError> {
        self.check(identity.is_some())?;
        let address = self.listen;
        let listen_error = |source| AdminError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let tls = identity
            .filter(|_| !self.is_loopback() || !self.clients.is_empty())
            .map(|identity| identity.https_server(ClientAuth::Optional))
            .transpose()?;
        let private = if self.clients.is_empty() {
            private
        } else {
            let clients: Arc<[AdminClient]> = self.clients.as_slice().into();
            private.route_layer(middleware::from_fn_with_state(clients, require_client))
        };
        let limits = ListenerLimits {
            connections: CONNECTIONS,
            ..ListenerLimits::default()
        };
        serve_with(listener, health.merge(private), tls, shutdown, limits).map_err(listen_error)
    }

    fn is_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }
}

/// Passes on the requests of the listed clients.
async fn require_client(
    State(clients): State<Arc<[AdminClient]>>,
    Extension(identity): Extension<ClientIdentity>,
    request: Request,
    next: Next,
) -> Response {
    let shown = match identity.0.as_deref() {
        Some(shown) if clients.iter().any(|client| client.0 == shown.name) => {
            return next.run(request).await;
        }
        Some(shown) => format!("this one names {}", shown.name),
        None => "this connection has none that names a member of the fleet".to_owned(),
    };
    let text = format!("only for client certificates in admin-clients; {shown}\n");
    (StatusCode::FORBIDDEN, text).into_response()
}

#[cfg(test)]
mod tests;

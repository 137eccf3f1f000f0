//! QUIC between peers: one connection per neighbour, mutual TLS, a control stream, a stream per
//! chunk.
//!
//! The transport moves messages and chunks and checks every byte it receives. It decides nothing:
//! whom to dial, what to ask for and whom to serve is said by the driver, which hears of everything
//! as an [`Incident`].

mod congestion;
mod fetch;
mod frames;
mod image;
mod link;
mod serve;
mod tuning;

use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_common::name::PeerId;
use flotilla_common::units::BitRate;
use flotilla_common::wire::peer::{ALPN, About, Chunk, Control};
use flotilla_runtime::identity::{self, Identity, IdentityError};
use flotilla_runtime::listen::listening_cure;
use flotilla_runtime::shutdown::Shutdown;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, Incoming, ServerConfig};
use tokio::sync::mpsc;
use tokio::time::timeout;

pub use congestion::{CongestionControl, UnknownCongestionControl};
pub(crate) use fetch::{FetchError, fetch_chunk};
pub(crate) use image::{ImageQuestion, ask_image, hands_on};
use link::NewLink;
pub(crate) use link::{Goodbye, Link, LinkError};
pub use serve::{Faithful, Outbound};
pub(crate) use serve::{Question, ServeError};

/// From the first packet to the finished handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of the QUIC endpoint that the operator chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuicSettings {
    /// Limit on payload received; it bounds how much a neighbour may send ahead. Default none.
    pub download_limit: Option<BitRate>,
    /// The congestion controller. Default [`CongestionControl::Delay`].
    pub congestion: CongestionControl,
}

/// What the driver hears from the transport.
#[derive(Debug)]
pub(crate) enum Incident {
    /// A link stands, whoever dialled.
    Linked(Link),
    /// A dial came to nothing.
    DialFailed(PeerId),
    /// A link is gone.
    Unlinked(Link),
    /// A neighbour said something.
    Said(Link, Control),
    /// A neighbour asks for a chunk.
    Asked(Link, Question),
    /// A neighbour asks for a manifest and its proofs.
    AskedImage(Link, ImageQuestion),
}

/// Why the transport did not start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address is not this machine's, or taken.
    #[error("bind UDP socket {0}: {1}{cure}", cure = listening_cure(.1))]
    Bind(SocketAddr, io::Error),
    /// The cryptography cannot protect QUIC.
    #[error("use identity for QUIC: {0}")]
    Tls(String),
    /// The identity cannot be used.
    #[error("use identity for QUIC: {0}")]
    Identity(#[from] IdentityError),
}

/// The endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    endpoint: Endpoint,
    about: Arc<About>,
    incidents: mpsc::Sender<Incident>,
    shutdown: Shutdown,
}

impl Transport {
    /// Binds the socket and begins to accept. Both sides of every connection show their
    /// certificates.
    pub(crate) fn start(
        listen: SocketAddr,
        identity: &Identity,
        about: About,
        settings: QuicSettings,
        shutdown: &Shutdown,
        incidents: mpsc::Sender<Incident>,
    ) -> Result<Self, TransportError> {
        let endpoint = quic_endpoint(listen, identity, settings)?;
        let transport = Self {
            endpoint,
            about: Arc::new(about),
            incidents,
            shutdown: shutdown.clone(),
        };
        shutdown.spawn(transport.clone().accept_all());
        Ok(transport)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Dials a peer behind the scenes; [`Incident::Linked`] or [`Incident::DialFailed`] follows.
    pub(crate) fn dial(&self, peer: PeerId, address: SocketAddr) {
        let transport = self.clone();
        self.shutdown.spawn(async move {
            match transport.establish(&peer, address).await {
                Ok(link) => transport.drive(link).await,
                Err(error) => {
                    tracing::debug!(%peer, %address, %error, "dial peer");
                    transport.report(Incident::DialFailed(peer)).await;
                }
            }
        });
    }

    /// Closes every connection and waits until the goodbyes are sent.
    pub(crate) async fn close(&self) {
        self.endpoint
            .close(quinn::VarInt::from_u32(Goodbye::Leaving as u32), b"leaving");
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    async fn establish(&self, peer: &PeerId, address: SocketAddr) -> Result<NewLink, LinkError> {
        let connecting = self.endpoint.connect(address, &identity::peer_name(peer))?;
        let connection = timeout(DIAL_TIMEOUT, connecting)
            .await
            .map_err(|_| LinkError::Timeout)??;
        Link::greet(connection, peer, &self.about).await
    }

    async fn accept_all(self) {
        loop {
            let incoming = tokio::select! {
                () = self.shutdown.wait() => return,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            let transport = self.clone();
            self.shutdown.spawn(async move {
                match accept(incoming, &transport.about).await {
                    Ok(link) => transport.drive(link).await,
                    Err(error) => tracing::debug!(%error, "accept peer"),
                }
            });
        }
    }

    /// Serves a link until it ends.
    async fn drive(&self, new: NewLink) {
        let NewLink {
            link,
            outbox,
            send,
            mut receive,
        } = new;
        self.report(Incident::Linked(link.clone())).await;
        let control = async {
            loop {
                match link::read_control(&mut receive).await {
                    Ok(message) => self.report(Incident::Said(link.clone(), message)).await,
                    Err(error) => return error,
                }
            }
        };
        tokio::select! {
            error = control => {
                tracing::debug!(peer = %link.peer(), %error, "read control stream");
                link.close(Goodbye::Misbehaved);
            }
            () = link::write_control(outbox, send) => {}
            () = self.take_questions(&link) => {}
            () = self.shutdown.wait() => link.close(Goodbye::Leaving),
        }
        link.close(Goodbye::Done);
        self.report(Incident::Unlinked(link)).await;
    }

    /// Hands each question of the neighbour, a stream of its own, to the driver; quinn bounds their
    /// number.
    async fn take_questions(&self, link: &Link) {
        while let Ok((send, mut receive)) = link.connection().accept_bi().await {
            let (transport, link) = (self.clone(), link.clone());
            self.shutdown.spawn(async move {
                match serve::read_ask(&mut receive).await {
                    Ok(Chunk::Ask(ask)) => {
                        let question = Question::new(ask, send, link.connection().clone());
                        transport.report(Incident::Asked(link, question)).await;
                    }
                    Ok(Chunk::AskImage(ask)) => {
                        let question = ImageQuestion::new(ask, send);
                        transport.report(Incident::AskedImage(link, question)).await;
                    }
                    Ok(answer) => {
                        tracing::debug!(peer = %link.peer(), ?answer, "an answer to nothing")
                    }
                    Err(error) => tracing::debug!(peer = %link.peer(), %error, "read question"),
                }
            });
        }
    }

    async fn report(&self, incident: Incident) {
        // Only fails when the driver is gone, and then nobody needs to know.
        let _ = self.incidents.send(incident).await;
    }
}

async fn accept(incoming: Incoming, about: &About) -> Result<NewLink, LinkError> {
    let connection = timeout(DIAL_TIMEOUT, incoming)
        .await
        .map_err(|_| LinkError::Timeout)??;
    Link::answer(connection, about).await
}

/// An endpoint with the settings of peers, both to dial and to accept: both sides of every
/// connection show their certificates.
///
/// # Errors
/// The address cannot be bound, or the identity not used.
pub fn quic_endpoint(
    listen: SocketAddr,
    identity: &Identity,
    settings: QuicSettings,
) -> Result<Endpoint, TransportError> {
    let (server, client) = configs(identity, settings)?;
    let socket = tuning::bind(listen).map_err(|error| TransportError::Bind(listen, error))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let config =
        tuning::endpoint_config().map_err(|error| TransportError::Tls(error.to_string()))?;
    let mut endpoint = Endpoint::new(config, Some(server), socket, runtime)
        .map_err(|error| TransportError::Bind(listen, error))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

fn configs(
    identity: &Identity,
    settings: QuicSettings,
) -> Result<(ServerConfig, ClientConfig), TransportError> {
    let no_suite =
        |error: quinn::crypto::rustls::NoInitialCipherSuite| TransportError::Tls(error.to_string());
    let server = QuicServerConfig::try_from(identity.quic_server(ALPN)?).map_err(no_suite)?;
    let client = QuicClientConfig::try_from(identity.quic_client(ALPN)?).map_err(no_suite)?;
    let transport = Arc::new(tuning::transport_config(settings));
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(Arc::clone(&transport));
    let mut client = ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    Ok((server, client))
}

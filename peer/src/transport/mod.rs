//! QUIC between peers: one connection per neighbour with mutual TLS, a control stream, and a stream
//! per requested chunk.
//!
//! The transport moves messages and chunks and verifies every byte it receives. It makes no
//! decisions: the driver receives each [`TransportEvent`] and says which peers to dial, which
//! chunks to fetch and which requests to serve.

mod congestion;
mod control_budget;
mod fetch;
mod frame_io;
mod handshakes;
mod image;
mod peer_link;
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
use flotilla_runtime::listen::listen_hint;
use flotilla_runtime::shutdown::Shutdown;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, Incoming, ServerConfig};
use tokio::sync::mpsc;
use tokio::time::timeout;

pub use congestion::{CongestionControl, UnknownCongestionControl};
use control_budget::ControlBudget;
pub(crate) use fetch::{FetchError, fetch_chunk};
use handshakes::Handshakes;
pub(crate) use image::{ImageRequest, request_image};
use peer_link::NewLink;
pub(crate) use peer_link::{CloseReason, LinkSetupError, PeerLink};
pub use serve::{ChunkInterceptor, Unaltered};
pub(crate) use serve::{ChunkRequest, ServeError};

/// Time for the TLS handshake, from the first packet.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of the QUIC endpoint that the operator chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuicSettings {
    /// Limit on payload received; it bounds how much a neighbour may send ahead. Default none.
    pub download_limit: Option<BitRate>,
    /// The congestion controller. Default [`CongestionControl::Delay`].
    pub congestion: CongestionControl,
}

/// An event that the transport reports to the driver.
#[derive(Debug)]
pub(crate) enum TransportEvent {
    /// A link was established, dialled by either side.
    Linked(PeerLink),
    /// A dial failed.
    DialFailed(PeerId),
    /// A link has ended.
    Unlinked(PeerLink),
    /// A message on the control stream of a neighbour.
    Control(PeerLink, Control),
    /// A neighbour requests a chunk.
    ChunkRequested(PeerLink, ChunkRequest),
    /// A neighbour requests a manifest and the proofs of its blobs.
    ImageRequested(PeerLink, ImageRequest),
}

/// Why the transport did not start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address does not belong to this machine, or is in use.
    #[error("bind UDP socket {0}: {1}{cure}", cure = listen_hint(.1))]
    Bind(SocketAddr, io::Error),
    /// The TLS configuration does not work with QUIC.
    #[error("use identity for QUIC: {0}")]
    Tls(String),
    /// The identity cannot be used.
    #[error("use identity for QUIC: {0}")]
    Identity(#[from] IdentityError),
}

/// The QUIC endpoint of a peer. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    endpoint: Endpoint,
    about: Arc<About>,
    events: mpsc::Sender<TransportEvent>,
    shutdown: Shutdown,
}

impl Transport {
    /// Binds the socket and starts to accept connections, which are authenticated by the
    /// certificates of both sides.
    pub(crate) fn start(
        listen: SocketAddr,
        identity: &Identity,
        about: About,
        settings: QuicSettings,
        shutdown: &Shutdown,
        events: mpsc::Sender<TransportEvent>,
    ) -> Result<Self, TransportError> {
        let endpoint = quic_endpoint(listen, identity, settings)?;
        let transport = Self {
            endpoint,
            about: Arc::new(about),
            events,
            shutdown: shutdown.clone(),
        };
        shutdown.spawn(transport.clone().accept_all());
        Ok(transport)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Dials a peer in the background. [`TransportEvent::Linked`] or [`TransportEvent::DialFailed`]
    /// follows.
    pub(crate) fn dial(&self, peer: PeerId, address: SocketAddr) {
        let transport = self.clone();
        self.shutdown.spawn(async move {
            match transport.establish(&peer, address).await {
                Ok(link) => transport.serve_link(link).await,
                Err(error) => {
                    tracing::debug!(%peer, %address, %error, "dialling a peer failed");
                    transport.report(TransportEvent::DialFailed(peer)).await;
                }
            }
        });
    }

    /// Closes every connection and waits until the close frames are sent, at most a second.
    pub(crate) async fn close(&self) {
        self.endpoint.close(
            quinn::VarInt::from_u32(CloseReason::Leaving as u32),
            b"leaving",
        );
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    async fn establish(
        &self,
        peer: &PeerId,
        address: SocketAddr,
    ) -> Result<NewLink, LinkSetupError> {
        let connecting = self.endpoint.connect(address, &identity::peer_name(peer))?;
        let connection = timeout(DIAL_TIMEOUT, connecting)
            .await
            .map_err(|_| LinkSetupError::Timeout)??;
        PeerLink::set_up_dialled(connection, peer, &self.about).await
    }

    async fn accept_all(self) {
        let handshakes = Handshakes::new();
        loop {
            let incoming = tokio::select! {
                () = self.shutdown.wait() => return,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            let Some((incoming, permit)) = handshakes.admit(incoming) else {
                continue;
            };
            let transport = self.clone();
            self.shutdown.spawn(async move {
                let accepted = accept(incoming, &transport.about).await;
                drop(permit);
                match accepted {
                    Ok(link) => transport.serve_link(link).await,
                    Err(error) => tracing::debug!(%error, "accepting a connection failed"),
                }
            });
        }
    }

    /// Serves a link until it ends.
    async fn serve_link(&self, new: NewLink) {
        let NewLink {
            link,
            outbox,
            send,
            mut receive,
        } = new;
        self.report(TransportEvent::Linked(link.clone())).await;
        let control = async {
            let mut budget = ControlBudget::new();
            loop {
                match peer_link::read_control(&mut receive).await {
                    Ok(message) => {
                        budget.take(&message).await;
                        self.report(TransportEvent::Control(link.clone(), message))
                            .await
                    }
                    Err(error) => return error,
                }
            }
        };
        tokio::select! {
            error = control => {
                tracing::debug!(peer = %link.peer(), %error, "reading the control stream failed; closing the link");
                link.close(CloseReason::Misbehaved);
            }
            () = peer_link::write_control(outbox, send) => {}
            () = self.accept_requests(&link) => {}
            () = self.shutdown.wait() => link.close(CloseReason::Leaving),
        }
        link.close(CloseReason::Done);
        self.report(TransportEvent::Unlinked(link)).await;
    }

    /// Reports each request of the neighbour, which has a stream of its own, to the driver. quinn
    /// limits the number of streams.
    async fn accept_requests(&self, link: &PeerLink) {
        while let Ok((send, mut receive)) = link.connection().accept_bi().await {
            let (transport, link) = (self.clone(), link.clone());
            self.shutdown.spawn(async move {
                match serve::read_request(&mut receive).await {
                    Ok(Chunk::Ask(ask)) => {
                        let request = ChunkRequest::new(ask, send, link.connection().clone());
                        transport.report(TransportEvent::ChunkRequested(link, request)).await;
                    }
                    Ok(Chunk::AskImage(ask)) => {
                        let request = ImageRequest::new(ask, send);
                        transport.report(TransportEvent::ImageRequested(link, request)).await;
                    }
                    Ok(message) => {
                        tracing::debug!(peer = %link.peer(), ?message, "expected a request; ignoring the stream");
                    }
                    Err(error) => {
                        tracing::debug!(peer = %link.peer(), %error, "reading a request failed");
                    }
                }
            });
        }
    }

    async fn report(&self, event: TransportEvent) {
        // Fails only after the driver has stopped.
        let _ = self.events.send(event).await;
    }
}

async fn accept(incoming: Incoming, about: &About) -> Result<NewLink, LinkSetupError> {
    let connection = timeout(DIAL_TIMEOUT, incoming)
        .await
        .map_err(|_| LinkSetupError::Timeout)??;
    PeerLink::set_up_accepted(connection, about).await
}

/// A QUIC endpoint with the settings of peers, which dials and accepts. Connections are
/// authenticated by the certificates of both sides.
///
/// # Errors
/// The address cannot be bound, or the identity cannot be used.
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

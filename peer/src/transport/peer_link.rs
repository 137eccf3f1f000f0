//! A link: an established connection to a neighbour, with its control stream.
//!
//! ```text
//! dialling side                            listening side
//!   | -- TLS handshake, both certificates --> |
//!   | -- control stream: Hello -------------> |
//!   | <----------------- Hello -------------- |
//!   | <---- About --------------------------> |
//!   |       (now it is a link on both sides)  |
//! ```
//!
//! Control messages wait in a bounded queue. When the queue of a neighbour is full, its connection
//! is closed, so no sender ever waits for a neighbour that does not read.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_common::name::PeerId;
use flotilla_common::wire::peer::{About, Control, HANDS_ON, Hello};
use flotilla_runtime::identity;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::frame_io::{self, StreamError};

/// The most control messages that wait for one neighbour.
const CONTROL_QUEUE: usize = 1024;
/// The longest control message: a chunk table, or the chunk map of a large blob.
const MAX_CONTROL_LEN: usize = 1 << 20;
/// Time for the exchange of Hello and About after the TLS handshake.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The QUIC error code with which a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The link is not needed any more.
    Done = 0,
    /// Both sides dialled; the other connection stays.
    Duplicate = 1,
    /// The neighbour broke the protocol or sent bytes that failed verification.
    Misbehaved = 2,
    /// The neighbour does not read its control stream.
    TooSlow = 3,
    /// This process ends.
    Leaving = 4,
}

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkSetupError {
    #[error("the certificate names no peer")]
    CertificateWithoutPeer,
    #[error("peer id mismatch: dialled another peer, but the certificate names {0}")]
    WrongPeer(PeerId),
    #[error("no common protocol version")]
    Version,
    #[error("exchange Hello: {0}")]
    Stream(#[from] StreamError),
    #[error("connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("dial: {0}")]
    Dial(#[from] quinn::ConnectError),
    #[error("timed out")]
    Timeout,
}

/// A link to a neighbour. Clones are the same link.
#[derive(Debug, Clone)]
pub(crate) struct PeerLink(Arc<LinkData>);

#[derive(Debug)]
struct LinkData {
    id: u64,
    peer: PeerId,
    about: About,
    features: u64,
    connection: Connection,
    control: mpsc::Sender<Control>,
    is_dialled: bool,
    established: Instant,
}

/// A new link with the ends of its control stream, which [`super::Transport`] serves.
pub(super) struct NewLink {
    pub(super) link: PeerLink,
    pub(super) outbox: mpsc::Receiver<Control>,
    pub(super) send: SendStream,
    pub(super) receive: RecvStream,
}

impl PeerLink {
    /// Sets up a link on a connection that this peer dialled.
    pub(super) async fn set_up_dialled(
        connection: Connection,
        expected: &PeerId,
        about: &About,
    ) -> Result<NewLink, LinkSetupError> {
        let peer = peer_of(&connection)?;
        if peer != *expected {
            return Err(LinkSetupError::WrongPeer(peer));
        }
        let control = with_timeout(async {
            let (send, receive) = connection.open_bi().await?;
            exchange_hello(send, receive, about).await
        })
        .await?;
        Ok(Self::established(connection, peer, true, control))
    }

    /// Sets up a link on a connection that this peer accepted.
    pub(super) async fn set_up_accepted(
        connection: Connection,
        about: &About,
    ) -> Result<NewLink, LinkSetupError> {
        let peer = peer_of(&connection)?;
        let control = with_timeout(async {
            let (send, receive) = connection.accept_bi().await?;
            exchange_hello(send, receive, about).await
        })
        .await?;
        Ok(Self::established(connection, peer, false, control))
    }

    fn established(
        connection: Connection,
        peer: PeerId,
        is_dialled: bool,
        control: ControlStream,
    ) -> NewLink {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let (sender, outbox) = mpsc::channel(CONTROL_QUEUE);
        let link = Self(Arc::new(LinkData {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer,
            about: control.about,
            features: control.features,
            connection,
            control: sender,
            is_dialled,
            established: Instant::now(),
        }));
        NewLink {
            link,
            outbox,
            send: control.send,
            receive: control.receive,
        }
    }

    /// Unique among the links of this process.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    pub(crate) fn peer(&self) -> &PeerId {
        &self.0.peer
    }

    /// The neighbour's own description.
    pub(crate) fn about(&self) -> &About {
        &self.0.about
    }

    /// Whether the neighbour answers requests for images.
    pub(crate) fn is_serving_images(&self) -> bool {
        self.0.features & HANDS_ON != 0
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.0.connection
    }

    pub(crate) fn round_trip(&self) -> Duration {
        self.0.connection.rtt()
    }

    /// Queues a message for the control stream. If the queue is full, the connection is closed.
    pub(crate) fn send(&self, message: Control) {
        if self.0.control.try_send(message).is_err() {
            self.close(CloseReason::TooSlow);
        }
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        self.0
            .connection
            .close(VarInt::from_u32(reason as u32), &[]);
    }

    /// Whether this link replaces `older`, another one to the same neighbour. Both sides decide
    /// alike.
    ///
    /// If both sides dialled at about the same time, the link dialled by the lower id stays.
    /// Otherwise the neighbour has lost the older link, and the newer one stays.
    pub(crate) fn is_preferred_to(&self, older: &Self, own: &PeerId) -> bool {
        let apart = self
            .0
            .established
            .saturating_duration_since(older.0.established);
        let is_simultaneous = apart < HELLO_TIMEOUT && self.0.is_dialled != older.0.is_dialled;
        !is_simultaneous || self.0.is_dialled == (own < self.peer())
    }
}

/// A control stream after the exchange of Hello and About.
struct ControlStream {
    about: About,
    features: u64,
    send: SendStream,
    receive: RecvStream,
}

async fn exchange_hello(
    mut send: SendStream,
    mut receive: RecvStream,
    about: &About,
) -> Result<ControlStream, LinkSetupError> {
    frame_io::write(&mut send, &Control::Hello(Hello::ours())).await?;
    frame_io::write(&mut send, &Control::About(about.clone())).await?;
    let Control::Hello(theirs) = frame_io::read(&mut receive, MAX_CONTROL_LEN).await? else {
        return Err(StreamError::Unexpected.into());
    };
    Hello::ours()
        .common_version(&theirs)
        .ok_or(LinkSetupError::Version)?;
    let Control::About(about) = frame_io::read(&mut receive, MAX_CONTROL_LEN).await? else {
        return Err(StreamError::Unexpected.into());
    };
    Ok(ControlStream {
        about,
        features: theirs.features,
        send,
        receive,
    })
}

async fn with_timeout<T>(
    setup: impl Future<Output = Result<T, LinkSetupError>>,
) -> Result<T, LinkSetupError> {
    timeout(HELLO_TIMEOUT, setup)
        .await
        .map_err(|_| LinkSetupError::Timeout)?
}

/// The peer named by the connection's verified certificate.
fn peer_of(connection: &Connection) -> Result<PeerId, LinkSetupError> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(LinkSetupError::CertificateWithoutPeer)?;
    certificates
        .first()
        .and_then(identity::peer_id)
        .ok_or(LinkSetupError::CertificateWithoutPeer)
}

/// Writes queued messages until the connection ends.
pub(super) async fn write_control(mut outbox: mpsc::Receiver<Control>, mut send: SendStream) {
    while let Some(message) = outbox.recv().await {
        if let Err(error) = frame_io::write(&mut send, &message).await {
            tracing::debug!(%error, "writing to the control stream failed; closing the link");
            return;
        }
    }
}

/// Reads the next message of a control stream.
pub(super) async fn read_control(receive: &mut RecvStream) -> Result<Control, StreamError> {
    frame_io::read_without_deadline(receive, MAX_CONTROL_LEN).await
}

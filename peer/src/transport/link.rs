//! A link: one established connection to a neighbour, with its control stream.
//!
//! ```text
//! dialler                                  listener
//!   | -- handshake, both certificates ------> |
//!   | -- control stream: Hello -------------> |
//!   | <----------------- Hello -------------- |
//!   | <---- About --------------------------> |
//!   |       (now it is a link on both sides)  |
//! ```
//!
//! Control messages go through a bounded queue: a neighbour that does not read them is hung up on,
//! so nobody ever waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use core::time::Duration;
use flotilla_common::name::PeerId;
use flotilla_common::wire::peer::{About, Control, Hello};
use flotilla_runtime::identity;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::frames::{self, StreamError};

/// Control messages that wait for a neighbour at most.
const CONTROL_QUEUE: usize = 1024;
/// The longest control message: a chunk table, or the map of a large blob.
const MAX_CONTROL_LEN: usize = 1 << 20;
/// From the handshake to both Hellos.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection ends, as the other side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goodbye {
    /// Not needed any more.
    Done = 0,
    /// Both sides dialled; the other connection stays.
    Duplicate = 1,
    /// The other side broke the protocol or sent bytes that fail their check.
    Misbehaved = 2,
    /// It does not read its control stream.
    TooSlow = 3,
    /// This process ends.
    Leaving = 4,
}

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the certificate names no peer")]
    Nameless,
    #[error("the certificate names {0}, who was not dialled")]
    Stranger(PeerId),
    #[error("no common protocol version")]
    Version,
    #[error("greeting: {0}")]
    Stream(#[from] StreamError),
    #[error("connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("dial: {0}")]
    Dial(#[from] quinn::ConnectError),
    #[error("no answer in time")]
    Timeout,
}

/// One established connection. Clones are the same link.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: u64,
    peer: PeerId,
    about: About,
    features: u64,
    connection: Connection,
    control: mpsc::Sender<Control>,
    dialled: bool,
    since: Instant,
}

/// A link and the ends of its control stream, to be driven by [`super::Transport`].
pub(super) struct NewLink {
    pub(super) link: Link,
    pub(super) outbox: mpsc::Receiver<Control>,
    pub(super) send: SendStream,
    pub(super) receive: RecvStream,
}

impl Link {
    /// Greets on a connection that we dialled.
    pub(super) async fn greet(
        connection: Connection,
        expected: &PeerId,
        about: &About,
    ) -> Result<NewLink, LinkError> {
        let peer = named(&connection)?;
        if peer != *expected {
            return Err(LinkError::Stranger(peer));
        }
        let greeting = async {
            let (send, receive) = connection.open_bi().await?;
            exchange(send, receive, about).await
        };
        let greeted = bounded(greeting).await?;
        Ok(Self::established(connection, peer, true, greeted))
    }

    /// Answers the greeting on a connection that was accepted.
    pub(super) async fn answer(
        connection: Connection,
        about: &About,
    ) -> Result<NewLink, LinkError> {
        let peer = named(&connection)?;
        let greeting = async {
            let (send, receive) = connection.accept_bi().await?;
            exchange(send, receive, about).await
        };
        let greeted = bounded(greeting).await?;
        Ok(Self::established(connection, peer, false, greeted))
    }

    fn established(
        connection: Connection,
        peer: PeerId,
        dialled: bool,
        greeted: Greeted,
    ) -> NewLink {
        let Greeted {
            about,
            features,
            send,
            receive,
        } = greeted;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (control, outbox) = mpsc::channel(CONTROL_QUEUE);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        let link = Self(Arc::new(Inner {
            id,
            peer,
            about,
            features,
            connection,
            control,
            dialled,
            since,
        }));
        NewLink {
            link,
            outbox,
            send,
            receive,
        }
    }

    /// Tells this link from every other of the process.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    pub(crate) fn peer(&self) -> &PeerId {
        &self.0.peer
    }

    /// What the neighbour says of itself.
    pub(crate) fn about(&self) -> &About {
        &self.0.about
    }

    /// What it can do: bits of [`Hello::features`].
    pub(crate) fn features(&self) -> u64 {
        self.0.features
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.0.connection
    }

    pub(crate) fn round_trip(&self) -> Duration {
        self.0.connection.rtt()
    }

    /// Says something on the control stream. A neighbour that lets the queue fill up is hung up on.
    pub(crate) fn say(&self, message: Control) {
        if self.0.control.try_send(message).is_err() {
            self.close(Goodbye::TooSlow);
        }
    }

    pub(crate) fn close(&self, why: Goodbye) {
        self.0.connection.close(VarInt::from_u32(why as u32), &[]);
    }

    /// Which of two links with the same neighbour stays; both sides come to the same answer.
    ///
    /// If both dialled at about the same time, the one that the lower id dialled stays. Otherwise
    /// the neighbour has lost the older one, and the newer one stays.
    pub(crate) fn is_preferred_to(&self, older: &Self, own: &PeerId) -> bool {
        let apart = self.0.since.saturating_duration_since(older.0.since);
        let simultaneous = apart < GREETING_TIMEOUT && self.0.dialled != older.0.dialled;
        !simultaneous || self.0.dialled == (own < self.peer())
    }
}

/// A control stream on which both sides have said who they are.
struct Greeted {
    about: About,
    features: u64,
    send: SendStream,
    receive: RecvStream,
}

async fn exchange(
    mut send: SendStream,
    mut receive: RecvStream,
    about: &About,
) -> Result<Greeted, LinkError> {
    frames::write(&mut send, &Control::Hello(Hello::ours())).await?;
    frames::write(&mut send, &Control::About(about.clone())).await?;
    let Control::Hello(theirs) = frames::read(&mut receive, MAX_CONTROL_LEN).await? else {
        return Err(StreamError::Unexpected.into());
    };
    Hello::ours()
        .common_version(&theirs)
        .ok_or(LinkError::Version)?;
    let Control::About(about) = frames::read(&mut receive, MAX_CONTROL_LEN).await? else {
        return Err(StreamError::Unexpected.into());
    };
    Ok(Greeted {
        about,
        features: theirs.features,
        send,
        receive,
    })
}

async fn bounded<T>(greeting: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    timeout(GREETING_TIMEOUT, greeting)
        .await
        .map_err(|_| LinkError::Timeout)?
}

/// The peer that the connection's verified certificate names.
fn named(connection: &Connection) -> Result<PeerId, LinkError> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(LinkError::Nameless)?;
    certificates
        .first()
        .and_then(identity::peer_id)
        .ok_or(LinkError::Nameless)
}

/// Writes what is queued, until the connection ends.
pub(super) async fn write_control(mut outbox: mpsc::Receiver<Control>, mut send: SendStream) {
    while let Some(message) = outbox.recv().await {
        if let Err(error) = frames::write(&mut send, &message).await {
            tracing::debug!(%error, "write control stream");
            return;
        }
    }
}

/// The next message of a control stream.
pub(super) async fn read_control(receive: &mut RecvStream) -> Result<Control, StreamError> {
    frames::read_patiently(receive, MAX_CONTROL_LEN).await
}

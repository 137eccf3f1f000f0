//! Requests to the driver from the mirror.

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::name::RepositoryName;
use flotilla_common::wire::peer::ImageBundle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::pulls::PullStart;
use crate::status::Status;
use crate::store::Pin;

/// Events of each kind that may wait for the driver.
pub(crate) const QUEUE: usize = 1024;

/// A request to the driver.
#[derive(Debug)]
pub(crate) enum DriverCommand {
    /// A pull needs this blob now or soon.
    Want {
        pin: Pin,
        repository: RepositoryName,
        grant: Option<Grant>,
    },
    /// A reader of a blob moved to another chunk, was opened or was closed.
    ReadersMoved {
        digest: Digest,
        /// The lowest offset of all readers; `None` without readers.
        lowest: Option<u64>,
    },
    /// Asks whether any known source can deliver this chunk now: it is being downloaded, a
    /// neighbour has it, or an origin may be asked.
    HasSource {
        digest: Digest,
        chunk: u32,
        answer: oneshot::Sender<bool>,
    },
    /// A stored chunk was found damaged and dropped.
    Damaged { digest: Digest, chunk: u32 },
    /// The store evicted these blobs.
    Evicted(Vec<Digest>),
    /// Origins contradict each other or themselves about this blob.
    Quarantine { digest: Digest, reason: String },
    /// No origin is available: asks the neighbours for an image. The sender is dropped if none of
    /// them has it.
    SeekImage {
        manifest: Digest,
        answer: oneshot::Sender<ImageBundle>,
    },
    /// The container runtime starts to pull an image.
    StartPull(PullStart),
    /// Asks for the peer's status.
    Status(oneshot::Sender<Box<Status>>),
}

/// The sending end of the driver's command queue.
#[derive(Clone, Debug)]
pub(crate) struct Commands(mpsc::Sender<DriverCommand>);

impl Commands {
    /// A bounded queue of commands.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<DriverCommand>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Sends a command, waiting while the queue is full. A command to a stopped driver is dropped:
    /// readers then fall back to an origin.
    pub(crate) async fn send(&self, command: DriverCommand) {
        let _ = self.0.send(command).await;
    }

    /// Sends a command unless the queue is full; false if it is.
    pub(crate) fn try_send(&self, command: DriverCommand) -> bool {
        !matches!(self.0.try_send(command), Err(TrySendError::Full(_)))
    }

    /// Waits until the queue has room for a command; `None` if the driver has stopped.
    pub(crate) async fn reserve(&self) -> Option<mpsc::Permit<'_, DriverCommand>> {
        self.0.reserve().await.ok()
    }
}

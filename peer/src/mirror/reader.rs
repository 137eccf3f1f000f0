//! A reader: a cursor in a blob that is still on its way.
//!
//! It hands out bytes as they are verified and reads ahead no more than one piece, for the runtime may hang up long
//! before the end of what it asked for. Where it stands decides which chunks are fetched first. When nothing has come
//! for too long, or the store cannot take the blob, it goes on from the origin.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::name::RepositoryName;
use flotilla_runtime::clock::Clock;
use futures_util::{Stream, stream};
use tokio::time::timeout;

use super::Mirror;
use super::answer::Failure;
use super::passing::Passing;
use crate::driver::Command;
use crate::store::{Availability, PIECE, Pin, StoreError, StoredBlob};

/// With nothing coming in for this long, for any blob, the swarm is taken to be stuck: the machine has long tried the
/// origin by then.
const STUCK: Duration = Duration::from_secs(20);
/// How often a reader that waits looks whether that is so.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One response's way through a blob.
pub(super) struct Reader {
    mirror: Arc<Mirror>,
    repository: RepositoryName,
    blob: Arc<StoredBlob>,
    left: Range<u64>,
    id: u64,
    passing: Option<Passing>,
    _pin: Pin,
}

impl Reader {
    pub(super) fn open(
        mirror: Arc<Mirror>,
        repository: RepositoryName,
        blob: Arc<StoredBlob>,
        part: Range<u64>,
    ) -> Self {
        let pin = blob.pin();
        let id = mirror.reader_id();
        let reader = Self { mirror, repository, blob, left: part, id, passing: None, _pin: pin };
        reader.tell_cursor();
        reader
    }

    /// The bytes, in order.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Failure>> + Send {
        stream::unfold(Some(self), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(None) => None,
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
                Err(failure) => Some((Err(failure), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(passing) = &mut self.passing {
            return passing.next().await;
        }
        if self.left.is_empty() {
            return Ok(None);
        }
        let waiting_since = Clock::now();
        loop {
            match timeout(LOOK_AGAIN, self.blob.available(self.left.start)).await {
                Ok(Availability::Ready(until)) => {
                    if let Some(bytes) = self.take(until).await? {
                        return Ok(Some(bytes));
                    }
                }
                Ok(Availability::Bypassed) => return self.pass().await,
                Ok(Availability::Waiting) | Err(_) => {
                    let now = Clock::now();
                    let waited = now.saturating_since(waiting_since);
                    if waited >= STUCK && self.mirror.shared.moved.ago(now) >= STUCK {
                        tracing::warn!(blob = %self.blob.digest(), ?waited, "nothing comes; pass blob through");
                        return self.pass().await;
                    }
                }
            }
        }
    }

    /// The next piece, of which `until` says how far it may go; nothing if it was damaged on disk.
    async fn take(&mut self, until: u64) -> Result<Option<Bytes>, Failure> {
        let start = self.left.start;
        let piece = PIECE as u64;
        let end = until.min(self.left.end).min((start / piece + 1) * piece);
        match self.blob.read(start..end).await {
            Ok(bytes) => {
                self.left.start = end;
                self.tell_cursor();
                Ok(Some(bytes))
            }
            Err(StoreError::Doubtful { digest, chunk }) => {
                tracing::warn!(blob = %digest, chunk, "a stored chunk was damaged and is fetched again");
                self.mirror.command(Command::Lost { digest, chunk }).await;
                Ok(None)
            }
            Err(error) => {
                tracing::error!(blob = %self.blob.digest(), %error, "read blob; it is passed through now");
                self.blob.bypass();
                self.pass().await
            }
        }
    }

    /// Goes on from an origin.
    async fn pass(&mut self) -> Result<Option<Bytes>, Failure> {
        let shared = Arc::clone(&self.mirror.shared);
        let opened = Passing::open(shared, &self.repository, self.blob.digest(), self.left.clone()).await;
        let mut passing = opened.map_err(|error| {
            let what = format!("{}@{}", self.repository, self.blob.digest());
            Failure::Unavailable(format!("{what}: no neighbour and no origin delivers it: {error}"))
        })?;
        let first = passing.next().await;
        self.passing = Some(passing);
        first
    }

    fn tell_cursor(&self) {
        if self.blob.set_cursor(self.id, self.blob.geometry().chunk_at(self.left.start)) {
            self.nudge();
        }
    }

    /// A driver that is busy looks at the cursors the next time.
    fn nudge(&self) {
        let _ = self.mirror.commands.try_send(Command::ReadersMoved(*self.blob.digest()));
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.blob.remove_cursor(self.id);
        self.nudge();
    }
}

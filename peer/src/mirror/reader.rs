//! A reader: a cursor in a blob that is still on its way.
//!
//! It hands out bytes as they are verified and reads ahead no more than one piece, for the runtime
//! may hang up long before the end of what it asked for. Where it stands decides which chunks are
//! fetched first. When nothing has come for too long, or the store cannot take the blob, it goes on
//! from the origin.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::name::RepositoryName;
use flotilla_common::time::Time;
use futures_util::{Stream, stream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Mirror;
use super::answer::Failure;
use super::manifests::failure;
use super::passing::Passing;
use crate::driver::{Command, Reach, Shared};
use crate::store::{Availability, PIECE, Pin, StoreError, StoredBlob};

/// How often a reader that waits looks whether it should.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How long a body that must be cut waits for those to end that stand before it in the blob.
const CUT_IN_ORDER: Duration = Duration::from_secs(2);

/// How long a reader waits for its next byte before it asks an origin itself. What it then gets is
/// not kept, so waiting is cheaper as long as there is hope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With no source that could bring the byte: none that has it, and every origin failing.
    /// Default 3 s, in which neighbours may still be met.
    pub hopeless: Duration,
    /// With nothing coming in for any blob. Default 20 s: the machine has long tried the origin by
    /// then.
    pub stuck: Duration,
    /// For a blob that is exchanged only as a whole, of which a neighbour's bytes may be seen only
    /// when all are there. Default 20 s.
    pub whole: Duration,
    /// However busy everything else is. Default 120 s; a container runtime gives up after 5
    /// minutes.
    pub silent: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            hopeless: Duration::from_secs(3),
            stuck: Duration::from_secs(20),
            whole: Duration::from_secs(20),
            silent: Duration::from_secs(120),
        }
    }
}

/// One wait for bytes.
struct Waiting {
    since: Time,
    /// Since when there is no hope, if there is none.
    hopeless_since: Option<Time>,
    /// The blob cannot be checked in pieces.
    is_for_a_whole: bool,
}

impl Waiting {
    const fn begin(now: Time, is_for_a_whole: bool) -> Self {
        Self {
            since: now,
            hopeless_since: None,
            is_for_a_whole,
        }
    }

    /// Why it should not go on, if so.
    fn is_in_vain(&mut self, now: Time, reach: Reach, shared: &Shared) -> Option<&'static str> {
        let Patience {
            hopeless,
            stuck,
            whole,
            silent,
        } = shared.patience;
        self.hopeless_since = match reach {
            Reach::Within => None,
            Reach::Out => self.hopeless_since.or(Some(now)),
        };
        let waited = now.saturating_since(self.since);
        if self
            .hopeless_since
            .is_some_and(|since| now.saturating_since(since) >= hopeless)
        {
            Some("no neighbour has the next chunk and no origin answers")
        } else if waited >= stuck && shared.moved.ago(now) >= stuck {
            Some("nothing comes from anywhere")
        } else {
            let bound = if self.is_for_a_whole {
                whole.min(silent)
            } else {
                silent
            };
            (waited >= bound).then_some("the next chunk does not come")
        }
    }
}

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
        let reader = Self {
            mirror,
            repository,
            blob,
            left: part,
            id,
            passing: None,
            _pin: pin,
        };
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
        let mut waiting = Waiting::begin(
            self.mirror.shared.clock.now(),
            self.blob.geometry().is_whole(),
        );
        loop {
            match timeout(LOOK_AGAIN, self.blob.available(self.left.start)).await {
                Ok(Availability::Ready(until)) => {
                    if let Some(bytes) = self.take(until).await? {
                        return Ok(Some(bytes));
                    }
                }
                Ok(Availability::Bypassed) => return self.pass().await,
                Ok(Availability::Waiting) | Err(_) => {
                    let reach = self.reach().await;
                    if let Some(why) = waiting.is_in_vain(
                        self.mirror.shared.clock.now(),
                        reach,
                        &self.mirror.shared,
                    ) {
                        tracing::warn!(blob = %self.blob.digest(), at = self.left.start, why, "pass blob through");
                        return self.pass().await;
                    }
                }
            }
        }
    }

    /// What the machine thinks of the chunk that is waited for.
    async fn reach(&self) -> Reach {
        let (answer, answered) = oneshot::channel();
        let (digest, chunk) = (
            *self.blob.digest(),
            self.blob.geometry().chunk_at(self.left.start),
        );
        self.mirror
            .command(Command::Reach {
                digest,
                chunk,
                answer,
            })
            .await;
        answered.await.unwrap_or(Reach::Out)
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
        let opened = Passing::open(
            shared,
            &self.repository,
            self.blob.digest(),
            self.left.clone(),
        )
        .await;
        if opened.is_err() {
            // Of several ranges of one layer, containerd goes on after a cut only if it is the
            // first that is cut.
            let _ = timeout(CUT_IN_ORDER, self.blob.is_foremost(self.id)).await;
        }
        let mut passing = opened.map_err(|error| {
            failure(
                &format!(
                    "{}@{}: no neighbour has it",
                    self.repository,
                    self.blob.digest()
                ),
                &error,
            )
        })?;
        let first = passing.next().await;
        self.passing = Some(passing);
        first
    }

    fn tell_cursor(&self) {
        if self.blob.set_cursor(self.id, self.left.start) {
            self.nudge();
        }
    }

    /// A driver that is busy looks at the cursors the next time.
    fn nudge(&self) {
        let _ = self
            .mirror
            .commands
            .try_send(Command::ReadersMoved(*self.blob.digest()));
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.blob.remove_cursor(self.id);
        self.nudge();
    }
}

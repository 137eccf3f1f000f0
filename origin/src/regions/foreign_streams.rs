//! Bodies of blobs that this region lacks and another one sends: a few per blob and replica.
//! Further readers wait for the copy that the first one has started, so that a thousand clients do
//! not fetch a blob a thousand times from another region.

use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_common::digest::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// Bodies of one blob at once.
const STREAMS_PER_BLOB: usize = 4;
/// How long further readers wait for the copy, or for one of these bodies to end.
pub(crate) const WAIT: Duration = Duration::from_secs(5);

/// The blobs that are being read from other regions, by one replica.
#[derive(Debug, Default)]
pub(crate) struct ForeignStreams(Mutex<HashMap<Digest, BlobStreams>>);

#[derive(Debug)]
struct BlobStreams {
    permits: Arc<Semaphore>,
    /// The number of copies of the blob that have ended.
    copies: watch::Sender<u64>,
}

/// Permission for one body; released on drop.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    owner: Arc<ForeignStreams>,
    digest: Digest,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.permit.take();
        self.owner.forget_idle(&self.digest);
    }
}

impl ForeignStreams {
    /// Permission for a body of a blob; `None` if enough are under way.
    pub(crate) fn try_begin(self: &Arc<Self>, digest: &Digest) -> Option<StreamPermit> {
        let permit = self.with(digest, |streams| {
            Arc::clone(&streams.permits).try_acquire_owned().ok()
        })?;
        Some(StreamPermit {
            owner: Arc::clone(self),
            digest: *digest,
            permit: Some(permit),
        })
    }

    /// Returns when a copy of the blob has ended or a body may have, at `deadline` at the latest.
    pub(crate) async fn wait(&self, digest: &Digest, deadline: Instant) {
        let (permits, mut copies) = self.with(digest, |streams| {
            (Arc::clone(&streams.permits), streams.copies.subscribe())
        });
        tokio::select! {
            // It is given back at once: the caller first asks the own storage again.
            _permit = permits.acquire() => {}
            _ended = copies.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        drop(copies);
        self.forget_idle(digest);
    }

    /// Wakes those that wait for the copy of a blob.
    pub(crate) fn copy_ended(&self, digest: &Digest) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = all.get(digest) {
            streams.copies.send_modify(|copies| *copies += 1);
        }
    }

    fn with<T>(&self, digest: &Digest, act: impl FnOnce(&BlobStreams) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(all.entry(*digest).or_insert_with(|| BlobStreams {
            permits: Arc::new(Semaphore::new(STREAMS_PER_BLOB)),
            copies: watch::Sender::default(),
        }))
    }

    /// Forgets a blob of which no body is under way, and for which no reader waits.
    fn forget_idle(&self, digest: &Digest) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = all.get(digest)
            && streams.permits.available_permits() == STREAMS_PER_BLOB
            && streams.copies.receiver_count() == 0
        {
            all.remove(digest);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readers_beyond_the_limit_wait_for_the_copy() {
        let streams = Arc::new(ForeignStreams::default());
        let digest = Digest::sha256(b"blob");
        let mut held: Vec<_> = (0..STREAMS_PER_BLOB)
            .map(|_| streams.try_begin(&digest).expect("room"))
            .collect();
        assert!(streams.try_begin(&digest).is_none());
        assert!(streams.try_begin(&Digest::sha256(b"other")).is_some());

        let started = Instant::now();
        let waits = |seconds| {
            let streams = Arc::clone(&streams);
            let deadline = started + Duration::from_secs(seconds);
            async move {
                streams.wait(&digest, deadline).await;
                started.elapsed().as_secs()
            }
        };
        assert_eq!(waits(5).await, 5, "nothing has ended");
        let ended = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            streams.copy_ended(&digest);
        };
        assert_eq!(tokio::join!(waits(20), ended).0, 7, "the copy has ended");
        let ended = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            held.pop();
        };
        assert_eq!(tokio::join!(waits(20), ended).0, 9, "a body has ended");
        held.clear();
        assert_eq!(streams.len(), 0, "idle blobs are forgotten");
    }
}

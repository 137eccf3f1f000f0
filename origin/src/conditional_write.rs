//! Conditional writes whose outcome is known.
//!
//! A put that timed out may still be applied later, and a conflict may be with one's own write that
//! a client library sent twice. So after anything but success the key is read back:
//!
//! | the key holds | outcome |
//! |---|---|
//! | the body that was written | written |
//! | the version that was to be replaced | unknown, or refused for the moment: send the same body again |
//! | anything else | lost |
//!
//! A caller that lost must **never write a second time** in place of the first, unless the first is
//! known not to have applied: it may have applied and been overwritten by another client's
//! acknowledged change before it was read back, and a second write would undo that change. Bodies
//! carry nonces, so no other writer sends the same bytes.
//!
//! A storage may also refuse a write whose precondition holds, because another request for the key
//! is in progress (S3: 409 `ConditionalRequestConflict`). Attempts after a refusal are separated by
//! pauses. The client library itself pauses when the storage throttles (429, 503).

use core::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use crate::nonce::random_bytes;
use crate::storage::{Key, Object, Storage, StorageError, Version};

/// How often one body is sent while the base is unchanged and the storage fails.
const ATTEMPTS: u32 = 3;
/// The same, if the storage refuses the write: about 3 s with the pauses.
const REFUSED_ATTEMPTS: u32 = 8;
/// The first pause after a refusal. Later ones are twice as long each, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The outcome of a conditional write.
#[derive(Debug)]
pub(crate) enum WriteOutcome {
    /// It was applied.
    Written,
    /// Another writer was first, or came afterwards. The write will not be applied any more.
    Lost {
        /// The object that is there now; `None` if there is none.
        present: Option<Object>,
        /// The outcome of an attempt was unknown: the write may have been applied and overwritten
        /// since. Otherwise it was not applied.
        may_have_applied: bool,
    },
}

/// Writes on a storage whose calls have a timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConditionalWriter<'a> {
    pub(crate) storage: &'a dyn Storage,
}

impl ConditionalWriter<'_> {
    /// Creates `key`, or replaces its version `seen`. Callers limit how long it takes.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] if the outcome stays unknown.
    pub(crate) async fn write(
        self,
        key: &Key,
        seen: Option<&Version>,
        body: Bytes,
    ) -> Result<WriteOutcome, StorageError> {
        let mut failure = None;
        let mut may_have_applied = false;
        let mut refused = 0;
        let mut failed = 0;
        while failed < ATTEMPTS && refused < REFUSED_ATTEMPTS {
            let mut has_failed = false;
            match self.attempt(key, seen, body.clone()).await {
                Ok(_) => return Ok(WriteOutcome::Written),
                Err(StorageError::Conflict {
                    may_have_applied: unknown,
                    ..
                }) => {
                    may_have_applied |= unknown;
                    refused += 1;
                }
                Err(error) => {
                    may_have_applied |= !matches!(error, StorageError::Full { .. });
                    failure = Some(error);
                    has_failed = true;
                }
            }
            match self.storage.read(key).await {
                Ok(Some(object)) if object.body == body => return Ok(WriteOutcome::Written),
                Ok(present) if present.as_ref().map(|object| &object.version) != seen => {
                    return Ok(WriteOutcome::Lost {
                        present,
                        may_have_applied,
                    });
                }
                Ok(_) if refused > 0 => sleep(pause_after(refused)).await,
                Ok(_) => {}
                Err(error) => {
                    failure = Some(error);
                    has_failed = true;
                }
            }
            failed += u32::from(has_failed);
        }
        Err(failure.unwrap_or_else(|| {
            StorageError::unavailable(
                "write object",
                key,
                "the storage keeps refusing the write although the object is unchanged; other \
                 requests for it may be in progress",
            )
        }))
    }

    async fn attempt(
        self,
        key: &Key,
        seen: Option<&Version>,
        body: Bytes,
    ) -> Result<Version, StorageError> {
        match seen {
            None => self.storage.create(key, body).await,
            Some(version) => self.storage.swap(key, version, body).await,
        }
    }
}

/// The pause after a number of refusals, between half and all of its length: writers that collided
/// must not collide again.
fn pause_after(refused: u32) -> Duration {
    let longest = FIRST_PAUSE * 2_u32.saturating_pow(refused.saturating_sub(1));
    let longest = longest.min(LONGEST_PAUSE);
    let [random] = random_bytes::<1>();
    longest / 2 + longest / 2 * u32::from(random) / 255
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::storage::{ByteStream, ObjectWriter, Page, Prefix, StorageResult};

    #[test]
    fn pauses_grow_to_a_bound_and_vary() {
        for refused in 1..=REFUSED_ATTEMPTS {
            let pause = pause_after(refused);
            assert!(pause >= FIRST_PAUSE / 2, "{pause:?}");
            assert!(pause <= LONGEST_PAUSE, "{pause:?}");
        }
        assert!(pause_after(1) <= FIRST_PAUSE);
        assert!(pause_after(REFUSED_ATTEMPTS) >= LONGEST_PAUSE / 2);
        let pauses: std::collections::BTreeSet<_> = (0..64).map(|_| pause_after(5)).collect();
        assert!(pauses.len() > 1, "no jitter");
    }

    /// A storage that refuses each write while other requests for the key are in progress.
    #[tokio::test(start_paused = true)]
    async fn refused_writes_are_repeated_after_pauses() {
        let key: Key = "tag/app/_/v1".parse().unwrap();
        let write = async |refusals: u32| {
            let storage = RefusingStorage::new(refusals);
            let started = tokio::time::Instant::now();
            let writer = ConditionalWriter { storage: &storage };
            let written = writer.write(&key, None, "v".into()).await;
            (written, started.elapsed())
        };
        let longest: Duration = (1..REFUSED_ATTEMPTS)
            .map(|refused| (FIRST_PAUSE * 2_u32.pow(refused - 1)).min(LONGEST_PAUSE))
            .sum();
        let (written, took) = write(REFUSED_ATTEMPTS - 1).await;
        assert!(matches!(written, Ok(WriteOutcome::Written)), "{written:?}");
        assert!(
            took >= longest / 2 && took <= longest + LONGEST_PAUSE,
            "{took:?}"
        );
        let (written, took) = write(REFUSED_ATTEMPTS).await;
        assert!(written.unwrap_err().to_string().contains("keeps refusing"));
        assert!(took < Duration::from_secs(5), "{took:?}");
        let (written, took) = write(0).await;
        assert!(matches!(written, Ok(WriteOutcome::Written)));
        assert_eq!(took, Duration::ZERO);
    }

    /// Storage in memory that refuses the first creates as if the key were in use.
    #[derive(Debug)]
    struct RefusingStorage {
        inner: Arc<dyn Storage>,
        refusals: AtomicU32,
    }

    impl RefusingStorage {
        fn new(refusals: u32) -> Self {
            Self {
                inner: crate::storage::open("memory:///", 0).unwrap(),
                refusals: AtomicU32::new(refusals),
            }
        }
    }

    #[async_trait]
    impl Storage for RefusingStorage {
        async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
            let left = self.refusals.load(Ordering::Relaxed);
            if left > 0 {
                self.refusals.store(left - 1, Ordering::Relaxed);
                return Err(StorageError::conflict("create object", key));
            }
            self.inner.create(key, body).await
        }

        async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
            self.inner.swap(key, seen, body).await
        }

        async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
            self.inner.read(key).await
        }

        async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
            self.inner.read_range(key, range).await
        }

        async fn list(
            &self,
            prefix: &Prefix,
            after: Option<&Key>,
            limit: usize,
        ) -> StorageResult<Page> {
            self.inner.list(prefix, after, limit).await
        }

        async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
            self.inner.begin_write(key).await
        }

        async fn delete(&self, key: &Key) -> StorageResult<()> {
            self.inner.delete(key).await
        }

        async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
            self.inner.remove(key, seen).await
        }

        fn is_remote(&self) -> bool {
            self.inner.is_remote()
        }

        async fn presigned_get(
            &self,
            key: &Key,
            valid_for: Duration,
        ) -> StorageResult<Option<String>> {
            self.inner.presigned_get(key, valid_for).await
        }
    }
}

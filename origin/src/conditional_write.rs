//! Conditional writes that know what became of them.
//!
//! A put that timed out may still apply later, and a conflict may be with one's own write that a
//! client library sent twice. So after anything but success the key is read back: one's own bytes
//! there, it was written; the base unchanged, the same bytes are sent again; anything else, it is
//! lost, and the caller **never writes a second time** in its place: a newer acknowledged write may
//! be there. Bodies carry nonces, so nobody else writes the same bytes.

use bytes::Bytes;

use crate::storage::{Key, Object, Storage, StorageError, Version};

/// How often the same bytes are sent while the base is unchanged.
const ATTEMPTS: u32 = 3;

/// What became of a write.
#[derive(Debug)]
pub(crate) enum WriteOutcome {
    /// It is, or was, there.
    Written,
    /// Another's write is there, or (after a swap) nothing.
    Lost(Option<Object>),
}

/// Settles writes. The storage's calls are bounded in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConditionalWriter<'a> {
    pub(crate) storage: &'a dyn Storage,
}

impl ConditionalWriter<'_> {
    /// Writes `body` where there is nothing (`seen` is none) or in the place of the version seen.
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
        for _ in 0..ATTEMPTS {
            match self.attempt(key, seen, body.clone()).await {
                Ok(_) => return Ok(WriteOutcome::Written),
                Err(StorageError::Conflict { .. }) => {}
                Err(error) => failure = Some(error),
            }
            match self.storage.read(key).await {
                Ok(Some(object)) if object.body == body => return Ok(WriteOutcome::Written),
                Ok(present) if present.as_ref().map(|object| &object.version) != seen => {
                    return Ok(WriteOutcome::Lost(present));
                }
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| {
            StorageError::unavailable(
                "settle write",
                key,
                "conflicts with nothing, again and again",
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

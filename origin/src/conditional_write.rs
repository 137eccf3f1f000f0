//! Conditional writes whose outcome is known.
//!
//! A put that timed out may still be applied later, and a conflict may be with one's own write that
//! a client library sent twice. So after anything but success the key is read back:
//!
//! | the key holds | outcome |
//! |---|---|
//! | the body that was written | written |
//! | the version that was to be replaced | unknown: send the same body again |
//! | anything else | lost |
//!
//! A caller that lost must **never write a second time** in place of the first: a newer
//! acknowledged write may be there. Bodies carry nonces, so no other writer sends the same bytes.

use bytes::Bytes;

use crate::storage::{Key, Object, Storage, StorageError, Version};

/// How often one body is sent while the base is unchanged.
const ATTEMPTS: u32 = 3;

/// The outcome of a conditional write.
#[derive(Debug)]
pub(crate) enum WriteOutcome {
    /// It was applied.
    Written,
    /// It was not applied and never will be: another writer was first. With the object that is
    /// there now; `None` if there is none.
    Lost(Option<Object>),
}

/// Writes on a storage whose calls have a timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConditionalWriter<'a> {
    pub(crate) storage: &'a dyn Storage,
}

impl ConditionalWriter<'_> {
    /// Creates `key`, or replaces its version `seen`.
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
                "write object",
                key,
                "storage reports a precondition failure although the object is unchanged",
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

//! The `policy` object of a bucket: a comment line with a nonce, then the text.
//!
//! ```text
//! # flotilla policy 5f0c...      different in each write, so that no two writes have the same bytes
//! [[region]]
//! ...
//! ```

use bytes::Bytes;

use super::{Policy, PolicyError};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::format;
use crate::layout;
use crate::nonce::nonce;
use crate::storage::{Storage, StorageError, Version};

/// The beginning of the object's first line.
const NONCE_LINE: &str = "# flotilla policy ";

/// Why a policy cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum PolicyStoreError {
    /// The storage failed; the outcome is unknown.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The text is not a valid policy; nothing was written.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The storage is not the one of an origin; nothing was written.
    #[error(
        "the storage's format object: {0}; is --storage the same as in the origins' configuration?"
    )]
    Format(String),
    /// Another policy is stored: one that replaced the seen one first, or that replaced this one
    /// at once.
    #[error("another policy was stored meanwhile; look at it (`show`), then set yours again")]
    Conflict,
}

/// The policy object of a bucket, as it was read. Its text need not be valid.
#[derive(Clone, Debug)]
pub struct StoredPolicy {
    body: Bytes,
    version: Version,
}

impl StoredPolicy {
    /// The text, without the line of the nonce.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self) -> Result<&str, PolicyError> {
        let text = core::str::from_utf8(&self.body)
            .map_err(|error| PolicyError::new(format!("the policy is not UTF-8 text: {error}")))?;
        Ok(match text.split_once('\n') {
            Some((first, rest)) if first.starts_with(NONCE_LINE) => rest,
            _ => text,
        })
    }

    /// Parses the text.
    ///
    /// # Errors
    /// The text is not a valid policy.
    pub fn parse(&self) -> Result<Policy, PolicyError> {
        Policy::parse(self.text()?)
    }

    /// The version of the object, for [`set`].
    pub const fn version(&self) -> &Version {
        &self.version
    }
}

/// Reads the policy of a bucket; `None` if it has none.
///
/// # Errors
/// [`StorageError::Unavailable`].
pub async fn read(storage: &dyn Storage) -> Result<Option<StoredPolicy>, StorageError> {
    let object = storage.read(&layout::policy()).await?;
    Ok(object.map(|object| StoredPolicy {
        body: object.body,
        version: object.version,
    }))
}

/// Stores a policy in place of the one that was `seen`, or as the first. The calls of `storage`
/// need a timeout ([`TimeoutStorage`](crate::storage::TimeoutStorage)).
///
/// # Errors
/// [`PolicyStoreError`]: an invalid text, a policy that was not seen, or a failed storage.
pub async fn set(
    storage: &dyn Storage,
    text: &str,
    seen: Option<&StoredPolicy>,
) -> Result<Policy, PolicyStoreError> {
    let policy = Policy::parse(text)?;
    if let Some(problem) = format::describe_problem(storage).await? {
        return Err(PolicyStoreError::Format(problem));
    }
    let body = Bytes::from(format!("{NONCE_LINE}{:032x}\n{text}", nonce()));
    let writer = ConditionalWriter { storage };
    let seen = seen.map(StoredPolicy::version);
    match writer.write(&layout::policy(), seen, body).await? {
        WriteOutcome::Written => Ok(policy),
        WriteOutcome::Lost { .. } => Err(PolicyStoreError::Conflict),
    }
}

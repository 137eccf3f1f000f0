//! Object storage as the origin uses it: one small trait, its implementations and decorators.
//!
//! | type | job |
//! |---|---|
//! | [`LocalDirectory`] | a directory on this machine, shared by several processes |
//! | [`ObjectStorage`] | memory, S3, GCS and Azure, through the `object_store` crate |
//! | [`TimeoutStorage`] | decorator: every call has a timeout |
//! | [`CountingStorage`] | decorator: every call is counted, for metrics |
//!
//! The trait has exactly the operations that the protocols need: create-only put, compare-and-swap
//! on a version, an ordered page of keys, ranged reads, streaming writes, an unconditional delete
//! for keys that are used once, and a conditional removal for all others. An implementation must
//! never report success for a conditional write unless its condition held at the instant the write
//! took effect, and never show a partial body.
//!
//! Reads of one key are linearizable with its writes: a read that begins after a write completed
//! returns that write or a later one. S3, GCS and Azure all promise this.

mod client_options;
mod conditional_removal;
mod counting_storage;
mod error;
mod key;
mod listing;
mod local;
mod multipart_writer;
mod object_storage;
mod open;
mod probe;
mod remote;
mod sent_attempts;
mod storage_time;
mod timeout_storage;
mod transport;
mod whole_body;

use core::fmt;
use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use counting_storage::{CountingStorage, Operations};
pub use error::StorageError;
pub use key::{Key, KeyError, Prefix};
pub(crate) use listing::entries;
pub use local::LocalDirectory;
pub use multipart_writer::PartPool;
pub use object_storage::{ObjectStorage, ObjectStoreClient};
pub use open::{OpenError, open, open_existing, open_with};
pub(crate) use probe::probe_signing;
pub use probe::{missing_credentials, probe};
pub use remote::Variables;
pub use storage_time::StorageTime;
pub use timeout_storage::TimeoutStorage;

/// Maximum number of bytes that [`Storage::read`] returns: enough for a manifest of 4 MiB or a
/// chunk table of 16,384 chunks.
pub const MAX_READ_LEN: u64 = 8 << 20;

/// How many keys a caller that walks a listing asks for at once. A page tells whether more keys
/// follow, so a page of 999 takes one request of S3, which returns at most 1,000 keys.
pub const PAGE_LEN: usize = 999;

/// The outcome of a storage call.
pub type StorageResult<T> = Result<T, StorageError>;
/// A body that is read as a stream.
pub type ByteStream = BoxStream<'static, StorageResult<Bytes>>;

/// The only external dependency of an origin.
///
/// Dropping the future of a write before it is ready leaves the outcome unknown: the write may
/// have applied, or may apply later. So does a conflict that says that the write may have applied:
/// a client library repeated the request after a failure.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Writes an object under a key that does not exist.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key exists; [`StorageError::Unavailable`] when the outcome
    /// is unknown.
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version>;

    /// Replaces the object whose version is `seen`.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key has another version or does not exist;
    /// [`StorageError::Unavailable`] when the outcome is unknown.
    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version>;

    /// Reads a whole object of at most [`MAX_READ_LEN`] bytes; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    async fn read(&self, key: &Key) -> StorageResult<Option<Object>>;

    /// Reads a byte range of an object as a stream, which ends early only with an error.
    ///
    /// # Errors
    /// [`StorageError::Missing`] if it does not exist; [`StorageError::Unavailable`], also within
    /// the stream.
    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream>;

    /// Opens the file that holds an object; `None` if it does not exist, or if this storage does
    /// not keep objects as files. An open file stays whole even if its key is deleted.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    async fn open_file(&self, _key: &Key) -> StorageResult<Option<Arc<File>>> {
        Ok(None)
    }

    /// Lists at most `limit` keys under `prefix` that come after the key `after`, in byte order.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    async fn list(&self, prefix: &Prefix, after: Option<&Key>, limit: usize)
    -> StorageResult<Page>;

    /// Begins the streaming write of an object under a key that does not exist. Nothing is visible
    /// before [`ObjectWriter::finish`].
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>>;

    /// Removes an object without a condition: only for keys that are used once. Deleting a key that
    /// does not exist succeeds.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    async fn delete(&self, key: &Key) -> StorageResult<()>;

    /// Removes the object whose version is `seen`. Like every conditional write it may apply after
    /// its caller was told that it failed.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key has another version or does not exist;
    /// [`StorageError::Unsupported`] if this storage cannot remove on a condition, and nothing was
    /// changed; [`StorageError::Unavailable`] when the outcome is unknown.
    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()>;

    /// Whether bytes cross a network, where they may be altered. Whole bodies are then verified
    /// while they are served.
    fn is_remote(&self) -> bool;

    /// A URL that any client may GET until `valid_for` has passed; `None` if this storage cannot
    /// sign URLs.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>>;
}

/// An object that is being written. If it is dropped before [`Self::finish`], no listing shows
/// anything of it.
#[async_trait]
pub trait ObjectWriter: Send {
    /// How many bytes can be written, after `pending` more, without waiting for memory.
    ///
    /// Waits for memory only if `pending` is 0, and then returns more than 0.
    ///
    /// # Errors
    /// As [`Self::write`].
    async fn reserve(&mut self, _pending: usize) -> StorageResult<usize> {
        Ok(usize::MAX)
    }

    /// Appends bytes. Waits while the storage is slow or no part buffer is free.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`]; the writer is unusable afterwards.
    async fn write(&mut self, bytes: Bytes) -> StorageResult<()>;

    /// Releases buffered bytes as far as the backend allows, so that the caller may reuse their
    /// memory.
    ///
    /// # Errors
    /// As [`Self::write`].
    async fn flush(&mut self) -> StorageResult<()> {
        Ok(())
    }

    /// Makes the object durable and visible.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key exists; [`StorageError::Unavailable`] when the outcome
    /// is unknown.
    async fn finish(self: Box<Self>) -> StorageResult<()>;
}

/// A small object and its version.
#[derive(Clone, Debug)]
pub struct Object {
    /// The bytes.
    pub body: Bytes,
    /// The version, for [`Storage::swap`] and [`Storage::remove`].
    pub version: Version,
    /// When the storage wrote this version; `None` if it does not say.
    pub modified: Option<StorageTime>,
}

/// An opaque version of an object. Equal bodies may have equal versions (an S3 `ETag` is a hash of
/// the body), so every body carries a nonce.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    pub(crate) fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The object's length in bytes.
    pub size: u64,
    /// The version, for [`Storage::swap`] and [`Storage::remove`]; `None` if a listing of this
    /// storage does not tell it.
    pub version: Option<Version>,
    /// When the storage wrote this version; `None` if it does not say.
    pub modified: Option<StorageTime>,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, in the byte order of their keys.
    pub entries: Vec<Entry>,
    /// Whether there are keys after the last entry.
    pub more: bool,
}

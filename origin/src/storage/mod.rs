//! Object storage as the origin sees it: a small trait, its implementations and their decorators.
//!
//! Everything that the protocols need and nothing else: create-only put, compare-and-swap on a
//! version, an ordered page of keys, ranged reads, streaming writes, and an unconditional delete
//! for keys that are used once. An implementation must never answer a conditional write with
//! success unless its condition held at the instant the write took effect, and never show a body in
//! part.
//!
//! Reads of one key are linearizable with its writes: what a completed write left is what a read
//! that begins later returns. All the object stores named in the design promise that today.

mod bounded;
mod counted;
mod key;
mod local;
mod local_files;
mod local_list;
mod object_writer;
mod objects;
mod open;
mod remote;
mod transport;

use core::fmt;
use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use bounded::Bounded;
pub use counted::{Counted, Operations};
pub use key::{Key, KeyError, Prefix};
pub use local::LocalDirectory;
pub use object_writer::PartPool;
pub use objects::{ObjectStorage, Remote};
pub(crate) use open::probe_signing;
pub use open::{OpenError, missing_credentials, open, open_existing, open_with, probe};
pub use remote::Variables;

/// Bytes that [`Storage::read`] returns at most: a manifest of 4 MiB or a table of 16,384 chunks,
/// with room to spare.
pub const MAX_READ_LEN: u64 = 8 << 20;

/// What a storage call returns.
pub type StorageFuture<'a, T> = BoxFuture<'a, Result<T, StorageError>>;
/// A body as it is read.
pub type ByteStream = BoxStream<'static, Result<Bytes, StorageError>>;

/// The one dependency of the origin.
///
/// A future dropped before it is ready leaves the outcome of a write unknown: it may apply, or
/// apply later.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Writes an object where there is none.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key exists; [`StorageError::Unavailable`] when the outcome
    /// is unknown.
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version>;

    /// Replaces the object that has the version `seen`.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key has another version or none;
    /// [`StorageError::Unavailable`] when the outcome is unknown.
    fn swap<'a>(
        &'a self,
        key: &'a Key,
        seen: &'a Version,
        body: Bytes,
    ) -> StorageFuture<'a, Version>;

    /// The whole object, at most [`MAX_READ_LEN`] bytes; `None` where there is none.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>>;

    /// Bytes of an object as a stream, which ends early only with an error.
    ///
    /// # Errors
    /// [`StorageError::Missing`] where there is none; [`StorageError::Unavailable`] also within the
    /// stream.
    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream>;

    /// The file that an object is, where it is one; `None` where there is none, or where objects
    /// are no files. A file that is open stays whole, even if its key is deleted.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    fn file<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Arc<File>>> {
        let _ = key;
        Box::pin(async { Ok(None) })
    }

    /// At most `limit` keys under `prefix`, in the order of their bytes, after the key `after`.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page>;

    /// Begins the streaming write of an object where there is none. Nothing is visible before
    /// [`ObjectWriter::finish`].
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>>;

    /// Removes an object without a condition: only for keys that are used once. Nothing there is
    /// success.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()>;

    /// Whether bytes come from afar, through machines that may change them. Whole bodies are then
    /// checked on their way.
    fn is_remote(&self) -> bool;

    /// A URL that anybody may GET until `valid_for` has passed; `None` where the storage has no
    /// such thing.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    fn presigned_get<'a>(
        &'a self,
        key: &'a Key,
        valid_for: Duration,
    ) -> StorageFuture<'a, Option<String>>;
}

/// One object being written. Dropped before `finish`, it leaves nothing behind that a listing
/// shows.
pub trait ObjectWriter: Send {
    /// How many bytes can be written, after `pending` more, without waiting for memory. Waits for
    /// memory only if none are pending, and then there is room for some.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn room(&mut self, pending: usize) -> StorageFuture<'_, usize> {
        let _ = pending;
        Box::pin(async { Ok(usize::MAX) })
    }

    /// Takes the next bytes. Waits while the storage, or the pool of parts, is behind.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`]; the writer is of no use afterwards.
    fn write(&mut self, bytes: Bytes) -> StorageFuture<'_, ()>;

    /// Holds on to as little of what was written as it can: its memory is counted no longer.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn flush(&mut self) -> StorageFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Makes the object durable and visible.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] if the key exists; [`StorageError::Unavailable`] when the outcome
    /// is unknown.
    fn finish(self: Box<Self>) -> StorageFuture<'static, ()>;
}

/// A small object with the version to swap it by.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its bytes.
    pub body: Bytes,
    /// Its version.
    pub version: Version,
}

/// An opaque mark of one object's content; equal contents may have equal versions, so every body
/// carries a nonce.
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

/// One key of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// Bytes of the object.
    pub size: u64,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, in the order of their keys' bytes.
    pub entries: Vec<Entry>,
    /// Whether there are keys after the last entry.
    pub more: bool,
}

/// What a storage call can end with, apart from success.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The condition of a write did not hold. Read the key back before deciding anything: after a
    /// retry inside a client library the write that came first may be one's own.
    #[error("{action} {key}: another write came first")]
    Conflict {
        /// What was tried, verb and noun.
        action: &'static str,
        /// Where.
        key: String,
    },
    /// The object is not there.
    #[error("{action} {key}: no such object")]
    Missing {
        /// What was tried, verb and noun.
        action: &'static str,
        /// Where.
        key: String,
    },
    /// There is no room: the write did not apply, and left nothing.
    #[error("{action} {key}: the storage is full")]
    Full {
        /// What was tried, verb and noun.
        action: &'static str,
        /// Where.
        key: String,
    },
    /// The storage did not do it, or did not say so: a write may have applied, or may apply later.
    #[error("{action} {key}: {source}")]
    Unavailable {
        /// What was tried, verb and noun.
        action: &'static str,
        /// Where.
        key: String,
        /// What the storage said.
        source: Box<dyn core::error::Error + Send + Sync>,
    },
}

impl StorageError {
    pub(crate) fn conflict(action: &'static str, key: &Key) -> Self {
        Self::Conflict {
            action,
            key: key.to_string(),
        }
    }

    pub(crate) fn missing(action: &'static str, key: &Key) -> Self {
        Self::Missing {
            action,
            key: key.to_string(),
        }
    }

    /// The storage failed for any other reason.
    pub fn unavailable(
        action: &'static str,
        key: impl fmt::Display,
        source: impl Into<Box<dyn core::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable {
            action,
            key: key.to_string(),
            source: source.into(),
        }
    }
}

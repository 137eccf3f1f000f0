//! Storage by its URL, and the probe that every replica makes before it serves.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;

use super::{Key, LocalDirectory, ObjectStorage, PartPool, Prefix, Storage, StorageError, Version};
use crate::nonce::nonce;

/// Why storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no backend of this build.
    #[error("storage {url:?}: {problem}; this build has file:///directory and memory:///")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The directory cannot be made or written to.
    #[error("open storage directory {path:?}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The storage does not do what the protocols need.
    #[error("probe storage: {step}: {source}")]
    Probe {
        /// What was tried.
        step: &'static str,
        /// What happened.
        source: Box<dyn core::error::Error + Send + Sync>,
    },
}

/// Opens storage by its URL. Streamed writes of remote backends share a pool of `part_bytes`.
///
/// # Errors
/// [`OpenError::Url`] and [`OpenError::Directory`].
pub fn open(url: &str, part_bytes: u64) -> Result<Arc<dyn Storage>, OpenError> {
    let wrong = |problem| OpenError::Url { url: url.to_owned(), problem };
    match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => {
            let path = PathBuf::from(path);
            let directory = LocalDirectory::open(&path);
            Ok(Arc::new(directory.map_err(|source| OpenError::Directory { path, source })?))
        }
        Some(("file", _)) => Err(wrong("a directory is given by its full path")),
        Some(("memory", "" | "/")) => {
            Ok(Arc::new(ObjectStorage::new(Arc::new(InMemory::new()), PartPool::new(part_bytes))))
        }
        Some(("memory", _)) => Err(wrong("memory has no name")),
        Some(("s3" | "gs" | "az", _)) => Err(wrong("this backend is not part of this build")),
        Some(_) => Err(wrong("unknown kind of storage")),
        None => Err(wrong("not a URL")),
    }
}

/// Tries, on a key of its own, each operation that the protocols rest on: a storage that ignores conditions is found
/// here and not when it loses a tag.
///
/// # Errors
/// [`OpenError::Probe`] with the step that failed.
pub async fn probe(storage: &dyn Storage) -> Result<(), OpenError> {
    let name = format!("probe/{:032x}", nonce());
    let key = Key::new(name.as_str()).map_err(|error| failed("name a key", error))?;
    let outcome = probe_key(storage, &key).await;
    let removed = storage.delete(&key).await;
    outcome?;
    removed.map_err(|error| failed("delete an object", error))
}

async fn probe_key(storage: &dyn Storage, key: &Key) -> Result<(), OpenError> {
    let body = |text: &'static str| Bytes::from_static(text.as_bytes());
    let created = storage.create(key, body("first")).await;
    let first = created.map_err(|error| failed("create an object", error))?;
    refused("create an object that exists", storage.create(key, body("second")).await)?;
    let swapped = storage.swap(key, &first, body("second")).await;
    swapped.map_err(|error| failed("swap an object", error))?;
    refused("swap an object by an old version", storage.swap(key, &first, body("third")).await)?;
    let read = storage.read(key).await.map_err(|error| failed("read an object", error))?;
    if read.is_none_or(|object| object.body != body("second")) {
        return Err(failed("read an object", "it is not what was written last"));
    }
    let prefix = Prefix::new("probe/").map_err(|error| failed("name a prefix", error))?;
    storage.list(&prefix, None, 1).await.map_err(|error| failed("list objects", error))?;
    Ok(())
}

fn refused(step: &'static str, outcome: Result<Version, StorageError>) -> Result<(), OpenError> {
    match outcome {
        Err(StorageError::Conflict { .. }) => Ok(()),
        Err(error) => Err(failed(step, error)),
        Ok(_) => Err(failed(step, "the storage did it, so it has no conditional writes")),
    }
}

fn failed(step: &'static str, source: impl Into<Box<dyn core::error::Error + Send + Sync>>) -> OpenError {
    OpenError::Probe { step, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_url_that_cannot_be_used_says_why() {
        let told = |url: &str| open(url, 0).map(drop).map_err(|error| error.to_string());
        assert!(told("memory:///").is_ok());
        for (url, part) in [
            ("s3://bucket/prefix", "not part of this build"),
            ("file://relative/path", "full path"),
            ("/var/lib/flotilla", "not a URL"),
            ("ftp://host", "unknown kind"),
            ("memory://name", "no name"),
        ] {
            let message = told(url).err().unwrap_or_default();
            assert!(message.contains(part) && message.contains("file:///directory"), "{url}: {message}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let message = open("file:///dev/null/store", 0).map(drop).err().map(|error| error.to_string());
        assert!(
            message.is_some_and(|message| message.contains("open storage directory \"/dev/null/store\""))
        );
    }
}

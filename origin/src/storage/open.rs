//! Storage by its URL, and the probe that every replica makes before it serves.

use core::time::Duration;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::memory::InMemory;

use super::remote::{self, Variables};
use super::{
    Key, LocalDirectory, ObjectStorage, PartPool, Prefix, Remote, Storage, StorageError, Version,
};
use crate::nonce::nonce;

/// Why storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no backend of this build.
    #[error(
        "storage {url:?}: {problem}; there are file:///directory, s3://bucket/prefix, gs://bucket/prefix, \
         az://container/prefix and memory:///"
    )]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
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
    #[error("probe storage: {step}: {source}; {cure}")]
    Probe {
        /// What was tried.
        step: &'static str,
        /// What happened.
        source: Box<dyn core::error::Error + Send + Sync>,
        /// What to do about it.
        cure: Cow<'static, str>,
    },
}

/// What to do where a storage breaks a promise, and where it cannot be used at all.
const ANOTHER_STORE: &str = "take a storage that honours If-None-Match and If-Match on every write, see the page on \
    operations";
const LOOK_AT_ACCESS: &str = "check that it can be reached, and that these credentials may read, write, list and \
    delete, see the page on operations";

/// Opens storage by its URL, with the variables of this process. Streamed writes of remote backends
/// share a pool of `part_bytes`.
///
/// # Errors
/// [`OpenError::Url`] and [`OpenError::Directory`].
pub fn open(url: &str, part_bytes: u64) -> Result<Arc<dyn Storage>, OpenError> {
    open_with(url, part_bytes, &remote::process_variables())
}

/// Opens storage only to read what origins have written: a directory that is not there is not made.
///
/// # Errors
/// As [`open`].
pub fn open_existing(url: &str) -> Result<Arc<dyn Storage>, OpenError> {
    match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => {
            let path = PathBuf::from(path);
            let directory = LocalDirectory::open_existing(&path);
            Ok(Arc::new(
                directory.map_err(|source| OpenError::Directory { path, source })?,
            ))
        }
        _ => open(url, 0),
    }
}

/// The same with other variables than those of this process.
///
/// # Errors
/// [`OpenError::Url`] and [`OpenError::Directory`].
pub fn open_with(
    url: &str,
    part_bytes: u64,
    variables: &Variables,
) -> Result<Arc<dyn Storage>, OpenError> {
    let wrong = |problem: &str| OpenError::Url {
        url: url.to_owned(),
        problem: problem.to_owned(),
    };
    match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => {
            let path = PathBuf::from(path);
            let directory = LocalDirectory::open(&path);
            Ok(Arc::new(
                directory.map_err(|source| OpenError::Directory { path, source })?,
            ))
        }
        Some(("file", _)) => Err(wrong("a directory is given by its full path")),
        Some(("memory", "" | "/")) => {
            let memory = Remote::unsigned(InMemory::new());
            Ok(Arc::new(ObjectStorage::new(
                memory,
                PartPool::new(part_bytes),
            )))
        }
        Some(("memory", _)) => Err(wrong("memory has no name")),
        Some((kind, address)) => match remote::connect(kind, address, variables) {
            Some(Ok(remote)) => Ok(Arc::new(ObjectStorage::new(
                remote,
                PartPool::new(part_bytes),
            ))),
            Some(Err(error)) => Err(wrong(&error.to_string())),
            None => Err(wrong("unknown kind of storage")),
        },
        None => Err(wrong("not a URL")),
    }
}

/// Tries, on a key of its own, each operation that the protocols rest on: a storage that ignores
/// conditions is found here and not when it loses a tag.
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
    refused(
        "create an object that exists",
        storage.create(key, body("second")).await,
    )?;
    let swapped = storage.swap(key, &first, body("second")).await;
    swapped.map_err(|error| failed("swap an object", error))?;
    refused(
        "swap an object by an old version",
        storage.swap(key, &first, body("third")).await,
    )?;
    let read = storage
        .read(key)
        .await
        .map_err(|error| failed("read an object", error))?;
    if read.is_none_or(|object| object.body != body("second")) {
        let source = "it is not what was written last".into();
        return Err(OpenError::Probe {
            step: "read an object",
            source,
            cure: ANOTHER_STORE.into(),
        });
    }
    let range = storage.read_range(key, 1..4).await;
    let range: Vec<Bytes> = async { range?.try_collect().await }
        .await
        .map_err(|error| failed("read a range", error))?;
    if range.concat() != b"eco" {
        let source = "it is not the bytes that were asked for".into();
        return Err(OpenError::Probe {
            step: "read a range",
            source,
            cure: ANOTHER_STORE.into(),
        });
    }
    let prefix = Prefix::new("probe/").map_err(|error| failed("name a prefix", error))?;
    storage
        .list(&prefix, None, 1)
        .await
        .map_err(|error| failed("list objects", error))?;
    Ok(())
}

/// Whether the storage signs URLs; if not, why.
pub(crate) async fn probe_signing(storage: &dyn Storage) -> Result<(), String> {
    let key = Key::new("probe/signed").map_err(|error| error.to_string())?;
    match storage.presigned_get(&key, Duration::from_secs(1)).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("this storage cannot sign URLs".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn refused(step: &'static str, outcome: Result<Version, StorageError>) -> Result<(), OpenError> {
    match outcome {
        Err(StorageError::Conflict { .. }) => Ok(()),
        Err(error) => Err(failed(step, error)),
        Ok(_) => {
            let source = "the storage did it, so it has no conditional writes".into();
            Err(OpenError::Probe {
                step,
                source,
                cure: ANOTHER_STORE.into(),
            })
        }
    }
}

fn failed(
    step: &'static str,
    source: impl Into<Box<dyn core::error::Error + Send + Sync>>,
) -> OpenError {
    let source = source.into();
    let cure = missing_credentials(&source.to_string());
    let cure = cure.map_or(Cow::Borrowed(LOOK_AT_ACCESS), Cow::Owned);
    OpenError::Probe { step, source, cure }
}

/// Under which path a provider's client asks the machine for its role, and what was not set, so
/// that it did.
const ROLES: [(&str, &str); 3] = [
    (
        "/latest/api/token",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        "/computeMetadata/",
        "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (
        "/metadata/identity/",
        "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    ),
];

/// What to do about what a storage `said` if it failed because nobody told who asks it: the client
/// then asks the machine, at an address that means nothing to who forgot the credentials.
pub fn missing_credentials(said: &str) -> Option<String> {
    let (_, variables) = ROLES.iter().find(|(path, _)| said.contains(path))?;
    Some(format!(
        "{variables} must be set, see the page on operations: without, this machine was asked for a role, and gave none"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_url_that_cannot_be_used_says_why() {
        let told = |url: &str| open(url, 0).map(drop).map_err(|error| error.to_string());
        assert!(told("memory:///").is_ok());
        for (url, part) in [
            ("s3://", "bucket is missing"),
            ("s3://bucket/a prefix", "a prefix has letters"),
            ("s3://bucket--x-s3", "general purpose bucket"),
            ("az://container", "Account must be specified"),
            ("file://relative/path", "full path"),
            ("/var/lib/flotilla", "not a URL"),
            ("ftp://host", "unknown kind"),
            ("memory://name", "no name"),
        ] {
            let message = told(url).err().unwrap_or_default();
            assert!(
                message.contains(part) && message.contains("file:///directory"),
                "{url}: {message}"
            );
        }
    }

    #[test]
    fn who_forgot_the_credentials_is_told_their_names() {
        let said = "Error performing PUT http://169.254.169.254/latest/api/token in 4 ms - connection refused";
        let message = failed("create an object", said).to_string();
        assert!(
            message.contains("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set"),
            "{message}"
        );
        let message = failed("create an object", "403 Forbidden").to_string();
        assert!(
            message.contains("check that it can be reached"),
            "{message}"
        );
    }

    #[test]
    fn what_is_only_read_is_not_made() {
        let dir = tempfile::tempdir().expect("a folder");
        let url = format!("file://{}/typo", dir.path().display());
        let message = open_existing(&url)
            .map(drop)
            .err()
            .map(|error| error.to_string());
        assert!(message.is_some_and(|message| message.contains("typo") && message.contains("No such file")));
        assert!(open_existing(&format!("file://{}", dir.path().display())).is_ok());
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("it is there").count(),
            0
        );
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let message = open("file:///dev/null/store", 0)
            .map(drop)
            .err()
            .map(|error| error.to_string());
        assert!(
            message.is_some_and(
                |message| message.contains("open storage directory \"/dev/null/store\"")
            )
        );
    }
}

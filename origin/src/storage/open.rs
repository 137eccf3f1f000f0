//! Opening storage by its URL.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::memory::InMemory;

use super::remote::{self, Variables};
use super::{LocalDirectory, ObjectStorage, ObjectStoreClient, PartPool, Storage};

/// Storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not valid, or its scheme is not supported.
    #[error(
        "open storage {url:?}: {problem}; use file:///directory, s3://bucket/prefix, gs://bucket/prefix, \
         az://container/prefix or memory:///"
    )]
    Url {
        /// The URL.
        url: String,
        /// The problem with it.
        problem: String,
    },
    /// The directory cannot be created or written to.
    #[error("open storage directory {path:?}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The storage does not support an operation that the protocols need.
    #[error("probe storage: {step}: {source}; {fix}")]
    Probe {
        /// The operation that failed.
        step: &'static str,
        /// The cause.
        source: Box<dyn core::error::Error + Send + Sync>,
        /// What the operator can do.
        fix: Cow<'static, str>,
    },
}

/// Opens storage by its URL, with the environment variables of this process. Streamed writes to
/// object stores share part buffers of `part_bytes` in total.
///
/// # Errors
/// [`OpenError::Url`] and [`OpenError::Directory`].
pub fn open(url: &str, part_bytes: u64) -> Result<Arc<dyn Storage>, OpenError> {
    open_with(url, part_bytes, &remote::process_variables())
}

/// Opens existing storage for reading: a directory that does not exist is an error.
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

/// Opens storage by its URL, with the given environment variables.
///
/// # Errors
/// [`OpenError::Url`] and [`OpenError::Directory`].
pub fn open_with(
    url: &str,
    part_bytes: u64,
    variables: &Variables,
) -> Result<Arc<dyn Storage>, OpenError> {
    let url_error = |problem: &str| OpenError::Url {
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
        Some(("file", _)) => Err(url_error("the directory must be an absolute path")),
        Some(("memory", "" | "/")) => {
            let memory = ObjectStoreClient::in_memory(InMemory::new());
            Ok(Arc::new(ObjectStorage::new(
                memory,
                PartPool::new(part_bytes),
            )))
        }
        Some(("memory", _)) => Err(url_error("memory storage takes no name")),
        Some((scheme, address)) => match remote::connect(scheme, address, variables) {
            Some(Ok(client)) => Ok(Arc::new(ObjectStorage::new(
                client,
                PartPool::new(part_bytes),
            ))),
            Some(Err(error)) => Err(url_error(&error.to_string())),
            None => Err(url_error("unknown storage scheme")),
        },
        None => Err(url_error("not a URL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_errors_name_problem_and_valid_schemes() {
        let open_result = |url: &str| open(url, 0).map(drop).map_err(|error| error.to_string());
        assert!(open_result("memory:///").is_ok());
        for (url, part) in [
            ("s3://", "bucket is missing"),
            ("s3://bucket/a prefix", "a prefix may have letters"),
            ("s3://bucket--x-s3", "general purpose bucket"),
            ("az://container", "Account must be specified"),
            ("file://relative/path", "absolute path"),
            ("/var/lib/flotilla", "not a URL"),
            ("ftp://host", "unknown storage scheme"),
            ("memory://name", "takes no name"),
        ] {
            let message = open_result(url).err().unwrap_or_default();
            assert!(
                message.contains(part) && message.contains("file:///directory"),
                "{url}: {message}"
            );
        }
    }

    #[test]
    fn open_existing_creates_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let url = format!("file://{}/typo", dir.path().display());
        let message = open_existing(&url)
            .map(drop)
            .err()
            .map(|error| error.to_string());
        assert!(message.is_some_and(|message| message.contains("typo") && message.contains("No such file")));
        assert!(open_existing(&format!("file://{}", dir.path().display())).is_ok());
        assert_eq!(
            std::fs::read_dir(dir.path())
                .expect("directory exists")
                .count(),
            0
        );
    }

    #[test]
    fn directory_error_names_the_path() {
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

//! The ways in which a storage call fails, and the mapping of backend errors to them.

use core::fmt;
use std::io;

use super::Key;

/// The failure of a storage call. Callers act on the variant.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The condition of a write did not hold. Read the key back before deciding anything if the
    /// write may have applied: the competing write may be the caller's own.
    #[error("{action} {key}: precondition failed, another write came first")]
    Conflict {
        /// The request was sent more than once, and the outcome of an earlier attempt is unknown.
        /// Otherwise the write was not applied and never will be.
        may_have_applied: bool,
        /// The call that failed, verb and noun.
        action: &'static str,
        /// The key or prefix that it was about.
        key: String,
    },
    /// The object does not exist.
    #[error("{action} {key}: no such object")]
    Missing {
        /// The call that failed, verb and noun.
        action: &'static str,
        /// The key or prefix that it was about.
        key: String,
    },
    /// The storage has no such operation. Nothing was changed.
    #[error("{action} {key}: this storage does not support it")]
    Unsupported {
        /// The call that failed, verb and noun.
        action: &'static str,
        /// The key or prefix that it was about.
        key: String,
    },
    /// The storage has no free space. The write did not apply and left nothing behind.
    #[error("{action} {key}: the storage is full")]
    Full {
        /// The call that failed, verb and noun.
        action: &'static str,
        /// The key or prefix that it was about.
        key: String,
    },
    /// The call failed, or its outcome is unknown: a write may have applied, or may apply later.
    #[error("{action} {key}: {source}")]
    Unavailable {
        /// The call that failed, verb and noun.
        action: &'static str,
        /// The key or prefix that it was about.
        key: String,
        /// The cause, as the storage reported it.
        source: Box<dyn core::error::Error + Send + Sync>,
    },
}

impl StorageError {
    /// The conflict of a write that was not applied and never will be.
    pub(crate) fn conflict(action: &'static str, key: &Key) -> Self {
        Self::Conflict {
            may_have_applied: false,
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

    pub(crate) fn unsupported(action: &'static str, key: &Key) -> Self {
        Self::Unsupported {
            action,
            key: key.to_string(),
        }
    }

    /// A failure of any other kind.
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

    /// Maps an error of the `object_store` crate.
    pub(super) fn from_object_store(
        action: &'static str,
        key: &Key,
        error: object_store::Error,
    ) -> Self {
        match error {
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => Self::conflict(action, key),
            error if is_object_missing(&error) => Self::missing(action, key),
            error if is_full(&error) => Self::Full {
                action,
                key: key.to_string(),
            },
            error => Self::unavailable(action, key, error),
        }
    }

    /// Maps an error of the file system.
    pub(super) fn from_io(action: &'static str, key: &Key, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AlreadyExists => Self::conflict(action, key),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full {
                action,
                key: key.to_string(),
            },
            _ => Self::unavailable(action, key, error),
        }
    }
}

/// The error codes of S3, GCS and Azure for a bucket that does not exist. They come with status 404
/// like those of an object, but say nothing about the objects.
const MISSING_BUCKET: [&str; 2] = [
    "<Code>NoSuchBucket</Code>",
    "<Code>ContainerNotFound</Code>",
];

/// How servers say that a write finds no space: MinIO and WebDAV by status 507, Ceph by its code.
const FULL: [&str; 2] = ["status code: 507", "<Code>QuotaExceeded</Code>"];

fn is_full(error: &object_store::Error) -> bool {
    let object_store::Error::Generic { source, .. } = error else {
        return false;
    };
    let answer = source.to_string();
    FULL.iter().any(|sign| answer.contains(sign))
}

/// Whether an object store is sure that an object does not exist.
pub(super) fn is_object_missing(error: &object_store::Error) -> bool {
    let object_store::Error::NotFound { source, .. } = error else {
        return false;
    };
    let answer = source.to_string();
    !MISSING_BUCKET.iter().any(|code| answer.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_buckets_say_nothing_about_objects() {
        let map_error = |answer: &str| {
            let error = object_store::Error::NotFound {
                path: "tag/app/_/v1".to_owned(),
                source: answer.into(),
            };
            let key = Key::new("tag/app/_/v1".to_owned()).expect("a key");
            StorageError::from_object_store("read object", &key, error)
        };
        let missing = map_error("404 Not Found: <Error><Code>NoSuchKey</Code></Error>");
        assert!(matches!(missing, StorageError::Missing { .. }));
        for code in MISSING_BUCKET {
            let error = map_error(&format!("404 Not Found: <Error>{code}</Error>"));
            assert!(matches!(error, StorageError::Unavailable { .. }), "{code}");
        }
    }
}

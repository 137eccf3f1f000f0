//! Errors of the store.

use std::io;
use std::path::{Path, PathBuf};

use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use flotilla_runtime::log_limit::LogLimit;
use flotilla_runtime::open_files::is_exhausted;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder cannot be used: choose another one, or change its permissions.
    #[error("open store {}: {source}; the peer must be able to create and write files there", dir.display())]
    Unusable {
        /// The configured folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has locked the folder.
    #[error("open store {}: another peer is using it; give each peer a folder of its own", dir.display())]
    InUse {
        /// The configured folder.
        dir: PathBuf,
    },
    /// The disk is full.
    #[error("write {}: the disk is full", path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// No file descriptor is left. The store itself is not at fault: try again.
    #[error(
        "open {}: {source}; raise the limit on open files (ulimit -n, LimitNOFILE=)",
        path.display()
    )]
    OutOfFiles {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The blob does not fit into the quota next to the blobs in use.
    #[error("store a blob of {size}: the quota of {quota} has no room for it; raise the quota")]
    OverQuota {
        /// The blob's size.
        size: ByteSize,
        /// The configured quota.
        quota: ByteSize,
    },
    /// The blob is in quarantine.
    #[error("{digest} is in quarantine: an origin's seal contradicts its bytes or another seal")]
    Quarantined {
        /// The blob.
        digest: Digest,
    },
    /// Reading or writing a file failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was attempted: a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The blob was evicted or put in quarantine meanwhile.
    #[error("{digest} is no longer in the store")]
    Removed {
        /// The blob.
        digest: Digest,
    },
    /// A held chunk was damaged on disk: fetch it again.
    #[error("chunk {chunk} of {digest} is damaged on disk; it will be fetched again")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// The chunk, which is no longer held.
        chunk: u32,
    },
}

impl StoreError {
    /// Whether the error may mean that bytes on disk are damaged or missing.
    pub(super) const fn is_about_content(&self) -> bool {
        !matches!(self, Self::OutOfFiles { .. } | Self::Removed { .. })
    }

    /// Logs a lack of file descriptors, at most once a minute.
    pub(super) fn log_exhausted(error: &io::Error) {
        static EXHAUSTED: LogLimit = LogLimit::once_a_minute();
        if let Some(suppressed) = EXHAUSTED.admit() {
            tracing::error!(
                %error, suppressed,
                "no file descriptor left for stored blobs; refusing requests; raise the limit on \
                 open files (ulimit -n, LimitNOFILE=)"
            );
        }
    }

    /// An error of opening a data file. A lack of file descriptors is logged here, because each
    /// request for a blob meets it.
    pub(super) fn opening(path: &Path, source: io::Error) -> Self {
        if is_exhausted(&source) {
            Self::log_exhausted(&source);
            return Self::OutOfFiles {
                path: path.to_owned(),
                source,
            };
        }
        Self::writing(path, source)
    }

    pub(super) fn reading(path: &Path, source: io::Error) -> Self {
        Self::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn writing(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path: path.to_owned(),
            },
            _ => Self::Io {
                action: "write",
                path: path.to_owned(),
                source,
            },
        }
    }
}

//! Errors of the store.

use core::fmt;
use std::io;
use std::path::{Path, PathBuf};

use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use flotilla_runtime::log_limit::LogLimit;
use flotilla_runtime::open_files::is_exhausted;

/// The blobs that are not evicted, because they are in use. A blob that is read is not counted as
/// pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinnedBlobs {
    /// Blobs of which a response is being sent.
    pub read: u64,
    /// Their total size.
    pub read_bytes: ByteSize,
    /// Blobs that a pull downloads, or will read soon.
    pub pulled: u64,
    /// Their total size.
    pub pulled_bytes: ByteSize,
}

impl fmt::Display for PinnedBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            read,
            read_bytes,
            pulled,
            pulled_bytes,
        } = self;
        write!(
            f,
            "{read} are being read ({read_bytes}), {pulled} more are being pulled ({pulled_bytes})"
        )
    }
}

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
    /// The blob does not fit into the quota next to the blobs in use. It may fit later.
    #[error(
        "store a blob of {size}: the quota of {quota} is taken by blobs in use: {pinned}; raise \
         the quota, or pull fewer images at a time"
    )]
    Full {
        /// The blob's size.
        size: ByteSize,
        /// The configured quota.
        quota: ByteSize,
        /// The blobs in use.
        pinned: PinnedBlobs,
    },
    /// The blob is larger than the quota.
    #[error("store a blob of {size}: it is larger than the quota of {quota}; raise the quota")]
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

//! Errors of creating keys and certificates.

use std::io;
use std::path::PathBuf;

use flotilla_runtime::identity::{FileKind, IdentityError};

/// Why keys or certificates could not be created.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key, a certificate or its file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A renewal of something that was never issued.
    #[error(
        "cannot renew the {kind}: '{}' does not exist; check the name, or issue it without --renew",
        path.display()
    )]
    NothingToRenew {
        /// The kind of file.
        kind: FileKind,
        /// Its path.
        path: PathBuf,
    },
    /// The directory, or the list of trusted keys in it, cannot be written.
    #[error("write '{}': {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

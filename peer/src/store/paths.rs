//! Names of the files in the store's folder.
//!
//! | File | Content |
//! |---|---|
//! | `sha256-HEX` | a blob's bytes |
//! | `sha256-HEX.meta` | the blob's [`Record`](super::record::Record) |
//! | `sha256-HEX.new`, `.N.new`, `.N.aside` | a save, eviction or download in progress; deleted at the next start |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flotilla_common::digest::Digest;

const RECORD_SUFFIX: &str = "meta";
const NEW_SUFFIX: &str = "new";
const STAGING_SUFFIX: &str = "aside";

/// The file of a blob's bytes.
pub(super) fn data(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(file_name(digest))
}

/// A digest as a file name.
pub(super) fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

/// The digest in a file's name.
pub(super) fn digest_of(path: &Path) -> Option<Digest> {
    let name = path.file_stem()?.to_str()?;
    name.replacen('-', ":", 1).parse().ok()
}

/// The record of the blob in a data file.
pub(super) fn record(data: &Path) -> PathBuf {
    data.with_extension(RECORD_SUFFIX)
}

/// Whether a file in the store's folder is a record.
pub(super) fn is_record(path: &Path) -> bool {
    path.extension()
        .is_some_and(|suffix| suffix == RECORD_SUFFIX)
}

/// The name under which an evicted blob's data file waits for its deletion. If that fails, the file
/// is a leftover.
pub(super) fn evicted(data: &Path, number: u64) -> PathBuf {
    data.with_extension(format!("{number}.{NEW_SUFFIX}"))
}

/// The staging file of the download with this number.
pub(super) fn staging(data: &Path, number: u64) -> PathBuf {
    data.with_extension(format!("{number}.{STAGING_SUFFIX}"))
}

/// Whether a file was left behind by an interrupted save, download or eviction.
pub(super) fn is_leftover(path: &Path) -> bool {
    path.extension()
        .is_some_and(|suffix| suffix == NEW_SUFFIX || suffix == STAGING_SUFFIX)
}

/// Writes a file atomically: it has the new content or does not change.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension(NEW_SUFFIX);
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_file_name_is_parsed_or_rejected(name in ".{0,80}") {
            let _ = digest_of(Path::new(&name));
        }
    }
}

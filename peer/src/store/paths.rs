//! Names of the files in the store's folder.
//!
//! | File | Content |
//! |---|---|
//! | `sha256-HEX` | a blob's bytes |
//! | `sha256-HEX.meta` | the blob's [`Record`](super::record::Record) |
//! | `sha256-HEX.N.tmp`, `.N.new`, `.N.aside` | a save, eviction or download in progress; deleted at the next start |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_common::digest::Digest;

const RECORD_SUFFIX: &str = "meta";
const EVICTED_SUFFIX: &str = "new";
const STAGING_SUFFIX: &str = "aside";
const TEMPORARY_SUFFIX: &str = "tmp";

const LEFTOVER_SUFFIXES: [&str; 3] = [EVICTED_SUFFIX, STAGING_SUFFIX, TEMPORARY_SUFFIX];

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
    data.with_extension(format!("{number}.{EVICTED_SUFFIX}"))
}

/// The staging file of the download with this number.
pub(super) fn staging(data: &Path, number: u64) -> PathBuf {
    data.with_extension(format!("{number}.{STAGING_SUFFIX}"))
}

/// Whether a file was left behind by an interrupted save, download or eviction.
pub(super) fn is_leftover(path: &Path) -> bool {
    path.extension()
        .is_some_and(|suffix| LEFTOVER_SUFFIXES.iter().any(|it| suffix == *it))
}

/// Writes a file atomically: it has the new content or does not change.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Two writers of one file must not share the temporary file: one would rename it while the
    // other writes it, or find it gone.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{number}.{TEMPORARY_SUFFIX}"));
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // If this fails too, the next start deletes the file.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn concurrent_writes_of_one_file_succeed() {
        const LENGTH: usize = 10_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sha256-0");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..200 {
                        let written = write_atomically(path, &[writer; LENGTH]);
                        assert!(
                            written.is_ok(),
                            "writer {writer}, round {round}: {written:?}"
                        );
                        let read = fs::read(path).unwrap();
                        let is_whole = read.len() == LENGTH && read.iter().all(|it| *it == read[0]);
                        assert!(is_whole, "writers mixed their bytes");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn any_file_name_is_parsed_or_rejected(name in ".{0,80}") {
            let _ = digest_of(Path::new(&name));
        }
    }
}

//! What the store keeps beside a blob's bytes: its proof, and which chunks were held when it was
//! last saved.
//!
//! The record may be older than the bytes: chunks that came later are fetched again. It may be
//! newer than bytes that a power cut lost: each chunk is verified again at its first read. A record
//! that cannot be read is dropped with its blob.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bincode::{Decode, Encode};
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::map::ChunkMap;
use flotilla_common::proof::Proof;

/// A blob's record on disk, behind the codec's version byte.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Record {
    pub(super) proof: Proof,
    pub(super) held: ChunkMap,
    /// Whether the whole blob's digest was checked.
    pub(super) complete: bool,
}

const RECORD_SUFFIX: &str = "meta";
const NEW_SUFFIX: &str = "new";
const ASIDE_SUFFIX: &str = "aside";

/// The file that holds a blob's bytes.
pub(super) fn data_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(file_name(digest))
}

/// A digest as a file name.
pub(super) fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

/// The digest that a file is named after.
pub(super) fn named(path: &Path) -> Option<Digest> {
    let name = path.file_stem()?.to_str()?;
    name.replacen('-', ":", 1).parse().ok()
}

/// The record beside a data file.
pub(super) fn record_path(data: &Path) -> PathBuf {
    data.with_extension(RECORD_SUFFIX)
}

/// Whether a file in the store's folder is a record.
pub(super) fn is_record(path: &Path) -> bool {
    path.extension()
        .is_some_and(|suffix| suffix == RECORD_SUFFIX)
}

/// Where the data file of an evicted blob waits to be deleted: a leftover, should that not come
/// about.
pub(super) fn evicted_path(data: &Path, number: u64) -> PathBuf {
    data.with_extension(format!("{number}.{NEW_SUFFIX}"))
}

/// Where the `number`th attempt at receiving a blob beside its data file writes.
pub(super) fn aside_path(data: &Path, number: u64) -> PathBuf {
    data.with_extension(format!("{number}.{ASIDE_SUFFIX}"))
}

/// Whether a file is what an interrupted save, download or eviction left.
pub(super) fn is_leftover(path: &Path) -> bool {
    path.extension()
        .is_some_and(|suffix| suffix == NEW_SUFFIX || suffix == ASIDE_SUFFIX)
}

/// Writes a file so that it is there as a whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension(NEW_SUFFIX);
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

impl Record {
    pub(super) fn save(&self, data: &Path) -> io::Result<()> {
        let bytes = codec::encode(self).map_err(io::Error::other)?;
        write_whole(&record_path(data), &bytes)
    }

    pub(super) fn load(record: &Path) -> io::Result<Self> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidData, "record longer than any");
        if fs::metadata(record)?.len() > codec::MAX_LEN as u64 {
            return Err(too_long());
        }
        codec::decode(&fs::read(record)?)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_file_is_a_record_or_refused(mut body: Vec<u8>, name in ".{0,80}") {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("record");
            for _ in 0..2 {
                fs::write(&path, &body).unwrap();
                let _ = Record::load(&path);
                body.insert(0, codec::VERSION);
            }
            let _ = named(Path::new(&name));
        }
    }
}

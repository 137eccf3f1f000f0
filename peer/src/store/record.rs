//! A blob's record on disk: its proof, and which chunks were held at the last save.
//!
//! A record may be older than the data file: chunks that came later are fetched again. It may also
//! be newer than data that a power cut lost: each chunk is verified again at its first read. A
//! record that cannot be read is deleted together with its blob.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use bincode::{Decode, Encode};
use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::proof::Proof;

use super::blob::StoredBlob;
use super::paths;

/// The record, encoded after the codec's version byte.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Record {
    pub(super) proof: Proof,
    pub(super) held: ChunkMap,
    /// Whether the digest of the whole blob was checked.
    pub(super) complete: bool,
}

impl Record {
    /// Writes the record of the blob in the file `data`.
    pub(super) fn save(&self, data: &Path) -> io::Result<()> {
        let bytes = codec::encode(self).map_err(io::Error::other)?;
        paths::write_atomically(&paths::record(data), &bytes)
    }

    pub(super) fn load(record: &Path) -> io::Result<Self> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidData, "the record is too long");
        if fs::metadata(record)?.len() > codec::MAX_LEN as u64 {
            return Err(too_long());
        }
        codec::decode(&fs::read(record)?)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Saves a blob's record if the blob has changed, and otherwise the time of its last use if it was
/// used. Blocking.
pub(super) fn save_changes(blob: &StoredBlob) -> io::Result<()> {
    let data = blob.path();
    let Some((held, complete)) = blob.take_unsaved() else {
        return if blob.take_use() {
            save_last_use(&paths::record(data))
        } else {
            Ok(())
        };
    };
    if held.is_empty() && !data.exists() {
        return Ok(());
    }
    let record = Record {
        proof: blob.proof().clone(),
        held,
        complete,
    };
    record.save(data).inspect_err(|_| blob.mark_unsaved())
}

/// Sets the record's modification time, which is the time of the blob's last use: it orders
/// eviction after a restart.
#[allow(
    clippy::disallowed_methods,
    reason = "modification times of files are those of the system's clock"
)]
fn save_last_use(record: &Path) -> io::Result<()> {
    match File::options().write(true).open(record) {
        Ok(file) => file.set_modified(SystemTime::now()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_file_content_is_loaded_or_rejected(mut body: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("record");
            for _ in 0..2 {
                fs::write(&path, &body).unwrap();
                let _ = Record::load(&path);
                body.insert(0, codec::VERSION);
            }
        }
    }
}

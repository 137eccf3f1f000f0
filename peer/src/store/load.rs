//! Loads the blobs of an existing store: reads every record, and no content.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flotilla_common::seal::TrustedKeys;

use super::blob::StoredBlob;
use super::open_files::OpenFiles;
use super::record::Record;
use super::{Blobs, paths};

/// Loads all blobs in the folder, and deletes files that belong to none. Blocking.
pub(super) fn load_blobs(
    dir: &Path,
    trusted: &TrustedKeys,
    open: &Arc<OpenFiles>,
) -> io::Result<Blobs> {
    let mut blobs = Blobs::default();
    let mut data_files = Vec::new();
    let mut by_last_use = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if paths::is_leftover(&path) {
            fs::remove_file(&path)?;
        } else if paths::is_record(&path) {
            match load_blob(&path, dir, trusted, open) {
                Ok(blob) => {
                    by_last_use.push((fs::metadata(&path)?.modified()?, *blob.digest()));
                    blobs.bytes += blob.geometry().size();
                    blobs.by_digest.insert(*blob.digest(), Arc::new(blob));
                }
                Err(error) => {
                    tracing::warn!(record = %path.display(), %error, "loading a stored blob failed; deleting it");
                    fs::remove_file(&path)?;
                }
            }
        } else {
            data_files.push(path);
        }
    }
    for path in data_files {
        let digest = paths::digest_of(&path);
        if !digest.is_some_and(|digest| blobs.by_digest.contains_key(&digest)) {
            fs::remove_file(&path)?;
        }
    }
    by_last_use.sort_unstable();
    for (used_at, (_, digest)) in (0..).zip(by_last_use) {
        if let Some(blob) = blobs.by_digest.get(&digest) {
            blob.used_at.store(used_at, Ordering::Relaxed);
            // Loading does not count as a use.
            blob.take_use();
        }
    }
    Ok(blobs)
}

fn load_blob(
    record: &Path,
    dir: &Path,
    trusted: &TrustedKeys,
    open: &Arc<OpenFiles>,
) -> io::Result<StoredBlob> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let Record {
        proof,
        held,
        complete,
    } = Record::load(record)?;
    let digest = *proof.digest();
    if paths::digest_of(record) != Some(digest) {
        return Err(invalid(format!(
            "record and file name do not match: the record is for {digest}"
        )));
    }
    let geometry = proof
        .check(trusted)
        .map_err(|error| invalid(error.to_string()))?;
    let path = paths::data(dir, &digest);
    if held.len() != geometry.chunks() {
        return Err(invalid(
            "the chunk map does not have the blob's length".to_owned(),
        ));
    }
    if !held.is_empty() && fs::metadata(&path)?.len() != geometry.size() {
        return Err(invalid(
            "the data file does not have the blob's size".to_owned(),
        ));
    }
    Ok(StoredBlob::new(
        proof,
        geometry,
        path,
        open.slot(),
        held,
        complete,
    ))
}

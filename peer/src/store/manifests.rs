//! Manifests by digest: small, immutable, kept in memory and on disk.
//!
//! A manifest's digest is its proof: the bytes are checked when they are taken in and again when
//! they are read from disk. The number on disk is bounded; the oldest go first.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bincode::{Decode, Encode};
use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use moka::future::Cache;

use super::file::blocking;
use super::meta;

/// Manifests kept on disk.
const KEPT: usize = 4096;
/// Bytes of manifests kept in memory.
const MEMORY_BYTES: u64 = 32 << 20;

/// A manifest and its exact Content-Type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredManifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

#[derive(Encode, Decode)]
struct Record {
    media_type: String,
    bytes: Vec<u8>,
}

/// The manifests that this peer has seen.
#[derive(Debug)]
pub(crate) struct ManifestStore {
    dir: PathBuf,
    memory: Cache<Digest, StoredManifest>,
    /// What is on disk, oldest first.
    on_disk: Mutex<VecDeque<Digest>>,
}

impl ManifestStore {
    /// Opens the folder `manifests` under the store's. Blocking.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn open(store: &Path) -> io::Result<Self> {
        let dir = store.join("manifests");
        fs::create_dir_all(&dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match meta::named(&entry.path()) {
                Some(digest) if !meta::is_leftover(&entry.path()) => {
                    found.push((entry.metadata()?.modified()?, digest));
                }
                _ => fs::remove_file(entry.path())?,
            }
        }
        found.sort_unstable();
        let memory = Cache::builder()
            .max_capacity(MEMORY_BYTES)
            .weigher(|_, manifest: &StoredManifest| {
                u32::try_from(manifest.bytes.len() + 256).unwrap_or(u32::MAX)
            })
            .build();
        Ok(Self {
            dir,
            memory,
            on_disk: Mutex::new(found.into_iter().map(|(_, digest)| digest).collect()),
        })
    }

    /// The newest ones on disk, at most so many.
    pub(crate) fn newest(&self, most: usize) -> Vec<Digest> {
        self.lock().iter().rev().take(most).copied().collect()
    }

    /// The manifest under `digest`, if it was seen before.
    pub(crate) async fn get(&self, digest: &Digest) -> Option<StoredManifest> {
        if let Some(manifest) = self.memory.get(digest).await {
            return Some(manifest);
        }
        if !self.lock().contains(digest) {
            return None;
        }
        let path = self.path(digest);
        let bytes = blocking(move || fs::read(path)).await.ok()?;
        let record: Record = codec::decode(&bytes).ok()?;
        if !digest.matches(&record.bytes) {
            tracing::warn!(manifest = %digest, "drop a manifest that was damaged on disk");
            return None;
        }
        let manifest = StoredManifest {
            media_type: record.media_type,
            bytes: record.bytes.into(),
        };
        self.memory.insert(*digest, manifest.clone()).await;
        Some(manifest)
    }

    /// Keeps a manifest whose digest was checked. A disk that does not take it costs only a later
    /// fetch.
    pub(crate) async fn put(&self, digest: Digest, manifest: StoredManifest) {
        self.memory.insert(digest, manifest.clone()).await;
        let path = self.path(&digest);
        let written = blocking(move || {
            let record = Record {
                media_type: manifest.media_type,
                bytes: manifest.bytes.into(),
            };
            let bytes = codec::encode(&record).map_err(io::Error::other)?;
            meta::write_whole(&path, &bytes)
        })
        .await;
        match written {
            Ok(()) => self.note(digest).await,
            Err(error) => tracing::warn!(manifest = %digest, %error, "keep manifest"),
        }
    }

    async fn note(&self, digest: Digest) {
        let oldest = {
            let mut on_disk = self.lock();
            if !on_disk.contains(&digest) {
                on_disk.push_back(digest);
            }
            if on_disk.len() > KEPT {
                on_disk.pop_front()
            } else {
                None
            }
        };
        if let Some(oldest) = oldest {
            let path = self.path(&oldest);
            // It may be gone already; then there is nothing left to do.
            let _ = blocking(move || fs::remove_file(path)).await;
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(meta::file_name(digest))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Digest>> {
        self.on_disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[tokio::test]
    async fn a_manifest_survives_a_restart_and_a_damaged_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = StoredManifest {
            media_type: "application/x".to_owned(),
            bytes: Bytes::from_static(b"{}"),
        };
        let digest = Digest::sha256(b"{}");
        let store = ManifestStore::open(dir.path()).unwrap();
        store.put(digest, manifest.clone()).await;

        let store = ManifestStore::open(dir.path()).unwrap();
        assert_eq!(store.get(&digest).await, Some(manifest));

        let path = store.path(&digest);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let store = ManifestStore::open(dir.path()).unwrap();
        assert_eq!(store.get(&digest).await, None);
    }
}

//! Manifests by digest: small, immutable, kept in memory and on disk.
//!
//! A manifest's digest is its proof: the caller checks the bytes before storing them, and they are
//! checked again when read from disk. The number on disk is bounded; the oldest are deleted first.

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

use super::file::run_blocking;
use super::paths;

/// The most manifests kept on disk.
const MAX_ON_DISK: usize = 4096;
/// The most bytes of manifests kept in memory.
const MAX_MEMORY_BYTES: u64 = 32 << 20;

/// A manifest and its exact Content-Type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredManifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    /// Whether an origin served it. Otherwise a neighbour sent it while no origin was available;
    /// it is used until one is.
    pub(crate) is_confirmed: bool,
}

#[derive(Encode, Decode)]
struct ManifestRecord {
    is_confirmed: bool,
    media_type: String,
    bytes: Vec<u8>,
}

/// The manifests that this peer has seen.
#[derive(Debug)]
pub(crate) struct ManifestStore {
    dir: PathBuf,
    memory: Cache<Digest, StoredManifest>,
    /// The digests of the manifests on disk, oldest first.
    on_disk: Mutex<VecDeque<Digest>>,
}

impl ManifestStore {
    /// Opens the folder `manifests` under the store's. Blocking.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn open(store: &Path) -> io::Result<Self> {
        let dir = store.join("manifests");
        fs::create_dir_all(&dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match paths::digest_of(&entry.path()) {
                Some(digest) if !paths::is_leftover(&entry.path()) => {
                    found.push((entry.metadata()?.modified()?, digest));
                }
                _ => fs::remove_file(entry.path())?,
            }
        }
        found.sort_unstable();
        let memory = Cache::builder()
            .max_capacity(MAX_MEMORY_BYTES)
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

    /// The newest manifests on disk, at most `limit`.
    pub(crate) fn newest(&self, limit: usize) -> Vec<Digest> {
        self.lock().iter().rev().take(limit).copied().collect()
    }

    /// The manifest with this digest, if it is stored.
    pub(crate) async fn get(&self, digest: &Digest) -> Option<StoredManifest> {
        if let Some(manifest) = self.memory.get(digest).await {
            return Some(manifest);
        }
        if !self.lock().contains(digest) {
            return None;
        }
        let path = self.path(digest);
        let bytes = run_blocking(move || fs::read(path)).await.ok()?;
        let record: ManifestRecord = codec::decode(&bytes).ok()?;
        if !digest.matches(&record.bytes) {
            tracing::warn!(manifest = %digest, "a stored manifest is damaged on disk; fetching it again");
            return None;
        }
        let manifest = StoredManifest {
            media_type: record.media_type,
            bytes: record.bytes.into(),
            is_confirmed: record.is_confirmed,
        };
        self.memory.insert(*digest, manifest.clone()).await;
        Some(manifest)
    }

    /// Stores a manifest whose digest was checked. If writing it to disk fails, it is fetched again
    /// after it left the memory.
    pub(crate) async fn put(&self, digest: Digest, manifest: StoredManifest) {
        self.memory.insert(digest, manifest.clone()).await;
        let path = self.path(&digest);
        let written = run_blocking(move || {
            let record = ManifestRecord {
                media_type: manifest.media_type,
                bytes: manifest.bytes.into(),
                is_confirmed: manifest.is_confirmed,
            };
            let bytes = codec::encode(&record).map_err(io::Error::other)?;
            paths::write_atomically(&path, &bytes)
        })
        .await;
        match written {
            Ok(()) => self.record_on_disk(digest).await,
            Err(error) => {
                tracing::warn!(manifest = %digest, %error, "writing a manifest to disk failed; keeping it in memory only")
            }
        }
    }

    async fn record_on_disk(&self, digest: Digest) {
        let oldest = {
            let mut on_disk = self.lock();
            if !on_disk.contains(&digest) {
                on_disk.push_back(digest);
            }
            if on_disk.len() > MAX_ON_DISK {
                on_disk.pop_front()
            } else {
                None
            }
        };
        if let Some(oldest) = oldest {
            let path = self.path(&oldest);
            // Failure leaves one file too many, or the file was already deleted.
            let _ = run_blocking(move || fs::remove_file(path)).await;
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(paths::file_name(digest))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Digest>> {
        self.on_disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_puts_of_one_manifest_all_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let store = ManifestStore::open(dir.path()).unwrap();
        let manifest = StoredManifest {
            media_type: "application/x".to_owned(),
            bytes: vec![b' '; 100_000].into(),
            is_confirmed: true,
        };
        let digest = Digest::sha256(&manifest.bytes);
        for _ in 0..20 {
            let puts = (0..16).map(|_| store.put(digest, manifest.clone()));
            futures_util::future::join_all(puts).await;
        }
        assert_eq!(fs::read_dir(&store.dir).unwrap().count(), 1);
        let store = ManifestStore::open(dir.path()).unwrap();
        assert_eq!(store.get(&digest).await, Some(manifest));
    }

    #[tokio::test]
    async fn temporary_files_are_deleted_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("manifests");
        fs::create_dir_all(&folder).unwrap();
        let name = paths::file_name(&Digest::sha256(b"x"));
        for leftover in [format!("{name}.0.tmp"), format!("{name}.new")] {
            fs::write(folder.join(leftover), b"half").unwrap();
        }
        let store = ManifestStore::open(dir.path()).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(store.newest(8).is_empty());
    }

    #[tokio::test]
    async fn manifest_survives_restart_unless_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = StoredManifest {
            media_type: "application/x".to_owned(),
            bytes: Bytes::from_static(b"{}"),
            is_confirmed: false,
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

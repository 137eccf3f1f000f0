//! The peer's own store of blobs: containerd may discard its content, this one keeps what
//! neighbours need.
//!
//! A folder holds, per blob, a sparse file and a record of its proof and chunk map. Start-up reads
//! the records only. A byte quota over the blobs' sizes is kept by evicting what was used longest
//! ago, never what is pinned by a reader or a download. The bookkeeping is in memory behind one
//! lock that is never held across an await or a disk call, but for the two that hide an evicted
//! blob's files: whoever takes the blob in again must find none of them, and nobody may delete his.
//!
//! The store never decides what to fetch, and never holds a byte as content that was not verified.

mod blob;
mod buffers;
mod file;
mod manifests;
mod meta;
mod whole;

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use flotilla_common::chunk::Geometry;
use flotilla_common::digest::Digest;
use flotilla_common::map::ChunkMap;
use flotilla_common::proof::Proof;
use flotilla_common::seal::TrustedKeys;
use flotilla_common::units::ByteSize;

pub(crate) use blob::{Availability, Pin, StoredBlob};
pub(crate) use buffers::{freeze, take};
pub(crate) use file::{PIECE, blocking};
pub(crate) use manifests::{ManifestStore, StoredManifest};
use meta::Record;

/// Eviction goes on until this share of the quota is free, so that it does not run at each new
/// blob.
const FREE_AFTER_EVICTION: u64 = 10;
/// Blobs in quarantine that are remembered.
const MAX_BANNED: usize = 1024;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder cannot be used: choose another or change its rights.
    #[error("open store {}: {source}; the peer must be able to create and write files there", dir.display())]
    Unusable {
        /// The configured folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("open store {}: another peer is using it", dir.display())]
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
    /// The blob does not fit under the quota beside what is in use.
    #[error("a blob of {size} does not fit into the store's quota of {quota}")]
    OverQuota {
        /// The blob's size.
        size: ByteSize,
        /// The configured quota.
        quota: ByteSize,
    },
    /// The blob is in quarantine.
    #[error("{digest} is in quarantine: an origin's seal contradicts its bytes or another seal")]
    Banned {
        /// The blob.
        digest: Digest,
    },
    /// Reading or writing a file failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was done: a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The blob was evicted or put in quarantine meanwhile.
    #[error("{digest} is not in the store any more")]
    Removed {
        /// The blob.
        digest: Digest,
    },
    /// A chunk that was held before the restart is damaged: fetch it again.
    #[error("chunk {chunk} of {digest} was damaged on disk")]
    Doubtful {
        /// The blob.
        digest: Digest,
        /// The chunk, now dropped from the map.
        chunk: u32,
    },
}

impl StoreError {
    fn reading(path: &Path, source: io::Error) -> Self {
        Self::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }
    }

    fn writing(path: &Path, source: io::Error) -> Self {
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

/// The store of all blobs.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    quota: ByteSize,
    inner: Mutex<Inner>,
    /// Counts uses of blobs, for the order of eviction, and evictions.
    uses: AtomicU64,
    _lock: Lock,
}

/// The lock on a store's folder. It is given back by word and not by closing the file alone: a
/// child process that is being started at that moment has the file open too, and would keep the
/// folder locked until it runs.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn take(dir: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable {
            dir: dir.to_owned(),
            source,
        };
        let file = File::create(dir.join("lock")).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
                dir: dir.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file does the same, if a moment later.
        let _ = self.0.unlock();
    }
}

#[derive(Debug, Default)]
struct Inner {
    blobs: HashMap<Digest, Arc<StoredBlob>>,
    bytes: u64,
    /// Never taken in again while the process lives; the oldest are forgotten first.
    banned: VecDeque<Digest>,
}

impl Store {
    /// Opens or makes the store in `dir`. Blocking: reads every blob's record, and no content.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] and [`StoreError::InUse`].
    pub(crate) fn open(
        dir: &Path,
        quota: ByteSize,
        trusted: &TrustedKeys,
    ) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable {
            dir: dir.to_owned(),
            source,
        };
        let blobs = dir.join("blobs");
        fs::create_dir_all(&blobs).map_err(unusable)?;
        let lock = Lock::take(dir)?;
        // An unwritable folder may still be readable: find out now, not in the middle of a pull.
        meta::write_whole(&blobs.join("probe"), b"").map_err(unusable)?;
        let inner = load(&blobs, trusted).map_err(unusable)?;
        let uses = AtomicU64::new(inner.blobs.len() as u64);
        let store = Self {
            inner: Mutex::new(inner),
            dir: blobs,
            quota,
            uses,
            _lock: lock,
        };
        // The quota may be smaller than it was.
        store.make_room(&mut store.lock(), 0)?;
        Ok(store)
    }

    /// A blob that the store knows, whole or in part.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<StoredBlob>> {
        let blob = self.lock().blobs.get(digest).cloned()?;
        self.touch(&blob);
        Some(blob)
    }

    /// Notes that a blob is being used, which keeps it longer.
    pub(crate) fn touch(&self, blob: &StoredBlob) {
        blob.used_at
            .store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// All blobs.
    pub(crate) fn blobs(&self) -> Vec<Arc<StoredBlob>> {
        let mut blobs: Vec<_> = self.lock().blobs.values().cloned().collect();
        blobs.sort_unstable_by_key(|blob| *blob.digest());
        blobs
    }

    /// As [`Store::get`], and keeps the blob from being evicted from then on.
    pub(crate) fn pin(&self, digest: &Digest) -> Option<Pin> {
        let inner = self.lock();
        let blob = inner.blobs.get(digest)?;
        self.touch(blob);
        Some(blob.pin())
    }

    /// Makes room for a blob and takes it in, nothing of it held; or finds it; and pins it. The
    /// second value names what was evicted for it. `proof` must have been checked, and `geometry`
    /// be its cut.
    ///
    /// # Errors
    /// [`StoreError::OverQuota`] if it cannot fit, [`StoreError::Banned`].
    pub(crate) fn insert(
        &self,
        proof: Proof,
        geometry: Geometry,
    ) -> Result<(Pin, Vec<Digest>), StoreError> {
        let digest = *proof.digest();
        // From the look to the insertion: two who insert must neither both find room nor both make
        // the blob.
        let mut inner = self.lock();
        if let Some(blob) = inner.blobs.get(&digest) {
            self.touch(blob);
            return Ok((blob.pin(), Vec::new()));
        }
        if inner.banned.contains(&digest) {
            return Err(StoreError::Banned { digest });
        }
        let evicted = self.make_room(&mut inner, geometry.size())?;
        let path = meta::data_path(&self.dir, &digest);
        let held = ChunkMap::empty(geometry.chunks());
        let blob = Arc::new(StoredBlob::new(proof, geometry, path, held, false));
        self.touch(&blob);
        let pin = blob.pin();
        inner.bytes += geometry.size();
        inner.blobs.insert(digest, blob);
        Ok((pin, evicted))
    }

    /// Forgets a blob and does not take it in again.
    pub(crate) fn ban(&self, digest: &Digest) {
        let mut inner = self.lock();
        self.remove_from(&mut inner, digest);
        inner.banned.push_back(*digest);
        if inner.banned.len() > MAX_BANNED {
            inner.banned.pop_front();
        }
    }

    /// Forgets a blob and deletes its files.
    fn remove_from(&self, inner: &mut Inner, digest: &Digest) {
        let Some(blob) = inner.blobs.remove(digest) else {
            return;
        };
        inner.bytes = inner.bytes.saturating_sub(blob.geometry().size());
        blob.clear();
        let hidden = meta::evicted_path(blob.path(), self.uses.fetch_add(1, Ordering::Relaxed));
        // First the record, without which nothing of the data is believed.
        for done in [
            fs::remove_file(meta::record_path(blob.path())),
            fs::rename(blob.path(), &hidden),
        ] {
            match done {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(blob = %digest, %error, "hide the files of an evicted blob");
                }
                _ => {}
            }
        }
        delete(hidden);
    }

    /// Writes the records of blobs that changed. Blocking.
    pub(crate) fn save(&self) {
        for blob in self.blobs() {
            if let Err(error) = save_blob(&blob) {
                tracing::warn!(blob = %blob.digest(), %error, "save record");
            }
        }
    }

    /// Bytes that the blobs in the store have, held or not.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the blobs in it may have together.
    pub(crate) fn quota(&self) -> ByteSize {
        self.quota
    }

    fn make_room(&self, inner: &mut Inner, size: u64) -> Result<Vec<Digest>, StoreError> {
        let quota = self.quota.0;
        let over = || StoreError::OverQuota {
            size: ByteSize(size),
            quota: self.quota,
        };
        if size > quota {
            return Err(over());
        }
        if inner.bytes + size <= quota {
            return Ok(Vec::new());
        }
        let mut candidates: Vec<_> = inner
            .blobs
            .values()
            .filter(|blob| !blob.is_pinned())
            .map(|blob| {
                (
                    blob.used_at.load(Ordering::Relaxed),
                    *blob.digest(),
                    blob.geometry().size(),
                )
            })
            .collect();
        candidates.sort_unstable();
        let must_free = (inner.bytes + size).saturating_sub(quota);
        let aim =
            must_free.max((inner.bytes + size).saturating_sub(quota - quota / FREE_AFTER_EVICTION));
        let mut freed = 0;
        let mut evicted = Vec::new();
        for (_, digest, bytes) in candidates {
            if freed >= aim {
                break;
            }
            freed += bytes;
            evicted.push(digest);
        }
        if freed < must_free {
            return Err(over());
        }
        for digest in &evicted {
            tracing::info!(blob = %digest, "evict from the store");
            self.remove_from(inner, digest);
        }
        Ok(evicted)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn save_blob(blob: &StoredBlob) -> io::Result<()> {
    let path = blob.path();
    let Some((held, complete)) = blob.take_unsaved() else {
        return if blob.take_use() {
            note_use(&meta::record_path(path))
        } else {
            Ok(())
        };
    };
    if held.is_empty() && !path.exists() {
        return Ok(());
    }
    let record = Record {
        proof: blob.proof().clone(),
        held,
        complete,
    };
    record.save(path).inspect_err(|_| blob.is_unsaved())
}

/// A record is as old as the last use of its blob: that orders eviction after a restart.
#[allow(
    clippy::disallowed_methods,
    reason = "modification times of files are those of the system's clock"
)]
fn note_use(record: &Path) -> io::Result<()> {
    match File::options().write(true).open(record) {
        Ok(file) => file.set_modified(SystemTime::now()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads all records in the folder; what belongs to none is deleted.
fn load(dir: &Path, trusted: &TrustedKeys) -> io::Result<Inner> {
    let mut inner = Inner::default();
    let mut data_files = Vec::new();
    let mut by_last_use = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if meta::is_leftover(&path) {
            fs::remove_file(&path)?;
        } else if meta::is_record(&path) {
            match load_blob(&path, dir, trusted) {
                Ok(blob) => {
                    by_last_use.push((fs::metadata(&path)?.modified()?, *blob.digest()));
                    inner.bytes += blob.geometry().size();
                    inner.blobs.insert(*blob.digest(), Arc::new(blob));
                }
                Err(error) => {
                    tracing::warn!(record = %path.display(), %error, "drop a blob that cannot be taken up");
                    fs::remove_file(&path)?;
                }
            }
        } else {
            data_files.push(path);
        }
    }
    for path in data_files {
        if !meta::named(&path).is_some_and(|digest| inner.blobs.contains_key(&digest)) {
            fs::remove_file(&path)?;
        }
    }
    by_last_use.sort_unstable();
    for (used_at, (_, digest)) in (0..).zip(by_last_use) {
        if let Some(blob) = inner.blobs.get(&digest) {
            blob.used_at.store(used_at, Ordering::Relaxed);
            // That it was taken up is no use of it.
            blob.take_use();
        }
    }
    Ok(inner)
}

fn load_blob(record: &Path, dir: &Path, trusted: &TrustedKeys) -> io::Result<StoredBlob> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let Record {
        proof,
        held,
        complete,
    } = Record::load(record)?;
    let digest = *proof.digest();
    if meta::named(record) != Some(digest) {
        return Err(invalid("the record is another blob's".to_owned()));
    }
    let geometry = proof
        .check(trusted)
        .map_err(|error| invalid(error.to_string()))?;
    let path = meta::data_path(dir, &digest);
    if held.len() != geometry.chunks() {
        return Err(invalid("the chunk map has another length".to_owned()));
    }
    if !held.is_empty() && fs::metadata(&path)?.len() != geometry.size() {
        return Err(invalid("the file has another size".to_owned()));
    }
    Ok(StoredBlob::new(proof, geometry, path, held, complete))
}

/// Deletes a file behind the scenes: nobody waits for it.
fn delete(path: PathBuf) {
    let work = move || match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "delete file");
        }
        _ => {}
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}

#[cfg(test)]
mod damaged;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;

//! The peer's own store of blobs. The container runtime may discard its content; this store keeps
//! what neighbours need.
//!
//! Each blob has a sparse file for its bytes and a record with its proof and chunk map. Start-up
//! reads only the records. The blobs' sizes are kept within a quota by evicting the least recently
//! used ones; blobs pinned by a reader or a download stay. The number of open files is bounded too.
//!
//! The bookkeeping is in memory behind one lock. It is never held across an await, nor during disk
//! calls with one exception: the two calls that hide the files of an evicted blob. Otherwise an
//! insertion of the same blob could find those files, or lose its own to the eviction.
//!
//! The store never decides what to fetch, and never treats unverified bytes as held.

mod blob;
mod buffers;
mod error;
mod file;
mod folder_lock;
mod load;
mod manifests;
mod open_files;
mod paths;
mod record;
mod stored_chunks;
#[cfg(test)]
mod tests;
mod unsealed;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::chunk::Geometry;
use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::digest::Digest;
use flotilla_common::proof::Proof;
use flotilla_common::seal::TrustedKeys;
use flotilla_common::units::ByteSize;
use flotilla_runtime::open_files::is_exhausted;

pub(crate) use blob::{Availability, Pin, PinReason, StoredBlob};
pub(crate) use buffers::{freeze, take};
pub use error::{PinnedBlobs, StoreError};
pub(crate) use file::{MAX_IO_BYTES, run_blocking};
use folder_lock::FolderLock;
pub(crate) use manifests::{ManifestStore, StoredManifest};
use open_files::OpenFiles;

/// An eviction frees at least the quota divided by this, so that not every new blob evicts others.
const FREE_AFTER_EVICTION: u64 = 10;
/// Quarantined blobs that are remembered.
const MAX_QUARANTINED: usize = 1024;

/// The store of all blobs.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    quota: ByteSize,
    blobs: Mutex<Blobs>,
    open: Arc<OpenFiles>,
    /// Counts uses of blobs, for the order of eviction, and evictions.
    uses: AtomicU64,
    _lock: FolderLock,
}

#[derive(Debug, Default)]
struct Blobs {
    by_digest: HashMap<Digest, Arc<StoredBlob>>,
    /// The sum of their sizes.
    bytes: u64,
    /// Blobs that are not inserted again while the process lives, the oldest first.
    quarantined: VecDeque<Digest>,
}

impl Blobs {
    /// The blobs that must not be evicted.
    fn pinned(&self) -> PinnedBlobs {
        let mut pinned = PinnedBlobs::default();
        for blob in self.by_digest.values() {
            let (blobs, bytes) = match blob.pin_reason() {
                Some(PinReason::Reader) => (&mut pinned.read, &mut pinned.read_bytes),
                Some(PinReason::Download) => (&mut pinned.pulled, &mut pinned.pulled_bytes),
                None => continue,
            };
            *blobs += 1;
            bytes.0 += blob.geometry().size();
        }
        pinned
    }
}

impl Store {
    /// Opens or creates the store in `dir`. At most `max_open_files` data files stay open.
    /// Blocking: reads every blob's record, and no content.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] and [`StoreError::InUse`].
    pub(crate) fn open(
        dir: &Path,
        quota: ByteSize,
        max_open_files: usize,
        trusted: &TrustedKeys,
    ) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable {
            dir: dir.to_owned(),
            source,
        };
        let blobs_dir = dir.join("blobs");
        fs::create_dir_all(&blobs_dir).map_err(unusable)?;
        let lock = FolderLock::acquire(dir)?;
        // A folder that is readable but not writable fails here, not in the middle of a pull.
        paths::write_atomically(&blobs_dir.join("probe"), b"").map_err(unusable)?;
        let open = OpenFiles::new(max_open_files);
        let blobs = load::load_blobs(&blobs_dir, trusted, &open).map_err(unusable)?;
        let uses = AtomicU64::new(blobs.by_digest.len() as u64);
        let store = Self {
            blobs: Mutex::new(blobs),
            open,
            dir: blobs_dir,
            quota,
            uses,
            _lock: lock,
        };
        // The quota may be smaller than at the last start.
        store.make_room(&mut store.lock(), 0)?;
        Ok(store)
    }

    /// A blob that the store has, in whole or in part. Counts as a use.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<StoredBlob>> {
        let blob = self.lock().by_digest.get(digest).cloned()?;
        self.touch(&blob);
        Some(blob)
    }

    /// Records a use of a blob, which postpones its eviction.
    pub(crate) fn touch(&self, blob: &StoredBlob) {
        blob.used_at
            .store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// All blobs, sorted by digest.
    pub(crate) fn blobs(&self) -> Vec<Arc<StoredBlob>> {
        let mut blobs: Vec<_> = self.lock().by_digest.values().cloned().collect();
        blobs.sort_unstable_by_key(|blob| *blob.digest());
        blobs
    }

    /// As [`Store::get`], and protects the blob from eviction.
    pub(crate) fn pin(&self, digest: &Digest) -> Option<Pin> {
        let blobs = self.lock();
        let blob = blobs.by_digest.get(digest)?;
        self.touch(blob);
        Some(blob.pin(PinReason::Download))
    }

    /// Pins a blob; if the store does not have it, makes room and inserts it with no chunk held.
    /// Returns also the blobs that were evicted for it. `proof` must have been checked, and
    /// `geometry` must be its result.
    ///
    /// # Errors
    /// [`StoreError::OverQuota`] if the blob never fits, [`StoreError::Full`] if it does not fit
    /// now, [`StoreError::Quarantined`].
    pub(crate) fn insert(
        &self,
        proof: Proof,
        geometry: Geometry,
    ) -> Result<(Pin, Vec<Digest>), StoreError> {
        let digest = *proof.digest();
        // The lock is held from the check to the insertion: of two concurrent calls, only one may
        // make room and create the blob.
        let mut blobs = self.lock();
        if let Some(blob) = blobs.by_digest.get(&digest) {
            self.touch(blob);
            return Ok((blob.pin(PinReason::Download), Vec::new()));
        }
        if blobs.quarantined.contains(&digest) {
            return Err(StoreError::Quarantined { digest });
        }
        let evicted = self.make_room(&mut blobs, geometry.size())?;
        let path = paths::data(&self.dir, &digest);
        let held = ChunkMap::empty(geometry.chunks());
        let slot = self.open.slot();
        let blob = Arc::new(StoredBlob::new(proof, geometry, path, slot, held, false));
        self.touch(&blob);
        let pin = blob.pin(PinReason::Download);
        blobs.bytes += geometry.size();
        blobs.by_digest.insert(digest, blob);
        Ok((pin, evicted))
    }

    /// Removes a blob and rejects its insertion from now on.
    pub(crate) fn quarantine(&self, digest: &Digest) {
        let mut blobs = self.lock();
        self.remove_from(&mut blobs, digest);
        blobs.quarantined.push_back(*digest);
        if blobs.quarantined.len() > MAX_QUARANTINED {
            blobs.quarantined.pop_front();
        }
    }

    /// Removes a blob and its files.
    fn remove_from(&self, blobs: &mut Blobs, digest: &Digest) {
        let Some(blob) = blobs.by_digest.remove(digest) else {
            return;
        };
        blobs.bytes = blobs.bytes.saturating_sub(blob.geometry().size());
        blob.mark_removed();
        let hidden = paths::evicted(blob.path(), self.uses.fetch_add(1, Ordering::Relaxed));
        // The record first: without one, the data file is not used after a crash.
        for result in [
            fs::remove_file(paths::record(blob.path())),
            fs::rename(blob.path(), &hidden),
        ] {
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(
                        blob = %digest,
                        %error,
                        "removing the files of an evicted blob failed; the next start deletes them"
                    );
                }
                _ => {}
            }
        }
        delete_in_background(hidden);
    }

    /// Writes the records of blobs that changed. Blocking.
    pub(crate) fn save(&self) {
        for blob in self.blobs() {
            if let Err(error) = record::save_changes(&blob) {
                if is_exhausted(&error) {
                    return StoreError::log_exhausted(&error);
                }
                tracing::warn!(blob = %blob.digest(), %error, "saving the record of a blob failed; trying again later");
            }
        }
    }

    /// The sum of the sizes of all blobs in the store, whether held or not.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// The folder of the blobs' files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The limit on [`Store::bytes`].
    pub(crate) fn quota(&self) -> ByteSize {
        self.quota
    }

    /// Evicts blobs until one of `size` bytes fits, the least recently used first.
    fn make_room(&self, blobs: &mut Blobs, size: u64) -> Result<Vec<Digest>, StoreError> {
        let quota = self.quota.0;
        if size > quota {
            return Err(StoreError::OverQuota {
                size: ByteSize(size),
                quota: self.quota,
            });
        }
        let total = blobs.bytes + size;
        if total <= quota {
            return Ok(Vec::new());
        }
        let mut candidates: Vec<_> = blobs
            .by_digest
            .values()
            .filter(|blob| blob.pin_reason().is_none())
            .map(|blob| {
                let used_at = blob.used_at.load(Ordering::Relaxed);
                (used_at, *blob.digest(), blob.geometry().size())
            })
            .collect();
        candidates.sort_unstable();
        let must_free = total.saturating_sub(quota);
        let should_free = must_free.max(total.saturating_sub(quota - quota / FREE_AFTER_EVICTION));
        let mut freed = 0;
        let mut evicted = Vec::new();
        for (_, digest, bytes) in candidates {
            if freed >= should_free {
                break;
            }
            freed += bytes;
            evicted.push(digest);
        }
        if freed < must_free {
            return Err(StoreError::Full {
                size: ByteSize(size),
                quota: self.quota,
                pinned: blobs.pinned(),
            });
        }
        for digest in &evicted {
            tracing::info!(blob = %digest, "evicting blob from the store to stay within the quota");
            self.remove_from(blobs, digest);
        }
        Ok(evicted)
    }

    fn lock(&self) -> MutexGuard<'_, Blobs> {
        // No code panics while it holds the lock.
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes a file on the blocking pool, without waiting for it; outside of a runtime, at once.
fn delete_in_background(path: PathBuf) {
    let work = move || match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(
                path = %path.display(),
                %error,
                "deleting the file of an evicted blob failed; the next start deletes it"
            );
        }
        _ => {}
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}

//! One blob of the store: its file, and what may be read from it.
//!
//! [`StoredChunks`] says which bytes may be used; bytes outside of it are never read as content.
//! Every read of a sealed blob compares the bytes with their verified chaining values, so a chunk
//! that was damaged on disk is dropped and fetched again: it never reaches a neighbour or the
//! container runtime. (BLAKE3 hashes a GiB in 0.2 s.)

mod incremental_digest;
mod verify;

use core::ops::Range;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_common::chunk::Geometry;
use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::digest::Digest;
use flotilla_common::hash_tree::{self, ChainingValue, ChunkTable};
use flotilla_common::proof::Proof;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::StoreError;
use super::file::{BlobFile, run_blocking};
use super::open_files::FileSlot;
use super::stored_chunks::{StoredChunks, align_to_parts};
pub(super) use incremental_digest::IncrementalDigest;

/// Whether a reader can have the bytes at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Availability {
    /// The bytes from the offset up to this one (exclusive) can be read.
    Ready(u64),
    /// Not received yet.
    Waiting,
    /// The store cannot take this blob, for example because the disk is full: read it from the
    /// origin.
    Bypassed,
}

/// A blob in the store, shared by its readers, downloads and uploads.
#[derive(Debug)]
pub(crate) struct StoredBlob {
    proof: Proof,
    geometry: Geometry,
    path: PathBuf,
    file: Mutex<DataFile>,
    state: Mutex<State>,
    changed: Notify,
    /// The digest of the bytes from offset 0 on, as far as they were hashed. Of a blob without
    /// chunk proofs this is what was downloaded from an origin; the holder of the lock is the only
    /// writer of its file.
    pub(super) digest_so_far: Arc<AsyncMutex<IncrementalDigest>>,
    /// The store's use counter at the last use.
    pub(super) used_at: AtomicU64,
    /// The value of `used_at` at the last [`StoredBlob::take_use`].
    saved_use: AtomicU64,
    /// The pins of readers and of downloads.
    reader_pins: AtomicU32,
    download_pins: AtomicU32,
}

/// The data file of a blob.
#[derive(Debug)]
struct DataFile {
    slot: FileSlot,
    /// Whether the file on disk has the blob's size and bytes.
    is_created: bool,
}

#[derive(Debug)]
struct State {
    chunks: StoredChunks,
    /// Changes of the chunks since the record was last saved.
    unsaved: u32,
    is_bypassed: bool,
    /// The blob has left the store: its files are deleted and must not be created again.
    is_removed: bool,
}

/// A chunk that can be sent to a neighbour.
#[derive(Debug, Clone)]
pub(crate) struct HeldChunk {
    pub(crate) range: Range<u64>,
    /// The chaining values of its parts; empty for a blob without a chunk table.
    pub(crate) values: Vec<ChainingValue>,
}

/// Why a blob is protected from eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PinReason {
    /// A response that sends its bytes.
    Reader,
    /// A pull that needs it now or soon.
    Download,
}

/// Protects a blob from eviction until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    blob: Arc<StoredBlob>,
    reason: PinReason,
}

impl Pin {
    pub(crate) const fn blob(&self) -> &Arc<StoredBlob> {
        &self.blob
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.blob.pins(self.reason).fetch_sub(1, Ordering::AcqRel);
    }
}

impl StoredBlob {
    /// A blob of which the chunks in `held` were held before the process started.
    pub(super) fn new(
        proof: Proof,
        geometry: Geometry,
        path: PathBuf,
        slot: FileSlot,
        held: ChunkMap,
        is_complete: bool,
    ) -> Self {
        let file = DataFile {
            slot,
            is_created: !held.is_empty(),
        };
        let state = State {
            chunks: StoredChunks::new(geometry, held, is_complete),
            unsaved: 0,
            is_bypassed: false,
            is_removed: false,
        };
        Self {
            proof,
            geometry,
            path,
            file: Mutex::new(file),
            state: Mutex::new(state),
            changed: Notify::new(),
            digest_so_far: Arc::default(),
            used_at: AtomicU64::new(0),
            saved_use: AtomicU64::new(0),
            reader_pins: AtomicU32::new(0),
            download_pins: AtomicU32::new(0),
        }
    }

    pub(crate) const fn digest(&self) -> &Digest {
        self.proof.digest()
    }

    pub(crate) const fn proof(&self) -> &Proof {
        &self.proof
    }

    pub(crate) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The chunk table of a sealed blob of more than one chunk.
    pub(crate) const fn table(&self) -> Option<&ChunkTable> {
        match &self.proof {
            Proof::Sealed { table, .. } => table.as_ref(),
            Proof::DigestOnly { .. } => None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Protects the blob from eviction until the pin is dropped.
    pub(crate) fn pin(self: &Arc<Self>, reason: PinReason) -> Pin {
        self.pins(reason).fetch_add(1, Ordering::AcqRel);
        Pin {
            blob: Arc::clone(self),
            reason,
        }
    }

    /// Why the blob is protected from eviction; `None` if it is not. A blob that is read and
    /// downloaded counts as read.
    pub(super) fn pin_reason(&self) -> Option<PinReason> {
        let mut reasons = [PinReason::Reader, PinReason::Download].into_iter();
        reasons.find(|reason| self.pins(*reason).load(Ordering::Acquire) > 0)
    }

    const fn pins(&self, reason: PinReason) -> &AtomicU32 {
        match reason {
            PinReason::Reader => &self.reader_pins,
            PinReason::Download => &self.download_pins,
        }
    }

    /// The chunks held now.
    pub(crate) fn held(&self) -> ChunkMap {
        self.lock().chunks.held().clone()
    }

    /// Whether a chunk is held.
    pub(crate) fn holds(&self, chunk: u32) -> bool {
        self.lock().chunks.is_held(chunk)
    }

    /// Whether all chunks are held and the digest of the whole blob was checked.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().chunks.is_complete()
    }

    /// Bytes of the chunks held.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.lock().chunks.held_bytes()
    }

    /// Whether a reader can have the bytes at `offset` now.
    pub(crate) fn availability(&self, offset: u64) -> Availability {
        let state = self.lock();
        match state.chunks.readable_until(offset) {
            Some(end) => Availability::Ready(end),
            None if state.is_bypassed => Availability::Bypassed,
            None => Availability::Waiting,
        }
    }

    /// Waits until the byte at `offset` can be read or the blob is bypassed.
    pub(crate) async fn wait_until_available(&self, offset: u64) -> Availability {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.availability(offset) {
                Availability::Waiting => changed.await,
                settled => return settled,
            }
        }
    }

    /// Reads bytes that [`StoredBlob::availability`] reported as ready.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a chunk is damaged on disk: it is no longer held and must be
    /// fetched again.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        let last_byte = range.end.saturating_sub(1).max(range.start);
        let first = self.geometry.chunk_at(range.start);
        for chunk in first..=self.geometry.chunk_at(last_byte) {
            self.verify_after_restart(chunk).await?;
        }
        let parts = align_to_parts(&self.geometry, &range);
        let (bytes, values) = match self.read_parts(parts.clone()).await {
            Err(error) if error.is_about_content() && self.holds(first) => {
                tracing::warn!(blob = %self.digest(), chunk = first, %error, "reading a held chunk failed; fetching it again");
                return Err(self.drop_damaged(first));
            }
            read => read?,
        };
        if let Some(chunk) = self.first_damaged(parts.start, &bytes, &values) {
            return Err(self.drop_damaged(chunk));
        }
        let index = |offset: u64| usize::try_from(offset - parts.start).unwrap_or(usize::MAX);
        Ok(bytes.slice(index(range.start)..index(range.end)))
    }

    /// A chunk to serve to a neighbour: `None` if it is not held.
    ///
    /// # Errors
    /// As [`StoredBlob::read`].
    pub(crate) async fn chunk(&self, chunk: u32) -> Result<Option<HeldChunk>, StoreError> {
        self.verify_after_restart(chunk).await?;
        let state = self.lock();
        if !state.chunks.is_held(chunk) {
            return Ok(None);
        }
        let values = match self.table() {
            Some(_) => state.chunks.part_values(chunk).to_vec(),
            None => Vec::new(),
        };
        let range = self.geometry.chunk_range(chunk);
        Ok(Some(HeldChunk { range, values }))
    }

    /// Writes verified bytes, whole parts from `offset` on, and makes them readable.
    pub(crate) async fn write_verified(
        self: &Arc<Self>,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        self.verify_and_write(offset, bytes, |_| true)
            .await
            .map(drop)
    }

    /// Writes whole parts from `offset` on and makes them readable if `is_valid` accepts them.
    /// Otherwise nothing is written, and the result is false. `is_valid` runs on the blocking pool,
    /// because hashing takes as long as writing.
    pub(crate) async fn verify_and_write(
        self: &Arc<Self>,
        offset: u64,
        bytes: Bytes,
        is_valid: impl FnOnce(&[u8]) -> bool + Send + 'static,
    ) -> Result<bool, StoreError> {
        let blob = Arc::clone(self);
        let file = self.open()?;
        let work = move || {
            if !is_valid(&bytes) {
                return Ok(false);
            }
            file.write_now(offset, &bytes)?;
            blob.mark_readable(&(offset..offset + bytes.len() as u64));
            blob.hash_written(&file, offset, &bytes);
            Ok(true)
        };
        run_blocking(work)
            .await
            .map_err(|error| StoreError::writing(&self.path, error))
    }

    /// Makes written bytes, whole parts, readable.
    pub(super) fn mark_readable(&self, range: &Range<u64>) {
        self.lock().chunks.mark_readable(range);
        self.changed.notify_waiters();
    }

    /// Whether the part at `offset` is readable.
    pub(super) fn is_readable(&self, offset: u64) -> bool {
        self.lock().chunks.is_readable(offset)
    }

    /// Makes no byte readable any more, because the bytes turned out not to be the blob's.
    pub(super) fn clear_readable(&self) {
        self.lock().chunks.clear_readable();
    }

    /// Records that a chunk is verified and written, with the chaining values of its parts. True if
    /// it was not held before.
    pub(crate) fn mark_held(&self, chunk: u32, values: &[ChainingValue]) -> bool {
        let mut state = self.lock();
        let is_new = state.chunks.mark_held(chunk, values);
        state.unsaved += u32::from(is_new);
        drop(state);
        self.changed.notify_waiters();
        is_new
    }

    /// Records that the digest of the whole blob was checked.
    pub(crate) fn mark_complete(&self) {
        let mut state = self.lock();
        state.chunks.mark_complete();
        state.unsaved += 1;
    }

    /// Replaces the data file by the file at `path`, which is open as `file`. Blocking.
    pub(super) fn replace_file(&self, path: &Path, file: BlobFile) -> Result<(), StoreError> {
        let mut data = self.lock_file();
        if self.is_removed() {
            return Err(self.removed());
        }
        fs::rename(path, &self.path).map_err(|error| StoreError::writing(&self.path, error))?;
        data.is_created = true;
        data.slot.set(file);
        Ok(())
    }

    /// Records that the file contains the whole blob, whose digest was checked.
    pub(super) fn mark_whole(&self) {
        for chunk in 0..self.geometry.chunks() {
            self.mark_held(chunk, &[]);
        }
        self.mark_complete();
    }

    /// Records that the store takes no more bytes: readers get the rest from the origin.
    pub(crate) fn mark_bypassed(&self) {
        self.lock().is_bypassed = true;
        self.changed.notify_waiters();
    }

    /// Undoes [`StoredBlob::mark_bypassed`] for a new attempt.
    pub(crate) fn clear_bypass(&self) {
        self.lock().is_bypassed = false;
    }

    /// Whether the blob has left the store.
    pub(crate) fn is_removed(&self) -> bool {
        self.lock().is_removed
    }

    /// Records that the blob has left the store: nothing is held any more, for good.
    pub(super) fn mark_removed(&self) {
        // Waits until a file that is being opened is open: afterwards its path may belong to
        // another insertion of the blob.
        let file = self.lock_file();
        let mut state = self.lock();
        state.is_removed = true;
        state.chunks.clear();
        drop(state);
        file.slot.close();
    }

    /// The held chunks and whether the blob is complete, if they changed since the last call.
    pub(super) fn take_unsaved(&self) -> Option<(ChunkMap, bool)> {
        let mut state = self.lock();
        let has_changed = core::mem::take(&mut state.unsaved) > 0 && !state.is_removed;
        has_changed.then(|| (state.chunks.held().clone(), state.chunks.is_complete()))
    }

    /// Makes the next [`StoredBlob::take_unsaved`] return the state again, after a failed save.
    pub(super) fn mark_unsaved(&self) {
        self.lock().unsaved += 1;
    }

    /// Whether the blob was used since the last call.
    pub(super) fn take_use(&self) -> bool {
        let used_at = self.used_at.load(Ordering::Relaxed);
        self.saved_use.swap(used_at, Ordering::Relaxed) != used_at
    }

    /// Reads whole parts, with their chaining values if there is a table to compare them with.
    async fn read_parts(
        &self,
        range: Range<u64>,
    ) -> Result<(Bytes, Vec<ChainingValue>), StoreError> {
        let length = usize::try_from(range.end - range.start)
            .map_err(|_| StoreError::reading(&self.path, ErrorKind::InvalidInput.into()))?;
        if length == 0 {
            return Ok((Bytes::new(), Vec::new()));
        }
        let start = range.start;
        let has_table = self.table().is_some();
        let part_values = move |bytes: &[u8]| {
            if has_table {
                hash_tree::part_values(start, bytes)
            } else {
                Vec::new()
            }
        };
        self.open()?
            .read_and_inspect(start, length, part_values)
            .await
            .map_err(|error| StoreError::reading(&self.path, error))
    }

    /// The open file; opens or creates it first if necessary. That blocks for a few microseconds,
    /// which needs no hand-over to the blocking pool.
    ///
    /// # Errors
    /// [`StoreError::Removed`], and [`StoreError::OutOfFiles`] while no file descriptor is left.
    pub(super) fn open(&self) -> Result<BlobFile, StoreError> {
        // The lock is held throughout: a second creation would truncate what was written after the
        // first.
        let mut file = self.lock_file();
        if self.is_removed() {
            return Err(self.removed());
        }
        if let Some(open) = file.slot.get() {
            return Ok(open);
        }
        let opened = self
            .open_or_create(&file)
            .map_err(|error| StoreError::opening(&self.path, error))?;
        file.is_created = true;
        file.slot.set(opened.clone());
        Ok(opened)
    }

    fn open_or_create(&self, file: &DataFile) -> std::io::Result<BlobFile> {
        let size = self.geometry.size();
        if file.is_created {
            match file.slot.open(|| BlobFile::open(&self.path, size)) {
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) =>
                {
                    tracing::warn!(
                        blob = %self.digest(), %error,
                        "the file of a stored blob is gone or truncated; downloading the blob again"
                    );
                    self.lock().chunks.mark_lost();
                }
                opened => return opened,
            }
        }
        file.slot.open(|| BlobFile::create(&self.path, size))
    }

    pub(super) fn removed(&self) -> StoreError {
        StoreError::Removed {
            digest: *self.digest(),
        }
    }

    fn lock_file(&self) -> MutexGuard<'_, DataFile> {
        // No code panics while it holds the lock. The lock of the state is taken after this one.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, and no invariant spans two locked sections.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_chunk(&mut self, chunk: u32) {
        self.chunks.drop_chunk(chunk);
        self.unsaved += 1;
    }
}

//! One blob of the store: which of its chunks are held, which of its parts may be emitted, and its
//! bytes.
//!
//! Two maps say what may be done with the bytes in the file:
//! - `parts`: verified (or, for a blob without chunk proofs, read from the origin itself) and
//!   written: a local reader may have them.
//! - `held`: whole verified chunks: they may be advertised and served.
//!
//! After a restart every held chunk is *doubtful* until its first read has verified it again; so
//! nothing here needs ordered writes. Every later read compares what it finds with what was
//! verified: bytes that changed on the disk cost a chunk, never a lie to a neighbour or a broken
//! pull. (BLAKE3 needs 0.2 s for a GiB.) Nothing outside the maps is ever read as content.

mod along;
mod verify;

use core::ops::Range;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_common::chunk::{Geometry, PART_SIZE};
use flotilla_common::digest::Digest;
use flotilla_common::map::ChunkMap;
use flotilla_common::proof::Proof;
use flotilla_common::tree::{self, ChunkTable, Value};
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::StoreError;
use super::file::{BlobFile, blocking};
use super::whole::Prefix;

/// What a reader learns when it asks for the bytes at its cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Availability {
    /// Bytes from the asked offset to this one (exclusive) may be read.
    Ready(u64),
    /// Not here yet.
    Waiting,
    /// The store cannot take this blob (its disk is full): read it from the origin.
    Bypassed,
}

/// A blob in the store, shared by its readers, fetches and uploads.
#[derive(Debug)]
pub(crate) struct StoredBlob {
    proof: Proof,
    geometry: Geometry,
    path: PathBuf,
    file: Mutex<Option<BlobFile>>,
    state: Mutex<State>,
    changed: Notify,
    /// How much of it was hashed, in order: of a blob that only its digest proves, how much came
    /// from an origin, and whoever has the lock is the only one to change what the file has of it.
    pub(super) prefix: Arc<AsyncMutex<Prefix>>,
    /// Use counter of the store at the last use.
    pub(super) used_at: AtomicU64,
    /// The use that [`StoredBlob::take_use`] last saw.
    seen_use: AtomicU64,
    pins: AtomicU32,
}

#[derive(Debug)]
struct State {
    held: ChunkMap,
    doubtful: ChunkMap,
    parts: ChunkMap,
    /// Values of the parts of held, undoubted chunks.
    values: Vec<Value>,
    /// Chunks held since the map was last saved.
    unsaved: u32,
    complete: bool,
    is_bypassed: bool,
    /// Out of the store: its files are gone, and must not come back.
    is_removed: bool,
}

/// A chunk's content as it is sent to a neighbour.
#[derive(Debug, Clone)]
pub(crate) struct HeldChunk {
    pub(crate) range: Range<u64>,
    pub(crate) values: Vec<Value>,
}

/// Keeps a blob from being evicted while it lives.
#[derive(Debug)]
pub(crate) struct Pin(Arc<StoredBlob>);

impl Pin {
    pub(crate) const fn blob(&self) -> &Arc<StoredBlob> {
        &self.0
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

impl StoredBlob {
    /// A blob whose chunks in `held` were held before the process began.
    pub(super) fn new(
        proof: Proof,
        geometry: Geometry,
        path: PathBuf,
        held: ChunkMap,
        complete: bool,
    ) -> Self {
        let parts_total =
            u32::try_from(geometry.size().div_ceil(PART_SIZE).max(1)).unwrap_or(u32::MAX);
        let mut parts = ChunkMap::empty(parts_total);
        for chunk in held.iter() {
            insert_parts(&mut parts, &geometry.chunk_range(chunk));
        }
        let state = State {
            complete: complete && held.is_full(),
            doubtful: held.clone(),
            held,
            parts,
            values: Vec::new(),
            unsaved: 0,
            is_bypassed: false,
            is_removed: false,
        };
        Self {
            proof,
            geometry,
            path,
            file: Mutex::new(None),
            state: Mutex::new(state),
            changed: Notify::new(),
            prefix: Arc::default(),
            used_at: AtomicU64::new(0),
            seen_use: AtomicU64::new(0),
            pins: AtomicU32::new(0),
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

    /// Keeps the blob in the store until the pin is dropped.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        self.pins.fetch_add(1, Ordering::AcqRel);
        Pin(Arc::clone(self))
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    /// The chunks held now.
    pub(crate) fn held(&self) -> ChunkMap {
        self.lock().held.clone()
    }

    /// Whether a chunk is held.
    pub(crate) fn holds(&self, chunk: u32) -> bool {
        self.lock().held.contains(chunk)
    }

    /// Whether all chunks are held and the whole blob's digest was checked.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().complete
    }

    /// Bytes of the chunks held.
    pub(crate) fn held_bytes(&self) -> u64 {
        let state = self.lock();
        state
            .held
            .iter()
            .map(|chunk| self.geometry.chunk_len(chunk))
            .sum()
    }

    /// What a reader at `offset` may do.
    pub(crate) fn availability(&self, offset: u64) -> Availability {
        let state = self.lock();
        let part = part_of(offset);
        if state.parts.contains(part) {
            let end = state
                .parts
                .first_missing(part)
                .map_or(self.geometry.size(), |missing| {
                    u64::from(missing) * PART_SIZE
                });
            return Availability::Ready(end.min(self.geometry.size()));
        }
        if state.is_bypassed {
            Availability::Bypassed
        } else {
            Availability::Waiting
        }
    }

    /// Waits until the byte at `offset` may be read or never will be.
    pub(crate) async fn available(&self, offset: u64) -> Availability {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.availability(offset) {
                Availability::Waiting => changed.await,
                now => return now,
            }
        }
    }

    /// Reads bytes that [`StoredBlob::available`] said are there.
    ///
    /// # Errors
    /// [`StoreError::Doubtful`] if a chunk turned out damaged: it is dropped from the maps, and
    /// must be fetched again.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        let chunks = self.geometry.chunk_at(range.start)
            ..=self
                .geometry
                .chunk_at(range.end.saturating_sub(1).max(range.start));
        let first = *chunks.start();
        for chunk in chunks {
            self.settle_doubt(chunk).await?;
        }
        let parts = self.whole_parts(&range);
        let (bytes, values) = match self.read_parts(parts.clone()).await {
            Err(error) if self.holds(first) => {
                tracing::warn!(%error, chunk = first, "drop a chunk that cannot be read");
                return Err(self.drop_damaged(first));
            }
            read => read?,
        };
        if let Some(chunk) = self.first_damaged(parts.start, &bytes, &values) {
            return Err(self.drop_damaged(chunk));
        }
        let cut = |offset: u64| usize::try_from(offset - parts.start).unwrap_or(usize::MAX);
        Ok(bytes.slice(cut(range.start)..cut(range.end)))
    }

    /// A held chunk for a neighbour: `None` if it is not held.
    ///
    /// # Errors
    /// As [`StoredBlob::read`].
    pub(crate) async fn chunk(&self, chunk: u32) -> Result<Option<HeldChunk>, StoreError> {
        self.settle_doubt(chunk).await?;
        let range = self.geometry.chunk_range(chunk);
        let state = self.lock();
        if !state.held.contains(chunk) {
            return Ok(None);
        }
        let values = if self.table().is_some() {
            let first = part_of(range.start) as usize;
            state
                .values
                .get(first..first + self.geometry.part_count(chunk))
                .map(<[Value]>::to_vec)
                .unwrap_or_default()
        } else {
            Vec::new()
        };
        Ok(Some(HeldChunk { range, values }))
    }

    /// Writes bytes that are verified, whole parts from `offset` on, and lets readers have them.
    pub(crate) async fn write_verified(
        self: &Arc<Self>,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        self.write_checked(offset, bytes, |_| true).await.map(drop)
    }

    /// Lets readers have bytes that were written, whole parts.
    pub(super) fn emit(&self, range: &Range<u64>) {
        insert_parts(&mut self.lock().parts, range);
        self.changed.notify_waiters();
    }

    /// All of the blob is in this file, and its digest was checked.
    pub(super) fn adopt(&self, file: BlobFile) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        for chunk in 0..self.geometry.chunks() {
            self.hold(chunk, &[]);
        }
        self.complete();
    }

    /// Takes back bytes that readers could have: they were not the blob's.
    pub(super) fn retract(&self) {
        let mut state = self.lock();
        state.parts = ChunkMap::empty(state.parts.len());
    }

    /// Writes whole parts from `offset` on and lets readers have them, if `is_right` says so; it is
    /// asked where disk work is done, since hashing takes as long. False if they are not right:
    /// nothing is written then.
    pub(crate) async fn write_checked(
        self: &Arc<Self>,
        offset: u64,
        bytes: Bytes,
        is_right: impl FnOnce(&[u8]) -> bool + Send + 'static,
    ) -> Result<bool, StoreError> {
        let (blob, file) = (Arc::clone(self), self.open()?);
        let work = move || {
            if !is_right(&bytes) {
                return Ok(false);
            }
            file.write_now(offset, &bytes)?;
            blob.emit(&(offset..offset + bytes.len() as u64));
            blob.hash_along(&file, offset, &bytes);
            Ok(true)
        };
        blocking(work)
            .await
            .map_err(|error| StoreError::writing(&self.path, error))
    }

    /// Takes the parts' values of a chunk whose parts are all verified and written: now it is held.
    /// True if it was not before.
    pub(crate) fn hold(&self, chunk: u32, values: &[Value]) -> bool {
        let mut state = self.lock();
        state.keep_values(&self.geometry, chunk, values);
        let range = self.geometry.chunk_range(chunk);
        insert_parts(&mut state.parts, &range);
        state.doubtful.remove(chunk);
        let new = state.held.insert(chunk);
        state.unsaved += u32::from(new);
        drop(state);
        self.changed.notify_waiters();
        new
    }

    /// Records that the whole blob's digest was checked.
    pub(crate) fn complete(&self) {
        let mut state = self.lock();
        state.complete = true;
        state.unsaved += 1;
    }

    /// Nothing more will come into the store: readers take the rest from the origin.
    pub(crate) fn bypass(&self) {
        self.lock().is_bypassed = true;
        self.changed.notify_waiters();
    }

    /// A new attempt begins: an earlier [`StoredBlob::bypass`] is forgotten.
    pub(crate) fn revive(&self) {
        self.lock().is_bypassed = false;
    }

    /// Whether the blob has left the store.
    pub(crate) fn is_removed(&self) -> bool {
        self.lock().is_removed
    }

    /// Drops all that is held, for good: the blob leaves the store.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.is_removed = true;
        state.held = ChunkMap::empty(state.held.len());
        state.doubtful = ChunkMap::empty(state.held.len());
        state.parts = ChunkMap::empty(state.parts.len());
        state.complete = false;
    }

    /// The map to save and whether the digest was checked, if anything changed since the last time.
    pub(super) fn take_unsaved(&self) -> Option<(ChunkMap, bool)> {
        let mut state = self.lock();
        let is_unsaved = core::mem::take(&mut state.unsaved) > 0 && !state.is_removed;
        is_unsaved.then(|| (state.held.clone(), state.complete))
    }

    /// What was taken could not be saved: it is to be tried again.
    pub(super) fn is_unsaved(&self) {
        self.lock().unsaved += 1;
    }

    /// Whether the blob was used since this was last asked.
    pub(super) fn take_use(&self) -> bool {
        let used_at = self.used_at.load(Ordering::Relaxed);
        self.seen_use.swap(used_at, Ordering::Relaxed) != used_at
    }

    /// Reads whole parts, with their values if there is a table to compare them with.
    async fn read_parts(&self, range: Range<u64>) -> Result<(Bytes, Vec<Value>), StoreError> {
        let length = usize::try_from(range.end - range.start).map_err(|_| {
            StoreError::reading(&self.path, std::io::ErrorKind::InvalidInput.into())
        })?;
        if length == 0 {
            return Ok((Bytes::new(), Vec::new()));
        }
        let (start, has_table) = (range.start, self.table().is_some());
        let values = move |bytes: &[u8]| {
            if has_table {
                tree::part_values(start, bytes)
            } else {
                Vec::new()
            }
        };
        self.open()?
            .read_with(start, length, values)
            .await
            .map_err(|error| StoreError::reading(&self.path, error))
    }

    /// Opens the file, making it if it is not there. A few microseconds, so it is done where it is
    /// first needed.
    pub(super) fn open(&self) -> Result<BlobFile, StoreError> {
        // One at a time: a second creation would cut away what was written into the first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = file.as_ref() {
            return Ok(file.clone());
        }
        let (is_removed, is_new) = {
            let state = self.lock();
            (state.is_removed, state.held.is_empty())
        };
        if is_removed {
            return Err(StoreError::Removed {
                digest: *self.digest(),
            });
        }
        let size = self.geometry.size();
        let opened = match BlobFile::open(&self.path, size) {
            Ok(file) if !is_new => Ok(file),
            // Not as it was left. All that was held is still doubtful, and found missing when it is
            // looked for.
            Err(error)
                if !is_new
                    && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) =>
            {
                Err(error)
            }
            _ => BlobFile::create(&self.path, size),
        };
        let opened = opened.map_err(|error| StoreError::writing(&self.path, error))?;
        *file = Some(opened.clone());
        Ok(opened)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and the state has no invariant that a cut could
        // break.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Its bytes are not what they were.
    fn drop_chunk(&mut self, geometry: &Geometry, chunk: u32) {
        let range = geometry.chunk_range(chunk);
        self.doubtful.remove(chunk);
        self.held.remove(chunk);
        for part in part_of(range.start)..=part_of(range.end.saturating_sub(1)) {
            self.parts.remove(part);
        }
        self.complete = false;
        self.unsaved += 1;
    }

    fn keep_values(&mut self, geometry: &Geometry, chunk: u32, values: &[Value]) {
        if values.is_empty() {
            return;
        }
        if self.values.is_empty() {
            self.values = vec![Value::default(); self.parts.len() as usize];
        }
        let first = part_of(geometry.chunk_range(chunk).start) as usize;
        if let Some(slots) = self.values.get_mut(first..first + values.len()) {
            slots.copy_from_slice(values);
        }
    }
}

fn part_of(offset: u64) -> u32 {
    u32::try_from(offset / PART_SIZE).unwrap_or(u32::MAX)
}

/// Marks the parts of a range that begins at a part and ends at one or at the blob's end.
fn insert_parts(parts: &mut ChunkMap, range: &Range<u64>) {
    for part in part_of(range.start)..=part_of(range.end.saturating_sub(1).max(range.start)) {
        parts.insert(part);
    }
}

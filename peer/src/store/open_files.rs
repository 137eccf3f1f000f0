//! The open data files of the store: a bounded number, whatever the number of blobs.
//!
//! A blob's file is opened at its first use and stays open for the next one. When too many are
//! open, the least recently used is closed, and opened again when it is needed. A read or write
//! that is in progress has a handle of its own, which the bound does not count: there are at most
//! as many as transfers and readers.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_runtime::open_files::is_exhausted;

use super::file::BlobFile;

/// The open files of all blobs.
#[derive(Debug)]
pub(super) struct OpenFiles {
    capacity: usize,
    next: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The open files by the number of their slot, each with its last use.
    files: HashMap<u64, (BlobFile, u64)>,
    /// The same slots by last use.
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl OpenFiles {
    /// Keeps at most `capacity` files open.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity: capacity.max(1),
            next: AtomicU64::new(0),
            table: Mutex::default(),
        })
    }

    /// A slot for the file of one blob, which is closed.
    pub(super) fn slot(self: &Arc<Self>) -> FileSlot {
        FileSlot {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            open: Arc::clone(self),
        }
    }

    /// Opens a file. If no file descriptor is left, closes all files that are not in use and tries
    /// once more.
    pub(super) fn open(&self, open: impl Fn() -> io::Result<BlobFile>) -> io::Result<BlobFile> {
        match open() {
            Err(error) if is_exhausted(&error) => {
                let closed = core::mem::take(&mut *self.lock());
                drop(closed);
                open()
            }
            opened => opened,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn get(&mut self, slot: u64) -> Option<BlobFile> {
        self.uses += 1;
        let (file, used) = self.files.get_mut(&slot)?;
        self.by_use.remove(used);
        *used = self.uses;
        self.by_use.insert(self.uses, slot);
        Some(file.clone())
    }

    fn insert(&mut self, slot: u64, file: BlobFile) -> Option<BlobFile> {
        self.uses += 1;
        let before = self.files.insert(slot, (file, self.uses));
        self.by_use.insert(self.uses, slot);
        let (file, used) = before?;
        self.by_use.remove(&used);
        Some(file)
    }

    fn remove(&mut self, slot: u64) -> Option<BlobFile> {
        let (file, used) = self.files.remove(&slot)?;
        self.by_use.remove(&used);
        Some(file)
    }

    fn remove_least_recently_used(&mut self) -> Option<BlobFile> {
        let slot = *self.by_use.first_key_value()?.1;
        self.remove(slot)
    }
}

/// The slot of one blob's file among the open ones.
#[derive(Debug)]
pub(super) struct FileSlot {
    number: u64,
    open: Arc<OpenFiles>,
}

impl FileSlot {
    /// The file, if it is open. Counts as a use.
    pub(super) fn get(&self) -> Option<BlobFile> {
        self.open.lock().get(self.number)
    }

    /// Keeps a file open, in place of the one before and of the least recently used one.
    pub(super) fn set(&self, file: BlobFile) {
        let mut table = self.open.lock();
        let mut closed = vec![table.insert(self.number, file)];
        while table.files.len() > self.open.capacity {
            closed.push(table.remove_least_recently_used());
        }
        // Files are closed without the lock.
        drop(table);
        drop(closed);
    }

    /// Closes the file, unless it is in use.
    pub(super) fn close(&self) {
        let closed = self.open.lock().remove(self.number);
        drop(closed);
    }

    /// See [`OpenFiles::open`].
    pub(super) fn open(&self, open: impl Fn() -> io::Result<BlobFile>) -> io::Result<BlobFile> {
        self.open.open(open)
    }
}

impl Drop for FileSlot {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use std::cell::Cell;
    use std::path::Path;

    use super::*;

    fn file(dir: &Path, name: &str) -> BlobFile {
        BlobFile::create(&dir.join(name), 1).unwrap()
    }

    #[test]
    fn least_recently_used_file_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let open = OpenFiles::new(2);
        let [a, b, c] = [0; 3].map(|_| open.slot());
        a.set(file(dir.path(), "a"));
        b.set(file(dir.path(), "b"));
        assert!(a.get().is_some());
        c.set(file(dir.path(), "c"));
        assert!(a.get().is_some() && b.get().is_none() && c.get().is_some());
        drop(a);
        b.set(file(dir.path(), "b"));
        b.set(file(dir.path(), "b"));
        assert!(b.get().is_some() && c.get().is_some());
        let table = open.lock();
        assert_eq!((table.files.len(), table.by_use.len()), (2, 2));
    }

    #[test]
    fn all_files_are_closed_when_no_descriptor_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let open = OpenFiles::new(2);
        let slot = open.slot();
        slot.set(file(dir.path(), "a"));
        let attempts = Cell::new(0);
        let exhausted = io::Error::from_raw_os_error;
        let opened = open.open(|| {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 1 {
                return Err(exhausted(rustix::io::Errno::MFILE.raw_os_error()));
            }
            Ok(file(dir.path(), "b"))
        });
        assert!(opened.is_ok() && slot.get().is_none());
    }
}

//! The bytes of one blob: a sparse file with positioned reads and writes.
//!
//! Disk work runs on the blocking pool in calls of at most [`MAX_IO_BYTES`], so that no call
//! occupies a thread for long. The file does not know chunks and verifies nothing; its callers do.

use core::ops::Range;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};

use super::buffers;

/// The most bytes that one disk call reads or writes. Large enough that the hand-over to the
/// blocking pool costs little in comparison; calls of 8 KiB were five times slower.
pub(crate) const MAX_IO_BYTES: usize = 256 * 1024;

/// A sparse file with positioned reads and writes from any task. Clones share the file.
#[derive(Debug, Clone)]
pub(crate) struct BlobFile {
    file: Arc<File>,
    /// Held while writing. The kernel allows one writer per file at a time, and other writers would
    /// spin on its lock instead of sleeping.
    writing: Arc<Mutex<()>>,
}

impl BlobFile {
    /// Creates an empty sparse file of `size` bytes, or replaces an existing one.
    pub(crate) fn create(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.set_len(size)?;
        Ok(Self::from_file(file))
    }

    /// Opens a file that [`BlobFile::create`] created.
    ///
    /// # Errors
    /// `InvalidData` if it does not have `size` bytes.
    pub(crate) fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file does not have the blob's size",
            ));
        }
        Ok(Self::from_file(file))
    }

    fn from_file(file: File) -> Self {
        Self {
            file: Arc::new(file),
            writing: Arc::default(),
        }
    }

    /// Writes `bytes` at `offset`. Blocking.
    pub(crate) fn write_now(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(MAX_IO_BYTES) {
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads `length` bytes at `offset`. Blocking.
    pub(crate) fn read_now(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = buffers::take(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            // The spare capacity need not be zeroed first.
            let read = retry_on_intr(|| pread(&self.file, spare_capacity(&mut bytes), at))?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        bytes.truncate(length);
        Ok(buffers::freeze(bytes))
    }

    /// Reads `length` bytes at `offset` and applies `inspect` to them on the blocking pool, because
    /// hashing takes as long as reading.
    pub(crate) async fn read_and_inspect<T: Send + 'static>(
        &self,
        offset: u64,
        length: usize,
        inspect: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> io::Result<(Bytes, T)> {
        let file = self.clone();
        run_blocking(move || {
            let bytes = file.read_now(offset, length)?;
            let result = inspect(&bytes);
            Ok((bytes, result))
        })
        .await
    }

    /// Folds `update` over the bytes of a range, in order and in pieces.
    pub(crate) async fn fold_pieces<T: Send + 'static>(
        &self,
        range: Range<u64>,
        mut state: T,
        mut update: impl FnMut(&mut T, &[u8]) + Send + 'static,
    ) -> io::Result<T> {
        let file = self.clone();
        run_blocking(move || {
            let mut at = range.start;
            while at < range.end {
                let length = usize::try_from(range.end - at)
                    .map_or(MAX_IO_BYTES, |rest| rest.min(MAX_IO_BYTES));
                update(&mut state, &file.read_now(at, length)?);
                at += length as u64;
            }
            Ok(state)
        })
        .await
    }
}

/// Runs a disk operation on the blocking pool.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|failure| io::Error::other(format!("disk operation was cancelled: {failure}")))?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[tokio::test]
    async fn written_bytes_are_read_at_their_offset() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let size = 3 * MAX_IO_BYTES as u64 + 5;
        let file = BlobFile::create(&path, size).unwrap();
        let bytes: Bytes = (0..MAX_IO_BYTES + 5)
            .map(|n| n as u8)
            .collect::<Vec<_>>()
            .into();
        file.write_now(2 * MAX_IO_BYTES as u64, &bytes).unwrap();

        let reopened = BlobFile::open(&path, size).unwrap();
        assert_eq!(
            reopened
                .read_and_inspect(2 * MAX_IO_BYTES as u64, bytes.len(), |_| ())
                .await
                .unwrap()
                .0,
            bytes
        );
        assert_eq!(
            reopened.read_and_inspect(0, 4, <[u8]>::len).await.unwrap(),
            (vec![0; 4].into(), 4)
        );
        let (total, tail) = reopened
            .fold_pieces(0..size, (0, 0), |state, piece| {
                *state = (state.0 + piece.len() as u64, piece[piece.len() - 1]);
            })
            .await
            .unwrap();
        assert_eq!((total, tail), (size, bytes[bytes.len() - 1]));
    }

    #[test]
    fn file_of_wrong_size_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        BlobFile::create(&path, 10).unwrap();
        let error = BlobFile::open(&path, 11).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

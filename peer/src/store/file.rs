//! The bytes of one blob: a sparse file with positioned reads and writes.
//!
//! All disk work runs on the blocking pool in pieces of at most [`PIECE`] bytes, so that no call
//! holds a thread for long. The file knows nothing of chunks and checks nothing: whoever writes has
//! verified.

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

/// What one disk call moves at most, in bytes: large enough that the hand-over to the blocking pool
/// is cheap against it (8 KiB pieces were seen to be five times slower).
pub(crate) const PIECE: usize = 256 * 1024;

/// A sparse file that is read and written at positions, from any task.
#[derive(Debug, Clone)]
pub(crate) struct BlobFile {
    file: Arc<File>,
    /// Held while writing. The kernel lets one at a time write into a file; others would spin on
    /// its lock, not sleep.
    writing: Arc<Mutex<()>>,
}

impl BlobFile {
    /// Makes an empty sparse file of `size` bytes, in place of any earlier one.
    pub(crate) fn create(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.set_len(size)?;
        Ok(Self::of(file))
    }

    /// Opens a file that [`BlobFile::create`] made.
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
        Ok(Self::of(file))
    }

    fn of(file: File) -> Self {
        Self {
            file: Arc::new(file),
            writing: Arc::default(),
        }
    }

    /// Writes `bytes` at `offset`, on the thread that calls. Blocking.
    pub(crate) fn write_now(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads `length` bytes at `offset`, on the thread that calls. Blocking.
    pub(crate) fn read_now(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = buffers::take(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            // Into memory that was not zeroed before.
            let read = retry_on_intr(|| pread(&self.file, spare_capacity(&mut bytes), at))?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        bytes.truncate(length);
        Ok(buffers::freeze(bytes))
    }

    /// Reads `length` bytes at `offset`, and what `look` says of them; it is asked where disk work
    /// is done, since hashing takes as long.
    pub(crate) async fn read_with<T: Send + 'static>(
        &self,
        offset: u64,
        length: usize,
        look: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> io::Result<(Bytes, T)> {
        let file = self.clone();
        blocking(move || {
            let bytes = file.read_now(offset, length)?;
            let seen = look(&bytes);
            Ok((bytes, seen))
        })
        .await
    }

    /// Feeds these bytes of the file to `each`, in order and in pieces.
    pub(crate) async fn scan<T: Send + 'static>(
        &self,
        range: Range<u64>,
        mut state: T,
        mut each: impl FnMut(&mut T, &[u8]) + Send + 'static,
    ) -> io::Result<T> {
        let file = self.clone();
        blocking(move || {
            let mut at = range.start;
            while at < range.end {
                let length = usize::try_from(range.end - at).map_or(PIECE, |rest| rest.min(PIECE));
                each(&mut state, &file.read_now(at, length)?);
                at += length as u64;
            }
            Ok(state)
        })
        .await
    }
}

/// Runs disk work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|failure| io::Error::other(format!("disk work was cut off: {failure}")))?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[tokio::test]
    async fn what_is_written_at_a_position_is_read_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let size = 3 * PIECE as u64 + 5;
        let file = BlobFile::create(&path, size).unwrap();
        let bytes: Bytes = (0..PIECE + 5).map(|n| n as u8).collect::<Vec<_>>().into();
        file.write_now(2 * PIECE as u64, &bytes).unwrap();

        let again = BlobFile::open(&path, size).unwrap();
        assert_eq!(
            again
                .read_with(2 * PIECE as u64, bytes.len(), |_| ())
                .await
                .unwrap()
                .0,
            bytes
        );
        assert_eq!(
            again.read_with(0, 4, <[u8]>::len).await.unwrap(),
            (vec![0; 4].into(), 4)
        );
        let (total, tail) = again
            .scan(0..size, (0, 0), |state, piece| {
                *state = (state.0 + piece.len() as u64, piece[piece.len() - 1]);
            })
            .await
            .unwrap();
        assert_eq!((total, tail), (size, bytes[bytes.len() - 1]));
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        BlobFile::create(&path, 10).unwrap();
        let error = BlobFile::open(&path, 11).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

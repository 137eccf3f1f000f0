//! Storage in a local directory, which several processes may share.
//!
//! What is written is a temporary file first, made durable, then linked (create) or renamed (swap)
//! to its name, and the directory made durable: no crash shows an object in part or loses one that
//! was acknowledged. A create needs no lock, since a link fails where a name exists; a swap
//! compares and renames under a kernel file lock of its key.

use core::fmt;
use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryFutureExt, stream};
use rustix::buffer::spare_capacity;

use super::local_files::{self, KeyLock, TemporaryFile, path_of, version_of};
use super::local_list::Listings;
use super::{
    ByteStream, Key, MAX_READ_LEN, Object, ObjectWriter, Page, Prefix, Storage, StorageError,
    StorageFuture, Version,
};
use crate::nonce::nonce;

/// Bytes that one blocking read returns: small pieces cost more in scheduling than in copying.
const READ_LEN: u64 = 512 << 10;
/// Pieces that are read at once for one stream: one on its way out, one ahead.
const READS_AHEAD: usize = 2;
/// Bytes gathered before a blocking write.
const WRITE_LEN: usize = 1 << 20;
/// Age of a temporary file that nobody can still be writing.
const ABANDONED: Duration = Duration::from_hours(24);

/// A directory as object storage.
#[derive(Clone)]
pub struct LocalDirectory {
    root: Arc<Path>,
    listings: Listings,
}

impl fmt::Debug for LocalDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalDirectory({})", self.root.display())
    }
}

impl LocalDirectory {
    /// Opens a directory, which is made if it is not there.
    ///
    /// # Errors
    /// If the directory cannot be made, or not be written to.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        local_files::prepare(&root)?;
        local_files::sweep_temporary(&root, ABANDONED)?;
        Ok(Self {
            root: root.into(),
            listings: Listings::new(),
        })
    }

    /// Opens a directory that is there, for reading: nothing is made in it.
    ///
    /// # Errors
    /// If it is not there, or no directory.
    pub fn open_existing(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        std::fs::read_dir(&root)?;
        Ok(Self {
            root: root.into(),
            listings: Listings::new(),
        })
    }

    /// Runs what blocks on a thread that may block.
    fn blocking<'a, T: Send + 'static>(
        &self,
        action: &'static str,
        key: &'a Key,
        work: impl FnOnce(&Path, &Key) -> io::Result<T> + Send + 'static,
    ) -> StorageFuture<'a, T> {
        let (root, owned) = (Arc::clone(&self.root), key.clone());
        let task = tokio::task::spawn_blocking(move || work(&root, &owned));
        async move {
            task.await
                .unwrap_or_else(|stopped| Err(stopped.into()))
                .map_err(|error| told(action, key, error))
        }
        .boxed()
    }
}

/// What an error of the file system means for the key that it was about.
fn told(action: &'static str, key: &Key, error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::AlreadyExists => StorageError::conflict(action, key),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::Full {
            action,
            key: key.to_string(),
        },
        _ => StorageError::unavailable(action, key, error),
    }
}

impl Storage for LocalDirectory {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        self.blocking("create object", key, move |root, key| {
            let mut temporary = TemporaryFile::new(root, nonce())?;
            temporary.file().write_all(&body)?;
            temporary.publish_new(&path_of(root, key))?;
            Ok(version_of(&body))
        })
    }

    fn swap<'a>(
        &'a self,
        key: &'a Key,
        seen: &'a Version,
        body: Bytes,
    ) -> StorageFuture<'a, Version> {
        let seen = seen.clone();
        self.blocking("swap object", key, move |root, key| {
            let mut temporary = TemporaryFile::new(root, nonce())?;
            temporary.file().write_all(&body)?;
            temporary.file().sync_data()?;
            let _lock = KeyLock::wait(root, key)?;
            let path = path_of(root, key);
            let present = read_whole(&path)?.map(|body| version_of(&body));
            if present.as_ref() != Some(&seen) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            temporary.publish_over(&path)?;
            Ok(version_of(&body))
        })
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        self.blocking("read object", key, |root, key| {
            let body = read_whole(&path_of(root, key))?;
            Ok(body.map(|body| Object {
                version: version_of(&body),
                body: body.into(),
            }))
        })
    }

    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream> {
        async move {
            let file = self
                .file(key)
                .await?
                .ok_or_else(|| StorageError::missing("open object", key))?;
            Ok(file_stream(file, key.clone(), range))
        }
        .boxed()
    }

    fn file<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Arc<File>>> {
        self.blocking("open object", key, |root, key| {
            match File::open(path_of(root, key)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                opened => Ok(Some(Arc::new(opened?))),
            }
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page> {
        let (root, owned, after) = (Arc::clone(&self.root), prefix.clone(), after.cloned());
        let listings = self.listings.clone();
        let task = tokio::task::spawn_blocking(move || {
            listings.page(&root, &owned, after.as_ref(), limit)
        });
        async move {
            let page = task.await.unwrap_or_else(|stopped| Err(stopped.into()));
            page.map_err(|error| StorageError::unavailable("list objects", prefix, error))
        }
        .boxed()
    }

    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>> {
        let path = path_of(&self.root, key);
        self.blocking("begin object", key, |root, _| {
            TemporaryFile::new(root, nonce())
        })
        .map_ok(move |temporary| {
            let key = key.clone();
            let writer: Box<dyn ObjectWriter> = Box::new(LocalWriter {
                key,
                path,
                temporary: Some(temporary),
                gathered: Vec::new(),
                len: 0,
            });
            writer
        })
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        self.blocking("delete object", key, |root, key| {
            local_files::remove(&path_of(root, key))
        })
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn presigned_get<'a>(
        &'a self,
        _key: &'a Key,
        _valid_for: Duration,
    ) -> StorageFuture<'a, Option<String>> {
        async { Ok(None) }.boxed()
    }
}

fn read_whole(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let len = file.metadata()?.len();
    if len > MAX_READ_LEN {
        return Err(io::Error::other(format!(
            "an object of {len} bytes where a record was expected"
        )));
    }
    let mut body = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    file.take(MAX_READ_LEN).read_to_end(&mut body)?;
    Ok(Some(body))
}

/// The bytes of `range`, in large pieces, the next of which is read while one is sent.
fn file_stream(file: Arc<File>, key: Key, range: Range<u64>) -> ByteStream {
    let pieces = range.end.saturating_sub(range.start).div_ceil(READ_LEN);
    stream::iter(0..pieces)
        .map(move |piece| {
            let start = range.start + piece * READ_LEN;
            let len = READ_LEN.min(range.end - start) as usize;
            let (file, key) = (Arc::clone(&file), key.clone());
            let task = tokio::task::spawn_blocking(move || read_piece(&file, start, len));
            async move {
                let bytes = task.await.unwrap_or_else(|stopped| Err(stopped.into()));
                bytes.map_err(|error| StorageError::unavailable("read bytes", key, error))
            }
        })
        .buffered(READS_AHEAD)
        .boxed()
}

/// `len` bytes of a file. Blocking.
fn read_piece(file: &File, start: u64, len: usize) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let offset = start + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), offset) {
            Ok(0) => {
                return Err(io::Error::other(
                    "the object is shorter than its record says",
                ));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocation may be larger than asked for, and then the read is, too.
    bytes.truncate(len);
    Ok(bytes.into())
}

struct LocalWriter {
    key: Key,
    path: PathBuf,
    /// Taken while a blocking thread has it, and for good after a failure.
    temporary: Option<TemporaryFile>,
    gathered: Vec<Bytes>,
    len: usize,
}

impl LocalWriter {
    /// Writes what was gathered, and does `and_then` on the same thread.
    async fn write_out<T: Send + 'static>(
        &mut self,
        and_then: impl FnOnce(TemporaryFile) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let gathered = core::mem::take(&mut self.gathered);
        self.len = 0;
        let written = match self.temporary.take() {
            None => Err(io::Error::other("a write before this one failed")),
            Some(mut temporary) => {
                let task = tokio::task::spawn_blocking(move || {
                    gathered
                        .iter()
                        .try_for_each(|bytes| temporary.file().write_all(bytes))?;
                    and_then(temporary)
                });
                task.await.unwrap_or_else(|stopped| Err(stopped.into()))
            }
        };
        written.map_err(|error| told("write object", &self.key, error))
    }
}

impl ObjectWriter for LocalWriter {
    fn write(&mut self, bytes: Bytes) -> StorageFuture<'_, ()> {
        self.len += bytes.len();
        self.gathered.push(bytes);
        async move {
            if self.len >= WRITE_LEN {
                self.temporary = Some(self.write_out(Ok).await?);
            }
            Ok(())
        }
        .boxed()
    }

    fn flush(&mut self) -> StorageFuture<'_, ()> {
        async move {
            if self.len > 0 {
                self.temporary = Some(self.write_out(Ok).await?);
            }
            Ok(())
        }
        .boxed()
    }

    fn finish(mut self: Box<Self>) -> StorageFuture<'static, ()> {
        async move {
            let path = self.path.clone();
            self.write_out(move |temporary| temporary.publish_new(&path))
                .await
        }
        .boxed()
    }
}

//! Storage in a local directory, which several processes may share.
//!
//! Every body is written to a temporary file and made durable, then linked (create) or renamed
//! (swap) to its final name, and the directory is made durable. So no crash shows a partial object
//! or loses an acknowledged one. A create needs no lock, because a link fails if the name exists; a
//! swap or a removal compares and acts while it holds a kernel file lock for its key.
//!
//! A file system that hangs (NFS, FUSE) keeps each thread that calls it. So at most
//! [`CALLS_AT_ONCE`] threads call it at a time, and one reads the object by which the storage is
//! probed: what is asked meanwhile waits without a thread, until its timeout.
//!
//! A file that is not found counts as absent only while the root directory is the one that was
//! opened, and not the empty one below a file system that was unmounted.

mod files;
mod list;

use core::fmt;
use core::ops::Range;
use core::time::Duration;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rustix::buffer::spare_capacity;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    ByteStream, Key, MAX_READ_LEN, Object, ObjectWriter, Page, Prefix, Storage, StorageError,
    StorageResult, StorageTime, Version,
};
use crate::layout;
use crate::nonce::nonce;
use files::{KeyLock, TemporaryFile, path_of, version_of};
use list::DirectoryCache;

/// Bytes per blocking read; for shorter reads, scheduling costs more than copying.
const READ_LEN: u64 = 512 << 10;
/// Reads in progress for one stream: the piece that is being sent, and the next one.
const READS_AHEAD: usize = 2;
/// Bytes collected before a blocking write.
const WRITE_LEN: usize = 1 << 20;
/// Threads that call the file system at the same time: half of the runtime's blocking threads. The
/// others go on with hashing, and with other directories.
const CALLS_AT_ONCE: usize = 256;
/// Age at which a temporary file is certainly abandoned.
const ABANDONED_AGE: Duration = Duration::from_hours(24);

/// Object storage in a directory.
#[derive(Clone)]
pub struct LocalDirectory {
    root: Arc<Path>,
    /// Whether the root had what a storage has when it was opened.
    is_prepared: bool,
    directories: DirectoryCache,
    /// For calls of the file system.
    calls: Arc<Semaphore>,
    /// For reads of the object that says whether the storage answers.
    probes: Arc<Semaphore>,
}

impl fmt::Debug for LocalDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalDirectory({})", self.root.display())
    }
}

impl LocalDirectory {
    /// Opens a directory, and creates it if it does not exist.
    ///
    /// # Errors
    /// If the directory cannot be created or written to.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        files::prepare(&root)?;
        files::sweep_temporary(&root, ABANDONED_AGE)?;
        Ok(Self::new(root.into(), true))
    }

    /// Opens an existing directory for reading; creates nothing in it.
    ///
    /// # Errors
    /// If it does not exist or is not a directory.
    pub fn open_existing(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        std::fs::read_dir(&root)?;
        let is_prepared = files::is_prepared(&root);
        Ok(Self::new(root.into(), is_prepared))
    }

    fn new(root: Arc<Path>, is_prepared: bool) -> Self {
        Self {
            root,
            is_prepared,
            directories: DirectoryCache::new(),
            calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            probes: Arc::new(Semaphore::new(1)),
        }
    }

    /// Waits until another thread may call the file system about `key`. A thread that hangs keeps
    /// its permit, also after its caller has given up.
    async fn permit(&self, key: &str) -> Option<OwnedSemaphorePermit> {
        let permits = match key == layout::format().as_str() {
            true => &self.probes,
            false => &self.calls,
        };
        // The semaphores are never closed.
        Arc::clone(permits).acquire_owned().await.ok()
    }

    /// Runs blocking `work` on a thread of the blocking pool.
    async fn run_blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        key: &Key,
        work: impl FnOnce(&Path, &Key) -> io::Result<T> + Send + 'static,
    ) -> StorageResult<T> {
        let root = Arc::clone(&self.root);
        let owned_key = key.clone();
        let permit = self.permit(key.as_str()).await;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&root, &owned_key)
        });
        task.await
            .unwrap_or_else(|stopped| Err(stopped.into()))
            .map_err(|error| StorageError::from_io(action, key, error))
    }
}

#[async_trait]
impl Storage for LocalDirectory {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        self.run_blocking("create object", key, move |root, key| {
            let mut temporary = TemporaryFile::new(root, nonce())?;
            temporary.file().write_all(&body)?;
            temporary.publish_new(&path_of(root, key))?;
            Ok(version_of(&body))
        })
        .await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let seen = seen.clone();
        self.run_blocking("swap object", key, move |root, key| {
            let mut temporary = TemporaryFile::new(root, nonce())?;
            temporary.file().write_all(&body)?;
            temporary.file().sync_data()?;
            let _lock = KeyLock::acquire(root, key)?;
            let path = path_of(root, key);
            require_version(&path, &seen)?;
            temporary.publish_over(&path)?;
            Ok(version_of(&body))
        })
        .await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        let is_prepared = self.is_prepared;
        self.run_blocking("read object", key, move |root, key| {
            let found = read_whole(&path_of(root, key))?;
            if found.is_none() && is_prepared {
                files::require_prepared(root)?;
            }
            Ok(found.map(|(body, modified)| Object {
                version: version_of(&body),
                body: body.into(),
                modified,
            }))
        })
        .await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        let file = self
            .open_file(key)
            .await?
            .ok_or_else(|| StorageError::missing("open object", key))?;
        Ok(file_stream(file, key.clone(), range))
    }

    async fn open_file(&self, key: &Key) -> StorageResult<Option<Arc<File>>> {
        let is_prepared = self.is_prepared;
        self.run_blocking("open object", key, move |root, key| {
            match File::open(path_of(root, key)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if is_prepared {
                        files::require_prepared(root)?;
                    }
                    Ok(None)
                }
                opened => Ok(Some(Arc::new(opened?))),
            }
        })
        .await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        let root = Arc::clone(&self.root);
        let directories = self.directories.clone();
        let owned_prefix = prefix.clone();
        let after = after.cloned();
        let is_prepared = self.is_prepared;
        let permit = self.permit(prefix.as_str()).await;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let page = directories.page(&root, &owned_prefix, after.as_ref(), limit)?;
            if is_prepared {
                files::require_prepared(&root)?;
            }
            Ok(page)
        });
        task.await
            .unwrap_or_else(|stopped| Err(io::Error::from(stopped)))
            .map_err(|error| StorageError::unavailable("list objects", prefix, error))
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        let begin = |root: &Path, _: &Key| TemporaryFile::new(root, nonce());
        let temporary = self.run_blocking("begin object", key, begin).await?;
        Ok(Box::new(FileWriter {
            key: key.clone(),
            path: path_of(&self.root, key),
            temporary: Some(temporary),
            pending: Vec::new(),
            pending_len: 0,
        }))
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.run_blocking("delete object", key, |root, key| {
            // Between the comparison and the removal of a conditional removal, a delete and a
            // create must not replace the file.
            let _lock = KeyLock::acquire(root, key)?;
            files::remove(&path_of(root, key))
        })
        .await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        let seen = seen.clone();
        self.run_blocking("remove object", key, move |root, key| {
            let _lock = KeyLock::acquire(root, key)?;
            let path = path_of(root, key);
            require_version(&path, &seen)?;
            files::remove(&path)
        })
        .await
    }

    fn is_remote(&self) -> bool {
        false
    }

    async fn presigned_get(
        &self,
        _key: &Key,
        _valid_for: Duration,
    ) -> StorageResult<Option<String>> {
        Ok(None)
    }
}

/// Checks that the file at `path` has the version `seen`. The caller holds the lock of its key.
///
/// # Errors
/// `AlreadyExists`, which stands for a conflict, if it has another version or does not exist.
fn require_version(path: &Path, seen: &Version) -> io::Result<()> {
    let present = read_whole(path)?.map(|(body, _)| version_of(&body));
    if present.as_ref() == Some(seen) {
        Ok(())
    } else {
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// The body of a file and when it was written.
fn read_whole(path: &Path) -> io::Result<Option<(Vec<u8>, Option<StorageTime>)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let metadata = file.metadata()?;
    let modified = metadata.modified().ok().map(StorageTime::of_file);
    let len = metadata.len();
    if len > MAX_READ_LEN {
        return Err(io::Error::other(format!(
            "object of {len} bytes exceeds the limit of {MAX_READ_LEN} bytes"
        )));
    }
    let mut body = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    file.take(MAX_READ_LEN).read_to_end(&mut body)?;
    Ok(Some((body, modified)))
}

/// Streams `range` in large pieces, and reads the next piece while one is sent.
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

/// Reads exactly `len` bytes of a file. Blocks.
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
    // The allocation, and with it the read, may be larger than requested.
    bytes.truncate(len);
    Ok(bytes.into())
}

struct FileWriter {
    key: Key,
    path: PathBuf,
    /// `None` while a blocking thread uses the file, and after a failure.
    temporary: Option<TemporaryFile>,
    /// Bytes that are not written to the file yet.
    pending: Vec<Bytes>,
    pending_len: usize,
}

impl FileWriter {
    /// Writes the pending bytes, then calls `and_then` on the same blocking thread.
    async fn write_pending<T: Send + 'static>(
        &mut self,
        and_then: impl FnOnce(TemporaryFile) -> io::Result<T> + Send + 'static,
    ) -> StorageResult<T> {
        let pending = core::mem::take(&mut self.pending);
        self.pending_len = 0;
        let written = match self.temporary.take() {
            None => Err(io::Error::other("an earlier write of this object failed")),
            Some(mut temporary) => {
                let task = tokio::task::spawn_blocking(move || {
                    pending
                        .iter()
                        .try_for_each(|bytes| temporary.file().write_all(bytes))?;
                    and_then(temporary)
                });
                task.await.unwrap_or_else(|stopped| Err(stopped.into()))
            }
        };
        written.map_err(|error| StorageError::from_io("write object", &self.key, error))
    }
}

#[async_trait]
impl ObjectWriter for FileWriter {
    async fn write(&mut self, bytes: Bytes) -> StorageResult<()> {
        self.pending_len += bytes.len();
        self.pending.push(bytes);
        if self.pending_len >= WRITE_LEN {
            self.temporary = Some(self.write_pending(Ok).await?);
        }
        Ok(())
    }

    async fn flush(&mut self) -> StorageResult<()> {
        if self.pending_len > 0 {
            self.temporary = Some(self.write_pending(Ok).await?);
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> StorageResult<()> {
        let path = self.path.clone();
        self.write_pending(move |temporary| temporary.publish_new(&path))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that blocks every thread that opens it: a pipe without a writer.
    fn block(root: &Path, name: &str) {
        let made = std::process::Command::new("mkfifo")
            .arg(root.join(name))
            .status();
        assert!(made.expect("run mkfifo").success());
    }

    /// Lets all threads go on that wait for the file, and those that come later.
    fn unblock(root: &Path, name: &str) -> File {
        let mut options = std::fs::OpenOptions::new();
        let opened = options.read(true).write(true).open(root.join(name));
        opened.expect("open the pipe")
    }

    #[test]
    fn probes_of_a_directory_that_hangs_share_one_thread() {
        let root = tempfile::tempdir().expect("a directory");
        let storage = LocalDirectory::open(root.path()).expect("a storage");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build();
        let runtime = runtime.expect("a runtime");
        let other: Key = "policy".parse().expect("a key");
        let limit = Duration::from_millis(20);
        runtime.block_on(async {
            let created = storage.create(&other, "x".into()).await;
            created.expect("the directory answers");
            block(root.path(), "format~");
            for _ in 0..10 {
                let probe = tokio::time::timeout(limit, storage.read(&layout::format())).await;
                assert!(probe.is_err(), "it hangs");
            }
            let read = tokio::time::timeout(Duration::from_secs(10), storage.read(&other)).await;
            let read = read.expect("a thread is left").expect("it answers");
            assert!(read.is_some());
            // A pipe is no regular file, so what a read returns does not matter.
            let pipe = unblock(root.path(), "format~");
            drop(pipe);
        });
        runtime.shutdown_background();
    }
}

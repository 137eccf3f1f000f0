//! The paths of keys in a directory, and file operations that are atomic across crashes.
//!
//! The last segment of a key becomes a file with `~` appended to its name, every other segment a
//! directory of the same name. No segment contains a `~` or begins with a dot, so the file of one
//! key never collides with the directory of another, nor with `.tmp` and `.lock`. All functions
//! block, and are called from blocking threads.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use flotilla_common::hex;

use crate::storage::{Key, Version};

/// The suffix of the file of a key.
pub(super) const FILE_SUFFIX: char = '~';
const TEMPORARY_DIR: &str = ".tmp";
const LOCK_DIR: &str = ".lock";
/// Number of lock files, so large that two keys rarely share one.
const LOCK_COUNT: u64 = 64;
/// Attempts of a create whose directory is removed by concurrent deletes.
const CREATE_ATTEMPTS: u32 = 16;

/// Creates the root directory and the directories for temporary files and locks.
pub(super) fn prepare(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root.join(TEMPORARY_DIR))?;
    fs::create_dir_all(root.join(LOCK_DIR))
}

/// Whether a root directory has what [`prepare`] makes.
pub(super) fn is_prepared(root: &Path) -> bool {
    root.join(TEMPORARY_DIR).is_dir()
}

/// Fails if a root directory lacks what [`prepare`] made: its file system was unmounted, and what
/// the directory below does not have may exist.
pub(super) fn require_prepared(root: &Path) -> io::Result<()> {
    match fs::metadata(root.join(TEMPORARY_DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(io::Error::other(format!(
            "{} has no {TEMPORARY_DIR} any more; mount its file system again",
            root.display()
        ))),
        found => found.map(drop),
    }
}

/// The path of the file of a key.
pub(super) fn path_of(root: &Path, key: &Key) -> PathBuf {
    let mut path = root.join(key.as_str()).into_os_string();
    path.push(FILE_SUFFIX.encode_utf8(&mut [0; 4]));
    path.into()
}

/// The version of a body: its hash. Every body carries a nonce, so equal bodies are the same write.
pub(super) fn version_of(body: &[u8]) -> Version {
    Version::new(hex::encode(&Sha256::digest(body)))
}

/// A file that no listing shows. It is removed when dropped, unless it was published.
#[derive(Debug)]
pub(super) struct TemporaryFile {
    file: File,
    path: PathBuf,
}

impl TemporaryFile {
    pub(super) fn new(root: &Path, nonce: u128) -> io::Result<Self> {
        let path = root.join(TEMPORARY_DIR).join(format!("{nonce:032x}"));
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes the bytes durable, then links them to `path`; `AlreadyExists` if that exists.
    pub(super) fn publish_new(self, path: &Path) -> io::Result<()> {
        self.file.sync_data()?;
        let directory = parent_of(path)?;
        for _ in 0..CREATE_ATTEMPTS {
            create_directories(directory)?;
            match fs::hard_link(&self.path, path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(()) => return sync_directory(directory),
            }
        }
        Err(io::Error::other(
            "concurrent deletes removed the directory repeatedly",
        ))
    }

    /// Makes the bytes durable, then replaces the existing file at `path`.
    pub(super) fn publish_over(self, path: &Path) -> io::Result<()> {
        self.file.sync_data()?;
        fs::rename(&self.path, path)?;
        sync_directory(parent_of(path)?)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After a link this removes the second name, after a rename nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes temporary files of crashed processes: those not modified for `older_than`.
pub(super) fn sweep_temporary(root: &Path, older_than: core::time::Duration) -> io::Result<()> {
    for entry in fs::read_dir(root.join(TEMPORARY_DIR))? {
        let entry = entry?;
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .map(|time| time.elapsed());
        if let Ok(Ok(age)) = age
            && age > older_than
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The lock of a key, exclusive among all threads and processes, until it is dropped.
#[derive(Debug)]
pub(super) struct KeyLock {
    _file: File,
}

impl KeyLock {
    pub(super) fn acquire(root: &Path, key: &Key) -> io::Result<Self> {
        let path = root.join(LOCK_DIR).join(format!("{:02x}", lock_index(key)));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Hashes with FNV-1a, which is stable across the processes and builds that share the directory.
fn lock_index(key: &Key) -> u64 {
    let hash = key
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    hash % LOCK_COUNT
}

/// Removes a file, and its directory if that is empty then.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    let directory = parent_of(path)?;
    // This fails for a directory that is not empty. A concurrent create whose directory is removed
    // creates it again.
    if fs::remove_dir(directory).is_ok() {
        Ok(())
    } else {
        sync_directory(directory)
    }
}

/// Creates a directory and its ancestors, and makes each durable in its parent.
fn create_directories(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => sync_directory(parent_of(directory)?),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_directories(parent_of(directory)?)?;
            create_directories(directory)
        }
        Err(error) => Err(error),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory) {
        Ok(file) => file.sync_all(),
        // A concurrent delete removed the directory, so there is nothing to make durable.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn parent_of(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::other("path has no parent"))
}

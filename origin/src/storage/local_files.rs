//! Where keys are in a directory, and the system calls that change files so that a crash never
//! shows one in part.
//!
//! A key's last segment becomes a file with a `~` behind its name, every other segment a directory
//! as it is. No segment contains a `~` or begins with a dot, so no key's file is another key's
//! directory, and `.tmp` and `.lock` are nobody's. All functions here block; they are called from
//! blocking threads.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use flotilla_common::hex;

use super::{Key, Version};

/// What marks a file of a key.
pub(super) const FILE_MARK: char = '~';
const TEMPORARY: &str = ".tmp";
const LOCKS: &str = ".lock";
/// Lock files: enough that keys seldom share one.
const LOCK_COUNT: u64 = 64;
/// How often a create meets directories that a delete has just removed.
const CREATE_TRIES: u32 = 16;

/// Makes the directories that every store has.
pub(super) fn prepare(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root.join(TEMPORARY))?;
    fs::create_dir_all(root.join(LOCKS))
}

/// The file of a key.
pub(super) fn path_of(root: &Path, key: &Key) -> PathBuf {
    let mut path = root.join(key.as_str()).into_os_string();
    path.push(FILE_MARK.encode_utf8(&mut [0; 4]));
    path.into()
}

/// The version of a body: its hash. Bodies carry nonces, so equal bodies are one write.
pub(super) fn version_of(body: &[u8]) -> Version {
    Version::new(hex::encode(&Sha256::digest(body)))
}

/// A new file outside of every listing, removed when dropped unless it was given a name.
#[derive(Debug)]
pub(super) struct TemporaryFile {
    file: File,
    path: PathBuf,
}

impl TemporaryFile {
    pub(super) fn new(root: &Path, nonce: u128) -> io::Result<Self> {
        let path = root.join(TEMPORARY).join(format!("{nonce:032x}"));
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes the bytes durable, then gives them a name that nobody has; `AlreadyExists` if somebody
    /// has.
    pub(super) fn publish_new(self, path: &Path) -> io::Result<()> {
        self.file.sync_data()?;
        let directory = parent_of(path)?;
        for _ in 0..CREATE_TRIES {
            create_directories(directory)?;
            match fs::hard_link(&self.path, path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(()) => return sync_directory(directory),
            }
        }
        Err(io::Error::other(
            "the directory was removed again and again",
        ))
    }

    /// Makes the bytes durable, then puts them in the place of an existing file.
    pub(super) fn publish_over(self, path: &Path) -> io::Result<()> {
        self.file.sync_data()?;
        fs::rename(&self.path, path)?;
        sync_directory(parent_of(path)?)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After a link or a rename this removes the second name, or nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what crashed processes left: temporary files not written to for `older_than`.
pub(super) fn sweep_temporary(root: &Path, older_than: core::time::Duration) -> io::Result<()> {
    for entry in fs::read_dir(root.join(TEMPORARY))? {
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

/// Holds a key's lock against all threads and processes, until dropped.
#[derive(Debug)]
pub(super) struct KeyLock {
    _file: File,
}

impl KeyLock {
    pub(super) fn wait(root: &Path, key: &Key) -> io::Result<Self> {
        let path = root.join(LOCKS).join(format!("{:02x}", lock_index(key)));
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

/// FNV-1a: the same in every process and build that shares the directory.
fn lock_index(key: &Key) -> u64 {
    let hash = key
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    hash % LOCK_COUNT
}

/// Removes a file, and its directory if that was the last in it.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    let directory = parent_of(path)?;
    // A directory that is not empty stays; a create that runs into its absence makes it again.
    if fs::remove_dir(directory).is_ok() {
        Ok(())
    } else {
        sync_directory(directory)
    }
}

/// Makes a directory and those above it, each durable in its parent.
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
        // Removed meanwhile, and with it what was to be made durable.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn parent_of(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::other("a path without a parent"))
}

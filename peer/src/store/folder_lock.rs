//! The lock that keeps a second peer out of a store's folder.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::StoreError;

/// A lock on the store's folder.
///
/// It is released explicitly, not only by closing the file: a child process that is being started
/// at that moment has inherited the file and would keep the lock until its `exec`.
#[derive(Debug)]
pub(super) struct FolderLock(File);

impl FolderLock {
    pub(super) fn acquire(dir: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable {
            dir: dir.to_owned(),
            source,
        };
        let file = File::create(dir.join("lock")).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
                dir: dir.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // If this fails, closing the file releases the lock a moment later.
        let _ = self.0.unlock();
    }
}

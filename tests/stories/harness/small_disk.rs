//! A file system of a few megabytes.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::tools;

/// A mounted tmpfs; dropping it unmounts it.
pub(crate) struct SmallDisk {
    umount: PathBuf,
    dir: TempDir,
}

impl SmallDisk {
    /// Mounts a tmpfs of `size` (in the syntax of `mount`). Where that is not allowed, reports that
    /// the test is skipped and returns `None`.
    ///
    /// # Panics
    /// If the mount fails.
    pub(crate) fn mount(test: &str, size: &str) -> Option<Self> {
        let found = tools::find_or_skip(test, &["mount", "umount"], true)?;
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let target = dir.path().display().to_string();
        tools::run(
            &found[0],
            ["-t", "tmpfs", "-o", &options, "flotilla-test", &target],
        )
        .unwrap();
        Some(Self {
            umount: found[1].clone(),
            dir,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily (-l): a peer that was just killed may still have its lock file open.
        if let Err(error) = tools::run(&self.umount, ["-l", &self.dir.path().display().to_string()])
        {
            eprintln!("unmount a tmpfs: {error}");
        }
    }
}

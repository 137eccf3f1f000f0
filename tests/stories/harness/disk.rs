//! A disk of a few megabytes.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::tools;

/// A file system in memory, mounted while this lives.
pub(crate) struct SmallDisk {
    umount: PathBuf,
    dir: TempDir,
}

impl SmallDisk {
    /// Mounts one of `size` (as `mount` reads it); `None`, said loudly, if that is not allowed
    /// here.
    ///
    /// # Panics
    /// If it is allowed and does not work.
    pub(crate) fn mount(story: &str, size: &str) -> Option<Self> {
        let found = tools::find(story, &["mount", "umount"], true)?;
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let place = dir.path().display().to_string();
        tools::run(
            &found[0],
            ["-t", "tmpfs", "-o", &options, "flotilla-story", &place],
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
        // Lazily: a peer that is being killed may still have its lock open.
        if let Err(error) = tools::run(&self.umount, ["-l", &self.dir.path().display().to_string()])
        {
            eprintln!("unmount a small disk: {error}");
        }
    }
}

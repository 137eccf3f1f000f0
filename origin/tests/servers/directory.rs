//! A directory whose file system is a process: bindfs, over FUSE, shows another directory. So the
//! file system can hang or die while an origin uses it. Needs root.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use flotilla_origin::storage::{self, Storage};
use rustix::process::Signal;
use tempfile::TempDir;

use super::outage::{Outage, signal};
use super::{POLL_INTERVAL, START_TIMEOUT, find};

/// A mounted directory.
pub(crate) struct MountedDirectory {
    /// What it shows.
    source: TempDir,
    /// Where it is mounted.
    mount: TempDir,
    process: Child,
}

impl MountedDirectory {
    /// Mounts an empty directory; `None`, with a message, if bindfs is missing.
    ///
    /// # Panics
    /// If it cannot be mounted, or if bindfs is missing and skips are forbidden.
    pub(crate) fn start(test: &str) -> Option<Self> {
        find(test, "bindfs")?;
        let (source, mount) = (
            tempfile::tempdir().expect("create a directory"),
            tempfile::tempdir().expect("create a mount point"),
        );
        let process = mount_directory(source.path(), mount.path());
        Some(Self {
            source,
            mount,
            process,
        })
    }

    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        let url = format!("file://{}", self.mount.path().display());
        storage::open(&url, 64 << 20).expect("open the directory")
    }

    /// Begins an outage; `None` ends it.
    ///
    /// # Panics
    /// If a directory has no outage of this form.
    pub(crate) fn set_outage(&mut self, outage: Option<Outage>) {
        match outage {
            None => self.end_outage(),
            Some(Outage::ProcessStops) => signal(&self.process, Signal::STOP),
            Some(Outage::ProcessDies) => {
                self.process.kill().expect("kill bindfs");
                self.process.wait().expect("wait for bindfs");
            }
            Some(Outage::Unmounted) => self.unmount(),
            Some(other) => panic!("a directory has no outage of the form {other:?}"),
        }
    }

    fn end_outage(&mut self) {
        if self.process.try_wait().expect("query bindfs").is_none() {
            return signal(&self.process, Signal::CONT);
        }
        detach(self.mount.path());
        self.process = mount_directory(self.source.path(), self.mount.path());
    }

    fn unmount(&mut self) {
        detach(self.mount.path());
        self.process.kill().expect("kill bindfs");
        self.process.wait().expect("wait for bindfs");
    }
}

impl Drop for MountedDirectory {
    fn drop(&mut self) {
        // Calls that hang fail when their file system dies.
        let _ = self.process.kill();
        let _ = self.process.wait();
        detach(self.mount.path());
    }
}

fn mount_directory(source: &Path, mount: &Path) -> Child {
    let is_mounted = || device(mount) != device(mount.parent().expect("it is below another"));
    let mut process = Command::new("bindfs")
        .args([
            "-f",
            "-o",
            "attr_timeout=0,entry_timeout=0,negative_timeout=0",
        ])
        .args([source, mount])
        .stdin(Stdio::null())
        .spawn()
        .expect("start bindfs");
    let start = Instant::now();
    while !is_mounted() {
        let ended = process.try_wait().expect("query bindfs");
        assert!(
            ended.is_none() && start.elapsed() < START_TIMEOUT,
            "bindfs does not mount a directory: it needs root and /dev/fuse"
        );
        thread::sleep(POLL_INTERVAL);
    }
    process
}

fn device(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map_or(0, |metadata| metadata.dev())
}

/// Unmounts a directory at once, or does nothing if nothing is mounted.
fn detach(mount: &Path) {
    let _ = Command::new("umount")
        .arg("-l")
        .arg(mount)
        .stderr(Stdio::null())
        .status();
}

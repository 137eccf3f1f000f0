//! Brings the page cache into a reproducible state, and measures writing to it.
//!
//! Writing to a page that the machine has used before runs at the speed of memory. A page that a
//! virtual machine never touched, or has returned to its host, must first come from the host. That
//! can make writing 1 GiB ten times slower, and hides everything that a benchmark measures.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, DigestHasher};

/// Bytes per write, as in the peer's store.
const WRITE_LEN: usize = 256 << 10;

/// A file whose pages alternate in memory with the freed pages: free memory then has no large
/// contiguous blocks, the only ones that a host takes back. Dropping it deletes the file.
#[derive(Debug)]
pub(super) struct FragmentingFile(PathBuf);

impl Drop for FragmentingFile {
    fn drop(&mut self) {
        // An error is harmless: the file is in the benchmark's folder, which is deleted anyway.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes sure that the next `size` bytes of page cache come from memory that was used recently, as
/// long as the result lives. Blocks.
pub(super) fn warm_up(dir: &Path, size: u64) -> io::Result<FragmentingFile> {
    let kept = FragmentingFile(dir.join("kept"));
    let freed = dir.join("freed");
    let mut kept_file = File::create(&kept.0)?;
    let mut freed_file = File::create(&freed)?;
    let buffer = vec![1; WRITE_LEN];
    for _ in 0..size.div_ceil(WRITE_LEN as u64) {
        kept_file.write_all(&buffer)?;
        freed_file.write_all(&buffer)?;
    }
    fs::remove_file(freed)?;
    Ok(kept)
}

/// The time to write `bytes` into a new file, and to hash them with SHA-256, on one thread. Blocks.
pub(super) fn time_write_and_hash(dir: &Path, bytes: &[Bytes]) -> io::Result<(Duration, Duration)> {
    let path = dir.join("written");
    let mut file = File::create(&path)?;
    let started = Instant::now();
    for buffer in bytes {
        file.write_all(buffer)?;
    }
    let write = started.elapsed();
    fs::remove_file(path)?;
    let started = Instant::now();
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    bytes.iter().for_each(|buffer| hasher.update(buffer));
    hasher.finish();
    Ok((write, started.elapsed()))
}

//! What the page cache costs on this machine, and how it is after hours of work.
//!
//! A page that was in use shortly before is written at the speed of memory. One that a virtual
//! machine has never touched, or has given back, must come from the host first: that was seen to
//! make a plain write of 1 GiB ten times slower, which then hides everything else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, DigestHasher};

/// Bytes written at once, as the peers' store does.
const PIECE: usize = 256 << 10;

/// A file that keeps the memory between its pages from growing together: a host takes back free
/// memory only in large blocks. It is deleted with this.
#[derive(Debug)]
pub(super) struct Warm(PathBuf);

impl Drop for Warm {
    fn drop(&mut self) {
        // It is in the benchmark's own folder, which is deleted in any case.
        let _ = fs::remove_file(&self.0);
    }
}

/// Leaves memory for `size` bytes of page cache that was in use a moment ago, for as long as the
/// answer lives. Blocking.
pub(super) fn warm(dir: &Path, size: u64) -> io::Result<Warm> {
    let kept = Warm(dir.join("kept"));
    let freed = dir.join("freed");
    let (mut keep, mut free) = (File::create(&kept.0)?, File::create(&freed)?);
    let piece = vec![1; PIECE];
    for _ in 0..size.div_ceil(PIECE as u64) {
        keep.write_all(&piece)?;
        free.write_all(&piece)?;
    }
    fs::remove_file(freed)?;
    Ok(kept)
}

/// How long it takes to write `bytes` into a new file on one thread, and to hash them with SHA-256.
/// Blocking.
pub(super) fn write_and_hash(dir: &Path, bytes: &[Bytes]) -> io::Result<(Duration, Duration)> {
    let path = dir.join("written");
    let mut file = File::create(&path)?;
    let started = Instant::now();
    for piece in bytes {
        file.write_all(piece)?;
    }
    let written = started.elapsed();
    fs::remove_file(path)?;
    let started = Instant::now();
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    bytes.iter().for_each(|piece| hasher.update(piece));
    hasher.finish();
    Ok((written, started.elapsed()))
}

//! `flotilla-lab origin-memory`: an origin's memory under many concurrent uploads and pulls.
//!
//! All uploads start together, each of a new blob, and so do all pulls, each on its own connection.
//! Each client repeats its pull until all uploads are done. A share of the clients
//! (`--slow-one-in`) is slow: they read a buffer, pause, and read the next one, as over a bad link.
//! Meanwhile the files of a local storage are evicted from the page cache every second, so that
//! many pulls read from disk. The figure is the peak of the origin's resident memory (`VmHWM`,
//! proc_pid_status(5)); the anonymous part of it (`RssAnon`) is printed as well.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, value_parser};
use flotilla::client::RegistryClient;
use flotilla::command::{CommandError, print_outcome};
use flotilla::measure::{
    OriginProcess, OriginProcessPlan, Process, SyntheticImage, require_disk_space,
};
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::units::ByteSize;
use futures_util::stream;
use reqwest::Body;
use serde::Serialize;
use tokio::task::JoinSet;

use super::program::flotilla_program;

/// The criterion: an origin's resident memory must not exceed this.
const LIMIT: ByteSize = ByteSize(256 << 20);
/// The uploaded blobs repeat this many bytes, up to a unique suffix.
const PATTERN_LEN: u64 = 16 << 20;
/// Images that are pulled.
const IMAGES: u64 = 8;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
const EVICTION_INTERVAL: Duration = Duration::from_secs(1);

/// The arguments of `flotilla-lab origin-memory`.
#[derive(Debug, Args)]
pub(crate) struct OriginMemoryArgs {
    /// Concurrent uploads
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=1000))]
    uploads: u32,
    /// Size of each upload; the temporary directory needs the sum
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 30))]
    size: ByteSize,
    /// Concurrent pulls
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(0..=10_000))]
    pulls: u32,
    /// Size of each pulled blob
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(16 << 20))]
    pull_size: ByteSize,
    /// One in N pulls is slow. Slow pulls occupy buffers for longer, and take less CPU time from
    /// uploads
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..))]
    slow_one_in: u32,
    /// The pause of a slow pull between two reads, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = value_parser!(u64).range(1..=60_000))]
    slow_pause_ms: u64,
    /// The origin's storage, where the pushed blobs remain [default: a temporary directory]
    #[arg(long, value_name = "URL")]
    storage: Option<String>,
    /// Use HTTPS
    #[arg(long)]
    tls: bool,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    uploads: u32,
    upload_bytes: u64,
    pulls: u32,
    slow_one_in: u32,
    /// Pulls that received all bytes.
    pulls_finished: u64,
    pulled_bytes: u64,
    seconds: f64,
    errors: u64,
    peak_anonymous_bytes: u64,
    peak_resident_bytes: u64,
    limit_bytes: u64,
    ok: bool,
}

/// The clients' counters, and whether the uploads are done.
#[derive(Debug, Default)]
struct LoadState {
    uploads_done: AtomicBool,
    pulls_finished: AtomicU64,
    pulled_bytes: AtomicU64,
}

/// Runs the benchmark.
pub(super) async fn run(args: OriginMemoryArgs) -> Result<(), CommandError> {
    if args.storage.is_none() {
        require_disk_space(u64::from(args.uploads).saturating_mul(args.size.0))?;
    }
    let plan = OriginProcessPlan {
        program: flotilla_program()?,
        storage: args.storage.clone(),
        tls: args.tls,
    };
    let origin = Arc::new(OriginProcess::start(plan).await?);
    let mut images = Vec::new();
    for rng_seed in 1..=IMAGES {
        let image = SyntheticImage {
            size: args.pull_size.0,
            rng_seed,
        }
        .push(&origin.client()?, "pulled")
        .await;
        images.push(
            image
                .map_err(|error| CommandError::failed("push the image to pull", error))?
                .layer,
        );
    }
    let outcome = measure(&origin, &args, &images).await?;
    print_outcome(&outcome, args.json, summary, outcome.ok)
}

async fn measure(
    origin: &Arc<OriginProcess>,
    args: &OriginMemoryArgs,
    images: &[Digest],
) -> Result<Outcome, CommandError> {
    let blobs = Blobs::new(args.size.0)?;
    let state = Arc::new(LoadState::default());
    let sampling = tokio::spawn(sample_memory(origin.process(), Arc::clone(&state)));
    let evicting = origin.storage().map(|folder| {
        let folder = folder.to_owned();
        let state = Arc::downgrade(&state);
        std::thread::spawn(move || repeat_while_uploading(&state, || evict(&folder)))
    });
    let started = Instant::now();
    let mut uploads = JoinSet::new();
    let mut pulls = JoinSet::new();
    for number in 0..args.uploads {
        uploads.spawn(blobs.clone().upload(origin.client()?, number));
    }
    for (number, layer) in (0..args.pulls).zip(images.iter().cycle()) {
        let url = origin.url(&format!("blobs/{layer}"));
        let pause = Duration::from_millis(args.slow_pause_ms);
        let pause = (number % args.slow_one_in == 0).then_some(pause);
        pulls.spawn(pull(
            Arc::clone(origin),
            url,
            args.pull_size.0,
            pause,
            Arc::clone(&state),
        ));
    }
    let mut errors = errors_of(uploads).await;
    let seconds = started.elapsed().as_secs_f64();
    state.uploads_done.store(true, Ordering::Relaxed);
    errors.extend(errors_of(pulls).await);
    let peak_anonymous = sampling
        .await
        .map_err(|error| CommandError::failed("sample the memory", error))??;
    if let Some(evicting) = evicting {
        evicting
            .join()
            .map_err(|_| CommandError::failed("evict the page cache", "its thread panicked"))?;
    }
    if let Some(error) = errors.first() {
        eprintln!(
            "first of {} errors: {error}; the origin's log:\n{}",
            errors.len(),
            origin.log()
        );
    }
    let peak = origin.process().peak_resident()?;
    Ok(Outcome {
        uploads: args.uploads,
        upload_bytes: args.size.0,
        pulls: args.pulls,
        slow_one_in: args.slow_one_in,
        pulls_finished: state.pulls_finished.load(Ordering::Relaxed),
        pulled_bytes: state.pulled_bytes.load(Ordering::Relaxed),
        seconds,
        errors: errors.len() as u64,
        peak_anonymous_bytes: peak_anonymous.0,
        peak_resident_bytes: peak.0,
        limit_bytes: LIMIT.0,
        ok: errors.is_empty() && peak <= LIMIT,
    })
}

/// Blobs of one size that differ only in their suffix, so that the benchmark hashes the common part
/// only once.
#[derive(Clone)]
struct Blobs {
    pattern: Arc<Vec<Bytes>>,
    size: u64,
    prefix_hasher: DigestHasher,
}

impl Blobs {
    fn new(size: u64) -> Result<Self, CommandError> {
        let pattern: Arc<Vec<Bytes>> = Arc::new(
            SyntheticImage {
                size: PATTERN_LEN,
                rng_seed: 0,
            }
            .layer_bytes()
            .collect(),
        );
        let too_small = || {
            CommandError::failed(
                "generate blobs",
                "--size is smaller than the unique suffix of a blob",
            )
        };
        let prefix_len = size
            .checked_sub(suffix(0).len() as u64)
            .ok_or_else(too_small)?;
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        repeat(&pattern, prefix_len).for_each(|buffer| hasher.update(&buffer));
        Ok(Self {
            pattern,
            size,
            prefix_hasher: hasher,
        })
    }

    async fn upload(self, client: RegistryClient, number: u32) -> Result<(), String> {
        let suffix = suffix(number);
        let mut hasher = self.prefix_hasher;
        hasher.update(&suffix);
        let pattern = Arc::clone(&self.pattern);
        let bytes = repeat(&pattern, self.size - suffix.len() as u64).collect::<Vec<_>>();
        let bytes = stream::iter(
            bytes
                .into_iter()
                .chain([suffix])
                .map(Ok::<_, std::io::Error>),
        );
        let uploaded = client
            .upload(&hasher.finish(), self.size, Body::wrap_stream(bytes))
            .await;
        uploaded.map_err(with_causes)
    }
}

/// The unique suffix of a blob.
fn suffix(number: u32) -> Bytes {
    Bytes::from(format!("{number:032}"))
}

/// `len` bytes that repeat the pattern, without copying.
fn repeat(pattern: &[Bytes], len: u64) -> impl Iterator<Item = Bytes> {
    pattern.iter().cycle().scan(len, |left, buffer| {
        let len = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
        *left -= len as u64;
        (len > 0).then(|| buffer.slice(..len))
    })
}

/// Repeats the pull of a blob until all uploads are done, at least once. A pull with pauses does
/// not finish then, but stops at once.
async fn pull(
    origin: Arc<OriginProcess>,
    url: String,
    size: u64,
    pause: Option<Duration>,
    state: Arc<LoadState>,
) -> Result<(), String> {
    loop {
        let response = origin
            .http()
            .get(&url)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        let mut response = response.map_err(with_causes)?;
        let mut received = 0;
        while let Some(buffer) = response.chunk().await.map_err(with_causes)? {
            received += buffer.len() as u64;
            state
                .pulled_bytes
                .fetch_add(buffer.len() as u64, Ordering::Relaxed);
            if let Some(pause) = pause {
                if state.uploads_done.load(Ordering::Relaxed) {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
            }
        }
        if received != size {
            return Err(format!("received {received} of {size} bytes"));
        }
        state.pulls_finished.fetch_add(1, Ordering::Relaxed);
        if state.uploads_done.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// The text of an error with all its causes.
fn with_causes(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Waits for all clients and returns their errors.
async fn errors_of(mut clients: JoinSet<Result<(), String>>) -> Vec<String> {
    let mut errors = Vec::new();
    while let Some(joined) = clients.join_next().await {
        errors.extend(joined.unwrap_or_else(|error| Err(error.to_string())).err());
    }
    errors
}

/// Samples the anonymous memory until the uploads are done, and returns the peak.
async fn sample_memory(process: Process, state: Arc<LoadState>) -> Result<ByteSize, CommandError> {
    let mut peak = ByteSize(0);
    while !state.uploads_done.load(Ordering::Relaxed) {
        peak = peak.max(process.anonymous_resident()?);
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
    Ok(peak)
}

/// Repeats `work` until the uploads are done or the measurement was dropped.
fn repeat_while_uploading(state: &Weak<LoadState>, work: impl Fn()) {
    while state
        .upgrade()
        .is_some_and(|state| !state.uploads_done.load(Ordering::Relaxed))
    {
        work();
        std::thread::sleep(EVICTION_INTERVAL);
    }
}

/// Evicts a folder's files from the page cache. Files that were moved meanwhile are skipped.
fn evict(folder: &Path) {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(file) = std::fs::File::open(path) {
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            }
        }
    }
}

fn summary(outcome: &Outcome) -> String {
    let verdict = if outcome.ok { "ok" } else { "failed" };
    format!(
        "uploads          {} of {} at once, {:.1} s\n\
         pulls            {} at once, one in {} slow; {} finished, {}\n\
         errors           {}\n\
         peak anonymous   {}\n\
         peak resident    {} (limit {})\n\
         result           {verdict}\n",
        outcome.uploads,
        ByteSize(outcome.upload_bytes),
        outcome.seconds,
        outcome.pulls,
        outcome.slow_one_in,
        outcome.pulls_finished,
        ByteSize(outcome.pulled_bytes),
        outcome.errors,
        ByteSize(outcome.peak_anonymous_bytes),
        ByteSize(outcome.peak_resident_bytes),
        ByteSize(outcome.limit_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_have_the_requested_size_and_unique_suffixes() {
        let pattern = [Bytes::from_static(b"abc"), Bytes::from_static(b"de")];
        let whole: Vec<u8> = repeat(&pattern, 9).flatten().collect();
        assert_eq!(whole, b"abcdeabcd");
        assert_ne!(suffix(1), suffix(2));
        assert_eq!(suffix(1).len(), suffix(999).len());
    }
}

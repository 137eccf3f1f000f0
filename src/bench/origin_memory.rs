//! `flotilla bench origin-memory`: what an origin has in memory under many uploads and pulls at
//! once.
//!
//! All uploads begin together, each of a blob that nobody has, and so do all pulls, over a
//! connection each. A pull that was answered is followed by the next one until all uploads are
//! done; one in ten is slow (or as many as one wants): it takes a piece, waits, and takes the next
//! one, as a machine with a bad link does. Meanwhile the files of a local storage are taken out of
//! the page cache every second, so that much of what is pulled comes from the disk. What counts is
//! the peak of the origin's resident memory as the kernel keeps it (`VmHWM`, proc_pid_status(5));
//! that part of it that is no file's (`RssAnon`) is shown beside it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, value_parser};
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::units::ByteSize;
use futures_util::stream;
use reqwest::Body;
use serde::Serialize;
use tokio::task::JoinSet;

use super::content::Content;
use super::origin::{OriginPlan, OriginProcess};
use super::process::Process;
use super::room;
use crate::cli::{CommandError, conclude};
use crate::client::RegistryClient;

/// What an origin may have in memory at most.
const LIMIT: ByteSize = ByteSize(256 << 20);
/// Bytes that are made; a blob repeats them up to its last few, which are its own.
const PATTERN_LEN: u64 = 16 << 20;
/// Blobs that are pulled.
const IMAGES: u64 = 8;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
const EVICT_EVERY: Duration = Duration::from_secs(1);

/// The arguments of `flotilla bench origin-memory`.
#[derive(Debug, Args)]
pub(super) struct OriginMemoryArgs {
    /// Uploads at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=1000))]
    uploads: u32,
    /// Bytes of each upload; the temporary folder needs all of them
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 30))]
    size: ByteSize,
    /// Pulls at once
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(0..=10_000))]
    pulls: u32,
    /// Bytes of each blob that is pulled
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(16 << 20))]
    pull_size: ByteSize,
    /// One in so many pulls is slow; the more, the more is kept for them, and the less time the
    /// others take from uploads
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..))]
    slow_one_in: u32,
    /// What a slow pull waits between two pieces, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = value_parser!(u64).range(1..=60_000))]
    slow_pause_ms: u64,
    /// The origin's storage, which keeps what was pushed; a folder that is deleted afterwards
    /// without it
    #[arg(long, value_name = "URL")]
    storage: Option<String>,
    /// Over HTTPS
    #[arg(long)]
    tls: bool,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Outcome {
    uploads: u32,
    upload_bytes: u64,
    pulls: u32,
    slow_one_in: u32,
    /// Pulls that got all bytes.
    pulls_finished: u64,
    pulled_bytes: u64,
    seconds: f64,
    errors: u64,
    peak_anonymous_bytes: u64,
    peak_resident_bytes: u64,
    limit_bytes: u64,
    ok: bool,
}

/// What clients saw, and whether pulls go on.
#[derive(Debug, Default)]
struct Shared {
    uploaded: AtomicBool,
    pulls_finished: AtomicU64,
    pulled_bytes: AtomicU64,
}

/// Runs the benchmark.
pub(super) async fn run(args: OriginMemoryArgs) -> Result<(), CommandError> {
    if args.storage.is_none() {
        room::for_bytes(u64::from(args.uploads).saturating_mul(args.size.0))?;
    }
    let plan = OriginPlan {
        storage: args.storage.clone(),
        tls: args.tls,
    };
    let origin = Arc::new(OriginProcess::start(plan).await?);
    let mut images = Vec::new();
    for rng_seed in 1..=IMAGES {
        let image = Content {
            size: args.pull_size.0,
            rng_seed,
        }
        .push(&origin.client()?, "pulled")
        .await;
        images.push(
            image
                .map_err(|error| CommandError::failed("push what is pulled", error))?
                .layer,
        );
    }
    let outcome = measure(&origin, &args, &images).await?;
    conclude(&outcome, args.json, summary, outcome.ok)
}

async fn measure(
    origin: &Arc<OriginProcess>,
    args: &OriginMemoryArgs,
    images: &[Digest],
) -> Result<Outcome, CommandError> {
    let blobs = Blobs::new(args.size.0)?;
    let shared = Arc::new(Shared::default());
    let sampling = tokio::spawn(sample(origin.process(), Arc::clone(&shared)));
    let evicting = origin.storage().map(|folder| {
        let (folder, shared) = (folder.to_owned(), Arc::downgrade(&shared));
        std::thread::spawn(move || while_uploading(&shared, || evict(&folder)))
    });
    let started = Instant::now();
    let (mut uploads, mut pulls) = (JoinSet::new(), JoinSet::new());
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
            Arc::clone(&shared),
        ));
    }
    let mut errors = failures(uploads).await;
    let seconds = started.elapsed().as_secs_f64();
    shared.uploaded.store(true, Ordering::Relaxed);
    errors.extend(failures(pulls).await);
    let peak_anonymous = sampling
        .await
        .map_err(|error| CommandError::failed("sample the memory", error))??;
    if let Some(evicting) = evicting {
        evicting
            .join()
            .map_err(|_| CommandError::failed("empty the page cache", "its thread panicked"))?;
    }
    if let Some(error) = errors.first() {
        eprintln!(
            "the first of {} errors: {error}; the origin's log:\n{}",
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
        pulls_finished: shared.pulls_finished.load(Ordering::Relaxed),
        pulled_bytes: shared.pulled_bytes.load(Ordering::Relaxed),
        seconds,
        errors: errors.len() as u64,
        peak_anonymous_bytes: peak_anonymous.0,
        peak_resident_bytes: peak.0,
        limit_bytes: LIMIT.0,
        ok: errors.is_empty() && peak <= LIMIT,
    })
}

/// Blobs that are all of one length and differ at their ends, so that a machine that measures need
/// not hash them all.
#[derive(Clone)]
struct Blobs {
    pattern: Arc<Vec<Bytes>>,
    size: u64,
    before_end: DigestHasher,
}

impl Blobs {
    fn new(size: u64) -> Result<Self, CommandError> {
        let pattern: Arc<Vec<Bytes>> = Arc::new(
            Content {
                size: PATTERN_LEN,
                rng_seed: 0,
            }
            .pieces()
            .collect(),
        );
        let too_short = || CommandError::failed("make blobs", "they are too short to differ");
        let before_end = size
            .checked_sub(ending(0).len() as u64)
            .ok_or_else(too_short)?;
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        repeated(&pattern, before_end).for_each(|piece| hasher.update(&piece));
        Ok(Self {
            pattern,
            size,
            before_end: hasher,
        })
    }

    async fn upload(self, client: RegistryClient, number: u32) -> Result<(), String> {
        let ending = ending(number);
        let mut hasher = self.before_end;
        hasher.update(&ending);
        let pattern = Arc::clone(&self.pattern);
        let bytes = repeated(&pattern, self.size - ending.len() as u64).collect::<Vec<_>>();
        let bytes = stream::iter(
            bytes
                .into_iter()
                .chain([ending])
                .map(Ok::<_, std::io::Error>),
        );
        let uploaded = client
            .upload(&hasher.finish(), self.size, Body::wrap_stream(bytes))
            .await;
        uploaded.map_err(told)
    }
}

fn ending(number: u32) -> Bytes {
    Bytes::from(format!("{number:032}"))
}

/// `len` bytes of the pattern again and again, none of them copied.
fn repeated(pattern: &[Bytes], len: u64) -> impl Iterator<Item = Bytes> {
    pattern.iter().cycle().scan(len, |left, piece| {
        let now = usize::try_from(*left).map_or(piece.len(), |left| left.min(piece.len()));
        *left -= now as u64;
        (now > 0).then(|| piece.slice(..now))
    })
}

/// Pulls a blob until all uploads are done, at least once; one that pauses is slow, and leaves
/// then, wherever it is.
async fn pull(
    origin: Arc<OriginProcess>,
    url: String,
    size: u64,
    pause: Option<Duration>,
    shared: Arc<Shared>,
) -> Result<(), String> {
    loop {
        let answer = origin
            .http()
            .get(&url)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        let mut answer = answer.map_err(told)?;
        let mut got = 0;
        while let Some(piece) = answer.chunk().await.map_err(told)? {
            got += piece.len() as u64;
            shared
                .pulled_bytes
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
            if let Some(pause) = pause {
                if shared.uploaded.load(Ordering::Relaxed) {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
            }
        }
        if got != size {
            return Err(format!("{got} bytes came of {size}"));
        }
        shared.pulls_finished.fetch_add(1, Ordering::Relaxed);
        if shared.uploaded.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// An error with all its causes.
fn told(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

async fn failures(mut clients: JoinSet<Result<(), String>>) -> Vec<String> {
    let mut failures = Vec::new();
    while let Some(done) = clients.join_next().await {
        failures.extend(
            done.unwrap_or_else(|stopped| Err(stopped.to_string()))
                .err(),
        );
    }
    failures
}

/// The most memory that was no file's.
async fn sample(process: Process, shared: Arc<Shared>) -> Result<ByteSize, CommandError> {
    let mut most = ByteSize(0);
    while !shared.uploaded.load(Ordering::Relaxed) {
        most = most.max(process.anonymous_resident()?);
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
    Ok(most)
}

/// Also ends when the measurement was dropped.
fn while_uploading(shared: &Weak<Shared>, work: impl Fn()) {
    while shared
        .upgrade()
        .is_some_and(|shared| !shared.uploaded.load(Ordering::Relaxed))
    {
        work();
        std::thread::sleep(EVICT_EVERY);
    }
}

/// Takes what is on disk already out of the page cache. What cannot be opened any more was moved
/// meanwhile.
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
    let verdict = if outcome.ok { "ok" } else { "NOT OK" };
    format!(
        "uploads          {} of {} at once, {:.1} s\n\
         pulls            {} at once, one in {} of them slow, {} finished, {}\n\
         errors           {}\n\
         heap and stacks  {} at most\n\
         peak resident    {}, at most {} is wanted: {verdict}\n",
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
    fn blobs_have_their_length_and_differ_at_the_end() {
        let pattern = [Bytes::from_static(b"abc"), Bytes::from_static(b"de")];
        let whole: Vec<u8> = repeated(&pattern, 9).flatten().collect();
        assert_eq!(whole, b"abcdeabcd");
        assert_ne!(ending(1), ending(2));
        assert_eq!(ending(1).len(), ending(999).len());
    }
}

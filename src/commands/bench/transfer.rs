//! `flotilla bench transfer`: one peer to another, disk to verified disk, against a bare QUIC
//! stream of the same bytes.
//!
//! Sender and receiver are child processes. A transfer's time runs from the request for the
//! manifest at the receiver's mirror until the receiver reports the whole blob with its digest
//! verified, so it includes the proofs, the announce, the handout and the dial. The bare stream
//! sends the same bytes from memory and discards them. Both alternate; the medians are printed.
//!
//! Before each transfer the page cache is warmed up ([`super::page_cache`]), and the time to write
//! the bytes to a file and to hash them is measured, on one thread: work that a transfer has and
//! the bare stream has not.

use std::time::{Duration, Instant};
use std::{env, io};

use bytes::Bytes;
use clap::{Args, value_parser};
use flotilla_common::bounds::percentile;
use flotilla_common::units::ByteSize;
use serde::Serialize;

use super::{page_cache, quic_baseline};
use crate::command::{CommandError, print_outcome};
use crate::measure::{PeerProcess, PushedImage, SyntheticImage, Testbed, require_disk_space};

/// The criterion: the least share of the bare stream's throughput.
const MIN_RATIO: f64 = 0.9;
/// With a smaller share of bytes from the sender it was no transfer between peers.
const MIN_SHARE_FROM_SENDER: f64 = 0.999;
const TAG: &str = "v1";
const RNG_SEED: u64 = 1;
const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

/// The arguments of `flotilla bench transfer`.
#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// Size of the blob; it must fit into memory
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 30))]
    size: ByteSize,
    /// Number of rounds; the medians are reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    mib_s: f64,
    plain_quinn_mib_s: f64,
    ratio: f64,
    cpu_s_per_gib_sender: f64,
    cpu_s_per_gib_receiver: f64,
    disk_write_s_per_gib: f64,
    sha256_s_per_gib: f64,
}

/// One transfer.
struct Transfer {
    elapsed: Duration,
    sender_cpu: Duration,
    receiver_cpu: Duration,
    local_work: LocalWork,
}

/// The time of a transfer's work on one machine, measured by itself.
#[derive(Clone, Copy)]
struct LocalWork {
    write: Duration,
    hash: Duration,
}

/// Runs the benchmark.
pub(super) async fn run(args: TransferArgs) -> Result<(), CommandError> {
    let size = args.size.0;
    // At the origin, the sender and the receiver, and in the page cache's file.
    require_disk_space(size.saturating_mul(4))?;
    let program =
        env::current_exe().map_err(|error| CommandError::failed("find this program", error))?;
    let testbed = Testbed::start(program).await?;
    let image = SyntheticImage {
        size,
        rng_seed: RNG_SEED,
    };
    let pushed = image.push(&testbed.origin()?, TAG).await;
    let pushed = pushed.map_err(|error| CommandError::failed("push the blob", error))?;
    let sender = testbed.start_peer("sender").await?;
    testbed.start_pull(&sender, &pushed).await?;
    testbed.wait_until_complete(&sender, &[pushed]).await?;
    let bytes: Vec<Bytes> = image.layer_bytes().collect();

    let mut baselines = Vec::new();
    let mut transfers = Vec::new();
    for round in 0..args.rounds {
        let baseline = measure_baseline(bytes.clone()).await?;
        let receiver = testbed.start_peer(&format!("receiver-{round}")).await?;
        let (warm_pages, local_work) = prepare(&testbed, bytes.clone()).await?;
        let transfer = transfer(&testbed, &sender, receiver, &pushed, local_work).await?;
        drop(warm_pages);
        if !args.json {
            eprintln!(
                "round {}: {:.0} MiB/s, bare QUIC {:.0} MiB/s, file write {:.0} MiB/s",
                round + 1,
                mib_per_second(size, transfer.elapsed.as_secs_f64()),
                mib_per_second(size, baseline.as_secs_f64()),
                mib_per_second(size, local_work.write.as_secs_f64()),
            );
        }
        baselines.push(baseline);
        transfers.push(transfer);
    }
    let outcome = outcome(size, &baselines, &transfers);
    print_outcome(&outcome, args.json, summary, outcome.ratio >= MIN_RATIO)
}

/// Warms up the page cache, and measures the local work on the bytes.
async fn prepare(
    testbed: &Testbed,
    bytes: Vec<Bytes>,
) -> Result<(page_cache::FragmentingFile, LocalWork), CommandError> {
    let dir = testbed.dir().to_owned();
    let size = bytes.iter().map(|buffer| buffer.len() as u64).sum();
    let work = move || {
        let warm_pages = page_cache::warm_up(&dir, size)?;
        let (write, hash) = page_cache::time_write_and_hash(&dir, &bytes)?;
        Ok((warm_pages, LocalWork { write, hash }))
    };
    let joined = tokio::task::spawn_blocking(work).await;
    joined
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| CommandError::failed("write temporary files", error))
}

/// A new peer fetches the blob from the sender.
async fn transfer(
    testbed: &Testbed,
    sender: &PeerProcess,
    receiver: PeerProcess,
    image: &PushedImage,
    local_work: LocalWork,
) -> Result<Transfer, CommandError> {
    let sender_before = sender.process().cpu_time()?;
    let receiver_before = receiver.process().cpu_time()?;
    let started = Instant::now();
    testbed.start_pull(&receiver, image).await?;
    let stats = testbed
        .wait_until_complete(&receiver, std::slice::from_ref(image))
        .await?;
    let elapsed = started.elapsed();
    let transfer = Transfer {
        elapsed,
        sender_cpu: sender.process().cpu_time()?.saturating_sub(sender_before),
        receiver_cpu: receiver
            .process()
            .cpu_time()?
            .saturating_sub(receiver_before),
        local_work,
    };
    receiver.remove()?;
    if (stats.bytes_from_peers as f64) < image.size as f64 * MIN_SHARE_FROM_SENDER {
        let why = format!("{} bytes came from the origin", stats.bytes_from_origin);
        return Err(CommandError::failed(
            "measure a transfer between peers",
            why,
        ));
    }
    Ok(transfer)
}

async fn measure_baseline(bytes: Vec<Bytes>) -> Result<Duration, CommandError> {
    let joined = tokio::task::spawn_blocking(move || quic_baseline::measure(bytes)).await;
    joined.map_err(|error| CommandError::failed("send a bare QUIC stream", error))?
}

fn outcome(size: u64, baselines: &[Duration], transfers: &[Transfer]) -> Outcome {
    let per_gib =
        |time: fn(&Transfer) -> Duration| median_s(transfers.iter().map(time)) * GIB / size as f64;
    let mib_s = mib_per_second(
        size,
        median_s(transfers.iter().map(|transfer| transfer.elapsed)),
    );
    let plain_quinn_mib_s = mib_per_second(size, median_s(baselines.iter().copied()));
    Outcome {
        mib_s,
        plain_quinn_mib_s,
        ratio: mib_s / plain_quinn_mib_s,
        cpu_s_per_gib_sender: per_gib(|transfer| transfer.sender_cpu),
        cpu_s_per_gib_receiver: per_gib(|transfer| transfer.receiver_cpu),
        disk_write_s_per_gib: per_gib(|transfer| transfer.local_work.write),
        sha256_s_per_gib: per_gib(|transfer| transfer.local_work.hash),
    }
}

fn mib_per_second(size: u64, seconds: f64) -> f64 {
    size as f64 / MIB / seconds
}

/// The median in seconds.
fn median_s(values: impl Iterator<Item = Duration>) -> f64 {
    let mut values: Vec<_> = values.map(|value| value.as_secs_f64()).collect();
    values.sort_unstable_by(f64::total_cmp);
    percentile(&values, 0.5)
}

fn summary(outcome: &Outcome) -> String {
    format!(
        "peer to peer     {:.0} MiB/s, disk to verified disk\n\
         bare QUIC        {:.0} MiB/s, memory to memory\n\
         ratio            {:.3} (minimum {MIN_RATIO})\n\
         CPU time         sender {:.2} s/GiB, receiver {:.2} s/GiB\n\
         without network  file write {:.2} s/GiB, SHA-256 {:.2} s/GiB, on one thread\n",
        outcome.mib_s,
        outcome.plain_quinn_mib_s,
        outcome.ratio,
        outcome.cpu_s_per_gib_sender,
        outcome.cpu_s_per_gib_receiver,
        outcome.disk_write_s_per_gib,
        outcome.sha256_s_per_gib,
    )
}

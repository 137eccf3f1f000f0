//! `flotilla bench transfer`: one peer to another, disk to verified disk, beside a plain QUIC
//! stream of the same bytes.
//!
//! Sender and receiver are processes of their own. The time of a transfer goes from the request for
//! the manifest at the receiver's mirror, so it has the proofs, the announce, the handout and the
//! dial in it, to the moment at which the receiver says that it holds the whole blob and has
//! checked its digest. The plain stream carries the same bytes from memory and drops them. Rounds
//! alternate; medians are told.
//!
//! Before each transfer the page cache is brought into the state that it has after hours of work
//! (see [`super::page_cache`]), and the bytes are once written to a file and hashed on one thread.
//! That is told for comparison: it is work that the plain stream has not.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, value_parser};
use flotilla_common::figures::percentile;
use flotilla_common::units::ByteSize;
use serde::Serialize;

use super::content::{Content, Pushed};
use super::peers::{Field, PeerProcess};
use super::{page_cache, plain, room};
use crate::cli::{CommandError, conclude};

/// What a transfer must have of the plain stream's rate.
const LEAST_RATIO: f64 = 0.9;
/// Of the bytes, what must have come from the sender for it to be a transfer between peers.
const LEAST_FROM_SENDER: f64 = 0.999;
const TAG: &str = "v1";
const RNG_SEED: u64 = 1;
const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

/// The arguments of `flotilla bench transfer`.
#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// Bytes of the blob; the plain stream has them in memory
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 30))]
    size: ByteSize,
    /// Transfers and plain streams, in turn; the medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// What is printed.
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
    took: Duration,
    sender_cpu: Duration,
    receiver_cpu: Duration,
    /// What writing the bytes to a file took, and hashing them.
    work: Work,
}

/// Work on a blob's bytes that has nothing to do with the network.
#[derive(Clone, Copy)]
struct Work {
    write: Duration,
    hash: Duration,
}

/// Runs the benchmark.
pub(super) async fn run(args: TransferArgs) -> Result<(), CommandError> {
    let size = args.size.0;
    // At the origin, the sender and the receiver, and what keeps the page cache warm.
    room::for_bytes(size.saturating_mul(4))?;
    let field = Field::start().await?;
    let content = Content {
        size,
        rng_seed: RNG_SEED,
    };
    let image = content.push(&field.origin()?, TAG).await;
    let image = image.map_err(|error| CommandError::failed("push the blob", error))?;
    let sender = field.peer("sender").await?;
    field.want(&sender, &image).await?;
    field.complete(&sender, &[image]).await?;
    let bytes: Vec<Bytes> = content.pieces().collect();

    let (mut plain, mut transfers) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let carried = carry_plain(bytes.clone()).await?;
        let receiver = field.peer(&format!("receiver-{round}")).await?;
        let (warm, work) = prepare(&field, bytes.clone()).await?;
        let transferred = transfer(&field, &sender, receiver, &image, work).await?;
        drop(warm);
        if !args.json {
            eprintln!(
                "round {}: {:.0} MiB/s, plain {:.0} MiB/s, a file {:.0} MiB/s",
                round + 1,
                rate(size, transferred.took.as_secs_f64()),
                rate(size, carried.as_secs_f64()),
                rate(size, work.write.as_secs_f64()),
            );
        }
        plain.push(carried);
        transfers.push(transferred);
    }
    let outcome = outcome(size, &plain, &transfers);
    conclude(&outcome, args.json, summary, outcome.ratio >= LEAST_RATIO)
}

/// Brings the page cache into its state, and measures what the bytes cost without a network.
async fn prepare(
    field: &Field,
    bytes: Vec<Bytes>,
) -> Result<(page_cache::Warm, Work), CommandError> {
    let dir = field.dir().to_owned();
    let size = bytes.iter().map(|piece| piece.len() as u64).sum();
    let work = move || {
        let warm = page_cache::warm(&dir, size)?;
        let (write, hash) = page_cache::write_and_hash(&dir, &bytes)?;
        Ok((warm, Work { write, hash }))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)
        .flatten()
        .map_err(|error| CommandError::failed("write scratch files", error))
}

/// A fresh peer fetches the blob from the sender.
async fn transfer(
    field: &Field,
    sender: &PeerProcess,
    receiver: PeerProcess,
    image: &Pushed,
    work: Work,
) -> Result<Transfer, CommandError> {
    let (sender_before, receiver_before) =
        (sender.process().cpu_time()?, receiver.process().cpu_time()?);
    let started = Instant::now();
    field.want(&receiver, image).await?;
    let stats = field
        .complete(&receiver, std::slice::from_ref(image))
        .await?;
    let took = started.elapsed();
    let transfer = Transfer {
        took,
        sender_cpu: sender.process().cpu_time()?.saturating_sub(sender_before),
        receiver_cpu: receiver
            .process()
            .cpu_time()?
            .saturating_sub(receiver_before),
        work,
    };
    receiver.discard()?;
    if (stats.bytes_from_peers as f64) < image.size as f64 * LEAST_FROM_SENDER {
        let why = format!("{} bytes came from the origin", stats.bytes_from_origin);
        return Err(CommandError::failed(
            "measure a transfer between peers",
            why,
        ));
    }
    Ok(transfer)
}

async fn carry_plain(bytes: Vec<Bytes>) -> Result<Duration, CommandError> {
    let carried = tokio::task::spawn_blocking(move || plain::carry(bytes)).await;
    carried.map_err(|error| CommandError::failed("carry a plain stream", error))?
}

fn outcome(size: u64, plain: &[Duration], transfers: &[Transfer]) -> Outcome {
    let per_gib =
        |cpu: fn(&Transfer) -> Duration| median(transfers.iter().map(cpu)) * GIB / size as f64;
    let mib_s = rate(size, median(transfers.iter().map(|transfer| transfer.took)));
    let plain_quinn_mib_s = rate(size, median(plain.iter().copied()));
    Outcome {
        mib_s,
        plain_quinn_mib_s,
        ratio: mib_s / plain_quinn_mib_s,
        cpu_s_per_gib_sender: per_gib(|transfer| transfer.sender_cpu),
        cpu_s_per_gib_receiver: per_gib(|transfer| transfer.receiver_cpu),
        disk_write_s_per_gib: per_gib(|transfer| transfer.work.write),
        sha256_s_per_gib: per_gib(|transfer| transfer.work.hash),
    }
}

fn rate(size: u64, seconds: f64) -> f64 {
    size as f64 / MIB / seconds
}

/// The median in seconds.
fn median(values: impl Iterator<Item = Duration>) -> f64 {
    let mut values: Vec<_> = values.map(|value| value.as_secs_f64()).collect();
    values.sort_unstable_by(f64::total_cmp);
    percentile(&values, 0.5)
}

fn summary(outcome: &Outcome) -> String {
    format!(
        "peer to peer     {:.0} MiB/s, disk to verified disk\n\
         plain QUIC       {:.0} MiB/s, memory to memory\n\
         ratio            {:.3}, at least {LEAST_RATIO} is wanted\n\
         processor        sender {:.2} s/GiB, receiver {:.2} s/GiB\n\
         without network  a file written {:.2} s/GiB, SHA-256 {:.2} s/GiB, on one thread\n",
        outcome.mib_s,
        outcome.plain_quinn_mib_s,
        outcome.ratio,
        outcome.cpu_s_per_gib_sender,
        outcome.cpu_s_per_gib_receiver,
        outcome.disk_write_s_per_gib,
        outcome.sha256_s_per_gib,
    )
}

//! `flotilla-lab memory`: a peer's memory while it pulls many images at once.
//!
//! Half of the images are at another peer, the rest only at the origin. A client reads all of them
//! through the peer's mirror concurrently, as a container runtime would. The figure is the peak of
//! the peer's resident memory (`VmHWM`, proc_pid_status(5)): heap, stacks and program. The page
//! cache is not included, because the store maps no files.

use std::time::Instant;

use clap::{Args, value_parser};
use flotilla::command::{CommandError, print_outcome};
use flotilla::measure::{PeerProcess, PushedImage, SyntheticImage, Testbed, require_disk_space};
use flotilla_common::units::ByteSize;
use serde::Serialize;
use tokio::task::JoinSet;

use super::program::flotilla_program;

/// The criterion: a peer's resident memory must stay below this.
const LIMIT: ByteSize = ByteSize(128 << 20);

/// The arguments of `flotilla-lab memory`.
#[derive(Debug, Args)]
pub(crate) struct MemoryArgs {
    /// Images that are pulled concurrently
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..=100))]
    images: u32,
    /// Size of each image; the temporary folder needs 2.5 times the sum
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 30))]
    size: ByteSize,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    images: u32,
    image_bytes: u64,
    bytes_from_peers: u64,
    bytes_from_origin: u64,
    seconds: f64,
    peak_resident_bytes: u64,
    limit_bytes: u64,
    ok: bool,
}

/// Runs the benchmark.
pub(super) async fn run(args: MemoryArgs) -> Result<(), CommandError> {
    // All images at the origin and at the measured peer, half of them at its neighbour.
    let all = u64::from(args.images).saturating_mul(args.size.0);
    require_disk_space(all.saturating_mul(5) / 2)?;
    let testbed = Testbed::start(flotilla_program()?).await?;
    let origin = testbed.origin()?;
    let mut images = Vec::new();
    for number in 0..args.images {
        let image = SyntheticImage {
            size: args.size.0,
            rng_seed: u64::from(number) + 1,
        };
        let pushed = image.push(&origin, &tag(number)).await;
        images.push(pushed.map_err(|error| CommandError::failed("push an image", error))?);
    }
    let neighbour = testbed.start_peer("neighbour").await?;
    let shared = &images[..images.len() / 2];
    for image in shared {
        testbed.start_pull(&neighbour, image).await?;
    }
    testbed.wait_until_complete(&neighbour, shared).await?;

    let measured = testbed.start_peer("measured").await?;
    let outcome = pull_all(&testbed, &measured, &args, &images).await?;
    print_outcome(&outcome, args.json, summary, outcome.ok)
}

async fn pull_all(
    testbed: &Testbed,
    peer: &PeerProcess,
    args: &MemoryArgs,
    images: &[PushedImage],
) -> Result<Outcome, CommandError> {
    let started = Instant::now();
    let mut pulls = JoinSet::new();
    for number in 0..args.images {
        let client = testbed.mirror(peer)?;
        pulls.spawn(async move { client.pull(&tag(number), |_| {}).await });
    }
    while let Some(pulled) = pulls.join_next().await {
        let pulled = pulled.map_err(|error| CommandError::failed("pull an image", error))?;
        pulled.map_err(|error| CommandError::failed("pull an image", error))?;
    }
    let stats = testbed.wait_until_complete(peer, images).await?;
    let peak = peer.process().peak_resident()?;
    Ok(Outcome {
        images: args.images,
        image_bytes: args.size.0,
        bytes_from_peers: stats.bytes_from_peers,
        bytes_from_origin: stats.bytes_from_origin,
        seconds: started.elapsed().as_secs_f64(),
        peak_resident_bytes: peak.0,
        limit_bytes: LIMIT.0,
        ok: peak < LIMIT,
    })
}

fn tag(number: u32) -> String {
    format!("v{number}")
}

fn summary(outcome: &Outcome) -> String {
    format!(
        "images           {} of {}, {:.1} s\n\
         sources          {} from a peer, {} from the origin\n\
         peak resident    {} (limit {})\n",
        outcome.images,
        ByteSize(outcome.image_bytes),
        outcome.seconds,
        ByteSize(outcome.bytes_from_peers),
        ByteSize(outcome.bytes_from_origin),
        ByteSize(outcome.peak_resident_bytes),
        ByteSize(outcome.limit_bytes),
    )
}

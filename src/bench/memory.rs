//! `flotilla bench memory`: what a peer has in memory while it pulls many images at once.
//!
//! Half of the images are at another peer, the rest only at the origin. A client reads all of them
//! through the peer's mirror at the same time, as a runtime would. What counts is the peak of the
//! peer's resident memory as the kernel keeps it (`VmHWM`, proc_pid_status(5)): its heap, its
//! stacks and its program. The page cache is not in it, for the store maps no file.

use std::time::Instant;

use clap::{Args, value_parser};
use flotilla_common::units::ByteSize;
use serde::Serialize;
use tokio::task::JoinSet;

use super::content::{Content, Pushed};
use super::peers::{Field, PeerProcess};
use super::room;
use crate::cli::{CommandError, conclude};

/// What a peer may have in memory at most.
const LIMIT: ByteSize = ByteSize(128 << 20);

/// The arguments of `flotilla bench memory`.
#[derive(Debug, Args)]
pub(super) struct MemoryArgs {
    /// Images that are pulled at once
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..=100))]
    images: u32,
    /// Bytes of each image; the temporary folder needs two and a half times all of them
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 30))]
    size: ByteSize,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// What is printed.
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
    // All at the origin and at the peer, half of them at its neighbour.
    room::for_bytes(
        u64::from(args.images)
            .saturating_mul(args.size.0)
            .saturating_mul(5)
            / 2,
    )?;
    let field = Field::start().await?;
    let origin = field.origin()?;
    let mut images = Vec::new();
    for number in 0..args.images {
        let content = Content {
            size: args.size.0,
            rng_seed: u64::from(number) + 1,
        };
        let pushed = content.push(&origin, &tag(number)).await;
        images.push(pushed.map_err(|error| CommandError::failed("push an image", error))?);
    }
    let neighbour = field.peer("neighbour").await?;
    let shared = &images[..images.len() / 2];
    for image in shared {
        field.want(&neighbour, image).await?;
    }
    field.complete(&neighbour, shared).await?;

    let outcome = pull_all(&field, &field.peer("measured").await?, &args, &images).await?;
    conclude(&outcome, args.json, summary, outcome.ok)
}

async fn pull_all(
    field: &Field,
    peer: &PeerProcess,
    args: &MemoryArgs,
    images: &[Pushed],
) -> Result<Outcome, CommandError> {
    let started = Instant::now();
    let mut pulls = JoinSet::new();
    for number in 0..args.images {
        let client = field.mirror(peer)?;
        pulls.spawn(async move { client.pull(&tag(number), |_| {}).await });
    }
    while let Some(pulled) = pulls.join_next().await {
        let pulled = pulled.map_err(|error| CommandError::failed("pull an image", error))?;
        pulled.map_err(|error| CommandError::failed("pull an image", error))?;
    }
    let stats = field.complete(peer, images).await?;
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
         from             {} from a peer, {} from the origin\n\
         peak resident    {}, less than {} is wanted\n",
        outcome.images,
        ByteSize(outcome.image_bytes),
        outcome.seconds,
        ByteSize(outcome.bytes_from_peers),
        ByteSize(outcome.bytes_from_origin),
        ByteSize(outcome.peak_resident_bytes),
        ByteSize(outcome.limit_bytes),
    )
}

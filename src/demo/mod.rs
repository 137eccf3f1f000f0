//! `flotilla demo`: a region in this process, one image, and all peers pull it at once.

mod outcome;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use clap::value_parser;
use flotilla_common::chunk::Geometry;
use flotilla_common::name::NameError;
use flotilla_common::units::{BitRate, ByteSize};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use outcome::Setup;
use outcome::{Outcome, PeerOutcome};

use crate::cli::{CommandError, block_on, conclude};
use crate::client::{ClientError, Pulled, pick_platform, push_layout};
use crate::fleet::Fleet;
use crate::image::{self, Layout, LayoutError};
use crate::progress::Progress;
use crate::region::{PeerPlan, Region, RegionPlan, RunningPeer};

const REPOSITORY: &str = "demo";
const REGION: &str = "local";
const TAG: &str = "v1";
/// Seed of the image's bytes: every demonstration moves the same image.
const IMAGE_RNG_SEED: u64 = 1;
/// What all peers together are given by default: two cores move about that much.
const DEFAULT_TOTAL_RATE: u64 = 800_000_000;

/// The arguments of `flotilla demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Peers that pull at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=500))]
    peers: u32,
    /// Zones that the peers are spread over
    #[arg(long, value_name = "Z", default_value_t = 1, value_parser = value_parser!(u32).range(1..=100))]
    zones: u32,
    /// Bytes of the image that is made
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(256 << 20), conflicts_with = "image")]
    size: ByteSize,
    /// Use the image in this folder, an OCI layout as `skopeo copy ... oci:DIR` writes it
    #[arg(long, value_name = "OCI-LAYOUT")]
    image: Option<PathBuf>,
    /// Cap of the origin's uplink and of each peer's uplink and downlink [default: what 2 cores can
    /// move, shared]
    #[arg(long, value_name = "BITS")]
    rate: Option<BitRate>,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the region does not start or the image cannot be pushed; [`CommandError::NotOk`] if a pull
/// failed or the origin's budget was overdrawn.
pub fn run(args: DemoArgs) -> Result<(), CommandError> {
    block_on(demonstrate(args))
}

async fn demonstrate(args: DemoArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let dir = tempfile::tempdir()
        .map_err(|error| CommandError::failed("make a temporary folder", error))?;
    let rate = args
        .rate
        .unwrap_or(BitRate(DEFAULT_TOTAL_RATE / u64::from(args.peers)));
    let image = match &args.image {
        Some(image) => image.clone(),
        None => make_image(dir.path(), args.size).await?,
    };
    let fleet = Fleet::create(
        REGION
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the region", error))?,
    )
    .map_err(|error| CommandError::failed("make the fleet's keys", error))?;
    let mut region = Region::start(
        dir.path(),
        fleet,
        RegionPlan {
            rate: Some(rate),
            ..RegionPlan::default()
        },
    )
    .await?;
    for number in 0..args.peers {
        region
            .add_peer(PeerPlan::numbered(number + 1, number % args.zones + 1))
            .await?;
    }
    say(
        &args,
        format!(
            "region started: peers: {}, zones: {}, {rate} each",
            args.peers, args.zones
        ),
    );
    push_layout(&region.origin_url(), REPOSITORY, TAG, &image)
        .await
        .map_err(|error| CommandError::failed("push the image", error))?;
    let (image_bytes, image_chunks) =
        image_extent(&image).map_err(|error| CommandError::failed("read the image", error))?;
    say(
        &args,
        format!(
            "image pushed: {} in {image_chunks} chunks, {:.1} s",
            ByteSize(image_bytes),
            started.elapsed().as_secs_f64()
        ),
    );

    let peers = pull_everywhere(&region, image_bytes, args.json).await;
    let setup = Setup {
        peers: args.peers,
        zones: args.zones,
        image_bytes,
        image_chunks,
        rate,
    };
    let outcome = Outcome::of(&setup, &peers, region.origin_blob_bytes());
    region.shut_down().await;
    conclude(
        &outcome,
        args.json,
        |outcome| table::render(&peers, outcome),
        outcome.ok,
    )
}

/// Makes the image off the reactor; hashing some hundred MiB takes a while.
async fn make_image(dir: &Path, size: ByteSize) -> Result<PathBuf, CommandError> {
    let image = dir.join("image");
    let made = tokio::task::spawn_blocking({
        let image = image.clone();
        move || image::make(&image, size, IMAGE_RNG_SEED)
    });
    match made.await {
        Ok(Ok(())) => Ok(image),
        Ok(Err(error)) => Err(CommandError::failed("make the image", error)),
        Err(error) => Err(CommandError::failed("make the image", error)),
    }
}

/// Bytes and chunks of the blobs that a pull of the image moves.
fn image_extent(dir: &Path) -> Result<(u64, u32), LayoutError> {
    let layout = Layout::open(dir)?;
    let (_, mut manifest) = layout.manifest(&layout.image().digest)?;
    if let Some(platform) = pick_platform(&manifest).filter(|_| manifest.is_index()) {
        manifest = layout.manifest(&platform)?.1;
    }
    let blobs = manifest.blobs();
    let bytes = blobs.iter().map(|blob| blob.size).sum();
    let chunks = blobs
        .iter()
        .map(|blob| Geometry::for_size(blob.size).chunks())
        .sum();
    Ok((bytes, chunks))
}

/// All peers pull at the same moment; the rows of the table, in the peers' order.
async fn pull_everywhere(region: &Region, image_bytes: u64, quiet: bool) -> Vec<PeerOutcome> {
    let progress = Progress::new(quiet);
    let start = Arc::new(Barrier::new(region.peers().len()));
    let mut pulls = JoinSet::new();
    for (index, peer) in region.peers().iter().enumerate() {
        let shown = progress.pull(peer.id().as_str(), image_bytes);
        let client = region.mirror_client(index, REPOSITORY);
        let start = Arc::clone(&start);
        pulls.spawn(async move {
            start.wait().await;
            let pulled = async {
                let on_bytes = {
                    let shown = shown.clone();
                    move |bytes| shown.add(bytes)
                };
                client?.pull(TAG, on_bytes).await
            }
            .await;
            shown.finish(pulled.is_ok());
            (index, pulled)
        });
    }
    let mut results: Vec<_> = pulls.join_all().await;
    results.sort_by_key(|(index, _)| *index);
    results
        .into_iter()
        .zip(region.peers())
        .map(|((_, pulled), peer)| outcome_of(peer, pulled))
        .collect()
}

fn outcome_of(peer: &RunningPeer, pulled: Result<Pulled, ClientError>) -> PeerOutcome {
    let stats = peer.stats();
    PeerOutcome {
        id: peer.id().to_string(),
        zone: peer.zone().to_string(),
        first_byte: pulled
            .as_ref()
            .map_or(Duration::ZERO, |pulled| pulled.first_byte),
        total: pulled
            .map(|pulled| pulled.total)
            .map_err(|error| error.to_string()),
        from_peers: stats.bytes_from_peers,
        from_origin: stats.bytes_from_origin,
        from_store: stats.bytes_from_store,
    }
}

fn say(args: &DemoArgs, line: String) {
    if !args.json {
        eprintln!("{line}");
    }
}

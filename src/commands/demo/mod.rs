//! `flotilla demo`: starts a region in this process, whose peers all pull one image at once.

mod outcome;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use flotilla_common::chunk::Geometry;
use flotilla_common::name::NameError;
use flotilla_common::units::{BitRate, ByteSize};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use outcome::{Outcome, PeerOutcome, Setup};

use crate::client::{ClientError, PulledImage, pick_platform, push_layout};
use crate::command::{CommandError, block_on, print_outcome};
use crate::fleet::Fleet;
use crate::image::{self, Layout, LayoutError};
use crate::progress::Progress;
use crate::region::{PeerPlan, Region, RegionPlan, RunningPeer};

const REPOSITORY: &str = "demo";
const REGION: &str = "local";
const TAG: &str = "v1";
/// The seed of the image's bytes: all demonstrations use the same image.
const IMAGE_RNG_SEED: u64 = 1;
/// The default sum of all peers' rate limits, in bits per second: two cores can move that much.
const DEFAULT_TOTAL_RATE: u64 = 800_000_000;

/// The arguments of `flotilla demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Peers that pull concurrently
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=500))]
    peers: u32,
    /// Zones among which the peers are divided
    #[arg(long, value_name = "Z", default_value_t = 1, value_parser = value_parser!(u32).range(1..=100))]
    zones: u32,
    /// Size of the generated image
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(256 << 20), conflicts_with = "image")]
    size: ByteSize,
    /// The directory of an image to use instead: an OCI layout, from `skopeo copy ... oci:DIR`
    #[arg(long, value_name = "OCI-LAYOUT")]
    image: Option<PathBuf>,
    /// Rate limit of the origin's uplink and of each peer's uplink and downlink [default: 800Mbit
    /// divided by the number of peers, as much as 2 cores can move]
    #[arg(long, value_name = "BITS")]
    rate: Option<BitRate>,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the region does not start or the image cannot be pushed; [`CommandError::CriteriaNotMet`]
/// if a pull failed or the origin sent too many bytes.
pub fn run(args: DemoArgs) -> Result<(), CommandError> {
    block_on(demonstrate(args))
}

async fn demonstrate(args: DemoArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let dir = tempfile::tempdir()
        .map_err(|error| CommandError::failed("create a temporary directory", error))?;
    let rate = args
        .rate
        .unwrap_or(BitRate(DEFAULT_TOTAL_RATE / u64::from(args.peers)));
    let image = match &args.image {
        Some(image) => image.clone(),
        None => generate_image(dir.path(), args.size).await?,
    };
    let fleet = Fleet::create(
        REGION
            .parse()
            .map_err(|error: NameError| CommandError::failed("name the region", error))?,
    )
    .map_err(|error| CommandError::failed("create the fleet's keys", error))?;
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
    print_progress(
        &args,
        format!(
            "region started: {} peers, zones: {}, {rate} each",
            args.peers, args.zones
        ),
    );
    push_layout(&region.origin_url(), REPOSITORY, TAG, &image)
        .await
        .map_err(|error| CommandError::failed("push the image", error))?;
    let (image_bytes, image_chunks) =
        image_extent(&image).map_err(|error| CommandError::failed("read the image", error))?;
    print_progress(
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
    print_outcome(
        &outcome,
        args.json,
        |outcome| table::render(&peers, outcome),
        outcome.ok,
    )
}

/// Generates the image on a blocking thread: hashing it takes seconds.
async fn generate_image(dir: &Path, size: ByteSize) -> Result<PathBuf, CommandError> {
    let image = dir.join("image");
    let generated = tokio::task::spawn_blocking({
        let image = image.clone();
        move || image::generate(&image, size, IMAGE_RNG_SEED)
    });
    match generated.await {
        Ok(Ok(())) => Ok(image),
        Ok(Err(error)) => Err(CommandError::failed("generate the image", error)),
        Err(error) => Err(CommandError::failed("generate the image", error)),
    }
}

/// The number of bytes and chunks that a pull of the image transfers.
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

/// Pulls the image through all peers at the same time. Returns the outcomes in the peers' order.
async fn pull_everywhere(region: &Region, image_bytes: u64, quiet: bool) -> Vec<PeerOutcome> {
    let progress = Progress::new(quiet);
    let start = Arc::new(Barrier::new(region.peers().len()));
    let mut pulls = JoinSet::new();
    for (index, peer) in region.peers().iter().enumerate() {
        let progress = progress.add_pull(peer.id().as_str(), image_bytes);
        let client = region.mirror_client(index, REPOSITORY);
        let start = Arc::clone(&start);
        pulls.spawn(async move {
            start.wait().await;
            let pulled = async {
                let on_bytes = {
                    let progress = progress.clone();
                    move |bytes| progress.add_bytes(bytes)
                };
                client?.pull(TAG, on_bytes).await
            }
            .await;
            progress.finish(pulled.is_ok());
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

fn outcome_of(peer: &RunningPeer, pulled: Result<PulledImage, ClientError>) -> PeerOutcome {
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

fn print_progress(args: &DemoArgs, line: String) {
    if !args.json {
        eprintln!("{line}");
    }
}

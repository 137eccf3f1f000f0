//! `flotilla demo`: starts a region in this process, whose peers all pull one image at once. With
//! `--regions`, other regions copy the image first; with `--outage`, the storage of the peers'
//! region breaks when half of the bytes have been delivered.

mod outcome;
mod services;
mod table;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use flotilla_common::chunk::Geometry;
use flotilla_common::units::{BitRate, ByteSize};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use outcome::{Outcome, PeerOutcome, Sent, SentAtOutage, Setup};
use services::Services;

use crate::breakable_storage::Outage;
use crate::client::{ClientError, PulledImage, RegistryClient, pick_platform};
use crate::command::{CommandError, block_on, print_outcome};
use crate::image::{self, Layout, LayoutError};
use crate::measure::Delivery;
use crate::progress::Progress;
use crate::region::{PeerPlan, Region, RunningPeer};
use crate::regions::MAX_REGIONS;

const REPOSITORY: &str = "demo";
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
    /// Regions, each with an origin and a storage; all peers are in the first one
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = value_parser!(u32).range(1..=i64::from(MAX_REGIONS)))]
    regions: u32,
    /// Break the storage of the peers' region when half of the bytes have been delivered; needs
    /// --regions 2 [default form: hang]
    #[arg(long, value_name = "FORM", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "hang")]
    outage: Option<Outage>,
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
/// if a pull failed, the origin sent too many bytes or, with an outage, a pull stalled for too long
/// or too many bytes crossed between regions.
pub fn run(args: DemoArgs) -> Result<(), CommandError> {
    if args.outage.is_some() && args.regions == 1 {
        return Err(CommandError::failed(
            "break the storage of a region",
            "no other region could serve its peers; add --regions 2",
        ));
    }
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
    let mut services = Services::start(dir.path(), args.regions, rate).await?;
    for number in 0..args.peers {
        services
            .home_mut()
            .add_peer(PeerPlan::numbered(number + 1, number % args.zones + 1))
            .await?;
    }
    let started_line = match args.regions {
        1 => "region started".to_owned(),
        regions => format!("{regions} regions started"),
    };
    print_progress(
        &args,
        format!(
            "{started_line}: {} peers, zones: {}, {rate} each",
            args.peers, args.zones
        ),
    );
    let layout = open_layout(&image)?;
    let client = services.home().origin_client(REPOSITORY);
    push(client, &layout)
        .await
        .map_err(|error| CommandError::failed("push the image", error))?;
    let (image_bytes, image_chunks) =
        image_extent(&layout).map_err(|error| CommandError::failed("read the image", error))?;
    print_progress(
        &args,
        format!(
            "image pushed: {} in {image_chunks} chunks, {:.1} s",
            ByteSize(image_bytes),
            started.elapsed().as_secs_f64()
        ),
    );
    services
        .wait_until_copied(&layout, REPOSITORY, TAG, image_bytes)
        .await?;
    if args.regions > 1 {
        let elapsed = started.elapsed().as_secs_f64();
        print_progress(
            &args,
            format!("image copied to all regions: {elapsed:.1} s"),
        );
    }

    let before = services.sent_bytes();
    let delivery = Delivery::new();
    let (peers, at_outage) = pull_through(&services, &args, image_bytes, &delivery).await;
    let setup = Setup {
        peers: args.peers,
        zones: args.zones,
        image_bytes,
        image_chunks,
        rate,
        home: services.home().name().to_string(),
    };
    let sent = Sent {
        before,
        at_outage,
        after: services.sent_bytes(),
        longest_stall: delivery.longest_stall(),
    };
    let outcome = Outcome::of(&setup, &peers, &sent);
    services.shut_down().await;
    print_outcome(
        &outcome,
        args.json,
        |outcome| table::render(&peers, outcome),
        outcome.ok,
    )
}

/// Pulls the image through all peers, and breaks the storage meanwhile if the arguments say so.
async fn pull_through(
    services: &Services,
    args: &DemoArgs,
    image_bytes: u64,
    delivery: &Arc<Delivery>,
) -> (Vec<PeerOutcome>, Option<SentAtOutage>) {
    let mut pulls = pin!(pull_everywhere(
        services.home(),
        image_bytes,
        args.json,
        delivery
    ));
    let Some(outage) = args.outage else {
        return (pulls.await, None);
    };
    let half = image_bytes * u64::from(args.peers) / 2;
    tokio::select! {
        peers = &mut pulls => return (peers, None),
        () = delivery.wait_for(half) => {}
    }
    services.break_home(outage);
    let at_outage = SentAtOutage {
        outage,
        sent: services.sent_bytes(),
    };
    print_progress(
        args,
        format!("storage of {} broken: {outage}", services.home().name()),
    );
    (pulls.await, Some(at_outage))
}

fn open_layout(image: &Path) -> Result<Layout, CommandError> {
    Layout::open(image).map_err(|error| CommandError::failed("read the image", error))
}

async fn push(
    client: Result<RegistryClient, ClientError>,
    image: &Layout,
) -> Result<(), ClientError> {
    client?.push(image, TAG).await?;
    Ok(())
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
fn image_extent(layout: &Layout) -> Result<(u64, u32), LayoutError> {
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
async fn pull_everywhere(
    region: &Region,
    image_bytes: u64,
    quiet: bool,
    delivery: &Arc<Delivery>,
) -> Vec<PeerOutcome> {
    let progress = Progress::new(quiet);
    let start = Arc::new(Barrier::new(region.peers().len()));
    let mut pulls = JoinSet::new();
    for (index, peer) in region.peers().iter().enumerate() {
        let progress = progress.add_pull(peer.id().as_str(), image_bytes);
        let client = region.mirror_client(index, REPOSITORY);
        let (start, delivery) = (Arc::clone(&start), Arc::clone(delivery));
        pulls.spawn(async move {
            start.wait().await;
            let delivery = delivery.begin_pull();
            let pulled = async {
                let on_bytes = {
                    let (progress, delivery) = (progress.clone(), delivery.clone());
                    move |bytes| {
                        progress.add_bytes(bytes);
                        delivery.add_bytes(bytes);
                    }
                };
                client?.pull(TAG, on_bytes).await
            }
            .await;
            delivery.finish();
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

//! `flotilla-lab passthrough`: a pull through a peer that gets no help, compared with the same pull
//! straight from the origin.
//!
//! A peer must never make a pull slower than it is without a peer. The rate of the origin's uplink
//! is limited; the peer's links are not. In each round, a direct pull alternates with a pull in one
//! [`Handicap`]; the medians are printed. Every round starts a new peer with an empty store.

use std::path::Path;
use std::time::Duration;

use clap::{Args, value_parser};
use flotilla::client::{ClientError, PulledImage, RegistryClient, push_layout};
use flotilla::command::{CommandError, print_outcome};
use flotilla::fleet::Fleet;
use flotilla::image;
use flotilla::measure::require_disk_space;
use flotilla::region::{PeerPlan, Region, RegionPlan};
use flotilla_common::bounds::percentile;
use flotilla_common::units::{BitRate, ByteSize};
use serde::Serialize;
use tempfile::TempDir;

/// The criterion: a pull through the mirror takes at most this multiple of a direct pull's time,
/// plus [`MAX_DELAY_S`].
const MAX_RATIO: f64 = 1.1;
/// See [`MAX_RATIO`]; in seconds.
const MAX_DELAY_S: f64 = 0.25;
const REPOSITORY: &str = "library/app";
const TAG: &str = "v1";

/// The arguments of `flotilla-lab passthrough`.
#[derive(Debug, Args)]
pub(crate) struct PassthroughArgs {
    /// Size of the image
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(256 << 20))]
    size: ByteSize,
    /// Rate limit of the origin's uplink
    #[arg(long, value_name = "BITS", default_value_t = BitRate(1_000_000_000))]
    rate: BitRate,
    /// Number of rounds; the medians are reported
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// What the peer lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handicap {
    /// No tracker, no neighbour, and a store with a quota of 0.
    Everything,
    /// No tracker and no neighbour.
    Tracker,
    /// The tracker names other peers, but all of them are down.
    Neighbours,
}

/// The medians of direct pulls and of pulls through the mirror.
#[derive(Clone, Copy, Debug, Serialize)]
struct Pair {
    direct_s: f64,
    mirror_s: f64,
    ratio: f64,
    direct_first_byte_s: f64,
    mirror_first_byte_s: f64,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Without tracker, neighbours and store.
    without_everything: Pair,
    /// Without tracker and neighbours.
    without_tracker: Pair,
    /// With neighbours that are down.
    with_dead_neighbours: Pair,
    ok: bool,
}

/// Runs the benchmark.
pub(super) async fn run(args: PassthroughArgs) -> Result<(), CommandError> {
    // As a layout, at an origin and at a peer.
    require_disk_space(args.size.0.saturating_mul(3))?;
    let dir =
        TempDir::new().map_err(|error| CommandError::failed("create a temporary folder", error))?;
    let layout = dir.path().join("image");
    image::generate(&layout, args.size, 1)
        .map_err(|error| CommandError::failed("generate an image", error))?;
    let mut pairs = Vec::new();
    for handicap in [
        Handicap::Everything,
        Handicap::Tracker,
        Handicap::Neighbours,
    ] {
        pairs.push(
            measure(
                &dir.path().join(format!("{handicap:?}")),
                &layout,
                handicap,
                &args,
            )
            .await?,
        );
    }
    let [without_everything, without_tracker, with_dead_neighbours] = pairs[..] else {
        return Err(CommandError::failed("measure", "a kind of pull is missing"));
    };
    let is_good = |pair: &Pair| pair.mirror_s <= pair.direct_s * MAX_RATIO + MAX_DELAY_S;
    let outcome = Outcome {
        without_everything,
        without_tracker,
        with_dead_neighbours,
        ok: pairs.iter().all(is_good),
    };
    print_outcome(&outcome, args.json, summary, outcome.ok)
}

/// The medians of pulls in one handicap, and of direct pulls between them.
async fn measure(
    dir: &Path,
    layout: &Path,
    handicap: Handicap,
    args: &PassthroughArgs,
) -> Result<Pair, CommandError> {
    let name = "local"
        .parse()
        .map_err(|error| CommandError::failed("name the region", format!("{error}")))?;
    let fleet = Fleet::create(name)
        .map_err(|error| CommandError::failed("create the fleet's keys", error))?;
    let plan = RegionPlan {
        rate: Some(args.rate),
        ..RegionPlan::default()
    };
    let mut region = Region::start(dir, fleet, plan).await?;
    push_layout(&region.origin_url(), REPOSITORY, TAG, layout)
        .await
        .map_err(failed)?;
    prepare(&mut region, handicap).await?;
    let mut direct = Vec::new();
    let mut mirror = Vec::new();
    for round in 0..args.rounds {
        let repository = REPOSITORY
            .parse()
            .map_err(|error| CommandError::failed("name the repository", format!("{error}")))?;
        let origin = RegistryClient::new(region.origin_url(), repository).map_err(failed)?;
        direct.push(origin.pull(TAG, |_| {}).await.map_err(failed)?);
        mirror.push(pull_through_mirror(&mut region, handicap, 100 + round).await?);
    }
    region.shut_down().await;
    Ok(pair(&direct, &mirror))
}

/// Puts the region into a handicap.
async fn prepare(region: &mut Region, handicap: Handicap) -> Result<(), CommandError> {
    match handicap {
        Handicap::Everything | Handicap::Tracker => region.stop_tracker(),
        Handicap::Neighbours => {
            for number in 1..=2 {
                region.add_peer(PeerPlan::numbered(number, 1)).await?;
                region
                    .mirror_client(0, REPOSITORY)
                    .map_err(failed)?
                    .pull(TAG, |_| {})
                    .await
                    .map_err(failed)?;
                region.stop_peer(0).await;
            }
        }
    }
    Ok(())
}

/// Pulls through a new peer.
async fn pull_through_mirror(
    region: &mut Region,
    handicap: Handicap,
    number: u32,
) -> Result<PulledImage, CommandError> {
    let plan = PeerPlan::numbered(number, 1);
    let mut config = region.peer_config(&plan)?;
    config.up = None;
    config.down = None;
    if handicap == Handicap::Everything {
        config.quota = ByteSize(0);
    }
    region.add_peer_with(plan, config).await?;
    let pulled = region
        .mirror_client(0, REPOSITORY)
        .map_err(failed)?
        .pull(TAG, |_| {})
        .await
        .map_err(failed)?;
    region.stop_peer(0).await;
    Ok(pulled)
}

fn pair(direct: &[PulledImage], mirror: &[PulledImage]) -> Pair {
    let median = |pulls: &[PulledImage], time: fn(&PulledImage) -> Duration| {
        let mut seconds: Vec<f64> = pulls
            .iter()
            .map(|pulled| time(pulled).as_secs_f64())
            .collect();
        seconds.sort_unstable_by(f64::total_cmp);
        percentile(&seconds, 0.5)
    };
    let direct_s = median(direct, |pulled| pulled.total);
    let mirror_s = median(mirror, |pulled| pulled.total);
    Pair {
        direct_s,
        mirror_s,
        ratio: mirror_s / direct_s,
        direct_first_byte_s: median(direct, |pulled| pulled.first_byte),
        mirror_first_byte_s: median(mirror, |pulled| pulled.first_byte),
    }
}

fn failed(error: ClientError) -> CommandError {
    CommandError::failed("pull the image", error)
}

fn summary(outcome: &Outcome) -> String {
    let line = |name: &str, pair: &Pair| {
        format!(
            "{name:<34} {:>7.3} s {:>7.3} s {:>6.3}   {:>6.1} ms {:>6.1} ms\n",
            pair.direct_s,
            pair.mirror_s,
            pair.ratio,
            pair.direct_first_byte_s * 1e3,
            pair.mirror_first_byte_s * 1e3,
        )
    };
    [
        format!(
            "{:<34} {:>9} {:>9} {:>6}   first byte\n",
            "", "direct", "mirror", "ratio"
        ),
        line("no tracker, neighbour, store", &outcome.without_everything),
        line("no tracker, no neighbour", &outcome.without_tracker),
        line("neighbours that are down", &outcome.with_dead_neighbours),
    ]
    .concat()
}

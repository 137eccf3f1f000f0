//! `flotilla bench passthrough`: a pull through a mirror that nobody helps, beside the same pull
//! straight from the origin.
//!
//! A peer must never make a pull worse than it is without one. The origin's uplink is capped, as a
//! network would; the peer's links are not. Rounds alternate between the direct pull and each
//! [`Plight`], medians are told. Every round has a fresh peer, so nothing comes out of its store.

use std::path::Path;
use std::time::Duration;

use clap::{Args, value_parser};
use flotilla_common::figures::percentile;
use flotilla_common::units::{BitRate, ByteSize};
use serde::Serialize;
use tempfile::TempDir;

use super::room;
use crate::cli::{CommandError, conclude};
use crate::client::{ClientError, Pulled, RegistryClient, push_layout};
use crate::fleet::Fleet;
use crate::image;
use crate::region::{PeerPlan, Region, RegionPlan};

/// What a pull through the mirror may take of the direct pull's time.
const MOST_RATIO: f64 = 1.1;
/// What it may take besides, in seconds.
const MOST_DELAY_S: f64 = 0.25;
const REPOSITORY: &str = "library/app";
const TAG: &str = "v1";

/// The arguments of `flotilla bench passthrough`.
#[derive(Debug, Args)]
pub(super) struct PassthroughArgs {
    /// Bytes of the image
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(256 << 20))]
    size: ByteSize,
    /// The origin's uplink
    #[arg(long, value_name = "BITS", default_value_t = BitRate(1_000_000_000))]
    rate: BitRate,
    /// Pulls of each kind, in turn; the medians count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// What the peer has to do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plight {
    /// No tracker, no neighbour, and a store that takes nothing.
    Everything,
    /// No tracker and no neighbour.
    Tracker,
    /// The tracker names neighbours, and none of them can be reached.
    Neighbours,
}

/// A direct pull, and one through the mirror.
#[derive(Clone, Copy, Debug, Serialize)]
struct Pair {
    direct_s: f64,
    mirror_s: f64,
    ratio: f64,
    direct_first_byte_s: f64,
    mirror_first_byte_s: f64,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Without tracker, neighbours and store.
    without_everything: Pair,
    /// Without tracker and neighbours.
    without_tracker: Pair,
    /// With neighbours that are dead.
    with_dead_neighbours: Pair,
    ok: bool,
}

/// Runs the benchmark.
pub(super) async fn run(args: PassthroughArgs) -> Result<(), CommandError> {
    // As a layout, at an origin and at a peer.
    room::for_bytes(args.size.0.saturating_mul(3))?;
    let dir =
        TempDir::new().map_err(|error| CommandError::failed("make a temporary folder", error))?;
    let layout = dir.path().join("image");
    image::make(&layout, args.size, 1)
        .map_err(|error| CommandError::failed("make an image", error))?;
    let mut pairs = Vec::new();
    for plight in [Plight::Everything, Plight::Tracker, Plight::Neighbours] {
        pairs.push(
            measure(
                &dir.path().join(format!("{plight:?}")),
                &layout,
                plight,
                &args,
            )
            .await?,
        );
    }
    let [without_everything, without_tracker, with_dead_neighbours] = pairs[..] else {
        return Err(CommandError::failed("measure", "a kind of pull is lacking"));
    };
    let is_good = |pair: &Pair| pair.mirror_s <= pair.direct_s * MOST_RATIO + MOST_DELAY_S;
    let outcome = Outcome {
        without_everything,
        without_tracker,
        with_dead_neighbours,
        ok: pairs.iter().all(is_good),
    };
    conclude(&outcome, args.json, summary, outcome.ok)
}

/// The medians of one kind of pull and of direct pulls between them.
async fn measure(
    dir: &Path,
    layout: &Path,
    plight: Plight,
    args: &PassthroughArgs,
) -> Result<Pair, CommandError> {
    let name = "local"
        .parse()
        .map_err(|error| CommandError::failed("name the region", format!("{error}")))?;
    let fleet = Fleet::create(name).map_err(|error| CommandError::failed("make a fleet", error))?;
    let plan = RegionPlan {
        rate: Some(args.rate),
        ..RegionPlan::default()
    };
    let mut region = Region::start(dir, fleet, plan).await?;
    push_layout(&region.origin_url(), REPOSITORY, TAG, layout)
        .await
        .map_err(failed)?;
    prepare(&mut region, plight).await?;
    let (mut direct, mut mirror) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let repository = REPOSITORY
            .parse()
            .map_err(|error| CommandError::failed("name", format!("{error}")))?;
        let origin = RegistryClient::new(region.origin_url(), repository).map_err(failed)?;
        direct.push(origin.pull(TAG, |_| {}).await.map_err(failed)?);
        mirror.push(through_a_mirror(&mut region, plight, 100 + round).await?);
    }
    region.shut_down().await;
    Ok(pair(&direct, &mirror))
}

async fn prepare(region: &mut Region, plight: Plight) -> Result<(), CommandError> {
    match plight {
        Plight::Everything | Plight::Tracker => region.stop_tracker(),
        Plight::Neighbours => {
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

async fn through_a_mirror(
    region: &mut Region,
    plight: Plight,
    number: u32,
) -> Result<Pulled, CommandError> {
    let plan = PeerPlan::numbered(number, 1);
    let mut config = region.peer_config(&plan)?;
    (config.up, config.down) = (None, None);
    if plight == Plight::Everything {
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

fn pair(direct: &[Pulled], mirror: &[Pulled]) -> Pair {
    let median = |pulls: &[Pulled], time: fn(&Pulled) -> Duration| {
        let mut seconds: Vec<f64> = pulls
            .iter()
            .map(|pulled| time(pulled).as_secs_f64())
            .collect();
        seconds.sort_unstable_by(f64::total_cmp);
        percentile(&seconds, 0.5)
    };
    let (direct_s, mirror_s) = (
        median(direct, |pulled| pulled.total),
        median(mirror, |pulled| pulled.total),
    );
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
        line("neighbours that are dead", &outcome.with_dead_neighbours),
    ]
    .concat()
}

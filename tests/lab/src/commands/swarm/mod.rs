//! `flotilla-lab swarm`: many peers pull one layer at the same time, each on its own host with a
//! shaped link.
//!
//! Origins, tracker and peers are processes, started as an operator would and without rate limits:
//! they have to discover the links' rate. A client on each peer's host pulls through the peer's
//! mirror and verifies the digest. The times are compared with the pipelined bound for the rate on
//! the wire, headers included.
//!
//! With several regions, each has an origin with the image. The origins do not know each other: for
//! the peers, that is a replicated image while one origin is suspended.

mod outcome;
mod probes;
mod table;

use std::collections::BTreeMap;
use std::future::pending;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use flotilla::command::{CommandError, print_outcome};
use flotilla::measure::{Delivery, EMPTY_CONFIG, SyntheticImage, require_disk_space};
use flotilla::progress::Progress;
use flotilla_common::units::{BitRate, ByteSize, Period};
use flotilla_lab::{
    Lab, LabError, LabPlan, LinkShape, NetworkKind, PeerSetup, TAG, why_namespaces_are_unavailable,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::cpu::CpuTimes;
use super::program::flotilla_program;
use outcome::{Measured, Outcome, PeerOutcome, Traffic};
use probes::Probes;

const RNG_SEED: u64 = 1;

/// The arguments of `flotilla-lab swarm`.
#[derive(Debug, Args)]
pub(crate) struct SwarmArgs {
    /// Peers that pull concurrently
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=200))]
    peers: u32,
    /// Rate of each host's link, in each direction
    #[arg(long, value_name = "BITS", default_value_t = BitRate(50_000_000))]
    rate: BitRate,
    /// Size of the layer
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(64 << 20))]
    size: ByteSize,
    /// Regions among which the peers are divided, each with an origin that has the image
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=8))]
    regions: u32,
    /// Give each region a tracker, which its peers use first; without this flag all regions share
    /// the tracker of the first one
    #[arg(long)]
    tracker_per_region: bool,
    /// Zones among which the peers of each region are divided
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=100))]
    zones: u32,
    /// Suspend the origin of the first region so long after the burst began, with SIGSTOP: its
    /// connections stay open, and it does not respond. The limit of the time does not apply then
    #[arg(long, value_name = "PERIOD")]
    stop_origin: Option<Period>,
    /// The longest time in a link's queue, in milliseconds; packets that would wait longer are
    /// dropped
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = value_parser!(u64).range(1..=10_000))]
    queue_ms: u64,
    /// Record the state machines of the tracker and of each peer, in folders of DIR, for `flotilla
    /// simulate replay`
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

impl SwarmArgs {
    /// The region of a peer, both by number from 0.
    fn region_of(&self, peer: u32) -> usize {
        (peer % self.regions) as usize
    }

    fn peer_setup(&self, peer: u32) -> PeerSetup {
        let region = self.region_of(peer);
        let zone = peer / self.regions % self.zones + 1;
        PeerSetup {
            region,
            zone: Some(format!("zone-{}-{zone}", region + 1)),
            ..PeerSetup::default()
        }
    }
}

/// Runs the benchmark.
pub(super) async fn run(args: SwarmArgs) -> Result<(), CommandError> {
    if let Some(reason) = why_namespaces_are_unavailable() {
        let why = format!("this needs network namespaces: {reason}");
        return Err(CommandError::failed("measure a swarm", why));
    }
    if args.stop_origin.is_some() && args.regions == 1 {
        return Err(CommandError::failed(
            "suspend the origin of a region",
            "no other region could serve its peers; add --regions 2",
        ));
    }
    let copies = u64::from(args.peers) + u64::from(args.regions);
    require_disk_space(args.size.0.saturating_mul(copies))?;
    let mut lab = start(&args).await?;
    if !args.json {
        let SwarmArgs {
            peers, rate, size, ..
        } = &args;
        let regions = match args.regions {
            1 => "region".to_owned(),
            regions => format!("{regions} regions"),
        };
        eprintln!("{regions} started: {peers} peers on links of {rate}, a layer of {size}");
    }
    let measured = measure(&mut lab, &args).await?;
    let failed = |error: LabError| CommandError::failed("end the services", error);
    if args.record.is_some() {
        lab.terminate_recorded().await.map_err(failed)?;
    }
    lab.finish().map_err(failed)?;
    let outcome = Outcome::of(&args, &measured);
    print_outcome(
        &outcome,
        args.json,
        |outcome| table::render(&measured, outcome),
        outcome.ok,
    )
}

/// Starts the regions and their peers, and pushes the image to each origin.
async fn start(args: &SwarmArgs) -> Result<Lab, CommandError> {
    let failed = |error: LabError| CommandError::failed("set up the regions", error);
    let shape = LinkShape {
        queue: Duration::from_millis(args.queue_ms),
        ..LinkShape::with_rate(args.rate)
    };
    let network = NetworkKind::Namespaces(Some(shape));
    let plan = LabPlan {
        regions: args.regions as usize,
        has_tracker_per_region: args.tracker_per_region,
        record: args.record.clone(),
        ..LabPlan::new(flotilla_program()?, network)
    };
    let mut lab = Lab::start(plan).await.map_err(failed)?;
    let image = SyntheticImage {
        size: args.size.0,
        rng_seed: RNG_SEED,
    };
    for region in 0..args.regions as usize {
        let client = lab.origin_client(region).map_err(failed)?;
        let push = lab
            .origin_host(region)
            .spawn(async move { image.push(&client, TAG).await });
        let push_failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            CommandError::failed("push the layer", error)
        };
        push.await
            .map_err(|error| push_failed(error.into()))?
            .map_err(|error| push_failed(error.into()))?;
    }
    let setups: Vec<_> = (0..args.peers).map(|peer| args.peer_setup(peer)).collect();
    lab.add_peers(&setups).await.map_err(failed)?;
    Ok(lab)
}

/// Runs the burst, and the outage if there is one.
async fn measure(lab: &mut Lab, args: &SwarmArgs) -> Result<Measured, CommandError> {
    let failed = |error: LabError| CommandError::failed("measure a swarm", error);
    let cpu_before = CpuTimes::now()?;
    let sent_before = lab.bytes_to_other_regions().map_err(failed)?;
    let delivery = Delivery::new();
    let regions: Vec<_> = (0..args.peers).map(|peer| args.region_of(peer)).collect();
    let probes = Probes::start(lab, &regions).await.map_err(failed)?;
    let pulls = start_pulls(lab, args, &delivery).map_err(failed)?;
    let pulled = wait_for(pulls, lab, args).await;
    let round_trips = probes.round_trips();
    drop(probes);
    let cpu_busy = CpuTimes::now()?.busy_share_since(cpu_before);
    let sent = lab.bytes_to_other_regions().map_err(failed)?;
    let sent_to_others = sent
        .iter()
        .zip(sent_before)
        .map(|(now, before)| now - before);
    // A suspended origin cannot tell its figures. No pull is left that it could serve.
    lab.origin(0).resume();
    let mut origin_bytes = Vec::new();
    for region in 0..args.regions as usize {
        origin_bytes.push(lab.origin_blob_bytes(region).await.map_err(failed)?);
    }
    let mut peers = Vec::new();
    for (peer, (total, first_byte)) in pulled {
        peers.push(PeerOutcome {
            region: args.region_of(peer),
            total,
            first_byte,
            stats: lab.stats(peer as usize).await.map_err(failed)?,
        });
    }
    Ok(Measured {
        peers,
        origin_bytes,
        sent_to_others: sent_to_others.collect(),
        traffic: Traffic::read(lab, args).map_err(failed)?,
        longest_stall: delivery.longest_stall(),
        round_trips,
        cpu_busy,
    })
}

/// The duration of a pull or why it failed, and the time of the first byte of the layer.
type PullOutcome = (Result<Duration, String>, Duration);

/// Starts a pull through each mirror, all at the same time. Each task returns the peer's number.
fn start_pulls(
    lab: &Lab,
    args: &SwarmArgs,
    delivery: &Arc<Delivery>,
) -> Result<JoinSet<(u32, PullOutcome)>, LabError> {
    let progress = Progress::new(args.json);
    let start = Instant::now();
    let mut pulls = JoinSet::new();
    for peer in 0..args.peers {
        let progress = progress.add_pull(&format!("peer-{}", peer + 1), args.size.0);
        let first_byte = FirstByte::default();
        let delivery = delivery.begin_pull();
        let on_bytes = {
            let (progress, delivery) = (progress.clone(), delivery.clone());
            let first_byte = first_byte.clone();
            move |bytes| {
                first_byte.add_bytes(start, bytes);
                delivery.add_bytes(bytes);
                progress.add_bytes(bytes);
            }
        };
        let pull = lab.pull(peer as usize, on_bytes)?;
        pulls.spawn(async move {
            let pulled = pull.await.map_err(|error| error.to_string());
            let pulled = pulled.and_then(|pulled| pulled.map_err(|error| error.to_string()));
            delivery.finish();
            progress.finish(pulled.is_ok());
            let first_byte = first_byte.0.at.get().copied().unwrap_or_default();
            (peer, (pulled.map(|pulled| pulled.total), first_byte))
        });
    }
    Ok(pulls)
}

/// Waits for all pulls, and suspends the first region's origin meanwhile if the arguments say so.
async fn wait_for(
    mut pulls: JoinSet<(u32, PullOutcome)>,
    lab: &mut Lab,
    args: &SwarmArgs,
) -> BTreeMap<u32, PullOutcome> {
    let mut outcomes = BTreeMap::new();
    let mut outage = pin!(async {
        match args.stop_origin {
            Some(Period(after)) => sleep(after).await,
            None => pending().await,
        }
    });
    let mut is_stopped = false;
    loop {
        tokio::select! {
            pull = pulls.join_next() => match pull {
                // The tasks do not panic.
                Some(pull) => outcomes.extend(pull),
                None => return outcomes,
            },
            () = &mut outage, if !is_stopped => {
                lab.origin(0).suspend();
                is_stopped = true;
            }
        }
    }
}

/// The time at which a client had more bytes than the config has, so at least one of the layer.
#[derive(Clone, Default)]
struct FirstByte(Arc<Arrival>);

#[derive(Default)]
struct Arrival {
    bytes: AtomicU64,
    at: OnceLock<Duration>,
}

impl FirstByte {
    fn add_bytes(&self, start: Instant, bytes: u64) {
        let before = self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > EMPTY_CONFIG.len() as u64 {
            self.0.at.get_or_init(|| start.elapsed());
        }
    }
}

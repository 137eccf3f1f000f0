//! `flotilla-lab swarm`: many peers pull one layer at the same time, each on its own host with a
//! shaped link.
//!
//! Origin, tracker and peers are processes, started as an operator would and without rate limits:
//! they have to discover the links' rate. A client on each peer's host pulls through the peer's
//! mirror and verifies the digest. The times are compared with the pipelined bound for the rate on
//! the wire, headers included.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use flotilla::command::{CommandError, print_outcome};
use flotilla::measure::{EMPTY_CONFIG, SyntheticImage, require_disk_space};
use flotilla::progress::Progress;
use flotilla_common::bounds::{percentile, pipelined_s};
use flotilla_common::chunk::Geometry;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_lab::{
    Lab, LabError, LabPlan, LinkShape, LinkTraffic, NetworkKind, PeerSetup, TAG,
    why_namespaces_are_unavailable,
};
use flotilla_peer::Stats;
use serde::Serialize;

use super::cpu::CpuTimes;
use super::program::flotilla_program;

/// The criteria: p99 relative to the bound, bytes that the origin sent relative to the layer's
/// size, and seconds to the first byte of the layer.
const MAX_P99_OVER_BOUND: f64 = 1.25;
const MAX_ORIGIN_COPIES: f64 = 1.1;
const MAX_FIRST_BYTE_S: f64 = 2.0;
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
    /// Zones among which the peers are divided
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=100))]
    zones: u32,
    /// The longest time in a link's queue, in milliseconds; packets that would wait longer are
    /// dropped
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = value_parser!(u64).range(1..=10_000))]
    queue_ms: u64,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    peers: u32,
    p50_s: f64,
    p99_s: f64,
    first_byte_p99_s: f64,
    origin_copies: f64,
    pipelined_bound_s: f64,
    p99_over_bound: f64,
    ok: bool,
}

/// The outcome of one peer's pull.
struct PeerOutcome {
    total: Result<Duration, String>,
    first_byte: Duration,
    stats: Stats,
}

/// Runs the benchmark.
pub(super) async fn run(args: SwarmArgs) -> Result<(), CommandError> {
    let failed = |error: LabError| CommandError::failed("measure a swarm", error);
    if let Some(reason) = why_namespaces_are_unavailable() {
        let why = format!("this needs network namespaces: {reason}");
        return Err(CommandError::failed("measure a swarm", why));
    }
    require_disk_space(args.size.0.saturating_mul(u64::from(args.peers) + 1))?;
    let lab = start(&args).await?;
    if !args.json {
        let SwarmArgs {
            peers, rate, size, ..
        } = &args;
        eprintln!("region started: {peers} peers on links of {rate}, a layer of {size}");
    }
    let cpu_before = CpuTimes::now()?;
    let peers = pull_everywhere(&lab, &args).await.map_err(failed)?;
    let busy = CpuTimes::now()?.busy_share_since(cpu_before);
    let origin_bytes = lab.origin_blob_bytes().await.map_err(failed)?;
    let traffic = Traffic::read(&lab, args.size.0).map_err(failed)?;
    lab.finish().map_err(failed)?;
    let outcome = Outcome::of(&args, &peers, origin_bytes);
    print_outcome(
        &outcome,
        args.json,
        |outcome| render(&peers, outcome, &traffic, busy),
        outcome.ok,
    )
}

/// Starts the region and its peers, and pushes the image.
async fn start(args: &SwarmArgs) -> Result<Lab, CommandError> {
    let failed = |error: LabError| CommandError::failed("set up a region", error);
    let shape = LinkShape {
        queue: Duration::from_millis(args.queue_ms),
        ..LinkShape::with_rate(args.rate)
    };
    let mut lab = Lab::start(LabPlan::new(
        flotilla_program()?,
        NetworkKind::Namespaces(Some(shape)),
    ))
    .await
    .map_err(failed)?;
    let image = SyntheticImage {
        size: args.size.0,
        rng_seed: RNG_SEED,
    };
    let client = lab.origin_client().map_err(failed)?;
    let push = lab
        .origin_host()
        .spawn(async move { image.push(&client, TAG).await });
    let push_failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        CommandError::failed("push the layer", error)
    };
    push.await
        .map_err(|error| push_failed(error.into()))?
        .map_err(|error| push_failed(error.into()))?;
    let setup = |number| PeerSetup {
        zone: Some(format!("zone-{}", number % args.zones + 1)),
        ..PeerSetup::default()
    };
    let setups: Vec<_> = (0..args.peers).map(setup).collect();
    lab.add_peers(&setups).await.map_err(failed)?;
    Ok(lab)
}

/// Pulls through all mirrors at the same time.
async fn pull_everywhere(lab: &Lab, args: &SwarmArgs) -> Result<Vec<PeerOutcome>, LabError> {
    let progress = Progress::new(args.json);
    let start = Instant::now();
    let mut pulls = Vec::new();
    for peer in 0..lab.peer_count() {
        let progress = progress.add_pull(&format!("peer-{}", peer + 1), args.size.0);
        let first_byte = FirstByte::default();
        let on_bytes = {
            let progress = progress.clone();
            let first_byte = first_byte.clone();
            move |bytes| {
                first_byte.add_bytes(start, bytes);
                progress.add_bytes(bytes);
            }
        };
        pulls.push((lab.pull(peer, on_bytes)?, first_byte, progress));
    }
    let mut outcomes = Vec::new();
    for (peer, (pull, first_byte, progress)) in pulls.into_iter().enumerate() {
        let pulled = pull.await.map_err(|error| error.to_string());
        let pulled = pulled.and_then(|pulled| pulled.map_err(|error| error.to_string()));
        progress.finish(pulled.is_ok());
        let stats = lab.stats(peer).await?;
        let first_byte = first_byte.0.at.get().copied().unwrap_or_default();
        outcomes.push(PeerOutcome {
            total: pulled.map(|pulled| pulled.total),
            first_byte,
            stats,
        });
    }
    Ok(outcomes)
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

/// The traffic of all links: it shows the overhead of sharing, and dropped packets.
struct Traffic {
    /// Size of the layer in bytes.
    size: u64,
    origin: [LinkTraffic; 2],
    peers: [LinkTraffic; 2],
}

impl Traffic {
    fn read(lab: &Lab, size: u64) -> Result<Self, LabError> {
        let mut peers = [LinkTraffic::default(); 2];
        for index in 0..lab.peer_count() {
            for (sum, one) in peers.iter_mut().zip(lab.peer_link(index)?.traffic()?) {
                sum.bytes += one.bytes;
                sum.dropped += one.dropped;
            }
        }
        Ok(Self {
            size,
            origin: lab.origin_link()?.traffic()?,
            peers,
        })
    }

    /// The traffic from and to some hosts, as a multiple of the layer's size.
    fn render([from, to]: &[LinkTraffic; 2], size: u64) -> String {
        let copies = |traffic: &LinkTraffic| traffic.bytes as f64 / size.max(1) as f64;
        let (sent, received) = (copies(from), copies(to));
        format!(
            "{sent:.3} copies out ({} packets dropped), {received:.3} in ({} dropped)",
            from.dropped, to.dropped
        )
    }
}

impl Outcome {
    fn of(args: &SwarmArgs, peers: &[PeerOutcome], origin_bytes: u64) -> Self {
        let ascending = |seconds: Vec<f64>| {
            let mut seconds = seconds;
            seconds.sort_by(f64::total_cmp);
            seconds
        };
        let totals = peers
            .iter()
            .filter_map(|peer| peer.total.as_ref().ok())
            .map(Duration::as_secs_f64)
            .collect();
        let totals = ascending(totals);
        let first_bytes = ascending(
            peers
                .iter()
                .map(|peer| peer.first_byte.as_secs_f64())
                .collect(),
        );
        let chunks = u64::from(Geometry::for_size(args.size.0).chunks());
        let bound = pipelined_s(
            args.size.0,
            u64::from(args.peers),
            chunks,
            args.rate.bytes_per_second(),
        );
        let p99_s = percentile(&totals, 0.99);
        let first_byte_p99_s = percentile(&first_bytes, 0.99);
        let origin_copies = origin_bytes as f64 / args.size.0.max(1) as f64;
        let p99_over_bound = p99_s / bound;
        Self {
            peers: args.peers,
            p50_s: percentile(&totals, 0.5),
            p99_s,
            first_byte_p99_s,
            origin_copies,
            pipelined_bound_s: bound,
            p99_over_bound,
            ok: totals.len() == peers.len()
                && p99_over_bound <= MAX_P99_OVER_BOUND
                && origin_copies <= MAX_ORIGIN_COPIES
                && first_byte_p99_s <= MAX_FIRST_BYTE_S,
        }
    }
}

/// Renders a row per peer, then the summary.
fn render(peers: &[PeerOutcome], outcome: &Outcome, traffic: &Traffic, busy: f64) -> String {
    let mut text = format!(
        "\n{:<10} {:>9} {:>11} {:>12} {:>12} {:>12} {:>8}\n",
        "peer", "time", "first byte", "from peers", "from origin", "to peers", "refused"
    );
    for (number, peer) in (1..).zip(peers) {
        let time = peer
            .total
            .as_ref()
            .map_or("failed".to_owned(), |total| seconds(total.as_secs_f64()));
        text.push_str(&format!(
            "{:<10} {:>9} {:>11} {:>12} {:>12} {:>12} {:>8}\n",
            format!("peer-{number}"),
            time,
            seconds(peer.first_byte.as_secs_f64()),
            ByteSize(peer.stats.bytes_from_peers).to_string(),
            ByteSize(peer.stats.bytes_from_origin).to_string(),
            ByteSize(peer.stats.bytes_to_peers).to_string(),
            peer.stats.refused_busy,
        ));
        if let Err(message) = &peer.total {
            text.push_str(&format!("           {message}\n"));
        }
    }
    let with_limit = |limit: f64| format!("(limit {limit})");
    for (name, value) in [
        (
            "time of a pull",
            format!(
                "p50 {}, p99 {}",
                seconds(outcome.p50_s),
                seconds(outcome.p99_s)
            ),
        ),
        ("pipelined bound", seconds(outcome.pipelined_bound_s)),
        (
            "p99 over bound",
            format!(
                "{:.3} {}",
                outcome.p99_over_bound,
                with_limit(MAX_P99_OVER_BOUND)
            ),
        ),
        (
            "origin copies",
            format!(
                "{:.3} {}",
                outcome.origin_copies,
                with_limit(MAX_ORIGIN_COPIES)
            ),
        ),
        (
            "first byte",
            format!(
                "p99 {} {}",
                seconds(outcome.first_byte_p99_s),
                with_limit(MAX_FIRST_BYTE_S)
            ),
        ),
        (
            "peers' links",
            Traffic::render(&traffic.peers, traffic.size),
        ),
        (
            "origin's link",
            Traffic::render(&traffic.origin, traffic.size),
        ),
        ("CPUs", format!("{:.0} % busy", busy * 100.0)),
        (
            "result",
            if outcome.ok { "ok" } else { "failed" }.to_owned(),
        ),
    ] {
        text.push_str(&format!("\n{name:<16} {value}"));
    }
    text.push('\n');
    text
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.2} s")
}

//! `flotilla bench swarm`: many peers pull one layer at the same moment, each on a host of its own
//! with a shaped link.
//!
//! Origin, tracker and peers are processes of their own, as an operator starts them and with no
//! word about the link's rate: what they know of it they find out. Each pull goes through the
//! peer's mirror, by a client on the peer's host that checks the digest. What is printed is held
//! against the pipelined bound of the rate on the wire, headers included.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use flotilla_common::chunk::Geometry;
use flotilla_common::figures::{percentile, pipelined_s};
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::Stats;
use serde::Serialize;

use super::content::{Content, EMPTY};
use super::processor::Processor;
use super::room;
use crate::cli::{CommandError, conclude};
use crate::lab::{
    Carried, Ground, Lab, LabError, LabPlan, PeerPlan, Shape, TAG, missing_for_hosts,
};
use crate::progress::Progress;

/// What is ok: p99 over the bound, copies that the origin sent, seconds to the first byte of the
/// layer.
const P99_OVER_BOUND_ALLOWED: f64 = 1.25;
const ORIGIN_COPIES_ALLOWED: f64 = 1.1;
const FIRST_BYTE_ALLOWED_S: f64 = 2.0;
const RNG_SEED: u64 = 1;

/// The arguments of `flotilla bench swarm`.
#[derive(Debug, Args)]
pub(super) struct SwarmArgs {
    /// Peers that pull at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=200))]
    peers: u32,
    /// What each host's link carries, each way
    #[arg(long, value_name = "BITS", default_value_t = BitRate(50_000_000))]
    rate: BitRate,
    /// Bytes of the layer
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(64 << 20))]
    size: ByteSize,
    /// Zones that the peers are spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=100))]
    zones: u32,
    /// Milliseconds that a packet waits in the queue before a link at most; what would wait longer
    /// is lost
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = value_parser!(u64).range(1..=10_000))]
    queue_ms: u64,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// What is printed.
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

/// One peer's pull.
struct Row {
    total: Result<Duration, String>,
    first_byte: Duration,
    stats: Stats,
}

/// Runs the benchmark.
pub(super) async fn run(args: SwarmArgs) -> Result<(), CommandError> {
    let failed = |error: LabError| CommandError::failed("measure a swarm", error);
    if let Some(missing) = missing_for_hosts() {
        let why = format!("hosts of their own are needed: {missing}");
        return Err(CommandError::failed("measure a swarm", why));
    }
    room::for_bytes(args.size.0.saturating_mul(u64::from(args.peers) + 1))?;
    let lab = start(&args).await?;
    say(
        &args,
        format!(
            "{} peers on links of {} each way; the layer has {}",
            args.peers, args.rate, args.size
        ),
    );
    let before = Processor::now()?;
    let rows = pull_everywhere(&lab, &args).await.map_err(failed)?;
    let busy = Processor::now()?.share_since(before);
    let sent = lab.origin_blob_bytes().await.map_err(failed)?;
    let wire = Wire::of(&lab, args.size.0).map_err(failed)?;
    lab.end().map_err(failed)?;
    let outcome = Outcome::of(&args, &rows, sent);
    conclude(
        &outcome,
        args.json,
        |outcome| render(&rows, outcome, &wire, busy),
        outcome.ok,
    )
}

/// The region with its peers, and the image in its origin.
async fn start(args: &SwarmArgs) -> Result<Lab, CommandError> {
    let failed = |error: LabError| CommandError::failed("set up a region", error);
    let program =
        env::current_exe().map_err(|error| CommandError::failed("find this program", error))?;
    let shape = Shape {
        queue: Duration::from_millis(args.queue_ms),
        ..Shape::of(args.rate)
    };
    let mut lab = Lab::start(LabPlan::new(program, Ground::Hosts(Some(shape))))
        .await
        .map_err(failed)?;
    let content = Content {
        size: args.size.0,
        rng_seed: RNG_SEED,
    };
    let client = lab.origin_client().map_err(failed)?;
    let pushing = lab
        .origin_host()
        .spawn(async move { content.push(&client, TAG).await });
    let push_failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        CommandError::failed("push the layer", error)
    };
    pushing
        .await
        .map_err(|error| push_failed(error.into()))?
        .map_err(|error| push_failed(error.into()))?;
    let zone = |number| PeerPlan {
        zone: Some(format!("zone-{}", number % args.zones + 1)),
        ..PeerPlan::default()
    };
    let plans: Vec<_> = (0..args.peers).map(zone).collect();
    lab.add_peers(&plans).await.map_err(failed)?;
    Ok(lab)
}

/// Begins a pull through every mirror and waits for all of them.
async fn pull_everywhere(lab: &Lab, args: &SwarmArgs) -> Result<Vec<Row>, LabError> {
    let progress = Progress::new(args.json);
    let start = Instant::now();
    let mut pulls = Vec::new();
    for peer in 0..lab.peer_count() {
        let shown = progress.pull(&format!("peer-{}", peer + 1), args.size.0);
        let first = FirstByte::default();
        let on_bytes = {
            let (shown, first) = (shown.clone(), first.clone());
            move |bytes| {
                first.came(start, bytes);
                shown.add(bytes);
            }
        };
        pulls.push((lab.pull(peer, on_bytes)?, first, shown));
    }
    let mut rows = Vec::new();
    for (peer, (pull, first, shown)) in pulls.into_iter().enumerate() {
        let pulled = pull.await.map_err(|error| error.to_string());
        let pulled = pulled.and_then(|pulled| pulled.map_err(|error| error.to_string()));
        shown.finish(pulled.is_ok());
        let stats = lab.stats(peer).await?;
        let first_byte = first.0.at.get().copied().unwrap_or_default();
        rows.push(Row {
            total: pulled.map(|pulled| pulled.total),
            first_byte,
            stats,
        });
    }
    Ok(rows)
}

/// When a client had more bytes than the image's configuration has: some are the layer's then.
#[derive(Clone, Default)]
struct FirstByte(Arc<Arrival>);

#[derive(Default)]
struct Arrival {
    bytes: AtomicU64,
    at: OnceLock<Duration>,
}

impl FirstByte {
    fn came(&self, start: Instant, bytes: u64) {
        let before = self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > EMPTY.len() as u64 {
            self.0.at.get_or_init(|| start.elapsed());
        }
    }
}

/// What all links carried: the bytes that sharing costs beside the payload, and the packets that
/// were lost.
struct Wire {
    /// Bytes of the layer.
    size: u64,
    origin: [Carried; 2],
    peers: [Carried; 2],
}

impl Wire {
    fn of(lab: &Lab, size: u64) -> Result<Self, LabError> {
        let mut peers = [Carried::default(); 2];
        for index in 0..lab.peer_count() {
            for (sum, one) in peers.iter_mut().zip(lab.peer_host(index).carried()?) {
                sum.bytes += one.bytes;
                sum.lost += one.lost;
            }
        }
        Ok(Self {
            size,
            origin: lab.origin_host().carried()?,
            peers,
        })
    }

    /// From and to some hosts, in copies of the layer.
    fn render([from, to]: &[Carried; 2], size: u64) -> String {
        let copies = |carried: &Carried| carried.bytes as f64 / size.max(1) as f64;
        let (sent, received) = (copies(from), copies(to));
        format!(
            "{sent:.3} copies out ({} packets lost), {received:.3} in ({} lost)",
            from.lost, to.lost
        )
    }
}

impl Outcome {
    fn of(args: &SwarmArgs, rows: &[Row], origin_bytes: u64) -> Self {
        let ascending = |seconds: Vec<f64>| {
            let mut seconds = seconds;
            seconds.sort_by(f64::total_cmp);
            seconds
        };
        let totals = rows
            .iter()
            .filter_map(|row| row.total.as_ref().ok())
            .map(Duration::as_secs_f64)
            .collect();
        let totals = ascending(totals);
        let firsts = ascending(
            rows.iter()
                .map(|row| row.first_byte.as_secs_f64())
                .collect(),
        );
        let chunks = u64::from(Geometry::for_size(args.size.0).chunks());
        let bound = pipelined_s(
            args.size.0,
            u64::from(args.peers),
            chunks,
            args.rate.bytes_per_second(),
        );
        let (p99_s, first_byte_p99_s) = (percentile(&totals, 0.99), percentile(&firsts, 0.99));
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
            ok: totals.len() == rows.len()
                && p99_over_bound <= P99_OVER_BOUND_ALLOWED
                && origin_copies <= ORIGIN_COPIES_ALLOWED
                && first_byte_p99_s <= FIRST_BYTE_ALLOWED_S,
        }
    }
}

/// A row per peer, then what the swarm as a whole got.
fn render(rows: &[Row], outcome: &Outcome, wire: &Wire, busy: f64) -> String {
    let mut text = format!(
        "\n{:<10} {:>9} {:>11} {:>12} {:>12} {:>12} {:>8}\n",
        "peer", "time", "first byte", "from peers", "from origin", "to peers", "refused"
    );
    for (number, row) in (1..).zip(rows) {
        let time = row
            .total
            .as_ref()
            .map_or("failed".to_owned(), |total| seconds(total.as_secs_f64()));
        text.push_str(&format!(
            "{:<10} {:>9} {:>11} {:>12} {:>12} {:>12} {:>8}\n",
            format!("peer-{number}"),
            time,
            seconds(row.first_byte.as_secs_f64()),
            ByteSize(row.stats.bytes_from_peers).to_string(),
            ByteSize(row.stats.bytes_from_origin).to_string(),
            ByteSize(row.stats.bytes_to_peers).to_string(),
            row.stats.refused_busy,
        ));
        if let Err(message) = &row.total {
            text.push_str(&format!("           {message}\n"));
        }
    }
    let allowed = |allowed: f64| format!("(at most {allowed} is ok)");
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
            "p99 over it",
            format!(
                "{:.3} {}",
                outcome.p99_over_bound,
                allowed(P99_OVER_BOUND_ALLOWED)
            ),
        ),
        (
            "origin copies",
            format!(
                "{:.3} {}",
                outcome.origin_copies,
                allowed(ORIGIN_COPIES_ALLOWED)
            ),
        ),
        (
            "first byte",
            format!(
                "p99 {} {}",
                seconds(outcome.first_byte_p99_s),
                allowed(FIRST_BYTE_ALLOWED_S)
            ),
        ),
        ("peers' links", Wire::render(&wire.peers, wire.size)),
        ("origin's link", Wire::render(&wire.origin, wire.size)),
        ("processors", format!("{:.0} % busy", busy * 100.0)),
        (
            "result",
            if outcome.ok { "ok" } else { "NOT ok" }.to_owned(),
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

fn say(args: &SwarmArgs, line: String) {
    if !args.json {
        eprintln!("{line}");
    }
}

//! `flotilla bench tracker`: what a fleet costs a tracker, and how fast the tracker answers.
//!
//! The tracker is a child process with TLS. Each VM is the shipped tracker client with a
//! certificate and an address of its own; its pull is modelled ([`pull_model`]), so that ten
//! thousand VMs fit beside the tracker. The benchmark has four phases:
//!
//! ```text
//! connect   every VM opens its connection, at the rate of the joins: the cost of a handshake
//! start     the VMs join and pull, at that rate: latencies, and the cost of one VM's start
//! hold      every VM announces blobs that it holds: memory for each peer and digest
//! warm      nothing happens: the cost of a warm fleet
//! ```

mod fleet;
mod images;
mod latency;
mod pull_model;

use std::env;
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use flotilla_common::digest::Digest;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_runtime::shutdown::Shutdown;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use self::fleet::VmFleet;
use self::images::{Image, LAYER_CHUNKS};
use self::latency::{Requests, percentile_ms};
use crate::command::{CommandError, print_outcome};
use crate::measure::TrackerProcess;

/// The criteria.
const MAX_ANNOUNCE_P99_MS: f64 = 100.0;
const MAX_LEASE_P99_MS: f64 = 250.0;
const MAX_CPU_US_PER_START: f64 = 600.0;
const MAX_CONNECTIONS_PER_PEER: f64 = 1.01;
/// Bytes of a chunk.
const CHUNK_LEN: f64 = (256 << 10) as f64;
/// How long the last pulls may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest announce interval of a fleet of this size, and some more.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(8);

/// The arguments of `flotilla bench tracker`.
#[derive(Debug, Args)]
pub(super) struct TrackerArgs {
    /// Number of VMs
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=60_000))]
    peers: u32,
    /// Number of images; VMs pull them in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1_000))]
    images: u32,
    /// VMs that join in a second
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=100_000))]
    joins: u32,
    /// Rate of a VM's link
    #[arg(long, value_name = "BITS", default_value = "500Mbit")]
    rate: BitRate,
    /// Blobs that every VM holds besides in the warm fleet
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = value_parser!(u32).range(1..=5_000))]
    held: u32,
    /// How long the warm fleet is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = value_parser!(u64).range(1..=600))]
    warm_s: u64,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    peers: u32,
    images: u32,
    joins_per_s: u32,
    announce_p50_ms: f64,
    announce_p99_ms: f64,
    lease_p99_ms: f64,
    lease_turnround_p50_ms: f64,
    lease_turnround_p99_ms: f64,
    pull_s: f64,
    cpu_us_per_start: f64,
    cpu_us_per_digest: f64,
    cpu_us_per_connection: f64,
    announces_per_start: f64,
    lease_requests_per_start: f64,
    lease_updates_per_start: f64,
    handouts_per_s: f64,
    connections_per_peer: f64,
    bytes_per_connection: f64,
    bytes_per_peer_and_digest: f64,
    warm_cores: f64,
    errors: u64,
    error_texts: Vec<String>,
    ok: bool,
}

/// Runs the benchmark.
pub(super) async fn run(args: TrackerArgs) -> Result<(), CommandError> {
    let program =
        env::current_exe().map_err(|error| CommandError::failed("find this program", error))?;
    let bench = Bench::start(&args, TrackerProcess::start(&program).await?).await?;
    let outcome = bench.measure().await;
    bench.shutdown.trigger();
    let outcome = outcome?;
    print_outcome(&outcome, args.json, summary, outcome.ok)
}

struct Bench<'a> {
    args: &'a TrackerArgs,
    tracker: TrackerProcess,
    fleet: VmFleet,
    shutdown: Shutdown,
}

/// The tracker's usage so far.
#[derive(Clone, Copy, Debug)]
struct Usage {
    cpu: Duration,
    memory: ByteSize,
}

impl<'a> Bench<'a> {
    async fn start(args: &'a TrackerArgs, tracker: TrackerProcess) -> Result<Self, CommandError> {
        let shutdown = Shutdown::new();
        let images = (0..args.images as usize).map(|number| Image::new(number, &LAYER_CHUNKS));
        let fleet = VmFleet::new(
            tracker.url(),
            images.collect(),
            args.peers as usize,
            args.rate.0 as f64 / 8.0 / CHUNK_LEN,
            shutdown.clone(),
        );
        let bench = Self {
            args,
            tracker,
            fleet,
            shutdown,
        };
        bench.say("creating certificates");
        for vm in 0..args.peers as usize {
            bench.fleet.prepare(vm, bench.tracker.fleet())?;
        }
        bench.shutdown.spawn(bench.fleet.clone().run());
        Ok(bench)
    }

    async fn measure(&self) -> Result<Outcome, CommandError> {
        let peers = f64::from(self.args.peers);
        self.say("connecting");
        let idle = self.usage()?;
        self.connect().await?;
        let connected = self.usage()?;
        let connections_before = self.connections().await?;

        self.say("starting");
        let started = Instant::now();
        self.paced(|vm| self.fleet.start(vm)).await;
        let deadline = Instant::now() + PULL_TIMEOUT;
        while self.fleet.complete() < self.args.peers as usize && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        let start_s = started.elapsed().as_secs_f64();
        let complete = self.fleet.complete();
        let pulled = self.usage()?;
        let connections = self.connections().await? - connections_before + peers;
        let mut requests = self.fleet.latencies().take();
        let mut turnrounds = self.fleet.take_turnrounds();
        let handouts = self.fleet.handouts();

        self.say("holding further blobs");
        sleep(ANNOUNCE_INTERVAL).await;
        let before_hold = self.usage()?;
        let extra: Vec<Digest> = (0..self.args.held)
            .map(|number| Digest::sha256(format!("held {number}").as_bytes()))
            .collect();
        self.paced(|vm| self.fleet.hold(vm, &extra)).await;
        sleep(ANNOUNCE_INTERVAL).await;
        let held = self.usage()?;

        self.say("warm");
        sleep(Duration::from_secs(self.args.warm_s)).await;
        let warm = self.usage()?;
        let warm_requests = self.fleet.latencies().take();

        let start_cpu_us = cpu_us(connected, pulled) / peers;
        let errors = requests.errors + warm_requests.errors;
        let connections_per_peer = connections / peers;
        let announce_p99_ms = requests.announce_ms(0.99);
        let lease_p99_ms = requests.lease_update_ms(0.99);
        Ok(Outcome {
            peers: self.args.peers,
            images: self.args.images,
            joins_per_s: self.args.joins,
            announce_p50_ms: requests.announce_ms(0.5),
            announce_p99_ms,
            lease_p99_ms,
            lease_turnround_p50_ms: percentile_ms(&mut turnrounds, 0.5),
            lease_turnround_p99_ms: percentile_ms(&mut turnrounds, 0.99),
            pull_s: start_s - peers / f64::from(self.args.joins),
            cpu_us_per_start: start_cpu_us,
            cpu_us_per_digest: start_cpu_us / LAYER_CHUNKS.len() as f64,
            cpu_us_per_connection: cpu_us(idle, connected) / peers,
            announces_per_start: requests.announces() as f64 / peers,
            lease_requests_per_start: requests.lease_requests as f64 / peers,
            lease_updates_per_start: requests.lease_updates() as f64 / peers,
            handouts_per_s: handouts as f64 / start_s,
            connections_per_peer,
            bytes_per_connection: memory_bytes(idle, connected) / peers,
            bytes_per_peer_and_digest: memory_bytes(before_hold, held)
                / peers
                / f64::from(self.args.held),
            warm_cores: cpu_us(held, warm) / 1e6 / self.args.warm_s as f64,
            errors,
            error_texts: error_texts(&requests, &warm_requests),
            ok: complete == self.args.peers as usize
                && errors == 0
                && announce_p99_ms <= MAX_ANNOUNCE_P99_MS
                && lease_p99_ms <= MAX_LEASE_P99_MS
                && start_cpu_us <= MAX_CPU_US_PER_START
                && connections_per_peer <= MAX_CONNECTIONS_PER_PEER,
        })
    }

    /// Opens every VM's connection.
    async fn connect(&self) -> Result<(), CommandError> {
        let mut connecting = JoinSet::new();
        self.paced(|vm| {
            let fleet = self.fleet.clone();
            connecting.spawn(async move { fleet.connect(vm).await });
        })
        .await;
        while let Some(connected) = connecting.join_next().await {
            connected.map_err(|error| CommandError::failed("connect the VMs", error))??;
        }
        Ok(())
    }

    /// Does something with each VM, so many a second as join.
    async fn paced(&self, mut act: impl FnMut(usize)) {
        let started = tokio::time::Instant::now();
        for vm in 0..self.args.peers {
            let at = Duration::from_secs_f64(f64::from(vm) / f64::from(self.args.joins));
            sleep_until(started + at).await;
            act(vm as usize);
        }
    }

    fn usage(&self) -> Result<Usage, CommandError> {
        let process = self.tracker.process();
        let ended = |error| {
            let log = self.tracker.log();
            CommandError::failed("measure the tracker", format!("{error}; its log:\n{log}"))
        };
        Ok(Usage {
            cpu: process.cpu_time().map_err(ended)?,
            memory: process.anonymous_resident().map_err(ended)?,
        })
    }

    /// Connections that the tracker has accepted from VMs.
    async fn connections(&self) -> Result<f64, CommandError> {
        self.tracker.metric("connections_accepted_total").await
    }

    fn say(&self, phase: &str) {
        if !self.args.json {
            eprintln!("{phase}");
        }
    }
}

fn cpu_us(from: Usage, to: Usage) -> f64 {
    to.cpu.saturating_sub(from.cpu).as_secs_f64() * 1e6
}

fn memory_bytes(from: Usage, to: Usage) -> f64 {
    to.memory.0 as f64 - from.memory.0 as f64
}

fn error_texts(requests: &Requests, warm: &Requests) -> Vec<String> {
    let texts = requests.error_texts.iter().chain(&warm.error_texts);
    texts
        .map(|(text, count)| format!("{count} x {text}"))
        .collect()
}

fn summary(outcome: &Outcome) -> String {
    let errors: String = outcome
        .error_texts
        .iter()
        .map(|text| format!("                 {text}\n"))
        .collect();
    format!(
        "fleet            {} peers, {} image(s), {} joins/s; the last pull ends {:.1} s after the last join\n\
         announce         p50 {:.1} ms, p99 {:.1} ms (maximum {MAX_ANNOUNCE_P99_MS})\n\
         lease updates    p99 {:.1} ms (maximum {MAX_LEASE_P99_MS})\n\
         lease turnround  p50 {:.1} ms, p99 {:.1} ms from Done to the next grant\n\
         CPU time         {:.0} us for one VM's start (maximum {MAX_CPU_US_PER_START}), {:.0} us for its handshake\n\
         requests         {:.1} announces, {:.1} lease requests, {:.1} lease updates for one VM's start\n\
         handouts         {:.0} peers named per second\n\
         connections      {:.2} per peer (maximum {MAX_CONNECTIONS_PER_PEER})\n\
         memory           {:.0} B per connection, {:.0} B per peer and digest\n\
         warm fleet       {:.3} cores\n\
         errors           {}\n{errors}",
        outcome.peers,
        outcome.images,
        outcome.joins_per_s,
        outcome.pull_s,
        outcome.announce_p50_ms,
        outcome.announce_p99_ms,
        outcome.lease_p99_ms,
        outcome.lease_turnround_p50_ms,
        outcome.lease_turnround_p99_ms,
        outcome.cpu_us_per_start,
        outcome.cpu_us_per_connection,
        outcome.announces_per_start,
        outcome.lease_requests_per_start,
        outcome.lease_updates_per_start,
        outcome.handouts_per_s,
        outcome.connections_per_peer,
        outcome.bytes_per_connection,
        outcome.bytes_per_peer_and_digest,
        outcome.warm_cores,
        outcome.errors,
    )
}

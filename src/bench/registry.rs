//! `flotilla bench registry`: what a registry answers in a second, and how long an answer takes.
//!
//! Without a URL it starts an origin, as an operator would, on a folder that it deletes afterwards.
//! With one it measures a registry that runs already, of any make; or any HTTP server, if the URL
//! has a path, which is then asked for as it stands. An image is pushed first, so that there is
//! something to pull.

use std::env;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::{Args, ValueEnum, value_parser};
use flotilla_common::digest::{Algorithm, DigestHasher};
use flotilla_common::figures::percentile;
use flotilla_common::manifest::ACCEPT;
use flotilla_common::name::RepositoryName;
use flotilla_common::units::ByteSize;
use futures_util::stream;
use reqwest::{Body, Url};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::content::{Content, Pushed};
use super::load::{Load, Measured};
use super::process::Process;
use crate::cli::{CommandError, conclude};
use crate::client::RegistryClient;
use crate::lab::{Ground, Lab, LabPlan};

const REPOSITORY: &str = "bench";
const TAG: &str = "v1";
const RNG_SEED: u64 = 1;
/// Before what counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// The arguments of `flotilla bench registry`.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// What is asked for, again and again
    #[arg(value_enum, default_value_t = Question::Tag)]
    what: Question,
    /// A registry that runs already, or a file at any HTTP server; an origin of its own without it
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// The server's process, whose processor time is told; its own origin's without it
    #[arg(long, value_name = "NUMBER")]
    pid: Option<u32>,
    /// Connections that ask at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Bytes of the blob that is pulled or pushed
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 20))]
    size: ByteSize,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Question {
    /// A manifest by its tag
    Tag,
    /// A manifest by its digest
    Digest,
    /// A whole blob
    Blob,
    /// Nothing: new blobs are pushed
    Push,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Outcome {
    requests: usize,
    rps: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
    mib_s: f64,
    /// `null` if the server's process is not known.
    cpu_us_per_request: Option<f64>,
}

/// Where the questions go.
struct Target {
    base: Url,
    address: SocketAddr,
    process: Option<Process>,
    /// The registry of its own; ends with it.
    _lab: Option<Lab>,
}

/// Runs the benchmark.
pub(super) async fn run(args: RegistryArgs) -> Result<(), CommandError> {
    let target = target(&args).await?;
    let measured = if args.what == Question::Push {
        measure_pushes(&target, &args).await?
    } else {
        measure_gets(&target, &args).await?
    };
    if let Some(error) = &measured.measured.first_error {
        eprintln!("the first of {} errors: {error}", measured.measured.errors);
    }
    let outcome = measured.outcome();
    conclude(&outcome, args.json, summary, outcome.errors == 0)
}

async fn target(args: &RegistryArgs) -> Result<Target, CommandError> {
    let (base, process, lab) = match &args.url {
        Some(url) => (url.clone(), args.pid, None),
        None => {
            let mut lab = start_lab().await?;
            let url = Url::parse(&lab.origin_url());
            let url = url.map_err(|error| CommandError::failed("read the origin's URL", error))?;
            (url, lab.origin().process_id(), Some(lab))
        }
    };
    Ok(Target {
        address: address(&base).await?,
        base,
        process: process.map(Process),
        _lab: lab,
    })
}

async fn start_lab() -> Result<Lab, CommandError> {
    let program =
        env::current_exe().map_err(|error| CommandError::failed("find this program", error))?;
    let plan = LabPlan {
        trackers: 0,
        ..LabPlan::new(program, Ground::Loopback)
    };
    Lab::start(plan)
        .await
        .map_err(|error| CommandError::failed("start an origin", error))
}

/// Only unencrypted HTTP: a benchmark of TLS would measure its own end of it.
async fn address(url: &Url) -> Result<SocketAddr, CommandError> {
    let failed = |why: &str| CommandError::failed(format!("use {url}"), why);
    let (host, port) = (url.host_str(), url.port_or_known_default());
    let (Some(host), Some(port), "http") = (host, port, url.scheme()) else {
        return Err(failed("a URL such as http://127.0.0.1:5000 is needed"));
    };
    let mut found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| failed(&error.to_string()))?;
    found
        .next()
        .ok_or_else(|| failed("its host has no address"))
}

/// What was measured, and the processor time that it took of the server.
struct Figures {
    measured: Measured,
    cpu: Option<Duration>,
}

async fn measure_gets(target: &Target, args: &RegistryArgs) -> Result<Figures, CommandError> {
    let path = match target.base.path() {
        "/" => path(args.what, push(target, args).await?),
        path => path.to_owned(),
    };
    let host = target.address;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {ACCEPT}, */*\r\n\r\n");
    let load = Load {
        address: target.address,
        request: Bytes::from(request),
        connections: args.connections,
        warm_up: WARM_UP,
        duration: Duration::from_secs(args.seconds),
    };
    let (measured, before) = tokio::join!(load.run(), async {
        tokio::time::sleep(WARM_UP).await;
        cpu(target)
    });
    figures(target, measured, before?)
}

fn path(what: Question, image: Pushed) -> String {
    let (kind, reference) = match what {
        Question::Blob => ("blobs", image.layer.to_string()),
        Question::Digest => ("manifests", image.manifest.to_string()),
        Question::Tag | Question::Push => ("manifests", TAG.to_owned()),
    };
    format!("/v2/{REPOSITORY}/{kind}/{reference}")
}

async fn push(target: &Target, args: &RegistryArgs) -> Result<Pushed, CommandError> {
    let content = Content {
        size: args.size.0,
        rng_seed: RNG_SEED,
    };
    let pushed = content.push(&client(target)?, TAG).await;
    pushed.map_err(|error| CommandError::failed("push an image", error))
}

fn client(target: &Target) -> Result<RegistryClient, CommandError> {
    let failed =
        |error: &dyn std::fmt::Display| CommandError::failed("make a client", error.to_string());
    let repository: RepositoryName = REPOSITORY.parse().map_err(|error| failed(&error))?;
    let base = format!("http://{}", target.address);
    RegistryClient::new(base, repository).map_err(|error| failed(&error))
}

/// Pushes blobs that nobody has pushed before, each as a client does: POST, PATCH, PUT.
async fn measure_pushes(target: &Target, args: &RegistryArgs) -> Result<Figures, CommandError> {
    let content = Content {
        size: args.size.0,
        rng_seed: RNG_SEED,
    };
    let pieces: Arc<Vec<Bytes>> = Arc::new(content.pieces().collect());
    let before = cpu(target)?;
    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    // Blobs of an earlier run would be there already.
    let run = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let mut clients = JoinSet::new();
    for number in 0..args.connections {
        clients.spawn(pushes(
            client(target)?,
            Arc::clone(&pieces),
            format!("{run:032x} {number}"),
            deadline,
        ));
    }
    figures(target, Measured::gather(clients, started).await, before)
}

async fn pushes(
    client: RegistryClient,
    pieces: Arc<Vec<Bytes>>,
    prefix: String,
    deadline: Instant,
) -> Measured {
    let mut measured = Measured::default();
    for round in 0_u32.. {
        if Instant::now() >= deadline || measured.errors > 0 {
            break;
        }
        let first = Bytes::from(format!("{prefix} {round}\n"));
        let blob: Vec<Bytes> = core::iter::once(first)
            .chain(pieces.iter().cloned())
            .collect();
        let len = blob.iter().map(|piece| piece.len() as u64).sum();
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        blob.iter().for_each(|piece| hasher.update(piece));
        let body = Body::wrap_stream(stream::iter(blob.into_iter().map(Ok::<_, std::io::Error>)));
        let started = Instant::now();
        match client.upload(&hasher.finish(), len, body).await {
            Ok(()) => measured.answered(started.elapsed(), len),
            Err(error) => measured.failed(error),
        }
    }
    measured
}

fn cpu(target: &Target) -> Result<Option<Duration>, CommandError> {
    target
        .process
        .map(Process::cpu_time_with_workers)
        .transpose()
}

fn figures(
    target: &Target,
    measured: Measured,
    before: Option<Duration>,
) -> Result<Figures, CommandError> {
    let cpu = cpu(target)?
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    Ok(Figures { measured, cpu })
}

impl Figures {
    fn outcome(&self) -> Outcome {
        let Measured {
            latencies_s,
            bytes,
            errors,
            took,
            ..
        } = &self.measured;
        let requests = latencies_s.len();
        let in_ms = |share| percentile(latencies_s, share) * 1e3;
        Outcome {
            requests,
            rps: requests as f64 / took.as_secs_f64(),
            p50_ms: in_ms(0.5),
            p99_ms: in_ms(0.99),
            errors: *errors,
            mib_s: *bytes as f64 / f64::from(1 << 20) / took.as_secs_f64(),
            cpu_us_per_request: self
                .cpu
                .map(|cpu| cpu.as_secs_f64() * 1e6 / requests.max(1) as f64),
        }
    }
}

fn summary(outcome: &Outcome) -> String {
    let cpu = outcome
        .cpu_us_per_request
        .map_or_else(|| "unknown".to_owned(), |us| format!("{us:.1} us"));
    format!(
        "requests     {}, {:.0} per second, {:.1} MiB/s\n\
         latency      p50 {:.3} ms, p99 {:.3} ms\n\
         processor    {cpu} per request\n\
         errors       {}\n",
        outcome.requests,
        outcome.rps,
        outcome.mib_s,
        outcome.p50_ms,
        outcome.p99_ms,
        outcome.errors,
    )
}

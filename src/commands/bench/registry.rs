//! `flotilla bench registry`: requests per second and latency of a registry.
//!
//! Without a URL it starts an origin as an operator would, on a folder that is deleted afterwards.
//! With a URL it measures that registry, of any make; a URL with a path is requested as it is, so
//! it may be a file on any HTTP server. An image is pushed first for the pulls.

use std::env;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::{Args, ValueEnum, value_parser};
use flotilla_common::bounds::percentile;
use flotilla_common::digest::{Algorithm, DigestHasher};
use flotilla_common::manifest::ACCEPT;
use flotilla_common::name::RepositoryName;
use flotilla_common::units::ByteSize;
use futures_util::stream;
use reqwest::{Body, Url};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::load::{Load, LoadResult};
use crate::client::RegistryClient;
use crate::command::{CommandError, print_outcome};
use crate::measure::{OriginProcess, OriginProcessPlan, Process, PushedImage, SyntheticImage};

const REPOSITORY: &str = "bench";
const TAG: &str = "v1";
const RNG_SEED: u64 = 1;
/// Load before the measurement starts.
const WARM_UP: Duration = Duration::from_secs(1);

/// The arguments of `flotilla bench registry`.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// The kind of request that is repeated
    #[arg(value_enum, default_value_t = RequestKind::Tag)]
    kind: RequestKind,
    /// A running registry, or a file on any HTTP server [default: a new origin]
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// The server's process id, for its CPU time [default: the new origin's]
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Concurrent connections
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Duration of the measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Size of the blob that is pulled or pushed
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(1 << 20))]
    size: ByteSize,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// The kind of request that is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RequestKind {
    /// Get a manifest by its tag
    Tag,
    /// Get a manifest by its digest
    Digest,
    /// Get a whole blob
    Blob,
    /// Push a new blob
    Push,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    requests: usize,
    rps: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
    mib_s: f64,
    /// `null` if the server's process is unknown.
    cpu_us_per_request: Option<f64>,
}

/// The server that is measured.
struct Target {
    base: Url,
    address: SocketAddr,
    process: Option<Process>,
    /// Set if the benchmark started the server itself; dropping it ends the server.
    _origin: Option<OriginProcess>,
}

/// Runs the benchmark.
pub(super) async fn run(args: RegistryArgs) -> Result<(), CommandError> {
    let target = target(&args).await?;
    let measurement = if args.kind == RequestKind::Push {
        measure_pushes(&target, &args).await?
    } else {
        measure_gets(&target, &args).await?
    };
    if let Some(error) = &measurement.load.first_error {
        eprintln!("first of {} errors: {error}", measurement.load.errors);
    }
    let outcome = measurement.outcome();
    print_outcome(&outcome, args.json, summary, outcome.errors == 0)
}

async fn target(args: &RegistryArgs) -> Result<Target, CommandError> {
    let (base, process, origin) = match &args.url {
        Some(url) => (url.clone(), args.pid.map(Process), None),
        None => {
            let origin = start_origin().await?;
            let url = Url::parse(origin.base());
            let url = url.map_err(|error| CommandError::failed("parse the origin's URL", error))?;
            (url, Some(origin.process()), Some(origin))
        }
    };
    Ok(Target {
        address: resolve(&base).await?,
        base,
        process,
        _origin: origin,
    })
}

async fn start_origin() -> Result<OriginProcess, CommandError> {
    let program =
        env::current_exe().map_err(|error| CommandError::failed("find this program", error))?;
    OriginProcess::start(OriginProcessPlan::new(program)).await
}

/// The address of an http:// URL. HTTPS is refused: the benchmark would measure its own share of
/// the encryption.
async fn resolve(url: &Url) -> Result<SocketAddr, CommandError> {
    let failed = |why: &str| CommandError::failed(format!("measure {url}"), why);
    let (host, port) = (url.host_str(), url.port_or_known_default());
    let (Some(host), Some(port), "http") = (host, port, url.scheme()) else {
        return Err(failed(
            "only http:// is supported; write a URL such as http://127.0.0.1:5000",
        ));
    };
    let mut addresses = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| failed(&error.to_string()))?;
    addresses
        .next()
        .ok_or_else(|| failed("the host name has no address"))
}

/// The result of a load, and the CPU time that the server spent on it.
struct Measurement {
    load: LoadResult,
    cpu: Option<Duration>,
}

async fn measure_gets(target: &Target, args: &RegistryArgs) -> Result<Measurement, CommandError> {
    let path = match target.base.path() {
        "/" => path(args.kind, push(target, args).await?),
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
    let (load, cpu_before) = tokio::join!(load.run(), async {
        tokio::time::sleep(WARM_UP).await;
        cpu_time(target)
    });
    measurement(target, load, cpu_before?)
}

fn path(kind: RequestKind, image: PushedImage) -> String {
    let (kind, reference) = match kind {
        RequestKind::Blob => ("blobs", image.layer.to_string()),
        RequestKind::Digest => ("manifests", image.manifest.to_string()),
        RequestKind::Tag | RequestKind::Push => ("manifests", TAG.to_owned()),
    };
    format!("/v2/{REPOSITORY}/{kind}/{reference}")
}

async fn push(target: &Target, args: &RegistryArgs) -> Result<PushedImage, CommandError> {
    let image = SyntheticImage {
        size: args.size.0,
        rng_seed: RNG_SEED,
    };
    let pushed = image.push(&client(target)?, TAG).await;
    pushed.map_err(|error| CommandError::failed("push an image", error))
}

fn client(target: &Target) -> Result<RegistryClient, CommandError> {
    let failed = |error: &dyn std::fmt::Display| {
        CommandError::failed("create a registry client", error.to_string())
    };
    let repository: RepositoryName = REPOSITORY.parse().map_err(|error| failed(&error))?;
    let base = format!("http://{}", target.address);
    RegistryClient::new(base, repository).map_err(|error| failed(&error))
}

/// Pushes new blobs as clients do: POST, PATCH, PUT.
async fn measure_pushes(target: &Target, args: &RegistryArgs) -> Result<Measurement, CommandError> {
    let image = SyntheticImage {
        size: args.size.0,
        rng_seed: RNG_SEED,
    };
    let buffers: Arc<Vec<Bytes>> = Arc::new(image.layer_bytes().collect());
    let cpu_before = cpu_time(target)?;
    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    // Makes the blobs differ from those of earlier runs on the same registry.
    let run = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let mut clients = JoinSet::new();
    for number in 0..args.connections {
        clients.spawn(push_blobs(
            client(target)?,
            Arc::clone(&buffers),
            format!("{run:032x} {number}"),
            deadline,
        ));
    }
    let load = LoadResult::gather(clients, started).await;
    measurement(target, load, cpu_before)
}

async fn push_blobs(
    client: RegistryClient,
    buffers: Arc<Vec<Bytes>>,
    prefix: String,
    deadline: Instant,
) -> LoadResult {
    let mut result = LoadResult::default();
    for round in 0_u32.. {
        if Instant::now() >= deadline || result.errors > 0 {
            break;
        }
        let first = Bytes::from(format!("{prefix} {round}\n"));
        let blob: Vec<Bytes> = core::iter::once(first)
            .chain(buffers.iter().cloned())
            .collect();
        let len = blob.iter().map(|bytes| bytes.len() as u64).sum();
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        blob.iter().for_each(|bytes| hasher.update(bytes));
        let body = Body::wrap_stream(stream::iter(blob.into_iter().map(Ok::<_, std::io::Error>)));
        let started = Instant::now();
        match client.upload(&hasher.finish(), len, body).await {
            Ok(()) => result.record_response(started.elapsed(), len),
            Err(error) => result.record_error(error),
        }
    }
    result
}

fn cpu_time(target: &Target) -> Result<Option<Duration>, CommandError> {
    target
        .process
        .map(Process::cpu_time_with_children)
        .transpose()
}

fn measurement(
    target: &Target,
    load: LoadResult,
    cpu_before: Option<Duration>,
) -> Result<Measurement, CommandError> {
    let cpu = cpu_time(target)?
        .zip(cpu_before)
        .map(|(after, before)| after.saturating_sub(before));
    Ok(Measurement { load, cpu })
}

impl Measurement {
    fn outcome(&self) -> Outcome {
        let LoadResult {
            latencies_s,
            bytes,
            errors,
            duration,
            ..
        } = &self.load;
        let requests = latencies_s.len();
        let in_ms = |share| percentile(latencies_s, share) * 1e3;
        Outcome {
            requests,
            rps: requests as f64 / duration.as_secs_f64(),
            p50_ms: in_ms(0.5),
            p99_ms: in_ms(0.99),
            errors: *errors,
            mib_s: *bytes as f64 / f64::from(1 << 20) / duration.as_secs_f64(),
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
         CPU time     {cpu} per request\n\
         errors       {}\n",
        outcome.requests,
        outcome.rps,
        outcome.mib_s,
        outcome.p50_ms,
        outcome.p99_ms,
        outcome.errors,
    )
}

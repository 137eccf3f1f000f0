//! `flotilla origin wait`: waits until a region has an image.
//!
//! ```text
//! wait ── GET /flotilla/v1/regions ──────────▶ registry   where the region is, whether it keeps the
//!                                                         repository
//!      ── HEAD the tag ──────────────────────▶ registry   the digest that it names
//!      ── GET, HEAD with own-storage: only ──▶ region     the tag, the manifests, each blob
//! ```
//! It asks the region itself for everything that a pull needs, in a way that forbids the region to
//! answer from another one. So success means that the image can be pulled there even if all other
//! regions are lost.

mod registry_image;
mod replication;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use flotilla_common::digest::Digest;
use flotilla_common::name::RegionName;
use flotilla_common::units::Period;
use flotilla_runtime::identity::{client_trusting, client_trusting_system};
use reqwest::Client;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use self::registry_image::RegistryImage;
use self::replication::{Look, LookError, Replication};
use crate::command::{CommandError, block_on, print_outcome};

/// The pause after the first look; each later one is half as long again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The maximum pause between two looks.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The first look may take this long, however short the timeout is.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// For the head of one answer, and for each piece of its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments of `flotilla origin wait`.
#[derive(Debug, Args)]
#[command(after_help = "\
It waits until the region has the manifest and all of its blobs (of an index, those of all its images) in its own
storage, and, for a tag, until the tag names there what it names in the registry. The exit status is 1 after the timeout,
or if the registry does not have the image.

Examples:
  flotilla origin wait origin.eu.example/team/app:v1 --region us-1
  flotilla origin wait origin.eu.example/team/app:v1 --region us-1 --timeout 30m --tls-ca ca.pem
  flotilla origin wait team/app@sha256:... --registry https://origin.eu.example --region us-1 --json")]
pub(super) struct WaitArgs {
    /// [REGISTRY/]REPOSITORY[:TAG|@DIGEST]; the registry is an origin to which the image was pushed
    #[arg(value_name = "IMAGE")]
    image: RegistryImage,
    /// The region that must have the image
    #[arg(long, value_name = "NAME")]
    region: RegionName,
    /// How long to wait: 30s, 10m, 2h; 0s looks once
    #[arg(long, value_name = "PERIOD", default_value = "10m")]
    timeout: Period,
    /// The URL of the registry [default: https:// and the registry in IMAGE]
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    registry: Option<String>,
    /// The certificate of the authority that the origins' certificates are from, PEM [default: the
    /// authorities of the system]
    #[arg(long, value_name = "FILE", env = "FLOTILLA_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Print one JSON object: image, region, digest, ok, waited_s, missing
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Outcome {
    image: String,
    region: RegionName,
    /// The manifest; `null` if the registry did not answer.
    digest: Option<Digest>,
    ok: bool,
    waited_s: f64,
    /// What the region lacked at the last look, for people.
    missing: Vec<String>,
}

/// Waits, and prints what the region has.
///
/// # Errors
/// The region or the image does not exist; the timeout.
pub(super) fn run(args: &WaitArgs) -> Result<(), CommandError> {
    block_on(wait(args))
}

async fn wait(args: &WaitArgs) -> Result<(), CommandError> {
    let action = format!("wait for {} in region {}", args.image, args.region);
    let failed = |error: String| CommandError::failed(action.clone(), error);
    let http = http_client(args)?;
    let registry = args
        .registry
        .clone()
        .or_else(|| {
            args.image
                .registry
                .as_ref()
                .map(|host| format!("https://{host}"))
        })
        .ok_or_else(|| {
            failed(
                "IMAGE names no registry; write REGISTRY/REPOSITORY:TAG, or set --registry"
                    .to_owned(),
            )
        })?;
    let mut replication = Replication::new(
        http,
        registry,
        args.image.image.clone(),
        args.region.clone(),
    );
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut last = Look::default();
    let mut has_told = false;
    let mut budget = args.timeout.0.max(FIRST_LOOK);
    let ok = loop {
        match timeout(budget, replication.look()).await {
            Ok(Ok(look)) => last = look,
            Ok(Err(LookError::Final(error))) => return Err(failed(error)),
            Ok(Err(LookError::Unanswered(error))) => {
                // A wrong address fails like one whose origin is starting.
                if !core::mem::replace(&mut has_told, true) && !args.timeout.0.is_zero() {
                    eprintln!("{error}; trying again for {} (--timeout)", args.timeout);
                }
                last.missing = vec![error];
            }
            Err(_) if last.missing.is_empty() => {
                last.missing = vec!["no answer in time".to_owned()];
            }
            Err(_) => {}
        }
        if last.missing.is_empty() {
            break true;
        }
        let left = args.timeout.0.saturating_sub(started.elapsed());
        if left.is_zero() {
            break false;
        }
        sleep(pause.min(left)).await;
        pause = (pause + pause / 2).min(MAX_PAUSE);
        budget = left.max(Duration::from_secs(1));
    };
    let outcome = Outcome {
        image: args.image.to_string(),
        region: args.region.clone(),
        digest: last.digest,
        ok,
        waited_s: started.elapsed().as_secs_f64(),
        missing: last.missing,
    };
    if !ok && !args.json {
        let missing = outcome.missing.join("; ");
        return Err(failed(format!("timeout after {}: {missing}", args.timeout)));
    }
    print_outcome(&outcome, args.json, render, ok)
}

fn render(outcome: &Outcome) -> String {
    let digest = outcome.digest.map(|digest| digest.to_string());
    format!(
        "region {} has {} ({}), after {:.1} s\n",
        outcome.region,
        outcome.image,
        digest.unwrap_or_default(),
        outcome.waited_s
    )
}

fn http_client(args: &WaitArgs) -> Result<Client, CommandError> {
    let tls = match &args.tls_ca {
        Some(authority) => client_trusting(authority),
        None => client_trusting_system(),
    };
    let tls = tls.map_err(|error| CommandError::failed("load the trusted authorities", error))?;
    Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(REQUEST_TIMEOUT / 2)
        .read_timeout(REQUEST_TIMEOUT)
        .build()
        .map_err(|error| CommandError::failed("create an HTTP client", error))
}

/// Parses `https://HOST[:PORT]` or `http://HOST[:PORT]`.
fn parse_url(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    let host = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['/', '?', '#', '@']) => {
            Ok(url.to_owned())
        }
        _ => Err("write https://HOST or https://HOST:PORT".to_owned()),
    }
}

//! `flotilla-lab growth`: the cost of requests to a registry as the number of its images grows.
//!
//! Images, tags, referrers of one manifest, blobs and repositories grow together. At each size,
//! several origins in this process answer a few requests of each kind, one origin after the other:
//! cold requests, since each origin has just started with empty caches, and warm ones. The figures
//! are storage operations, and the latency that a client sees.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, value_parser};
use flotilla::client::{ClientError, RegistryClient, http_client};
use flotilla::command::{CommandError, print_outcome};
use flotilla::fleet::Fleet;
use flotilla::measure::{EMPTY_CONFIG, EMPTY_CONFIG_TYPE, LAYER_TYPE};
use flotilla::region::ANY_PORT;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::name::RepositoryName;
use flotilla_origin::storage::{self, Storage};
use flotilla_origin::{Config, Limits, Origin};
use flotilla_runtime::clock::Clock;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Body, Client, StatusCode};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

/// The repository of all images but those that make many repositories.
const REPOSITORY: &str = "growth";
/// Images pushed concurrently.
const CONCURRENT_PUSHES: usize = 32;
/// Entries per page of a listing.
const PAGE_LEN: u32 = 10;
/// Requests of each kind to one origin.
const REQUESTS: u32 = 10;
/// Origins per size, one after the other.
const ORIGINS: u32 = 10;
/// The images that are pushed as part of the measurement have numbers from here on.
const FIRST_NEW_IMAGE: u32 = 2_000_000_000;

/// The arguments of `flotilla-lab growth`.
#[derive(Debug, Args)]
pub(crate) struct GrowthArgs {
    /// The largest number of images, tags, referrers, blobs and repositories; the sizes are 10,
    /// 100, 1000 and so on
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u32).range(10..=1_000_000))]
    most: u32,
    /// The storage, which must be empty
    #[arg(long, value_name = "URL", default_value = "memory:///")]
    storage: String,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// The kinds of requests.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum RequestKind {
    ColdPull,
    WarmPull,
    Push,
    TagPage,
    ReferrerPage,
}

/// The order of the requests to each origin. Pages of listings have separate origins, because a
/// storage without native paging may leave garbage whose collection would slow the next request.
const REQUEST_KINDS: [&[RequestKind]; 2] = [
    &[
        RequestKind::ColdPull,
        RequestKind::WarmPull,
        RequestKind::Push,
    ],
    &[RequestKind::TagPage, RequestKind::ReferrerPage],
];

/// The mean cost of one request of a kind.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    question: RequestKind,
    storage_operations: f64,
    ms: f64,
}

#[derive(Debug, Serialize)]
struct Size {
    images: u32,
    costs: Vec<Cost>,
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
struct Outcome {
    sizes: Vec<Size>,
    /// Whether no kind of request needs more storage operations at the largest size than at the
    /// smallest.
    ok: bool,
}

/// Runs the benchmark.
pub(super) async fn run(args: GrowthArgs) -> Result<(), CommandError> {
    let storage = storage::open(&args.storage, Limits::default().part_buffers.0);
    let storage = storage.map_err(|error| CommandError::failed("open the storage", error))?;
    let mut sizes = Vec::new();
    let mut present = 0;
    for images in core::iter::successors(Some(10_u32), |images| images.checked_mul(10)) {
        if images > args.most {
            break;
        }
        grow(&storage, present..images).await?;
        present = images;
        sizes.push(Size {
            images,
            costs: costs(&storage, images).await?,
        });
    }
    let ok = costs_do_not_grow(&sizes);
    let outcome = Outcome { sizes, ok };
    print_outcome(&outcome, args.json, table, ok)
}

/// An origin in this process, and a client of it.
struct Registry {
    origin: Origin,
    http: Client,
}

impl Registry {
    async fn start(storage: &Arc<dyn Storage>) -> Result<Self, CommandError> {
        let failed = |error: &dyn core::fmt::Display| {
            CommandError::failed("start an origin", error.to_string())
        };
        let region = "growth".parse().map_err(|error| failed(&error))?;
        let fleet = Fleet::create(region).map_err(|error| failed(&error))?;
        let (region, seal_key) = (fleet.seal_key().issuer().clone(), fleet.seal_key().clone());
        let config = Config::new(ANY_PORT, "growth", region, seal_key, Clock::system());
        let origin = Origin::start_on(config, Arc::clone(storage))
            .await
            .map_err(|error| failed(&error))?;
        let http = http_client().map_err(|error| failed(&error))?;
        let registry = Self { origin, http };
        // Opens the connection before the measurement.
        registry.get("", StatusCode::OK).await?;
        Ok(registry)
    }

    fn client(&self, repository: &str) -> Result<RegistryClient, CommandError> {
        let repository: Result<RepositoryName, _> = repository.parse();
        let repository =
            repository.map_err(|error| CommandError::failed("name a repository", error))?;
        let base = format!("http://{}", self.origin.addr());
        Ok(RegistryClient::with_http(
            self.http.clone(),
            base,
            repository,
        ))
    }

    async fn get(&self, path: &str, expected: StatusCode) -> Result<(), CommandError> {
        let failed = |error: String| CommandError::failed(format!("get {path}"), error);
        let url = format!("http://{}/v2/{path}", self.origin.addr());
        let response = self
            .http
            .get(url)
            .send()
            .await
            .map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        response
            .bytes()
            .await
            .map_err(|error| failed(error.to_string()))?;
        if status == expected {
            Ok(())
        } else {
            Err(failed(format!("status {status}")))
        }
    }

    /// Pushes an image with its own layer that refers to the common subject.
    async fn push(&self, number: u32) -> Result<(), CommandError> {
        let failed =
            |error: ClientError| CommandError::failed(format!("push image {number}"), error);
        let client = self.client(REPOSITORY)?;
        let layer = number.to_string().into_bytes();
        let digest = Digest::sha256(&layer);
        client
            .upload(&digest, layer.len() as u64, Body::from(layer.clone()))
            .await
            .map_err(failed)?;
        let bytes = manifest(&[(digest, layer.len())], Some(subject()));
        client
            .put_manifest(&tag(number), OCI_MANIFEST, bytes)
            .await
            .map_err(failed)
    }

    /// Pushes an image into its own repository.
    async fn push_repository(&self, number: u32) -> Result<(), CommandError> {
        let failed = |error| CommandError::failed(format!("push repository {number}"), error);
        let client = self.client(&format!("many/{number}"))?;
        let config = Digest::sha256(EMPTY_CONFIG);
        client
            .upload(&config, EMPTY_CONFIG.len() as u64, Body::from(EMPTY_CONFIG))
            .await
            .map_err(failed)?;
        client
            .put_manifest("v1", OCI_MANIFEST, manifest(&[], None))
            .await
            .map_err(failed)
    }

    /// Sends a request: for an image that exists, or to push a new one.
    async fn send(&self, kind: RequestKind, images: u32, new: u32) -> Result<(), CommandError> {
        // Spread over all images.
        let number = new % REQUESTS * (images / REQUESTS);
        match kind {
            RequestKind::ColdPull | RequestKind::WarmPull => {
                self.get(
                    &format!("{REPOSITORY}/manifests/{}", tag(number)),
                    StatusCode::OK,
                )
                .await
            }
            RequestKind::Push => self.push(FIRST_NEW_IMAGE + 10 * images + new).await,
            RequestKind::TagPage => {
                let path = format!("{REPOSITORY}/tags/list?n={PAGE_LEN}&last={}", tag(number));
                self.get(&path, StatusCode::OK).await
            }
            RequestKind::ReferrerPage => {
                let last = Digest::sha256(&number.to_be_bytes());
                let path = format!(
                    "{REPOSITORY}/referrers/{}?n={PAGE_LEN}&last={last}",
                    subject()
                );
                self.get(&path, StatusCode::OK).await
            }
        }
    }

    /// The storage operations and the time of some requests.
    async fn cost(
        &self,
        kind: RequestKind,
        images: u32,
        round: u32,
    ) -> Result<(u64, Duration), CommandError> {
        let operations = self.origin.metrics().operations();
        let (before, started) = (operations.total(), Instant::now());
        for request in 0..REQUESTS {
            self.send(kind, images, round * REQUESTS + request).await?;
        }
        Ok((operations.total() - before, started.elapsed()))
    }
}

fn tag(number: u32) -> String {
    format!("v{number:07}")
}

/// The manifest that all images refer to; it was never pushed.
fn subject() -> Digest {
    Digest::sha256(b"subject")
}

fn manifest(layers: &[(Digest, usize)], subject: Option<Digest>) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| json!({ "mediaType": LAYER_TYPE, "digest": digest, "size": size }))
        .collect();
    let config = Digest::sha256(EMPTY_CONFIG);
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": EMPTY_CONFIG_TYPE, "digest": config, "size": EMPTY_CONFIG.len() },
        "layers": layers,
    });
    if let Some(digest) = subject {
        manifest["subject"] = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 7 });
    }
    manifest.to_string().into_bytes()
}

/// Pushes images with these numbers, and as many repositories.
async fn grow(
    storage: &Arc<dyn Storage>,
    numbers: core::ops::Range<u32>,
) -> Result<(), CommandError> {
    let registry = Registry::start(storage).await?;
    let config = Digest::sha256(EMPTY_CONFIG);
    let empty = registry
        .client(REPOSITORY)?
        .upload(&config, EMPTY_CONFIG.len() as u64, Body::from(EMPTY_CONFIG))
        .await;
    empty.map_err(|error| CommandError::failed("push the config", error))?;
    let pushes = stream::iter(numbers).map(|number| {
        let registry = &registry;
        async move {
            registry.push(number).await?;
            registry.push_repository(number).await
        }
    });
    pushes
        .buffer_unordered(CONCURRENT_PUSHES)
        .try_collect::<()>()
        .await?;
    registry.origin.shutdown().await;
    Ok(())
}

async fn costs(storage: &Arc<dyn Storage>, images: u32) -> Result<Vec<Cost>, CommandError> {
    let mut costs = Vec::new();
    for kinds in REQUEST_KINDS {
        let mut sums = vec![(0, Duration::ZERO); kinds.len()];
        for round in 0..ORIGINS {
            let registry = Registry::start(storage).await?;
            for (kind, (operations, elapsed)) in kinds.iter().zip(&mut sums) {
                let cost = registry.cost(*kind, images, round).await?;
                *operations += cost.0;
                *elapsed += cost.1;
            }
            registry.origin.shutdown().await;
        }
        let each = f64::from(ORIGINS * REQUESTS);
        costs.extend(
            kinds
                .iter()
                .zip(sums)
                .map(|(kind, (operations, elapsed))| Cost {
                    question: *kind,
                    storage_operations: operations as f64 / each,
                    ms: elapsed.as_secs_f64() * 1e3 / each,
                }),
        );
    }
    Ok(costs)
}

fn costs_do_not_grow(sizes: &[Size]) -> bool {
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else {
        return true;
    };
    first.costs.iter().zip(&last.costs).all(|(first, last)| {
        // Ten images do not always fill a page: a full page takes one list and a read per entry.
        let full_page = if matches!(first.question, RequestKind::ReferrerPage) {
            f64::from(PAGE_LEN + 1)
        } else {
            0.0
        };
        last.storage_operations <= first.storage_operations.max(full_page)
    })
}

fn table(outcome: &Outcome) -> String {
    let mut text = format!(
        "storage operations and ms per request, with pages of {PAGE_LEN}\n{:>9} {:>15} {:>15} {:>15} {:>15} {:>15}\n",
        "images", "cold pull", "warm pull", "push", "tag page", "referrer page"
    );
    for Size { images, costs } in &outcome.sizes {
        text.push_str(&format!("{images:>9}"));
        for Cost {
            storage_operations,
            ms,
            ..
        } in costs
        {
            text.push_str(&format!(" {storage_operations:>6.1} {ms:>8.3}"));
        }
        text.push('\n');
    }
    text
}

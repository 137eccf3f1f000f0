//! `flotilla bench growth`: what a request costs at a registry with few images, and at one with
//! many.
//!
//! Images, tags, referrers of one manifest, blobs and repositories grow together, each to the same
//! number. At each size origins of this process, one after the other, answer a few requests of each
//! kind: cold ones, from storage, since each origin has just started; and warm ones. Storage
//! operations are counted, times are those of a client that waits.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, value_parser};
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

use super::content::EMPTY;
use crate::cli::{CommandError, conclude};
use crate::client::{RegistryClient, http_client};
use crate::fleet::Fleet;
use crate::region::ANY_PORT;

/// Where everything is but what shows that there are many repositories.
const REPOSITORY: &str = "growth";
/// Images that are pushed at once.
const PUSHES_AT_ONCE: usize = 32;
/// Entries of a page.
const PAGE: u32 = 10;
/// Requests of each kind at one origin.
const REQUESTS: u32 = 10;
/// Origins, one after the other, for each size.
const ORIGINS: u32 = 10;
/// Numbers of images from here on are pushed while it is measured, and no others.
const NEW: u32 = 2_000_000_000;

/// The arguments of `flotilla bench growth`.
#[derive(Debug, Args)]
pub(super) struct GrowthArgs {
    /// Images, tags, referrers, blobs and repositories at the end; it begins with 10, and goes on
    /// by ten times as many
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u32).range(10..=1_000_000))]
    most: u32,
    /// Where they are stored; nothing may be there before
    #[arg(long, value_name = "URL", default_value = "memory:///")]
    storage: String,
    /// Print one JSON object on stdout and nothing else
    #[arg(long)]
    json: bool,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    ColdPull,
    WarmPull,
    Push,
    TagPage,
    ReferrerPage,
}

/// In this order at each origin. Pages have origins of their own: a storage that is not made for
/// them may leave so much to clean up that whoever comes next would pay for it.
const QUESTIONS: [&[Question]; 2] = [
    &[Question::ColdPull, Question::WarmPull, Question::Push],
    &[Question::TagPage, Question::ReferrerPage],
];

/// What requests of one kind cost, each.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    question: Question,
    storage_operations: f64,
    ms: f64,
}

#[derive(Debug, Serialize)]
struct Size {
    images: u32,
    costs: Vec<Cost>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Outcome {
    sizes: Vec<Size>,
    /// Whether no kind of request takes more storage operations at the largest size than at the
    /// smallest.
    ok: bool,
}

/// Runs the benchmark.
pub(super) async fn run(args: GrowthArgs) -> Result<(), CommandError> {
    let storage = storage::open(&args.storage, Limits::default().part_buffers.0);
    let storage = storage.map_err(|error| CommandError::failed("open the storage", error))?;
    let (mut sizes, mut present) = (Vec::new(), 0);
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
    let ok = grows_nowhere(&sizes);
    let outcome = Outcome { sizes, ok };
    conclude(&outcome, args.json, table, ok)
}

/// An origin of this process.
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
        // The connection is there before anything counts.
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

    async fn get(&self, path: &str, wanted: StatusCode) -> Result<(), CommandError> {
        let failed = |error: String| CommandError::failed(format!("get {path}"), error);
        let url = format!("http://{}/v2/{path}", self.origin.addr());
        let answer = self
            .http
            .get(url)
            .send()
            .await
            .map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        answer
            .bytes()
            .await
            .map_err(|error| failed(error.to_string()))?;
        if status == wanted {
            Ok(())
        } else {
            Err(failed(format!("answered {status}")))
        }
    }

    /// Pushes an image of a layer of its own, which refers to the subject of all.
    async fn push(&self, number: u32) -> Result<(), CommandError> {
        let failed = |error: crate::client::ClientError| {
            CommandError::failed(format!("push image {number}"), error)
        };
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

    /// Pushes an image into a repository of its own.
    async fn push_repository(&self, number: u32) -> Result<(), CommandError> {
        let failed = |error| CommandError::failed(format!("push repository {number}"), error);
        let client = self.client(&format!("many/{number}"))?;
        let config = Digest::sha256(EMPTY);
        client
            .upload(&config, EMPTY.len() as u64, Body::from(EMPTY))
            .await
            .map_err(failed)?;
        client
            .put_manifest("v1", OCI_MANIFEST, manifest(&[], None))
            .await
            .map_err(failed)
    }

    /// Asks for what is there already; what is pushed is new.
    async fn ask(&self, question: Question, images: u32, new: u32) -> Result<(), CommandError> {
        // Spread over all that there is.
        let number = new % REQUESTS * (images / REQUESTS);
        match question {
            Question::ColdPull | Question::WarmPull => {
                self.get(
                    &format!("{REPOSITORY}/manifests/{}", tag(number)),
                    StatusCode::OK,
                )
                .await
            }
            Question::Push => self.push(NEW + 10 * images + new).await,
            Question::TagPage => {
                let path = format!("{REPOSITORY}/tags/list?n={PAGE}&last={}", tag(number));
                self.get(&path, StatusCode::OK).await
            }
            Question::ReferrerPage => {
                let last = Digest::sha256(&number.to_be_bytes());
                let path = format!("{REPOSITORY}/referrers/{}?n={PAGE}&last={last}", subject());
                self.get(&path, StatusCode::OK).await
            }
        }
    }

    async fn cost(
        &self,
        question: Question,
        images: u32,
        round: u32,
    ) -> Result<(u64, Duration), CommandError> {
        let operations = self.origin.metrics().operations();
        let (before, started) = (operations.total(), Instant::now());
        for request in 0..REQUESTS {
            self.ask(question, images, round * REQUESTS + request)
                .await?;
        }
        Ok((operations.total() - before, started.elapsed()))
    }
}

fn tag(number: u32) -> String {
    format!("v{number:07}")
}

/// A manifest that nobody has pushed, and all refer to.
fn subject() -> Digest {
    Digest::sha256(b"subject")
}

fn manifest(layers: &[(Digest, usize)], subject: Option<Digest>) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| {
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size })
        })
        .collect();
    let config = Digest::sha256(EMPTY);
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": EMPTY.len() },
        "layers": layers,
    });
    if let Some(digest) = subject {
        manifest["subject"] = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 7 });
    }
    manifest.to_string().into_bytes()
}

/// Pushes these images, and as many repositories.
async fn grow(
    storage: &Arc<dyn Storage>,
    numbers: core::ops::Range<u32>,
) -> Result<(), CommandError> {
    let registry = Registry::start(storage).await?;
    let config = Digest::sha256(EMPTY);
    let empty = registry
        .client(REPOSITORY)?
        .upload(&config, EMPTY.len() as u64, Body::from(EMPTY))
        .await;
    empty.map_err(|error| CommandError::failed("push the configuration", error))?;
    let pushes = stream::iter(numbers).map(|number| {
        let registry = &registry;
        async move {
            registry.push(number).await?;
            registry.push_repository(number).await
        }
    });
    pushes
        .buffer_unordered(PUSHES_AT_ONCE)
        .try_collect::<()>()
        .await?;
    registry.origin.shutdown().await;
    Ok(())
}

async fn costs(storage: &Arc<dyn Storage>, images: u32) -> Result<Vec<Cost>, CommandError> {
    let mut costs = Vec::new();
    for questions in QUESTIONS {
        let mut sums = vec![(0, Duration::ZERO); questions.len()];
        for round in 0..ORIGINS {
            let registry = Registry::start(storage).await?;
            for (question, (operations, took)) in questions.iter().zip(&mut sums) {
                let cost = registry.cost(*question, images, round).await?;
                *operations += cost.0;
                *took += cost.1;
            }
            registry.origin.shutdown().await;
        }
        let each = f64::from(ORIGINS * REQUESTS);
        costs.extend(
            questions
                .iter()
                .zip(sums)
                .map(|(question, (operations, took))| Cost {
                    question: *question,
                    storage_operations: operations as f64 / each,
                    ms: took.as_secs_f64() * 1e3 / each,
                }),
        );
    }
    Ok(costs)
}

fn grows_nowhere(sizes: &[Size]) -> bool {
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else {
        return true;
    };
    first.costs.iter().zip(&last.costs).all(|(first, last)| {
        // Among ten images there is not always a whole page: one list, and a read for each on it.
        let least = if matches!(first.question, Question::ReferrerPage) {
            f64::from(PAGE + 1)
        } else {
            0.0
        };
        last.storage_operations <= first.storage_operations.max(least)
    })
}

fn table(outcome: &Outcome) -> String {
    let mut text = format!(
        "storage operations and ms for each request, with pages of {PAGE}\n{:>9} {:>15} {:>15} {:>15} {:>15} {:>15}\n",
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

//! Clients of two regions that write and read the same keys, and record the outcomes.

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::Plan;
use super::checker::{Event, History, Outcome};
use super::pair::RegionPair;
use crate::history::fleet::ReplicaClients;
use crate::support::{MANIFEST, Registry, descriptor, manifest};

/// Each has tags and manifests of its own. The regions know what is owed by repository.
const REPOSITORIES: [&str; 2] = ["app", "team/app"];
const TAGS: [&str; 2] = ["one", "two"];
const WRITERS: u64 = 2;
const READERS: u64 = 3;
/// Manifests of a repository that are pushed and deleted again by digest. They refer to a subject.
const ARTIFACTS: u64 = 2;
/// Timeout of a request. After a timeout its outcome is unknown.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of one region that sends each request to a random replica.
struct Client {
    region: usize,
    replicas: Vec<ReplicaClients>,
    number: u64,
    rng: Pcg64Mcg,
    events: Arc<Mutex<Vec<Event>>>,
    until: Instant,
}

/// Runs clients in both regions while these are disturbed.
pub(super) async fn run(regions: &mut RegionPair, plan: Plan) -> History {
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let until = Instant::now() + plan.time;
    let replicas: Vec<_> = regions
        .fleets
        .iter()
        .map(|fleet| Arc::clone(&fleet.replicas))
        .collect();
    for region in &replicas {
        let first = region.read().unwrap()[0].clone();
        for repository in REPOSITORIES {
            first
                .as_ref()
                .expect("all replicas are up at first")
                .push_blob(repository, "{}")
                .await;
        }
    }
    let mut clients = JoinSet::new();
    for region in [0, 1] {
        let client = |number: u64| Client {
            region,
            replicas: replicas.clone(),
            number,
            rng: Pcg64Mcg::seed_from_u64(plan.rng_seed * 1000 + 100 * region as u64 + number),
            events: Arc::clone(&events),
            until,
        };
        for writer in 0..WRITERS {
            clients.spawn(client(writer).move_tags());
            clients.spawn(client(10 + writer).push_and_delete_artifacts());
        }
        for reader in 0..READERS {
            clients.spawn(client(20 + reader).read());
        }
    }
    regions.disturb(until, plan).await;
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let events = core::mem::take(&mut *events.lock().await);
    History::new(events, regions.applied().await)
}

/// A manifest that is unique by its annotation.
fn image(name: &str, layers: &[Bytes]) -> Bytes {
    let mut image: Value = serde_json::from_slice(&manifest(b"{}", layers)).unwrap();
    image["annotations"] = json!({"write": name});
    image.to_string().into()
}

fn subject() -> Bytes {
    Bytes::from_static(b"the subject")
}

/// One of the manifests that all clients push and delete.
fn artifact(number: u64) -> Bytes {
    let mut artifact: Value = serde_json::from_slice(&image(&format!("{number}"), &[])).unwrap();
    artifact["subject"] = descriptor(MANIFEST, &subject());
    artifact.to_string().into()
}

fn referrer_key(repository: &str, digest: &Digest) -> String {
    format!("ref/{repository}/_/{}/{digest}", Digest::sha256(&subject()))
}

impl Client {
    /// A replica of the client's own region.
    async fn random_replica(&mut self) -> Option<Registry> {
        self.random_replica_of(self.region).await
    }

    async fn random_replica_of(&mut self, region: usize) -> Option<Registry> {
        while Instant::now() < self.until {
            let up: Vec<_> = self.replicas[region]
                .read()
                .unwrap()
                .iter()
                .flatten()
                .cloned()
                .collect();
            if !up.is_empty() {
                return Some(up[self.rng.random_range(0..up.len())].clone());
            }
            tokio::task::yield_now().await;
        }
        None
    }

    fn repository(&mut self) -> &'static str {
        REPOSITORIES[self.rng.random_range(0..REPOSITORIES.len())]
    }

    async fn record(&self, key: String, began: Instant, outcome: Outcome) {
        self.events.lock().await.push(Event {
            region: self.region,
            key,
            began,
            ended: Instant::now(),
            outcome,
        });
    }

    /// Sends a request and records its outcome; `None` once the test ends.
    async fn send(
        &mut self,
        key: String,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        outcome: impl AsyncFnOnce(Response) -> Outcome,
    ) -> Option<()> {
        let client = self.random_replica().await?;
        let mut request = client
            .request(method, path)
            .header("content-type", MANIFEST)
            .timeout(REQUEST_TIMEOUT);
        if let Some(body) = body {
            request = request.body(body);
        }
        let began = Instant::now();
        let outcome = match request.send().await {
            Ok(answer) if is_undecided(&answer) => Outcome::Unknown,
            Ok(answer) => outcome(answer).await,
            Err(_) => Outcome::Unknown,
        };
        self.record(key, began, outcome).await;
        Some(())
    }

    async fn put(&mut self, key: String, path: &str, body: Bytes) -> Option<()> {
        let digest = Digest::sha256(&body);
        let pushed = async |answer: Response| match answer.status() {
            StatusCode::CREATED => Outcome::Changed(Some(digest)),
            // The region that has its blobs did not answer.
            StatusCode::NOT_FOUND => Outcome::Unknown,
            status => panic!("PUT {status}: {}", answer.text().await.unwrap()),
        };
        self.send(key, Method::PUT, path, Some(body), pushed).await
    }

    async fn delete(&mut self, key: String, path: &str) -> Option<()> {
        let deleted = async |answer: Response| match answer.status() {
            StatusCode::ACCEPTED => Outcome::Changed(None),
            StatusCode::NOT_FOUND => Outcome::Read(None),
            status => panic!("DELETE {status}: {}", answer.text().await.unwrap()),
        };
        self.send(key, Method::DELETE, path, None, deleted).await
    }

    async fn move_tags(mut self) -> Option<()> {
        for count in 0.. {
            let repository = self.repository();
            let tag = TAGS[self.rng.random_range(0..TAGS.len())];
            let key = format!("tag/{repository}/_/{tag}");
            let path = format!("/v2/{repository}/manifests/{tag}");
            if self.rng.random_bool(0.2) {
                self.delete(key, &path).await?;
                continue;
            }
            let name = format!("{}-{}-{count}", self.region, self.number);
            let layer = Bytes::from(format!("layer {name}"));
            // Now and then the client's blobs went to another region than its manifest.
            let is_elsewhere = self.rng.random_bool(0.1);
            let region = if is_elsewhere {
                1 - self.region
            } else {
                self.region
            };
            if self.push_blob(repository, region, &layer).await? {
                self.put(key, &path, image(&name, &[layer])).await?;
            }
        }
        None
    }

    /// Pushes a blob; returns whether that was acknowledged.
    async fn push_blob(&mut self, repository: &str, region: usize, blob: &Bytes) -> Option<bool> {
        let client = self.random_replica_of(region).await?;
        let digest = Digest::sha256(blob);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let request = client.request(Method::POST, &path).timeout(REQUEST_TIMEOUT);
        let answer = request.body(blob.clone()).send().await;
        Some(answer.is_ok_and(|answer| answer.status() == StatusCode::CREATED))
    }

    async fn push_and_delete_artifacts(mut self) -> Option<()> {
        loop {
            let repository = self.repository();
            let artifact = artifact(self.rng.random_range(0..ARTIFACTS));
            let digest = Digest::sha256(&artifact);
            let key = format!("rm/{repository}/_/{digest}");
            let path = format!("/v2/{repository}/manifests/{digest}");
            if self.rng.random_bool(0.5) {
                self.delete(key, &path).await?;
            } else {
                self.put(key, &path, artifact).await?;
            }
        }
    }

    async fn read(mut self) -> Option<()> {
        loop {
            let repository = self.repository();
            match self.rng.random_range(0..4) {
                0 => self.read_referrers(repository).await?,
                1 => {
                    let artifact = artifact(self.rng.random_range(0..ARTIFACTS));
                    let digest = Digest::sha256(&artifact);
                    let key = format!("rm/{repository}/_/{digest}");
                    let path = format!("/v2/{repository}/manifests/{digest}");
                    self.send(key, Method::GET, &path, None, manifest_outcome)
                        .await?;
                }
                _ => {
                    let tag = TAGS[self.rng.random_range(0..TAGS.len())];
                    let key = format!("tag/{repository}/_/{tag}");
                    let path = format!("/v2/{repository}/manifests/{tag}");
                    self.send(key, Method::GET, &path, None, manifest_outcome)
                        .await?;
                }
            }
        }
    }

    /// Reads a list of referrers: whether each of the manifests is listed.
    async fn read_referrers(&mut self, repository: &str) -> Option<()> {
        let client = self.random_replica().await?;
        let path = format!("/v2/{repository}/referrers/{}", Digest::sha256(&subject()));
        let request = client.request(Method::GET, &path).timeout(REQUEST_TIMEOUT);
        let began = Instant::now();
        let answer = match request.send().await {
            Ok(answer) if !is_undecided(&answer) => answer.text().await,
            _ => return Some(()),
        };
        let Ok(text) = answer else {
            return Some(());
        };
        for number in 0..ARTIFACTS {
            let digest = Digest::sha256(&artifact(number));
            let is_listed = text.contains(&digest.to_string());
            let outcome = Outcome::Read(is_listed.then_some(digest));
            self.record(referrer_key(repository, &digest), began, outcome)
                .await;
        }
        Some(())
    }
}

/// Whether an answer says nothing about what is stored: 503, or it may be old.
fn is_undecided(answer: &Response) -> bool {
    answer.status() == StatusCode::SERVICE_UNAVAILABLE || answer.headers().contains_key("warning")
}

async fn manifest_outcome(answer: Response) -> Outcome {
    match (answer.status(), answer.bytes().await) {
        (StatusCode::OK, Ok(bytes)) => Outcome::Read(Some(Digest::sha256(&bytes))),
        (StatusCode::NOT_FOUND, _) => Outcome::Read(None),
        (StatusCode::OK, Err(_)) => Outcome::Unknown,
        (status, _) => panic!("GET {status}"),
    }
}

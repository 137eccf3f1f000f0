//! Clients that send random requests and record the outcomes.

use core::ops::Range;
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

use super::checker::{Event, History, Outcome};
use super::fleet::{Fleet, ReplicaClients};
use crate::support::{MANIFEST, Registry, descriptor, header, location, manifest};

const TAGS: [&str; 2] = ["one", "two"];
const WRITERS: u64 = 3;
const READERS: u64 = 4;
const MAX_REFERRERS: u64 = 900;
/// Number of manifests per writer that are pushed with its subject and deleted again.
const DETACHED_MANIFESTS: u64 = 3;
/// More than 1, because the range of one byte looks like that of none.
const CHUNK_LEN: usize = 3;
/// Timeout of a request. After a timeout its outcome is unknown.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that sends each request to a random replica.
struct Client {
    replicas: ReplicaClients,
    rng: Pcg64Mcg,
    events: Arc<Mutex<Vec<Event>>>,
    until: Instant,
}

/// Runs clients while replicas are paused and crashed.
pub(super) async fn run(fleet: &mut Fleet, time: Duration, rng_seed: u64) -> History {
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let until = Instant::now() + time;
    let first_replica = fleet.replicas.read().unwrap()[0]
        .clone()
        .expect("all replicas are up at first");
    first_replica.push_blob("app", "{}").await;
    let client = |number: u64| Client {
        replicas: Arc::clone(&fleet.replicas),
        rng: Pcg64Mcg::seed_from_u64(rng_seed * 100 + number),
        events: Arc::clone(&events),
        until,
    };
    let mut clients = JoinSet::new();
    for writer in 0..WRITERS {
        clients.spawn(client(writer).move_tags(writer));
        clients.spawn(client(10 + writer).push_and_delete_blob(writer));
        clients.spawn(client(20 + writer).push_referrers(writer));
        clients.spawn(client(40 + writer).push_and_delete_referrers(writer));
    }
    for reader in 0..READERS {
        clients.spawn(client(30 + reader).read());
    }
    let mut rng = Pcg64Mcg::seed_from_u64(rng_seed);
    while Instant::now() < until {
        fleet.disturb(&mut rng).await;
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let applied = fleet.log.lock().await.clone();
    History {
        events: std::mem::take(&mut *events.lock().await),
        applied,
    }
}

/// The unique manifest of one write of a tag.
fn image(writer: u64, count: u64) -> Bytes {
    let mut image: Value = serde_json::from_slice(&manifest(b"{}", &[])).unwrap();
    image["annotations"] = json!({"write": format!("{writer}-{count}")});
    image.to_string().into()
}

pub(super) fn subject(writer: u64) -> Bytes {
    format!("subject {writer}").into()
}

/// A manifest that refers to a writer's subject.
fn artifact(writer: u64, count: u64) -> Bytes {
    let mut artifact: Value = serde_json::from_slice(&image(writer, count)).unwrap();
    artifact["subject"] = descriptor(MANIFEST, &subject(writer));
    artifact.to_string().into()
}

/// The key of a writer's list of referrers. The key of an entry has the digest appended after a
/// space.
fn referrers(writer: u64) -> String {
    format!("referrers {}", Digest::sha256(&subject(writer)))
}

/// The number of a referrer that is deleted and pushed again. It is above those of the others.
fn deleted_referrer(count: u64) -> u64 {
    MAX_REFERRERS + count
}

fn blob(writer: u64) -> Bytes {
    format!("blob {writer}").into()
}

impl Client {
    async fn random_replica(&mut self) -> Option<Registry> {
        while Instant::now() < self.until {
            let up: Vec<_> = self
                .replicas
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

    /// Sends a request and records its outcome.
    async fn send(
        &mut self,
        key: String,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        outcome: impl AsyncFnOnce(Response) -> Outcome,
    ) -> Option<Outcome> {
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
            Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => Outcome::Unknown,
            Ok(answer) => outcome(answer).await,
            Err(_) => Outcome::Unknown,
        };
        let event = Event {
            key,
            began,
            ended: Instant::now(),
            outcome: outcome.clone(),
        };
        self.events.lock().await.push(event);
        Some(outcome)
    }

    async fn move_tags(mut self, writer: u64) {
        for count in 0.. {
            let tag = TAGS[self.rng.random_range(0..TAGS.len())];
            let (key, path) = (
                format!("tag/app/_/{tag}"),
                format!("/v2/app/manifests/{tag}"),
            );
            let sent = if self.rng.random_bool(0.2) {
                let outcome = async |answer: Response| match answer.status() {
                    StatusCode::ACCEPTED => Outcome::TagDeleted,
                    StatusCode::NOT_FOUND => Outcome::Unknown,
                    status => panic!("DELETE {status}"),
                };
                self.send(key, Method::DELETE, &path, None, outcome).await
            } else {
                let image = image(writer, count);
                let digest = Digest::sha256(&image);
                let outcome = async |answer: Response| {
                    assert_eq!(answer.status(), StatusCode::CREATED);
                    Outcome::TagMoved(digest)
                };
                self.send(key, Method::PUT, &path, Some(image), outcome)
                    .await
            };
            if sent.is_none() {
                return;
            }
        }
    }

    async fn push_and_delete_blob(mut self, writer: u64) {
        let bytes = blob(writer);
        let digest = Digest::sha256(&bytes);
        loop {
            let path = format!("/v2/app/blobs/uploads/?digest={digest}");
            let pushed = async |answer: Response| {
                assert_eq!(answer.status(), StatusCode::CREATED);
                Outcome::Put
            };
            // Repeated until it is acknowledged, so the outcomes of earlier attempts do not matter.
            loop {
                let key = format!("blob {digest}");
                let sent = if self.rng.random_bool(0.5) {
                    self.send(key, Method::POST, &path, Some(bytes.clone()), pushed)
                        .await
                } else {
                    self.push_in_chunks(key, &bytes).await
                };
                match sent {
                    None => return,
                    Some(Outcome::Put) => break,
                    Some(_) => {}
                }
            }
            let path = format!("/v2/app/blobs/{digest}");
            let deleted = async |answer: Response| match answer.status() {
                StatusCode::ACCEPTED => Outcome::Deleted,
                // An earlier attempt succeeded.
                StatusCode::NOT_FOUND => Outcome::Unknown,
                status => panic!("DELETE {status}"),
            };
            if self
                .send(
                    format!("blob {digest}"),
                    Method::DELETE,
                    &path,
                    None,
                    deleted,
                )
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Pushes a blob in chunks through different replicas. After a failure it queries the offset of
    /// the upload and continues from there.
    async fn push_in_chunks(&mut self, key: String, bytes: &Bytes) -> Option<Outcome> {
        let begun = self
            .ask(Method::POST, "/v2/app/blobs/uploads/", 0..0, bytes)
            .await?;
        let Some((mut upload, mut end)) = begun else {
            return Some(Outcome::Unknown);
        };
        while end < bytes.len() {
            let chunk = end..bytes.len().min(end + CHUNK_LEN);
            let next = self.ask(Method::PATCH, &upload, chunk, bytes).await?;
            (upload, end) = match next {
                Some(next) => next,
                None => self
                    .ask(Method::GET, &upload, 0..0, bytes)
                    .await?
                    .unwrap_or((upload, end)),
            };
        }
        let path = format!("{upload}&digest={}", Digest::sha256(bytes));
        let pushed = async |answer: Response| {
            assert_eq!(answer.status(), StatusCode::CREATED);
            Outcome::Put
        };
        let mut sent = Some(Outcome::Unknown);
        while let Some(Outcome::Unknown) = sent {
            sent = self
                .send(key.clone(), Method::PUT, &path, None, pushed)
                .await;
        }
        sent
    }

    /// Sends a request of an upload; returns its Location and length. The inner value is `None` if
    /// there was no response.
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        chunk: Range<usize>,
        bytes: &Bytes,
    ) -> Option<Option<(String, usize)>> {
        let client = self.random_replica().await?;
        let mut request = client.request(method, path).timeout(REQUEST_TIMEOUT);
        if !chunk.is_empty() {
            request = request.header(
                "content-range",
                format!("{}-{}", chunk.start, chunk.end - 1),
            );
            request = request.body(bytes.slice(chunk));
        }
        let Ok(answer) = request.send().await else {
            return Some(None);
        };
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return Some(None);
        }
        // A chunk whose response was lost may have been appended.
        let is_fine =
            answer.status().is_success() || answer.status() == StatusCode::RANGE_NOT_SATISFIABLE;
        assert!(is_fine, "{}", answer.status());
        let last: usize = header(&answer, "range")
            .rsplit('-')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        Some(Some((
            location(&answer),
            if last == 0 { 0 } else { last + 1 },
        )))
    }

    /// Pushes referrers of a subject, fewer than a page of a listing, and deletes none.
    async fn push_referrers(mut self, writer: u64) {
        for count in 0..MAX_REFERRERS {
            let artifact = artifact(writer, count);
            let digest = Digest::sha256(&artifact);
            let path = format!("/v2/app/manifests/{digest}");
            let pushed = async |answer: Response| {
                assert_eq!(answer.status(), StatusCode::CREATED);
                Outcome::ReferrerAdded(digest)
            };
            if self
                .send(
                    referrers(writer),
                    Method::PUT,
                    &path,
                    Some(artifact),
                    pushed,
                )
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Pushes and deletes manifests that refer to a subject.
    async fn push_and_delete_referrers(mut self, writer: u64) {
        loop {
            let artifact = artifact(
                writer,
                deleted_referrer(self.rng.random_range(0..DETACHED_MANIFESTS)),
            );
            let digest = Digest::sha256(&artifact);
            let (key, path) = (
                format!("{} {digest}", referrers(writer)),
                format!("/v2/app/manifests/{digest}"),
            );
            let sent = if self.rng.random_bool(0.5) {
                let deleted = async |answer: Response| match answer.status() {
                    StatusCode::ACCEPTED => Outcome::Deleted,
                    // It did not exist, or an earlier attempt deleted it.
                    StatusCode::NOT_FOUND => Outcome::Unknown,
                    status => panic!("DELETE {status}"),
                };
                self.send(key, Method::DELETE, &path, None, deleted).await
            } else {
                let pushed = async |answer: Response| {
                    assert_eq!(answer.status(), StatusCode::CREATED);
                    Outcome::Put
                };
                self.send(key, Method::PUT, &path, Some(artifact), pushed)
                    .await
            };
            if sent.is_none() {
                return;
            }
        }
    }

    async fn read(mut self) {
        loop {
            let writer = self.rng.random_range(0..WRITERS);
            let found = async |answer: Response| match answer.status() {
                StatusCode::OK if answer.headers().contains_key("warning") => Outcome::Unknown,
                status => Outcome::PresenceRead(status == StatusCode::OK),
            };
            let sent = match self.rng.random_range(0..5) {
                0 => {
                    let digest = Digest::sha256(&blob(writer));
                    let path = format!("/v2/app/blobs/{digest}");
                    self.send(format!("blob {digest}"), Method::GET, &path, None, found)
                        .await
                }
                1 => {
                    let path = format!("/v2/app/referrers/{}", Digest::sha256(&subject(writer)));
                    self.send(
                        referrers(writer),
                        Method::GET,
                        &path,
                        None,
                        referrers_outcome,
                    )
                    .await
                }
                2 => {
                    let count = deleted_referrer(self.rng.random_range(0..DETACHED_MANIFESTS));
                    let digest = Digest::sha256(&artifact(writer, count));
                    let path = format!("/v2/app/manifests/{digest}");
                    self.send(
                        format!("{} {digest}", referrers(writer)),
                        Method::GET,
                        &path,
                        None,
                        found,
                    )
                    .await
                }
                _ => {
                    let tag = TAGS[self.rng.random_range(0..TAGS.len())];
                    let (key, path) = (
                        format!("tag/app/_/{tag}"),
                        format!("/v2/app/manifests/{tag}"),
                    );
                    self.send(key, Method::GET, &path, None, tag_outcome).await
                }
            };
            if sent.is_none() {
                return;
            }
        }
    }
}

async fn referrers_outcome(answer: Response) -> Outcome {
    let Ok(text) = answer.text().await else {
        return Outcome::Unknown;
    };
    let index: Value = serde_json::from_str(&text).unwrap();
    let digests = index["manifests"].as_array().unwrap().iter();
    Outcome::ReferrersRead(
        digests
            .map(|one| one["digest"].as_str().unwrap().parse().unwrap())
            .collect(),
    )
}

async fn tag_outcome(answer: Response) -> Outcome {
    if answer.headers().contains_key("warning") {
        return Outcome::Unknown;
    }
    match (answer.status(), answer.bytes().await) {
        (StatusCode::OK, Ok(bytes)) => Outcome::TagRead(Some(Digest::sha256(&bytes))),
        (StatusCode::NOT_FOUND, _) => Outcome::TagRead(None),
        (StatusCode::OK, Err(_)) => Outcome::Unknown,
        (status, _) => panic!("GET {status}"),
    }
}

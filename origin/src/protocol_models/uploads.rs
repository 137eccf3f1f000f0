//! The upload log: two replicas, and clients that append to, finish and cancel one upload. An
//! acknowledged blob is complete, and exactly one request wins at each offset.

use std::sync::{Arc, Mutex};

use flotilla_common::digest::{Algorithm, Digest};
use flotilla_common::hash_tree::Tree;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::BlobFacts;
use futures_util::{StreamExt, stream};

use super::blob_collection::{replica, repository};
use super::explorer::{Explored, Scenario, explore};
use super::storage_model::{Faults, ModelStorage};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{BlobRecord, Segment, TableLocation, decode, encode};
use crate::registry::{Registry, RegistryError, UploadBody};
use crate::storage::{Prefix, Storage};
use crate::upload::hash::Hashes;
use crate::upload::id::UploadTicket;
use crate::upload::log::{LogState, UploadLog};
use crate::upload::log_entry::LogEntry;
use crate::upload::receive::drop_segments;

/// The request of one client, at one replica.
#[derive(Clone, Copy, Debug)]
enum Request {
    /// PATCH with all bytes, then PUT.
    Push(&'static str),
    /// PUT with all bytes.
    Put(&'static str),
    /// Two PATCHes, then PUT.
    PushTwo(&'static str, &'static str),
    /// PUT without bytes, of an upload whose bytes another client sent.
    Finish(&'static str),
    /// PUT with the last bytes: the whole content, and its part after the first chunk.
    FinishWith(&'static str, &'static str),
    Cancel,
    /// The collector closes an expired upload with a cancel entry, and only then deletes its
    /// segments.
    Collect,
    /// Violates "after an unknown outcome the segment stays".
    PushAndDeleteSegments(&'static str),
    /// Violates "the loser completes the winner's log entry": writes the record of its own bytes.
    PutOwnRecord(&'static str),
    /// Violates "a finish claims the key at the end": writes its record without claiming it.
    FinishWithoutClaim(&'static str, &'static str),
    /// Violates "a cancel claims the key at the end": only looks the upload up.
    CancelWithoutClaim,
    /// Violates "the collector first closes an open log": deletes the segments of an open upload.
    CollectWithoutClose,
    /// Violates "log entries are not deleted": cancels by deleting the log.
    DeleteLog,
    /// Violates the same rule, and deletes the segments too.
    DeleteAll,
}

/// The fate of the first client's replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReplicaFate {
    Survives,
    /// It may crash at any step.
    Crashes,
    /// Violates "after an unknown outcome the segment stays": when a request is interrupted, its
    /// segments are deleted.
    CrashesAndDeletesSegments,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Acknowledged {
    Finished(&'static str),
    Cancelled,
}

fn body(text: &'static str, offset: Option<u64>) -> UploadBody {
    let bytes = (!text.is_empty()).then_some(Ok(text.as_bytes().into()));
    UploadBody {
        bytes: stream::iter(bytes).boxed(),
        len: Some(text.len() as u64),
        offset,
    }
}

struct Client {
    registry: Arc<Registry>,
    model: ModelStorage,
    repository: RepositoryName,
    ticket: UploadTicket,
}

impl Client {
    async fn send(&self, request: Request) -> Result<Acknowledged, RegistryError> {
        match request {
            Request::Push(text) => self.push(text).await,
            Request::PushAndDeleteSegments(text) => {
                let pushed = self.push(text).await;
                if let Err(RegistryError::Storage(_)) = pushed {
                    self.delete_all("seg/").await;
                }
                pushed
            }
            Request::PushTwo(first, second) => self.push_two(first, second).await,
            Request::Put(text) => self.finish(text, text, Some(0)).await,
            Request::PutOwnRecord(text) => self.put_own_record(text).await,
            Request::Finish(text) => {
                self.model.pause("the finish begins").await;
                self.finish(text, "", None).await
            }
            Request::FinishWith(text, rest) => {
                self.finish(text, rest, Some((text.len() - rest.len()) as u64))
                    .await
            }
            Request::FinishWithoutClaim(text, rest) => self.finish_without_claim(text, rest).await,
            Request::Cancel => {
                self.registry.cancel(self.ticket, None).await?;
                Ok(Acknowledged::Cancelled)
            }
            Request::CancelWithoutClaim => {
                self.registry.progress(self.ticket, None).await?;
                Ok(Acknowledged::Cancelled)
            }
            Request::Collect => {
                self.registry.cancel(self.ticket, None).await?;
                self.delete_all("seg/").await;
                Ok(Acknowledged::Cancelled)
            }
            Request::CollectWithoutClose => {
                self.registry.progress(self.ticket, None).await?;
                self.delete_all("seg/").await;
                Err(RegistryError::UploadUnknown)
            }
            Request::DeleteLog | Request::DeleteAll => {
                self.delete_all("upload/").await;
                if matches!(request, Request::DeleteAll) {
                    self.delete_all("seg/").await;
                }
                Err(RegistryError::UploadUnknown)
            }
        }
    }

    async fn push(&self, text: &'static str) -> Result<Acknowledged, RegistryError> {
        let progress = self
            .registry
            .append(self.ticket, None, body(text, Some(0)))
            .await?;
        let digest = Digest::sha256(text.as_bytes());
        let known = Some(progress.hint);
        self.registry
            .finish(&self.repository, self.ticket, known, digest, body("", None))
            .await?;
        Ok(Acknowledged::Finished(text))
    }

    async fn finish(
        &self,
        text: &'static str,
        rest: &'static str,
        offset: Option<u64>,
    ) -> Result<Acknowledged, RegistryError> {
        let digest = Digest::sha256(text.as_bytes());
        self.registry
            .finish(
                &self.repository,
                self.ticket,
                None,
                digest,
                body(rest, offset),
            )
            .await?;
        Ok(Acknowledged::Finished(text))
    }

    async fn push_two(
        &self,
        first: &'static str,
        second: &'static str,
    ) -> Result<Acknowledged, RegistryError> {
        let begun = self
            .registry
            .append(self.ticket, None, body(first, Some(0)))
            .await?;
        let next = body(second, Some(first.len() as u64));
        let progress = self
            .registry
            .append(self.ticket, Some(begun.hint), next)
            .await?;
        let whole: String = [first, second].concat();
        let digest = Digest::sha256(whole.as_bytes());
        let known = Some(progress.hint);
        self.registry
            .finish(&self.repository, self.ticket, known, digest, body("", None))
            .await?;
        Ok(Acknowledged::Finished(whole.leak()))
    }

    /// Writes a segment with `bytes`, the last of the whole content `text`; returns it with the
    /// facts of the blob.
    async fn write_segment(&self, text: &str, bytes: &str) -> (Segment, BlobFacts) {
        let segment = Segment {
            nonce: nonce(),
            size: bytes.len() as u64,
        };
        let key = layout::segment(&self.ticket.id, segment.nonce);
        self.model
            .create(&key, bytes.to_owned().into())
            .await
            .expect("a segment");
        let mut hashes = Hashes::new(false);
        hashes.update(text.as_bytes());
        let (digest, Tree { geometry, root, .. }) = hashes.finish(Algorithm::Sha256);
        let (digest, size) = (digest.expect("a digest"), geometry.size());
        (
            segment,
            BlobFacts {
                digest,
                size,
                chunk_log2: geometry.chunk_log2(),
                root,
            },
        )
    }

    async fn write_record(
        &self,
        text: &'static str,
        entry: &LogEntry,
    ) -> Result<Acknowledged, RegistryError> {
        let record = entry.record(nonce()).expect("a finish");
        let key = layout::blob(&record.facts.digest, &self.ticket.id);
        let body = encode(&key, &record)?.into();
        ConditionalWriter {
            storage: &self.model,
        }
        .write(&key, None, body)
        .await?;
        Ok(Acknowledged::Finished(text))
    }

    async fn put_own_record(&self, text: &'static str) -> Result<Acknowledged, RegistryError> {
        let (segment, facts) = self.write_segment(text, text).await;
        let entry =
            UploadLog::default().finish_entry(&[segment], facts, TableLocation::None, nonce());
        let key = layout::log_entry(&self.ticket.id, 0);
        let body = encode(&key, &entry)?.into();
        if let WriteOutcome::Lost { .. } = (ConditionalWriter {
            storage: &self.model,
        })
        .write(&key, None, body)
        .await?
        {
            drop_segments(&self.model, &self.ticket.id, &[segment]).await;
        }
        self.write_record(text, &entry).await
    }

    async fn finish_without_claim(
        &self,
        text: &'static str,
        rest: &str,
    ) -> Result<Acknowledged, RegistryError> {
        let key = layout::log_entry(&self.ticket.id, 0);
        let first = self
            .model
            .read(&key)
            .await?
            .ok_or(RegistryError::UploadUnknown)?;
        let Ok(LogState::Open(log)) = UploadLog::after(0, decode(&key, &first.body)?, &[]) else {
            return Err(RegistryError::UploadUnknown);
        };
        let (segment, facts) = self.write_segment(text, rest).await;
        self.write_record(
            text,
            &log.finish_entry(&[segment], facts, TableLocation::None, nonce()),
        )
        .await
    }

    async fn delete_all(&self, prefix: &str) {
        let prefix = Prefix::new(prefix).expect("a prefix");
        for entry in self
            .model
            .list(&prefix, None, 99)
            .await
            .expect("no faults")
            .entries
        {
            self.model.delete(&entry.key).await.expect("no faults");
        }
    }
}

async fn explore_requests(requests: &'static [(usize, Request)], faults: Faults) -> Explored {
    explore_from("", requests, faults, ReplicaFate::Survives).await
}

/// Explores requests of which the first may be interrupted by a crash of its replica.
async fn explore_crash(requests: &'static [(usize, Request)], fate: ReplicaFate) -> Explored {
    explore_from("", requests, Faults::NONE, fate).await
}

/// Explores requests to an upload that already has the bytes `initial`.
async fn explore_from(
    initial: &'static str,
    requests: &'static [(usize, Request)],
    faults: Faults,
    fate: ReplicaFate,
) -> Explored {
    let scenario = async |model: ModelStorage| {
        let replicas = [replica(&model).await, replica(&model).await];
        let (ticket, _) = replicas[0].begin_upload(&repository(), false);
        if !initial.is_empty() {
            replicas[0]
                .append(ticket, None, body(initial, Some(0)))
                .await
                .expect("a chunk");
        }
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let actors = requests
            .iter()
            .enumerate()
            .map(|(index, (replica, request))| {
                let acknowledged = Arc::clone(&acknowledged);
                let client = Client {
                    registry: Arc::clone(&replicas[*replica]),
                    model: model.clone(),
                    repository: repository(),
                    ticket,
                };
                let model = model.clone();
                let fate = if index == 0 {
                    fate
                } else {
                    ReplicaFate::Survives
                };
                Box::pin(async move {
                    let sending = async {
                        if let Ok(outcome) = client.send(*request).await {
                            acknowledged.lock().expect("no panic").push(outcome);
                        }
                    };
                    match fate {
                        ReplicaFate::Survives => sending.await,
                        ReplicaFate::Crashes | ReplicaFate::CrashesAndDeletesSegments => {
                            model.until_crash(sending).await;
                        }
                    }
                    if fate == ReplicaFate::CrashesAndDeletesSegments {
                        client.delete_all("seg/").await;
                    }
                }) as _
            });
        let actors = actors.collect();
        let check =
            move |model: &ModelStorage| check(model, &acknowledged.lock().expect("no panic"));
        Scenario::new(actors, Box::new(check))
    };
    explore(faults, scenario).await
}

fn check(model: &ModelStorage, acknowledged: &[Acknowledged]) -> Result<(), String> {
    let mut blobs = Vec::new();
    for (key, object) in model.objects("blob/") {
        let record: BlobRecord = decode(&key, &object).map_err(|error| error.to_string())?;
        blobs.push(record.facts.digest);
        let generation = key.last_segment();
        let mut bytes = Vec::new();
        for segment in &record.segments {
            let at = format!("seg/{generation}/{:032x}", segment.nonce);
            let found = model
                .objects(&at)
                .pop()
                .ok_or(format!("{key} names {at}, which is gone"))?;
            bytes.extend_from_slice(&found.1);
        }
        if !record.facts.digest.matches(&bytes) {
            return Err(format!("{key} has the bytes {bytes:?}"));
        }
    }
    if blobs.len() > 1 {
        return Err(format!("one upload became {blobs:?}"));
    }
    for outcome in acknowledged {
        let holds = match outcome {
            Acknowledged::Finished(text) => blobs == [Digest::sha256(text.as_bytes())],
            Acknowledged::Cancelled => blobs.is_empty(),
        };
        if !holds {
            return Err(format!(
                "{outcome:?} was acknowledged, and there is {blobs:?}"
            ));
        }
    }
    Ok(())
}

#[tokio::test]
async fn two_pushes_to_one_upload() {
    let pushes = &[(0, Request::Push("ab")), (1, Request::Push("cd"))];
    explore_requests(pushes, Faults::NONE)
        .await
        .assert_holds(100);
}

#[tokio::test]
async fn push_or_put_against_cancel() {
    explore_requests(
        &[(0, Request::Put("ab")), (1, Request::Cancel)],
        Faults::of(1, "upload/"),
    )
    .await
    .assert_holds(100);
    explore_requests(
        &[(0, Request::Push("ab")), (1, Request::Cancel)],
        Faults::NONE,
    )
    .await
    .assert_holds(100);
}

/// A client repeats its request at another replica.
#[tokio::test]
async fn repeated_put_creates_the_same_blob() {
    let puts = &[(0, Request::Put("ab")), (1, Request::Put("ab"))];
    explore_requests(puts, Faults::of(1, "upload/"))
        .await
        .assert_holds(500);
}

#[tokio::test]
async fn deleting_segments_after_timeout_breaks_acknowledged_blob() {
    let requests = &[
        (0, Request::PushAndDeleteSegments("ab")),
        (1, Request::Finish("ab")),
    ];
    let faults = Faults {
        late_only: true,
        ..Faults::of(3, "upload/")
    };
    explore_requests(requests, faults)
        .await
        .assert_violated("which is gone");
}

#[tokio::test]
async fn deleted_log_becomes_two_blobs() {
    explore_requests(
        &[
            (0, Request::Push("ab")),
            (1, Request::DeleteLog),
            (1, Request::Push("cd")),
        ],
        Faults::NONE,
    )
    .await
    .assert_violated("one upload became");
}

/// After a crash the client finishes, repeats or cancels its upload at another replica.
#[tokio::test]
async fn upload_continues_at_another_replica_after_crash() {
    for requests in [
        &[(0, Request::Put("ab")), (1, Request::Put("ab"))],
        &[(0, Request::Push("ab")), (1, Request::Finish("ab"))],
        &[(0, Request::Push("ab")), (1, Request::Cancel)],
    ] {
        explore_crash(requests, ReplicaFate::Crashes)
            .await
            .assert_holds(100);
    }
}

/// A PUT that is repeated after a crash must complete the log entry of the crashed one.
#[tokio::test]
async fn repeated_put_with_own_record_names_deleted_segment() {
    let requests = &[(0, Request::Put("ab")), (1, Request::PutOwnRecord("ab"))];
    explore_crash(requests, ReplicaFate::Crashes)
        .await
        .assert_violated("which is gone");
}

/// After a crash a segment must not be deleted, because its log entry may exist or appear later.
#[tokio::test]
async fn cleanup_after_interruption_deletes_named_segment() {
    let requests = &[(0, Request::Push("ab")), (1, Request::Finish("ab"))];
    explore_crash(requests, ReplicaFate::CrashesAndDeletesSegments)
        .await
        .assert_violated("which is gone");
}

/// Cancel and finish must claim the same key, because a crashed replica may have finished.
#[tokio::test]
async fn cancel_without_claim_is_overtaken_by_finish() {
    let requests = &[(0, Request::Push("ab")), (1, Request::CancelWithoutClaim)];
    explore_crash(requests, ReplicaFate::Crashes)
        .await
        .assert_violated("Cancelled was acknowledged");
}

/// Two finishes of one upload, with different last bytes.
#[tokio::test]
async fn first_finish_fixes_the_digest() {
    let requests = &[
        (0, Request::FinishWith("xab", "ab")),
        (1, Request::FinishWith("xcd", "cd")),
    ];
    explore_from(
        "x",
        requests,
        Faults::of(1, "upload/"),
        ReplicaFate::Survives,
    )
    .await
    .assert_holds(100);
}

#[tokio::test]
async fn finish_without_claim_creates_second_record() {
    let requests = &[
        (0, Request::FinishWith("xab", "ab")),
        (1, Request::FinishWithoutClaim("xcd", "cd")),
    ];
    explore_from("x", requests, Faults::NONE, ReplicaFate::Survives)
        .await
        .assert_violated("one upload became");
}

#[tokio::test]
async fn collector_closes_log_before_deleting_segments() {
    let faults = Faults {
        late_only: true,
        ..Faults::of(1, "")
    };
    for request in [Request::Push("ab"), Request::Put("ab")] {
        let requests: &'static [_] = vec![(0, request), (1, Request::Collect)].leak();
        explore_requests(requests, faults).await.assert_holds(100);
    }
}

#[tokio::test]
async fn collector_without_close_deletes_segments_of_late_record() {
    let requests = &[(0, Request::Push("ab")), (1, Request::CollectWithoutClose)];
    explore_requests(requests, Faults::NONE)
        .await
        .assert_violated("which is gone");
}

/// Between two chunks of a client, the log is deleted and another client begins it again.
#[tokio::test]
async fn restarted_log_continues_with_stale_hashes() {
    let requests = &[
        (0, Request::PushTwo("ab", "cd")),
        (1, Request::DeleteAll),
        (1, Request::Push("xy")),
    ];
    explore_requests(requests, Faults::NONE)
        .await
        .assert_violated("which is gone");
}

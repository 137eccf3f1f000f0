//! The upload chain: two replicas and clients that append, finish and cancel one upload. What is
//! acknowledged is whole, and exactly one of them wins at each offset.

use std::sync::{Arc, Mutex};

use flotilla_common::digest::{Algorithm, Digest};
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::BlobFacts;
use flotilla_common::tree::Tree;
use futures_util::{StreamExt, stream};

use super::blobs::{replica, repository};
use super::explorer::{Explored, Scenario, explore};
use super::model::{Faults, Model};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{BlobRecord, Segment, TableAt, decode, encode};
use crate::registry::{Body, Registry, RegistryError};
use crate::storage::{Prefix, Storage};
use crate::upload::chain::{Chain, Next};
use crate::upload::hash::Hashes;
use crate::upload::id::Ticket;
use crate::upload::link::Link;
use crate::upload::receive::drop_segments;

/// What one client does, at one replica.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A chunk at the beginning, then the end of the upload.
    Push(&'static str),
    /// Everything in the request that ends the upload.
    Put(&'static str),
    /// Two chunks, then the end.
    PushTwo(&'static str, &'static str),
    /// The end of an upload whose bytes another one sent.
    Finish(&'static str),
    /// The same with last bytes: the digest of the whole, and the bytes after the first.
    FinishWith(&'static str, &'static str),
    Cancel,
    /// The collector at an upload that is over time: closes it by a cancel, and only then deletes
    /// its segments.
    Collect,
    /// Breaks "on an unknown outcome the segment stays".
    PushAndTidyUp(&'static str),
    /// Breaks "who loses completes what the winner's link says": it writes the record of its own
    /// bytes.
    PutItsOwn(&'static str),
    /// Breaks "a finish claims the key at the end": it writes its record without.
    FinishUnclaimed(&'static str, &'static str),
    /// Breaks "a cancel claims the key at the end": it looks, and says so.
    CancelUnclaimed,
    /// Breaks "the collector closes an open chain first": it deletes the segments of one that has
    /// no finish yet.
    CollectOpen,
    /// Breaks "nobody deletes links": to cancel is to forget.
    Forget,
    /// The same with the segments.
    ForgetAll,
}

/// How the first actor's replica ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Lives,
    /// At any moment.
    Dies,
    /// Breaks "on an unknown outcome the segment stays": what a request leaves behind is cleaned up
    /// when it ends in the middle.
    CleansUp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Finished(&'static str),
    Cancelled,
}

fn body(text: &'static str, offset: Option<u64>) -> Body {
    let bytes = (!text.is_empty()).then_some(Ok(text.as_bytes().into()));
    Body {
        bytes: stream::iter(bytes).boxed(),
        len: Some(text.len() as u64),
        offset,
    }
}

struct Client {
    registry: Arc<Registry>,
    model: Model,
    repository: RepositoryName,
    ticket: Ticket,
}

impl Client {
    async fn act(&self, act: Act) -> Result<Told, RegistryError> {
        match act {
            Act::Push(text) => self.push(text).await,
            Act::PushAndTidyUp(text) => {
                let pushed = self.push(text).await;
                if let Err(RegistryError::Storage(_)) = pushed {
                    self.delete_all("seg/").await;
                }
                pushed
            }
            Act::PushTwo(first, second) => self.push_two(first, second).await,
            Act::Put(text) => self.finish(text, text, Some(0)).await,
            Act::PutItsOwn(text) => self.put_its_own(text).await,
            Act::Finish(text) => {
                self.model.point("the finish begins").await;
                self.finish(text, "", None).await
            }
            Act::FinishWith(text, rest) => {
                self.finish(text, rest, Some((text.len() - rest.len()) as u64))
                    .await
            }
            Act::FinishUnclaimed(text, rest) => self.finish_unclaimed(text, rest).await,
            Act::Cancel => {
                self.registry.cancel(self.ticket, None).await?;
                Ok(Told::Cancelled)
            }
            Act::CancelUnclaimed => {
                self.registry.progress(self.ticket, None).await?;
                Ok(Told::Cancelled)
            }
            Act::Collect => {
                self.registry.cancel(self.ticket, None).await?;
                self.delete_all("seg/").await;
                Ok(Told::Cancelled)
            }
            Act::CollectOpen => {
                self.registry.progress(self.ticket, None).await?;
                self.delete_all("seg/").await;
                Err(RegistryError::UploadUnknown)
            }
            Act::Forget | Act::ForgetAll => {
                self.delete_all("upload/").await;
                if matches!(act, Act::ForgetAll) {
                    self.delete_all("seg/").await;
                }
                Err(RegistryError::UploadUnknown)
            }
        }
    }

    async fn push(&self, text: &'static str) -> Result<Told, RegistryError> {
        let progress = self
            .registry
            .append(self.ticket, None, body(text, Some(0)))
            .await?;
        let digest = Digest::sha256(text.as_bytes());
        let known = Some(progress.known);
        self.registry
            .finish(&self.repository, self.ticket, known, digest, body("", None))
            .await?;
        Ok(Told::Finished(text))
    }

    async fn finish(
        &self,
        text: &'static str,
        rest: &'static str,
        offset: Option<u64>,
    ) -> Result<Told, RegistryError> {
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
        Ok(Told::Finished(text))
    }

    async fn push_two(
        &self,
        first: &'static str,
        second: &'static str,
    ) -> Result<Told, RegistryError> {
        let begun = self
            .registry
            .append(self.ticket, None, body(first, Some(0)))
            .await?;
        let next = body(second, Some(first.len() as u64));
        let progress = self
            .registry
            .append(self.ticket, Some(begun.known), next)
            .await?;
        let whole: String = [first, second].concat();
        let digest = Digest::sha256(whole.as_bytes());
        let known = Some(progress.known);
        self.registry
            .finish(&self.repository, self.ticket, known, digest, body("", None))
            .await?;
        Ok(Told::Finished(whole.leak()))
    }

    /// A segment of these bytes, and what a record says of the upload that they end.
    async fn segment(&self, text: &str, bytes: &str) -> (Segment, BlobFacts) {
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

    async fn write_record(&self, text: &'static str, link: &Link) -> Result<Told, RegistryError> {
        let record = link.record(nonce()).expect("a finish");
        let key = layout::blob(&record.facts.digest, &self.ticket.id);
        let body = encode(&key, &record)?.into();
        ConditionalWriter {
            storage: &self.model,
        }
        .write(&key, None, body)
        .await?;
        Ok(Told::Finished(text))
    }

    async fn put_its_own(&self, text: &'static str) -> Result<Told, RegistryError> {
        let (segment, facts) = self.segment(text, text).await;
        let link = Chain::default().finish(&[segment], facts, TableAt::Nowhere, nonce());
        let key = layout::link(&self.ticket.id, 0);
        let body = encode(&key, &link)?.into();
        if let WriteOutcome::Lost(_) = (ConditionalWriter {
            storage: &self.model,
        })
        .write(&key, None, body)
        .await?
        {
            drop_segments(&self.model, &self.ticket.id, &[segment]).await;
        }
        self.write_record(text, &link).await
    }

    async fn finish_unclaimed(
        &self,
        text: &'static str,
        rest: &str,
    ) -> Result<Told, RegistryError> {
        let key = layout::link(&self.ticket.id, 0);
        let first = self
            .model
            .read(&key)
            .await?
            .ok_or(RegistryError::UploadUnknown)?;
        let Ok(Next::Open(chain)) = Chain::after(0, decode(&key, &first.body)?, &[]) else {
            return Err(RegistryError::UploadUnknown);
        };
        let (segment, facts) = self.segment(text, rest).await;
        self.write_record(
            text,
            &chain.finish(&[segment], facts, TableAt::Nowhere, nonce()),
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

async fn explored(acts: &'static [(usize, Act)], faults: Faults) -> Explored {
    explored_from("", acts, faults, End::Lives).await
}

/// The same where the first actor's replica may die.
async fn explored_with_a_death(acts: &'static [(usize, Act)], end: End) -> Explored {
    explored_from("", acts, Faults::NONE, end).await
}

/// Actors at an upload that has these bytes already.
async fn explored_from(
    begun: &'static str,
    acts: &'static [(usize, Act)],
    faults: Faults,
    end: End,
) -> Explored {
    let scenario = async |model: Model| {
        let replicas = [replica(&model).await, replica(&model).await];
        let (ticket, _) = replicas[0].begin_upload(&repository(), false);
        if !begun.is_empty() {
            replicas[0]
                .append(ticket, None, body(begun, Some(0)))
                .await
                .expect("a chunk");
        }
        let told = Arc::new(Mutex::new(Vec::new()));
        let actors = acts.iter().enumerate().map(|(index, (at, act))| {
            let (registry, told) = (Arc::clone(&replicas[*at]), Arc::clone(&told));
            let client = Client {
                registry,
                model: model.clone(),
                repository: repository(),
                ticket,
            };
            let (model, end) = (model.clone(), if index == 0 { end } else { End::Lives });
            Box::pin(async move {
                let acting = async {
                    if let Ok(outcome) = client.act(*act).await {
                        told.lock().expect("no panic").push(outcome);
                    }
                };
                match end {
                    End::Lives => acting.await,
                    End::Dies | End::CleansUp => model.mortal(acting).await,
                }
                if end == End::CleansUp {
                    client.delete_all("seg/").await;
                }
            }) as _
        });
        let actors = actors.collect();
        let check = move |model: &Model| check(model, &told.lock().expect("no panic"));
        Scenario {
            actors,
            check: Box::new(check),
        }
    };
    explore(faults, scenario).await
}

fn check(model: &Model, told: &[Told]) -> Result<(), String> {
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
    for outcome in told {
        let sound = match outcome {
            Told::Finished(text) => blobs == [Digest::sha256(text.as_bytes())],
            Told::Cancelled => blobs.is_empty(),
        };
        if !sound {
            return Err(format!(
                "{outcome:?} was acknowledged, and there is {blobs:?}"
            ));
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_two_pushes_into_one_upload_one_is_whole() {
    let pushes = &[(0, Act::Push("ab")), (1, Act::Push("cd"))];
    explored(pushes, Faults::NONE).await.assert_holds(100);
}

#[tokio::test]
async fn a_push_a_put_and_a_cancel_end_in_one_of_them() {
    explored(
        &[(0, Act::Put("ab")), (1, Act::Cancel)],
        Faults::of(1, "upload/"),
    )
    .await
    .assert_holds(100);
    explored(&[(0, Act::Push("ab")), (1, Act::Cancel)], Faults::NONE)
        .await
        .assert_holds(100);
}

/// A client repeats its request at another replica.
#[tokio::test]
async fn a_put_that_is_repeated_elsewhere_makes_the_same_blob() {
    let puts = &[(0, Act::Put("ab")), (1, Act::Put("ab"))];
    explored(puts, Faults::of(1, "upload/"))
        .await
        .assert_holds(500);
}

#[tokio::test]
async fn a_segment_dropped_after_a_time_out_stands_under_an_acknowledged_record() {
    let acts = &[(0, Act::PushAndTidyUp("ab")), (1, Act::Finish("ab"))];
    let faults = Faults {
        late_only: true,
        ..Faults::of(3, "upload/")
    };
    explored(acts, faults).await.assert_broken("which is gone");
}

#[tokio::test]
async fn a_chain_that_is_deleted_can_be_begun_again_and_becomes_two_blobs() {
    explored(
        &[(0, Act::Push("ab")), (1, Act::Forget), (1, Act::Push("cd"))],
        Faults::NONE,
    )
    .await
    .assert_broken("one upload became");
}

/// A client whose replica died goes on, repeats its request or gives up at another one.
#[tokio::test]
async fn an_upload_whose_replica_dies_anywhere_ends_whole_elsewhere_or_not_at_all() {
    for acts in [
        &[(0, Act::Put("ab")), (1, Act::Put("ab"))],
        &[(0, Act::Push("ab")), (1, Act::Finish("ab"))],
        &[(0, Act::Push("ab")), (1, Act::Cancel)],
    ] {
        explored_with_a_death(acts, End::Dies)
            .await
            .assert_holds(100);
    }
}

/// What protects a PUT that is repeated after a death: it ends what the dead one's link says.
#[tokio::test]
async fn a_put_that_completes_its_own_bytes_after_a_death_names_a_segment_that_it_dropped() {
    let acts = &[(0, Act::Put("ab")), (1, Act::PutItsOwn("ab"))];
    explored_with_a_death(acts, End::Dies)
        .await
        .assert_broken("which is gone");
}

/// What protects a chunk whose replica dies: its segment is nobody's to delete, for its link may be
/// there or come.
#[tokio::test]
async fn a_request_that_cleans_up_when_it_ends_in_the_middle_takes_the_bytes_from_under_its_link() {
    let acts = &[(0, Act::Push("ab")), (1, Act::Finish("ab"))];
    explored_with_a_death(acts, End::CleansUp)
        .await
        .assert_broken("which is gone");
}

/// What protects a cancel from the finish of a replica that dies: both claim one key.
#[tokio::test]
async fn a_cancel_that_claims_nothing_is_overtaken_by_a_finish() {
    let acts = &[(0, Act::Push("ab")), (1, Act::CancelUnclaimed)];
    explored_with_a_death(acts, End::Dies)
        .await
        .assert_broken("Cancelled was acknowledged");
}

/// Two finishes of one upload, with other last bytes.
#[tokio::test]
async fn of_two_finishes_the_first_fixes_the_digest() {
    let acts = &[
        (0, Act::FinishWith("xab", "ab")),
        (1, Act::FinishWith("xcd", "cd")),
    ];
    explored_from("x", acts, Faults::of(1, "upload/"), End::Lives)
        .await
        .assert_holds(100);
}

#[tokio::test]
async fn finishes_that_claim_nothing_become_two_records_that_share_a_segment() {
    let acts = &[
        (0, Act::FinishWith("xab", "ab")),
        (1, Act::FinishUnclaimed("xcd", "cd")),
    ];
    explored_from("x", acts, Faults::NONE, End::Lives)
        .await
        .assert_broken("one upload became");
}

#[tokio::test]
async fn a_collector_that_closes_a_chain_first_leaves_no_record_without_its_segments() {
    let faults = Faults {
        late_only: true,
        ..Faults::of(1, "")
    };
    for act in [Act::Push("ab"), Act::Put("ab")] {
        let acts: &'static [_] = vec![(0, act), (1, Act::Collect)].leak();
        explored(acts, faults).await.assert_holds(100);
    }
}

#[tokio::test]
async fn a_late_record_names_segments_that_a_collector_deleted_from_an_open_chain() {
    let acts = &[(0, Act::Push("ab")), (1, Act::CollectOpen)];
    explored(acts, Faults::NONE)
        .await
        .assert_broken("which is gone");
}

/// Two chunks of the old upload, and between them the key at 0 is somebody else's.
#[tokio::test]
async fn a_chain_that_is_begun_again_is_trusted_with_the_hashes_of_the_old_bytes() {
    let acts = &[
        (0, Act::PushTwo("ab", "cd")),
        (1, Act::ForgetAll),
        (1, Act::Push("xy")),
    ];
    explored(acts, Faults::NONE)
        .await
        .assert_broken("which is gone");
}

//! The upload chain: two replicas and clients that append, finish and cancel one upload. What is acknowledged is whole,
//! and exactly one of them wins at each offset.

use std::sync::{Arc, Mutex};

use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use futures_util::{StreamExt, stream};

use super::blobs::{replica, repository};
use super::explorer::{Explored, Scenario, explore};
use super::model::{Faults, Model};
use crate::record::{BlobRecord, decode};
use crate::registry::{Body, Registry, RegistryError};
use crate::storage::{Prefix, Storage};
use crate::upload::id::Ticket;

/// What one client does, at one replica.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A chunk at the beginning, then the end of the upload.
    Push(&'static str),
    /// Everything in the request that ends the upload.
    Put(&'static str),
    /// The end of an upload whose bytes another one sent.
    Finish(&'static str),
    Cancel,
    /// Breaks "on an unknown outcome the segment stays".
    PushAndTidyUp(&'static str),
    /// Breaks "nobody deletes links": to cancel is to forget.
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Finished(&'static str),
    Cancelled,
}

fn body(text: &'static str, offset: Option<u64>) -> Body {
    let bytes = (!text.is_empty()).then_some(Ok(text.as_bytes().into()));
    Body { bytes: stream::iter(bytes).boxed(), len: Some(text.len() as u64), offset }
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
            Act::Put(text) => self.finish(text, text, Some(0)).await,
            Act::Finish(text) => {
                self.model.point("the finish begins").await;
                self.finish(text, "", None).await
            }
            Act::Cancel => {
                self.registry.cancel(self.ticket, None).await?;
                Ok(Told::Cancelled)
            }
            Act::Forget => {
                self.delete_all("upload/").await;
                Err(RegistryError::UploadUnknown)
            }
        }
    }

    async fn push(&self, text: &'static str) -> Result<Told, RegistryError> {
        let progress = self.registry.append(self.ticket, None, body(text, Some(0))).await?;
        let digest = Digest::sha256(text.as_bytes());
        let known = Some(progress.known);
        self.registry.finish(&self.repository, self.ticket, known, digest, body("", None)).await?;
        Ok(Told::Finished(text))
    }

    async fn finish(
        &self,
        text: &'static str,
        rest: &'static str,
        offset: Option<u64>,
    ) -> Result<Told, RegistryError> {
        let digest = Digest::sha256(text.as_bytes());
        self.registry.finish(&self.repository, self.ticket, None, digest, body(rest, offset)).await?;
        Ok(Told::Finished(text))
    }

    async fn delete_all(&self, prefix: &str) {
        let prefix = Prefix::new(prefix).expect("a prefix");
        for entry in self.model.list(&prefix, None, 99).await.expect("no faults").entries {
            self.model.delete(&entry.key).await.expect("no faults");
        }
    }
}

async fn explored(acts: &'static [(usize, Act)], faults: Faults) -> Explored {
    explored_with(acts, faults, false).await
}

/// The same where the first actor's replica may die.
async fn explored_with_a_death(acts: &'static [(usize, Act)]) -> Explored {
    explored_with(acts, Faults::NONE, true).await
}

async fn explored_with(acts: &'static [(usize, Act)], faults: Faults, first_is_mortal: bool) -> Explored {
    let scenario = async |model: Model| {
        let replicas = [replica(&model).await, replica(&model).await];
        let (ticket, _) = replicas[0].begin_upload(&repository(), false);
        let told = Arc::new(Mutex::new(Vec::new()));
        let actors = acts.iter().enumerate().map(|(index, (at, act))| {
            let (registry, told) = (Arc::clone(&replicas[*at]), Arc::clone(&told));
            let client = Client { registry, model: model.clone(), repository: repository(), ticket };
            let model = model.clone();
            let actor = async move {
                if let Ok(outcome) = client.act(*act).await {
                    told.lock().expect("no panic").push(outcome);
                }
            };
            if first_is_mortal && index == 0 {
                return Box::pin(async move { model.mortal(actor).await }) as _;
            }
            Box::pin(actor) as _
        });
        let actors = actors.collect();
        let check = move |model: &Model| check(model, &told.lock().expect("no panic"));
        Scenario { actors, check: Box::new(check) }
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
            let found = model.objects(&at).pop().ok_or(format!("{key} names {at}, which is gone"))?;
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
            return Err(format!("{outcome:?} was acknowledged, and there is {blobs:?}"));
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
    explored(&[(0, Act::Put("ab")), (1, Act::Cancel)], Faults::of(1, "upload/")).await.assert_holds(100);
    explored(&[(0, Act::Push("ab")), (1, Act::Cancel)], Faults::NONE).await.assert_holds(100);
}

/// A client repeats its request at another replica.
#[tokio::test]
async fn a_put_that_is_repeated_elsewhere_makes_the_same_blob() {
    let puts = &[(0, Act::Put("ab")), (1, Act::Put("ab"))];
    explored(puts, Faults::of(1, "upload/")).await.assert_holds(500);
}

#[tokio::test]
async fn a_segment_dropped_after_a_time_out_stands_under_an_acknowledged_record() {
    let acts = &[(0, Act::PushAndTidyUp("ab")), (1, Act::Finish("ab"))];
    let faults = Faults { late_only: true, ..Faults::of(3, "upload/") };
    explored(acts, faults).await.assert_broken();
}

#[tokio::test]
async fn a_chain_that_is_deleted_can_be_begun_again_and_becomes_two_blobs() {
    explored(&[(0, Act::Push("ab")), (1, Act::Forget), (1, Act::Push("cd"))], Faults::NONE)
        .await
        .assert_broken();
}

/// A client whose replica died goes on, repeats its request or gives up at another one.
#[tokio::test]
async fn an_upload_whose_replica_dies_anywhere_ends_whole_elsewhere_or_not_at_all() {
    explored_with_a_death(&[(0, Act::Put("ab")), (1, Act::Put("ab"))]).await.assert_holds(100);
    explored_with_a_death(&[(0, Act::Push("ab")), (1, Act::Finish("ab"))]).await.assert_holds(100);
    explored_with_a_death(&[(0, Act::Push("ab")), (1, Act::Cancel)]).await.assert_holds(100);
}

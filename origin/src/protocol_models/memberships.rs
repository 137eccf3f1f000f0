//! A push that makes a membership against a client that deletes it. A delete that was acknowledged
//! must not be undone by a push that had made the membership before the delete.

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;

use super::blob_collection::{push, replica, repository};
use super::explorer::{Explored, Scenario, explore};
use super::storage_model::{Faults, ModelStorage};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{MembershipRecord, RecordState, decode, encode};
use crate::registry::Registry;
use crate::storage::Key;

const LAYER: &[u8] = b"layer";
const MEMBERSHIPS: &str = "rb/";

fn target() -> RepositoryName {
    "target".parse().expect("a name")
}

fn key() -> Key {
    layout::membership(&target(), &Digest::sha256(LAYER))
}

/// How the membership is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mount {
    /// As shipped.
    Shipped,
    /// Violates "never write a second time after an unknown outcome".
    WritingAgain,
}

async fn mount(how: Mount, registry: &Registry, model: &ModelStorage) {
    let digest = Digest::sha256(LAYER);
    if how == Mount::Shipped {
        let _ = registry
            .mount(Some(&repository()), &target(), &digest)
            .await;
        return;
    }
    let blob = registry
        .blob(&repository(), &digest, crate::registry::Need::Live)
        .await;
    let generation = blob.expect("no faults").expect("a blob").generation;
    let body = || {
        let record = MembershipRecord {
            state: RecordState::Live,
            generation,
            nonce: nonce(),
        };
        encode(&key(), &record).expect("a record").into()
    };
    let writer = ConditionalWriter { storage: model };
    let first = writer.write(&key(), None, body()).await;
    if let Ok(WriteOutcome::Lost {
        present: Some(present),
        ..
    }) = first
    {
        let _ = writer.write(&key(), Some(&present.version), body()).await;
    }
}

async fn explore_mount(how: Mount, faults: u32) -> Explored {
    let base = async |model: ModelStorage| {
        let (pushing, deleting) = (replica(&model).await, replica(&model).await);
        push(&pushing, LAYER).await.expect("no faults yet");
        let pushing_model = model.clone();
        let push = async move { mount(how, &pushing, &pushing_model).await };
        let delete = async move { delete_twice(&deleting).await };
        Scenario::new(
            vec![Box::pin(push), Box::pin(delete)],
            Box::new(delete_lasts),
        )
    };
    explore(Faults::of(faults, MEMBERSHIPS), base).await
}

/// A client that deletes the blob as soon as it is there.
async fn delete_twice(registry: &Arc<Registry>) {
    let digest = Digest::sha256(LAYER);
    for _ in 0..2 {
        if registry.delete_blob(&target(), &digest).await.is_ok() {
            return;
        }
    }
}

/// Only the push makes memberships, so one that follows a tombstone undoes the delete.
fn delete_lasts(model: &ModelStorage) -> Result<(), String> {
    let states: Vec<_> = model
        .history(key().as_str())
        .iter()
        .map(|body| {
            let record: MembershipRecord = decode(&key(), body).expect("a membership");
            record.state
        })
        .collect();
    let undone = states
        .windows(2)
        .any(|pair| pair == [RecordState::Dead, RecordState::Live]);
    if undone {
        return Err(format!("the push undid the delete: {states:?}"));
    }
    Ok(())
}

#[tokio::test]
async fn push_with_unknown_outcome_does_not_undo_a_delete() {
    explore_mount(Mount::Shipped, 2).await.assert_holds(100);
}

#[tokio::test]
async fn second_write_after_unknown_outcome_undoes_a_delete() {
    explore_mount(Mount::WritingAgain, 1)
        .await
        .assert_violated("undid the delete");
}

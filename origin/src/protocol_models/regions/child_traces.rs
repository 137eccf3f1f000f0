//! The children of an index: a push looks at them again, past the caches.

use std::sync::{Arc, Mutex};

use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_INDEX;
use flotilla_common::name::Reference;
use flotilla_common::stamp::Stamp;
use tokio::time::advance;

use super::super::blob_collection::repository;
use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::properties::manifest_state;
use super::world::{LIVENESS, Region, change_state, index, index_of, manifest_key, put};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{ManifestRecord, ManifestState};
use crate::registry::{ChangeRules, Registry};
use crate::storage::Storage;

/// How a push looks at the children of its index again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChecksAgain {
    /// As shipped.
    PastTheCaches,
    /// Violates that.
    InMemory,
}

/// Whether a replica has a child, as its caches say.
async fn has_child(registry: &Registry) -> bool {
    let child = Reference::Digest(Digest::sha256(&index(1)));
    registry.manifest(&repository(), &child).await.is_ok()
}

/// A push that looks at the child by the caches, both times.
async fn put_by_caches(model: &ModelStorage, registry: &Registry) -> bool {
    let parent = index_of(&index(1));
    let key = layout::fact(&manifest_key(&parent));
    if !has_child(registry).await {
        return false;
    }
    let record = ManifestRecord {
        stamp: Stamp {
            clock: registry.unix_nanos(),
            region: registry.region().clone(),
        },
        turn: 0,
        state: ManifestState::Live,
        content: Some((OCI_INDEX.to_owned(), parent)),
        subject: None,
        nonce: nonce(),
    };
    let body = record.body(&key).expect("a body");
    let created = Region::A.storage(model).create(&key, body).await;
    created.expect("the only writer");
    has_child(registry).await
}

/// A client pushes an index to a replica that has its child in memory. The child is evicted, and
/// the invalidation has not reached the replica.
async fn explore_evicted_child(checks: ChecksAgain) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let rules = ChangeRules::default();
        put(&registry, &index(1), &[], &rules)
            .await
            .expect("a push");
        assert!(has_child(&registry).await);
        let parent = index_of(&index(1));
        let is_acknowledged = Arc::new(Mutex::new(false));
        let was_evicted_before = Arc::new(Mutex::new(false));
        let client = {
            let (model, is_acknowledged) = (model.clone(), Arc::clone(&is_acknowledged));
            let parent = parent.clone();
            async move {
                let acknowledged = match checks {
                    ChecksAgain::PastTheCaches => {
                        put(&registry, &parent, &[], &rules).await.is_ok()
                    }
                    ChecksAgain::InMemory => put_by_caches(&model, &registry).await,
                };
                *is_acknowledged.lock().expect("no panic") = acknowledged;
            }
        };
        // After the first check of the push, which is answered from memory.
        let time = async { advance(LIVENESS * 2).await };
        let evict = {
            let was_evicted_before = Arc::clone(&was_evicted_before);
            async move {
                let storage = Region::A.storage(&model);
                let key = layout::fact(&manifest_key(&index(1)));
                change_state(&storage, &key, ManifestState::Evicted).await;
                let is_named = manifest_state(&model, Region::A, &parent).is_some();
                *was_evicted_before.lock().expect("no panic") = !is_named;
            }
        };
        let check = move |_: &ModelStorage| {
            let is_acknowledged = *is_acknowledged.lock().expect("no panic");
            match is_acknowledged && *was_evicted_before.lock().expect("no panic") {
                true => Err("an acknowledged index names what was evicted before".to_owned()),
                false => Ok(()),
            }
        };
        Scenario::new(
            vec![Box::pin(client), Box::pin(time), Box::pin(evict)],
            Box::new(check),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn children_are_checked_again_past_the_caches() {
    explore_evicted_child(ChecksAgain::PastTheCaches)
        .await
        .assert_holds(10);
    explore_evicted_child(ChecksAgain::InMemory)
        .await
        .assert_violated("names what was evicted before");
}

//! Deletes of manifests that other regions made for this one, and that its storage may not have
//! yet. This replica knows of them from its siblings; what it missed while it did not run, or its
//! own storage was out, it hears from the regions, for as long as tags are read from all of them.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::wire::region::{FactHead, FactKey};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::ahead::{AheadValue, BeyondOwn};
use super::regional::Regional;
use super::source::{Source, one_fact};

/// How long another region may take to say whether a manifest was deleted there.
const FACT_TIMEOUT: Duration = Duration::from_millis(1500);

/// The deletes of a manifest in other regions, as far as this replica knows them.
#[derive(Debug)]
pub(crate) struct Deletes {
    /// The one that the own storage does not say to have.
    pub(crate) beyond_own: Option<BeyondOwn>,
    /// Whether there is no other: all regions that may have one were heard.
    pub(crate) is_complete: bool,
}

impl Regional {
    /// The deletes of a manifest that other regions made for this one. `own_decides` says whether
    /// the own storage may be asked.
    pub(crate) async fn deletes(&self, key: &FactKey, own_decides: bool) -> Deletes {
        let is_complete = own_decides && self.ask_for_deletes(key).await;
        Deletes {
            beyond_own: self.ahead().delete_beyond_own(key, own_decides).await,
            is_complete,
        }
    }

    /// Asks the regions that owe a change of a manifest whether it is a delete. Returns whether all
    /// were heard.
    async fn ask_for_deletes(&self, key: &FactKey) -> bool {
        if !self.may_be_behind() {
            return true;
        }
        let sources = self.keepers(key.repository());
        let routes = self.routes();
        let owing = self.owed.owing_manifest(&sources, &routes, key).await;
        if owing.sources.is_empty() || self.compared.are_fresh(key) {
            return owing.is_complete;
        }
        let asked_at = self.now();
        let ask = async |source: &Arc<dyn Source>| {
            let fact = timeout(FACT_TIMEOUT, one_fact(&**source, key));
            let answer = async { fact.await.map_err(drop)?.map_err(drop) };
            routes.observe(source.region(), answer).await
        };
        let mut all_answered = true;
        for answer in join_all(owing.sources.iter().map(ask)).await {
            match answer.map(|fact| fact.head) {
                Ok(FactHead::DeletedManifest { stamp, .. }) => {
                    self.note_ahead(key.clone(), AheadValue::shown(stamp, None));
                }
                Ok(_) => {}
                Err(()) => all_answered = false,
            }
        }
        if all_answered {
            self.compared.note(key.clone(), asked_at);
        }
        all_answered && owing.is_complete
    }
}

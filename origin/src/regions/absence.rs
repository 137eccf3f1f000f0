//! What a read does when the own storage does not have what it asks for.
//!
//! ```text
//! read the own storage ──▶ absent ──▶ look up what is owed
//!   ──▶ nothing, by a page that is later than the read ──▶ read the own storage again
//!   ──▶ something ──▶ [deleted here: only a later value counts] ──▶ ask the other regions
//! ```

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::stamp::Stamp;
use flotilla_common::time::Time;
use flotilla_common::wire::region::{FactHead, FactKey};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::owed::{Owed, OwedPages};
use super::routes::Routes;
use super::source::{Source, one_fact};
use crate::registry::{Registry, RegistryError};

/// How long a region may take to say whether it has something newer than a delete here.
const FACT_TIMEOUT: Duration = Duration::from_millis(1500);

/// What a read of the own storage found.
#[derive(Debug)]
pub(crate) enum OwnRead<T, E> {
    Found(T),
    /// Nothing; the answer if no other region has it either.
    Absent(E),
    /// It does not answer, or the request is wrong.
    Failed(E),
}

/// A read that found nothing.
#[derive(Debug)]
pub(crate) struct Missed<E> {
    /// When it began.
    pub(crate) read_at: Time,
    /// The answer if no other region has it either.
    pub(crate) error: E,
}

/// Where the content of a read is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Presence<T, E> {
    /// In the own storage.
    Here(T),
    /// Not here; these regions may have it. The error is the answer once they all say that they
    /// have not.
    Elsewhere(E, Vec<RegionName>),
    /// In no region, or deleted.
    Nowhere(E),
    /// A region may have it and does not answer, or too many questions were asked.
    Unknown,
    /// The own storage does not answer, or the request is wrong.
    Failed(E),
}

/// A read of one repository.
#[derive(Debug)]
pub(crate) struct Absence<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) pages: &'a OwedPages,
    /// The other regions that keep the repository.
    pub(crate) sources: Vec<Arc<dyn Source>>,
    /// Which of them probes have found out.
    pub(crate) routes: Arc<Routes>,
    /// Whether this region has everything that the others had when it joined.
    pub(crate) is_whole: bool,
}

impl Absence<'_> {
    /// Says where the content is that a read of the own storage missed. `read` repeats it; `key` is
    /// that of the content, if it can be deleted in all regions.
    pub(crate) async fn find<T, E, F>(
        &self,
        repository: &RepositoryName,
        key: Option<&FactKey>,
        missed: Missed<E>,
        read: impl Fn() -> F,
    ) -> Presence<T, E>
    where
        E: From<RegistryError>,
        F: Future<Output = OwnRead<T, E>>,
    {
        let Missed {
            read_at,
            error: mut absent,
        } = missed;
        if self.sources.is_empty() {
            return Presence::Nowhere(absent);
        }
        let (pages, sources, routes) = (self.pages, &self.sources, &self.routes);
        let looked_up = pages.look_up(sources, routes, repository, read_at, self.is_whole);
        let looked_up = looked_up.await;
        // Regions that owe something are asked anyway.
        if looked_up.reads_again && !matches!(looked_up.owed, Owed::By(_)) {
            absent = match read().await {
                OwnRead::Found(found) => return Presence::Here(found),
                OwnRead::Failed(error) => return Presence::Failed(error),
                OwnRead::Absent(error) => error,
            };
        }
        let regions = match looked_up.owed {
            Owed::Nothing => return Presence::Nowhere(absent),
            Owed::Unknown => return Presence::Unknown,
            Owed::By(regions) => regions,
        };
        match self.outlives_delete(key, &regions).await {
            Ok(Some(true)) => Presence::Elsewhere(absent, regions),
            Ok(Some(false)) => Presence::Nowhere(absent),
            Ok(None) => Presence::Unknown,
            Err(error) => Presence::Failed(error.into()),
        }
    }

    /// Whether a key may be served from these regions: it was not deleted here, or one of them has
    /// a later value. `None` if one that may have it does not answer.
    async fn outlives_delete(
        &self,
        key: Option<&FactKey>,
        regions: &[RegionName],
    ) -> Result<Option<bool>, RegistryError> {
        let Some(key) = key else {
            return Ok(Some(true));
        };
        let own = self.registry.fact(key).await?.head;
        match deleted_at(&own) {
            Some(deleted) => Ok(self.is_later_elsewhere(key, deleted, regions).await),
            None => Ok(Some(true)),
        }
    }

    /// Whether one of these regions has a value of a key that is later than its delete here. `None`
    /// if none says so, and one does not answer.
    pub(crate) async fn is_later_elsewhere(
        &self,
        key: &FactKey,
        deleted: &Stamp,
        regions: &[RegionName],
    ) -> Option<bool> {
        let asked = self
            .sources
            .iter()
            .filter(|source| regions.contains(source.region()))
            .map(|source| timeout(FACT_TIMEOUT, one_fact(&**source, key)));
        let mut is_silent = false;
        for answer in join_all(asked).await {
            match answer {
                Ok(Ok(fact)) if counts_over(deleted, &fact.head) => return Some(true),
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => is_silent = true,
            }
        }
        (!is_silent).then_some(false)
    }
}

/// The stamp of a delete.
pub(crate) const fn deleted_at(head: &FactHead) -> Option<&Stamp> {
    match head {
        FactHead::DeletedManifest { stamp, .. }
        | FactHead::Tag {
            stamp,
            digest: None,
        } => Some(stamp),
        _ => None,
    }
}

/// Whether a value elsewhere is live and later than a delete here.
fn counts_over(deleted: &Stamp, elsewhere: &FactHead) -> bool {
    match elsewhere {
        FactHead::Manifest { stamp, .. }
        | FactHead::Tag {
            stamp,
            digest: Some(_),
        } => stamp > deleted,
        _ => false,
    }
}

//! What other regions owe this one, as far as a read needs to know: a page of each journal, fetched
//! on demand and at most about once a second.
//!
//! Something that is absent here is looked for elsewhere only if a journal names its repository. So
//! a storm of requests for tags that exist nowhere costs another region one page a second.
//!
//! | another region | may have it |
//! |---|---|
//! | its journal names the repository, or more than is listed | yes |
//! | it made a change there for this region, after its journal was listed | yes |
//! | it does not answer, and its last page named the repository | yes |
//! | it answers, but a third one does not, or this region is not whole | yes |
//! | otherwise | no |
//!
//! It is absent everywhere only if every region that may have it says that it has not. Questions
//! that no journal of an answering region suggests are limited for each repository.

use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::time::Time;
use flotilla_common::wire::region::{FactKey, MAX_ENTRIES};
use flotilla_runtime::clock::Clock;
use futures_util::future::join_all;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;

use super::forwarded::ForwardedChanges;
use super::owed_page::{FRESH, Page};
use super::routes::Routes;
use super::source::Source;

/// For one page.
const PAGE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Time between two questions to other regions about absent content of one repository that no
/// journal names, while that may exist nevertheless...
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// ...on average: after a pause so many may follow each other at once.
const MAX_ASKS_AT_ONCE: u32 = 200;
/// Repositories whose questions are counted.
const MAX_COUNTED: usize = 4096;

/// Whether other regions may have what is absent here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// All regions answered, and none owes anything in the repository.
    Nothing,
    /// These may have it, whether they answer or not. It is absent only if all of them say so.
    By(Vec<RegionName>),
    /// Some region may have it, but too many questions were asked.
    Unknown,
}

/// What the pages say about a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwedLookUp {
    pub(crate) owed: Owed,
    /// A page arrived after the caller's own read began, or a region has never answered. A follower
    /// may have merged an entry after that read and dropped it before the page, so the caller reads
    /// its own storage once more before it believes in absence.
    pub(crate) reads_again: bool,
    /// The regions without a fresh page: they may owe what this region has not heard of.
    pub(crate) silent: Vec<RegionName>,
}

impl OwedLookUp {
    /// There is no other region.
    pub(crate) const ALONE: Self = Self {
        owed: Owed::Nothing,
        reads_again: false,
        silent: Vec::new(),
    };
}

/// The regions that may have something of a repository that this region has not got yet.
#[derive(Clone, Debug)]
pub(crate) struct Owing {
    /// Those that may have it, whether they answer or not.
    pub(crate) regions: Vec<RegionName>,
    /// Whether a fresh page names the repository.
    is_named: bool,
    /// The regions without a fresh page: they may owe what this region has not heard of.
    pub(crate) silent: Vec<RegionName>,
    /// When the last of the pages arrived; `None` if a region has never answered.
    received: Option<Time>,
}

/// The regions that owe a change, as sources.
#[derive(Debug)]
pub(crate) struct OwingSources {
    pub(crate) sources: Vec<Arc<dyn Source>>,
    /// Whether there are no others: each region has told lately all that it owes.
    pub(crate) is_complete: bool,
}

/// The last page of a region.
#[derive(Debug, Default)]
struct KnownPage {
    page: Option<Arc<Page>>,
    /// When the region last did not answer.
    failed_at: Option<Time>,
}

/// The pages of all other regions.
#[derive(Debug)]
pub(crate) struct OwedPages {
    clock: Clock,
    pages: Mutex<HashMap<RegionName, Arc<AsyncMutex<KnownPage>>>>,
    /// When the questions so far about a repository have used up their time.
    asks: Mutex<HashMap<RepositoryName, Time>>,
    forwarded: Mutex<ForwardedChanges>,
}

impl OwedPages {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            pages: Mutex::default(),
            asks: Mutex::default(),
            forwarded: Mutex::default(),
        }
    }

    /// Takes note of a change that a region made for this one: its pages from before do not name it.
    pub(crate) fn note_forwarded(&self, region: RegionName, repository: RepositoryName) {
        let now = self.clock.now();
        self.forwarded().note(region, repository, now);
    }

    /// Whether fresh pages of all `sources` say that they owe nothing in a repository. False if that
    /// takes a question to one of them.
    pub(crate) fn owe_nothing(
        &self,
        sources: &[Arc<dyn Source>],
        repository: &RepositoryName,
    ) -> bool {
        self.all_fresh(sources, |region, page| {
            !self.names(region, Some(page), repository)
        })
    }

    /// The same for changes of a manifest.
    pub(crate) fn owe_no_manifest(&self, sources: &[Arc<dyn Source>], key: &FactKey) -> bool {
        self.all_fresh(sources, |_, page| page.names_manifest(key) == Some(false))
    }

    /// Whether the last page of each of `sources` is fresh and says something.
    fn all_fresh(
        &self,
        sources: &[Arc<dyn Source>],
        says: impl Fn(&RegionName, &Arc<Page>) -> bool,
    ) -> bool {
        let now = self.clock.now();
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().all(|source| {
            let known = pages.get(source.region());
            let known = known.and_then(|known| known.try_lock().ok());
            let page = known.as_ref().and_then(|known| known.page.as_ref());
            page.is_some_and(|page| page.is_fresh(now) && says(source.region(), page))
        })
    }

    /// Whether a region may owe something in a repository, by its last page.
    fn names(
        &self,
        region: &RegionName,
        page: Option<&Arc<Page>>,
        repository: &RepositoryName,
    ) -> bool {
        page.is_some_and(|page| page.names(repository))
            || self
                .forwarded()
                .is_missed_by(page.map(|page| page.listed), region, repository)
    }

    fn forwarded(&self) -> MutexGuard<'_, ForwardedChanges> {
        self.forwarded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `sources` may have something of a repository that is absent here. Those that are out
    /// are not asked for a page, and one that does not answer is probed. `read_at` is when the read
    /// that found it absent began. `is_whole` says whether this region has everything that the
    /// others had when it joined.
    pub(crate) async fn look_up(
        &self,
        sources: &[Arc<dyn Source>],
        routes: &Routes,
        repository: &RepositoryName,
        read_at: Time,
        is_whole: bool,
    ) -> OwedLookUp {
        let owing = self.owing(sources, routes, repository, is_whole).await;
        let owed = if owing.regions.is_empty() {
            Owed::Nothing
        } else if owing.is_named || self.may_ask(repository) {
            Owed::By(owing.regions)
        } else {
            Owed::Unknown
        };
        OwedLookUp {
            owed,
            reads_again: owing.received.is_none_or(|received| received >= read_at),
            silent: owing.silent,
        }
    }

    /// Which of `sources` may have something of a repository that this region has not got yet.
    pub(super) async fn owing(
        &self,
        sources: &[Arc<dyn Source>],
        routes: &Routes,
        repository: &RepositoryName,
        is_whole: bool,
    ) -> Owing {
        let pages = self.pages(sources, routes).await;
        let received = pages.iter().map(|(page, _)| Some(page.as_ref()?.received));
        let received: Option<Vec<Time>> = received.collect();
        let mut owing = Owing {
            regions: Vec::new(),
            is_named: false,
            silent: Vec::new(),
            received: received.map(|received| received.into_iter().max().unwrap_or_default()),
        };
        let mut others = Vec::new();
        for (source, (page, is_fresh)) in sources.iter().zip(pages) {
            let region = source.region();
            let names = self.names(region, page.as_ref(), repository);
            if names {
                owing.regions.push(region.clone());
            } else if is_fresh {
                others.push(region.clone());
            }
            owing.is_named |= names && is_fresh;
            if !is_fresh {
                owing.silent.push(region.clone());
            }
        }
        // What a silent region has not told of may be in those that answer. If none answers, the
        // own storage decides: an outage there must not fail each look-up of something absent here.
        if !owing.silent.is_empty() || !is_whole {
            owing.regions.append(&mut others);
        }
        owing
    }

    /// Which of `sources` owe a change of a manifest.
    pub(super) async fn owing_manifest(
        &self,
        sources: &[Arc<dyn Source>],
        routes: &Routes,
        key: &FactKey,
    ) -> OwingSources {
        let pages = self.pages(sources, routes).await;
        let mut owing = OwingSources {
            sources: Vec::new(),
            is_complete: true,
        };
        for (source, (page, is_fresh)) in sources.iter().zip(pages) {
            match page
                .filter(|_| is_fresh)
                .map(|page| page.names_manifest(key))
            {
                Some(Some(true)) => owing.sources.push(Arc::clone(source)),
                Some(Some(false)) => {}
                Some(None) | None => owing.is_complete = false,
            }
        }
        owing
    }

    /// The last known page of each region, and whether it is fresh.
    async fn pages(
        &self,
        sources: &[Arc<dyn Source>],
        routes: &Routes,
    ) -> Vec<(Option<Arc<Page>>, bool)> {
        join_all(sources.iter().map(|source| self.page(routes, source))).await
    }

    /// The last known page of a region, and whether it is fresh.
    async fn page(&self, routes: &Routes, source: &Arc<dyn Source>) -> (Option<Arc<Page>>, bool) {
        let known = {
            let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pages.entry(source.region().clone()).or_default())
        };
        let mut known = known.lock().await;
        let now = self.clock.now();
        let is_recent = |at: Time| now.saturating_since(at) < FRESH;
        if known.page.as_ref().is_some_and(|page| page.is_fresh(now)) {
            return (known.page.clone(), true);
        }
        // One caller a second waits for a region that does not answer, until probes have found it
        // out.
        if routes.is_other_out(source.region()) || known.failed_at.is_some_and(is_recent) {
            return (known.page.clone(), false);
        }
        let asked = now;
        let listed = async {
            let page = timeout(PAGE_TIMEOUT, source.journal(None, MAX_ENTRIES)).await;
            page.map_err(drop)?.map_err(drop)
        };
        let Ok(fetched) = routes.observe(source.region(), listed).await else {
            known.failed_at = Some(self.clock.now());
            return (known.page.clone(), false);
        };
        let page = Arc::new(Page::new(&fetched, asked, self.clock.now()));
        self.forwarded().drop_listed(source.region(), page.listed);
        *known = KnownPage {
            page: Some(Arc::clone(&page)),
            failed_at: None,
        };
        (Some(page), true)
    }

    /// Counts a question about a repository; false if there were too many lately. This is the
    /// generic cell rate algorithm (ITU-T I.371).
    fn may_ask(&self, repository: &RepositoryName) -> bool {
        let now = self.clock.now();
        let mut asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        if asks.len() >= MAX_COUNTED && !asks.contains_key(repository) {
            asks.retain(|_, used_up| *used_up > now);
            if asks.len() >= MAX_COUNTED {
                return false;
            }
        }
        let used_up = asks.entry(repository.clone()).or_insert(now);
        let next = (*used_up).max(now) + ASK_INTERVAL;
        if next > now + ASK_INTERVAL * MAX_ASKS_AT_ONCE {
            return false;
        }
        *used_up = next;
        true
    }
}

#[cfg(test)]
mod tests;

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

/// The regions that owe a change of a manifest.
#[derive(Debug)]
pub(super) struct OwingManifest {
    pub(super) sources: Vec<Arc<dyn Source>>,
    /// Whether there are no others: each region has told lately all that it owes.
    pub(super) is_complete: bool,
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
        let pages = sources.iter().map(|source| self.page(routes, source));
        let pages = join_all(pages).await;
        let reads_again = pages
            .iter()
            .any(|(page, _)| page.as_ref().is_none_or(|page| page.received >= read_at));
        let mut may_have = Vec::new();
        let mut others = Vec::new();
        let mut is_owed = false;
        let mut silent = Vec::new();
        for (source, (page, is_fresh)) in sources.iter().zip(pages) {
            let names = self.names(source.region(), page.as_ref(), repository);
            if names {
                may_have.push(source.region().clone());
            } else if is_fresh {
                others.push(source.region().clone());
            }
            is_owed |= names && is_fresh;
            if !is_fresh {
                silent.push(source.region().clone());
            }
        }
        // What a silent region has not told of may be in those that answer. If none answers, the
        // own storage decides: an outage there must not fail each look-up of something absent here.
        if !silent.is_empty() || !is_whole {
            may_have.append(&mut others);
        }
        let owed = if may_have.is_empty() {
            Owed::Nothing
        } else if is_owed || self.may_ask(repository) {
            Owed::By(may_have)
        } else {
            Owed::Unknown
        };
        OwedLookUp {
            owed,
            reads_again,
            silent,
        }
    }

    /// Which of `sources` owe a change of a manifest.
    pub(super) async fn owing_manifest(
        &self,
        sources: &[Arc<dyn Source>],
        routes: &Routes,
        key: &FactKey,
    ) -> OwingManifest {
        let pages = sources.iter().map(|source| self.page(routes, source));
        let pages = join_all(pages).await;
        let mut owing = OwingManifest {
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
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use async_trait::async_trait;
    use flotilla_common::digest::Digest;
    use flotilla_common::failover::{Failover, FailoverConfig};
    use flotilla_common::wire::region::{
        EntryId, Fact, FactKind, JournalPage, KeysPage, OwedEntry, RegionState, TakeAnswer,
        TakeRequest,
    };
    use flotilla_runtime::failover::Sources;
    use flotilla_runtime::shutdown::Shutdown;

    use super::super::routes::no_routes;
    use super::super::source::{SourceBlob, SourceError};
    use super::*;

    /// A region with a journal, which can fall silent.
    #[derive(Debug)]
    struct Journal {
        region: RegionName,
        repositories: Vec<&'static str>,
        is_trimmed: bool,
        /// The time to the answer.
        delay: Duration,
        is_silent: AtomicBool,
        pages: AtomicU32,
    }

    impl Journal {
        fn naming(region: &str, repositories: &[&'static str]) -> Arc<Self> {
            Arc::new(Self {
                region: region.parse().expect("a name"),
                repositories: repositories.to_vec(),
                is_trimmed: false,
                delay: Duration::ZERO,
                is_silent: AtomicBool::new(false),
                pages: AtomicU32::new(0),
            })
        }

        fn fall_silent(&self) {
            self.is_silent.store(true, Ordering::Relaxed);
        }

        fn error<T>(&self) -> Result<T, SourceError> {
            Err(SourceError {
                region: self.region.clone(),
                reason: "silent".to_owned(),
            })
        }
    }

    #[async_trait]
    impl Source for Journal {
        fn region(&self) -> &RegionName {
            &self.region
        }

        async fn journal(
            &self,
            _after: Option<EntryId>,
            _limit: usize,
        ) -> Result<JournalPage, SourceError> {
            self.pages.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.delay).await;
            if self.is_silent.load(Ordering::Relaxed) {
                return self.error();
            }
            let entries = self.repositories.iter().map(|name| OwedEntry {
                id: EntryId {
                    created: 1,
                    nonce: 1,
                },
                keys: vec![(tag(name), None)],
            });
            Ok(JournalPage {
                entries: entries.collect(),
                more: false,
                age_ms: 0,
                sweep: self.is_trimmed.then_some(1),
            })
        }

        async fn state(&self) -> Result<RegionState, SourceError> {
            self.error()
        }

        async fn done(&self, _: Vec<EntryId>, _: Option<u128>) -> Result<(), SourceError> {
            self.error()
        }

        async fn facts(&self, _: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
            self.error()
        }

        async fn keys(
            &self,
            _: FactKind,
            _: Option<&FactKey>,
            _: usize,
        ) -> Result<KeysPage, SourceError> {
            self.error()
        }

        async fn take(&self, _: TakeRequest) -> Result<TakeAnswer, SourceError> {
            self.error()
        }

        async fn blob(
            &self,
            _: &RepositoryName,
            _: &Digest,
            _: u64,
        ) -> Result<Option<SourceBlob>, SourceError> {
            self.error()
        }
    }

    fn tag(repository: &str) -> FactKey {
        let repository = repository.parse().expect("a name");
        FactKey::Tag(repository, "v1".parse().expect("a tag"))
    }

    /// A whole region that follows these.
    struct Follower {
        pages: OwedPages,
        sources: Vec<Arc<dyn Source>>,
        is_whole: bool,
    }

    impl Follower {
        fn of(journals: &[Arc<Journal>]) -> Self {
            let sources = journals
                .iter()
                .map(|journal| Arc::clone(journal) as Arc<dyn Source>);
            Self {
                pages: OwedPages::new(Clock::tokio()),
                sources: sources.collect(),
                is_whole: true,
            }
        }

        async fn look_up(&self, repository: &str) -> Owed {
            let repository = repository.parse().expect("a name");
            let now = self.pages.clock.now();
            // None of the regions is out.
            let routes = no_routes(self.pages.clock);
            self.pages
                .look_up(&self.sources, &routes, &repository, now, self.is_whole)
                .await
                .owed
        }
    }

    /// Routes to the regions of a follower after their probes have failed.
    async fn routes_with_others_out(follower: &Follower) -> Routes {
        let regions: Vec<u32> = (0..=follower.sources.len() as u32).collect();
        let machine = Failover::new(FailoverConfig::default(), &regions, 0);
        let clock = follower.pages.clock;
        let routes = Routes {
            failover: Sources::new(machine, Vec::new(), clock),
            others: follower.sources.clone(),
            stop: Shutdown::new(),
        };
        let probe = async |_| Err("connection refused".to_owned());
        let probes = routes
            .failover
            .clone()
            .run_probes(probe, routes.stop.clone());
        let region = follower.sources[0].region();
        let failing = async {
            while !routes.is_other_out(region) {
                let call = async { Err::<(), _>(()) };
                let _fails = routes.observe(region, call).await;
                tokio::time::sleep(FRESH).await;
            }
        };
        tokio::select! {
            () = probes => {}
            () = failing => {}
        }
        routes
    }

    fn by(regions: &[&str]) -> Owed {
        let names = regions.iter().map(|name| name.parse().expect("a name"));
        Owed::By(names.collect())
    }

    async fn next_page() {
        tokio::time::advance(FRESH).await;
    }

    #[tokio::test(start_paused = true)]
    async fn regions_that_owe_something_may_have_it() {
        let journals = [
            Journal::naming("us-1", &["app"]),
            Journal::naming("ap-1", &[]),
        ];
        let mut follower = Follower::of(&journals);
        assert_eq!(follower.look_up("app").await, by(&["us-1"]));
        assert_eq!(follower.look_up("other").await, Owed::Nothing);
        follower.is_whole = false;
        assert_eq!(follower.look_up("app").await, by(&["us-1", "ap-1"]));
        assert_eq!(follower.look_up("other").await, by(&["us-1", "ap-1"]));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_region_may_have_what_its_journal_named() {
        let journals = [
            Journal::naming("us-1", &["app"]),
            Journal::naming("ap-1", &[]),
        ];
        let follower = Follower::of(&journals);
        follower.look_up("app").await;
        journals[0].fall_silent();
        next_page().await;
        assert_eq!(follower.look_up("app").await, by(&["us-1", "ap-1"]));
        // What it did not name may be in the others only.
        assert_eq!(follower.look_up("other").await, by(&["ap-1"]));
        journals[1].fall_silent();
        next_page().await;
        assert_eq!(follower.look_up("app").await, by(&["us-1"]));
        assert_eq!(follower.look_up("other").await, Owed::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn trimmed_journal_names_everything() {
        let journal = Arc::new(Journal {
            is_trimmed: true,
            ..Arc::into_inner(Journal::naming("us-1", &[])).expect("the only handle")
        });
        let follower = Follower::of(&[Arc::clone(&journal)]);
        assert_eq!(follower.look_up("app").await, by(&["us-1"]));
        journal.fall_silent();
        next_page().await;
        assert_eq!(follower.look_up("app").await, by(&["us-1"]));
    }

    /// A page that took long may miss what was written right after its request.
    #[tokio::test(start_paused = true)]
    async fn slow_pages_age_from_their_request() {
        let journal = Arc::new(Journal {
            delay: FRESH * 6 / 10,
            ..Arc::into_inner(Journal::naming("us-1", &[])).expect("the only handle")
        });
        let follower = Follower::of(&[Arc::clone(&journal)]);
        for pages in [1, 2] {
            assert_eq!(follower.look_up("app").await, Owed::Nothing);
            assert_eq!(journal.pages.load(Ordering::Relaxed), pages);
            tokio::time::advance(FRESH * 5 / 10).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_for_this_region_are_owed_until_a_later_page() {
        let journals = [
            Journal::naming("us-1", &[]),
            Journal::naming("ap-1", &["owed"]),
        ];
        let follower = Follower::of(&journals);
        let owe_nothing = |repository: &str| {
            let repository = repository.parse().expect("a name");
            follower.pages.owe_nothing(&follower.sources, &repository)
        };
        assert!(!owe_nothing("app"), "there is no page");
        assert_eq!(follower.look_up("app").await, Owed::Nothing);
        assert!(owe_nothing("app") && !owe_nothing("owed"));
        let (region, repository) = ("us-1".parse(), "app".parse());
        let (region, repository) = (region.expect("a name"), repository.expect("a name"));
        follower.pages.note_forwarded(region, repository);
        assert_eq!(follower.look_up("app").await, by(&["us-1"]));
        assert_eq!(follower.look_up("other").await, Owed::Nothing);
        assert!(!owe_nothing("app") && owe_nothing("other"));
        next_page().await;
        assert!(!owe_nothing("other"), "the pages are old");
        assert_eq!(follower.look_up("app").await, Owed::Nothing);
        assert!(owe_nothing("app"));
    }

    #[tokio::test(start_paused = true)]
    async fn questions_without_a_hint_are_limited_for_each_repository() {
        let mut follower = Follower::of(&[Journal::naming("us-1", &["owed"])]);
        follower.is_whole = false;
        for _ in 0..MAX_ASKS_AT_ONCE {
            assert_eq!(follower.look_up("app").await, by(&["us-1"]));
        }
        assert_eq!(follower.look_up("app").await, Owed::Unknown);
        assert_eq!(follower.look_up("other").await, by(&["us-1"]));
        for _ in 0..3 * MAX_ASKS_AT_ONCE {
            assert_eq!(follower.look_up("owed").await, by(&["us-1"]));
        }
        tokio::time::advance(ASK_INTERVAL).await;
        assert_eq!(follower.look_up("app").await, by(&["us-1"]));
        assert_eq!(follower.look_up("app").await, Owed::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn storm_costs_a_page_a_second_and_none_once_the_region_is_out() {
        let journals = [Journal::naming("us-1", &[])];
        let follower = Follower::of(&journals);
        for _ in 0..100 {
            assert_eq!(follower.look_up("app").await, Owed::Nothing);
        }
        assert_eq!(journals[0].pages.load(Ordering::Relaxed), 1);
        next_page().await;
        let repository = "app".parse().expect("a name");
        let routes = routes_with_others_out(&follower).await;
        let (sources, now) = (&follower.sources, follower.pages.clock.now());
        let owed = follower
            .pages
            .look_up(sources, &routes, &repository, now, true);
        assert_eq!(owed.await.owed, Owed::Nothing);
        assert_eq!(journals[0].pages.load(Ordering::Relaxed), 1);
    }
}

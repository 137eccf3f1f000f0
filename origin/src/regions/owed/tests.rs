use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use flotilla_common::digest::Digest;
use flotilla_common::failover::{Failover, FailoverConfig};
use flotilla_common::wire::region::{
    EntryId, Fact, FactKind, JournalPage, KeysPage, OwedEntry, RegionState, TakeAnswer, TakeRequest,
};
use flotilla_runtime::failover::Sources;
use flotilla_runtime::shutdown::Shutdown;

use super::*;
use crate::regions::routes::no_routes;
use crate::regions::source::{SourceBlob, SourceError};

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

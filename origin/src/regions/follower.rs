//! Follows one other region: merges what its journal says is owed, and sweeps all its keys when the
//! journal is not enough.
//!
//! Every replica has a follower for each region; the one with the lease works, and renews the lease
//! beside its work, however long that takes. It lists the journal each second while anything is
//! owed; merges run on beside the lists, so that one that takes hours holds up no other. No order
//! is needed. Sweeps run beside both.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_common::time::Time;
use flotilla_common::wire::region::{EntryId, JournalPage, MAX_ENTRIES, OwedEntry};
use flotilla_runtime::shutdown::Shutdown;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backlog::{Backlog, Cause, YOUNG};
use super::entry::{EntryError, EntryOutcome, EntryRules, merge_entry};
use super::fact_batches::FactBatches;
use super::immutable_conflicts::UnseenValues;
use super::lease::Lease;
use super::members::Members;
use super::replicate::{Replicator, led_by};
use super::routes::LiveRoutes;
use super::source::{Source, SourceError};
use super::sweep::Sweeper;

/// Entries merged concurrently, and those of them that may be older than a minute.
const ENTRIES_AT_ONCE: usize = 64;
const OLD_ENTRIES_AT_ONCE: usize = 48;
/// Entries after which the source is told what is done, so that a crash repeats little.
const DONE_BATCH: usize = 256;
/// Pages of the journal that one list reads after the first, if most entries before them wait.
const MAX_FURTHER_PAGES: usize = 4;
/// Pauses between lists: while something is owed, while many entries are due, and else.
const LIST_OWED: Duration = Duration::from_secs(1);
const LIST_BUSY: Duration = Duration::from_secs(5);
const LIST_IDLE: Duration = Duration::from_secs(5);
/// The pause after a list or a step of a sweep failed, and after a sweep had nothing to do.
const PAUSE: Duration = Duration::from_secs(5);
const POLL_WITHOUT_LEASE: Duration = Duration::from_secs(10);
/// How often the gauges are updated.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How often a replica that does not list a region's journal asks for the region's state, so that
/// it knows without requests of clients whether the region answers.
const STATE_INTERVAL: Duration = Duration::from_secs(30);
const STATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Follows one region.
#[derive(Debug)]
pub(crate) struct Follower {
    replicator: Arc<Replicator>,
    members: Arc<Members>,
    routes: LiveRoutes,
    source: Arc<dyn Source>,
    sweeper: Sweeper,
    /// When this replica asks for the region's state next, if it does not list the journal.
    ask_state_at: Time,
    /// H, after which no write of an entry can be in flight.
    horizon: Duration,
}

/// What the lists tell the sweeps.
#[derive(Debug, Default)]
struct Listed {
    /// Whether the storage of the region is the one that is known.
    is_known: AtomicBool,
    /// The sweep that the source says is owed.
    sweep: Mutex<Option<u128>>,
}

impl Follower {
    pub(crate) fn new(
        replicator: Arc<Replicator>,
        members: Arc<Members>,
        routes: LiveRoutes,
        source: Arc<dyn Source>,
        sweeper: Sweeper,
        horizon: Duration,
    ) -> Self {
        Self {
            replicator,
            members,
            routes,
            source,
            sweeper,
            ask_state_at: Time::ZERO,
            horizon,
        }
    }

    /// Works while it holds the lease, until the shutdown begins or the region is left out of the
    /// policy, or is elsewhere by it.
    pub(crate) async fn run(mut self, mut lease: Lease, shutdown: Shutdown) {
        let (members, source) = (Arc::clone(&self.members), Arc::clone(&self.source));
        tokio::select! {
            biased;
            () = shutdown.wait() => {}
            () = members.left(&source) => {}
            () = self.work_whenever_leased(&mut lease) => {}
        }
        self.replicator.counts().lose_lease(source.region());
        lease.release().await;
    }

    /// Never returns.
    async fn work_whenever_leased(&mut self, lease: &mut Lease) {
        let region = self.source.region().clone();
        let counts = Arc::clone(self.replicator.counts());
        loop {
            match lease.hold().await {
                Ok(true) => {
                    counts.hold_lease(&region, self.replicator.registry.unix_nanos());
                    let kept = tokio::select! {
                        kept = lease.keep() => kept,
                        () = self.work() => Ok(()),
                    };
                    match kept {
                        Ok(()) => counts.lose_lease(&region),
                        Err(error) => {
                            tracing::debug!(%region, %error, "the lease to follow a region cannot be renewed");
                            counts.set_follows(&region, false);
                        }
                    }
                }
                Ok(false) => counts.lose_lease(&region),
                Err(error) => {
                    tracing::debug!(%region, %error, "the lease to follow a region cannot be read");
                    // The lag goes on growing: maybe no replica can read the lease.
                    counts.set_follows(&region, false);
                }
            }
            self.ask_state().await;
            sleep(POLL_WITHOUT_LEASE).await;
        }
    }

    /// Asks whether the region answers, unless that was asked a short time ago.
    async fn ask_state(&mut self) {
        let now = self.replicator.registry.now();
        if now < self.ask_state_at {
            return;
        }
        self.ask_state_at = now + STATE_INTERVAL;
        let asked = async {
            let state = timeout(STATE_TIMEOUT, self.source.state()).await;
            state.map_err(drop)?.map_err(drop)
        };
        let routes = self.routes.load_full();
        // The machine has heard of a failure.
        let _state = routes.observe(self.source.region(), asked).await;
    }

    /// Lists, merges and sweeps. Never returns.
    async fn work(&mut self) {
        let listed = Listed::default();
        let mut merging = Merging {
            replicator: Arc::clone(&self.replicator),
            members: Arc::clone(&self.members),
            routes: Arc::clone(&self.routes),
            source: Arc::clone(&self.source),
            facts: Arc::new(FactBatches::new(Arc::clone(&self.source))),
            horizon: self.horizon,
            backlog: Backlog::default(),
            merges: JoinSet::new(),
            ids: HashMap::new(),
            done: Vec::new(),
            telling: JoinSet::new(),
            list_at: Instant::now(),
            had_due: false,
        };
        let sweeper = &self.sweeper;
        tokio::join!(
            merging.run(sweeper, &listed),
            sweep(sweeper, &self.source, &listed)
        );
    }
}

/// Does the steps of sweeps. Never returns.
async fn sweep(sweeper: &Sweeper, source: &Arc<dyn Source>, listed: &Listed) {
    loop {
        if listed.is_known.load(Ordering::Relaxed) {
            let owed = *listed.sweep.lock().unwrap_or_else(PoisonError::into_inner);
            match sweeper.step(source, owed).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(region = %source.region(), %error, "sweeping a region failed; trying again");
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// Lists a journal and merges its entries. Merges end when it is dropped.
struct Merging {
    replicator: Arc<Replicator>,
    members: Arc<Members>,
    routes: LiveRoutes,
    source: Arc<dyn Source>,
    /// The same, for merges.
    facts: Arc<dyn Source>,
    horizon: Duration,
    backlog: Backlog,
    merges: JoinSet<(EntryId, Result<EntryOutcome, EntryError>)>,
    /// The entries of running merges.
    ids: HashMap<Id, EntryId>,
    /// Entries that are merged, and of which the source was not told.
    done: Vec<EntryId>,
    /// Tells the source of entries that are merged, beside the merges. Gives their number.
    telling: JoinSet<Result<u64, SourceError>>,
    /// When the journal is listed next.
    list_at: Instant,
    /// Whether the last list left more entries due than were begun.
    had_due: bool,
}

impl Merging {
    /// Never returns.
    async fn run(&mut self, sweeper: &Sweeper, listed: &Listed) {
        let mut report_at = Instant::now() + REPORT_INTERVAL;
        loop {
            self.begin_merges();
            tokio::select! {
                Some(merged) = self.merges.join_next_with_id(), if !self.merges.is_empty() => {
                    match merged {
                        Ok((task, (id, outcome))) => {
                            self.ids.remove(&task);
                            self.end_merge(id, outcome);
                        }
                        Err(stopped) => {
                            if let Some(id) = self.ids.remove(&stopped.id()) {
                                tracing::error!(region = %self.source.region(), error = %stopped, "the merge of a journal entry stopped");
                                self.wait(id, Cause::Failed);
                            }
                        }
                    }
                }
                () = sleep_until(self.list_at) => {
                    let listing = self.list(sweeper, listed).await;
                    let pause = match listing {
                        Ok(()) if self.backlog.has_due() => LIST_BUSY,
                        Ok(()) if self.backlog.len() > 0 => LIST_OWED,
                        Ok(()) => LIST_IDLE,
                        Err(error) => {
                            // It may be another storage that answers next.
                            listed.is_known.store(false, Ordering::Relaxed);
                            tracing::debug!(region = %self.source.region(), %error, "listing the journal of a region failed; trying again");
                            PAUSE
                        }
                    };
                    self.had_due = self.backlog.has_due();
                    self.list_at = Instant::now() + pause;
                }
                () = sleep_until(report_at) => {
                    self.report(None);
                    report_at = Instant::now() + REPORT_INTERVAL;
                }
                Some(told) = self.telling.join_next(), if !self.telling.is_empty() => {
                    if let Err(error) = self.end_telling(told) {
                        tracing::debug!(region = %self.source.region(), %error, "telling a region what is merged failed");
                    }
                }
            }
            if self.done.len() >= DONE_BATCH && self.telling.is_empty() {
                self.begin_telling();
            }
        }
    }

    /// Begins as many merges as may run.
    fn begin_merges(&mut self) {
        let unix_now = self.replicator.registry.unix_nanos();
        while self.merges.len() < ENTRIES_AT_ONCE
            && let Some(entry) = self.backlog.begin(unix_now, OLD_ENTRIES_AT_ONCE)
        {
            let id = entry.id;
            let merge = self.merge(entry, unix_now);
            let task = self.merges.spawn(async move { (id, merge.await) });
            self.ids.insert(task.id(), id);
        }
        if self.had_due && !self.backlog.has_due() {
            self.had_due = false;
            self.list_at = self.list_at.min(Instant::now() + LIST_OWED);
        }
    }

    /// A merge by the policy as it is now.
    fn merge(
        &self,
        entry: OwedEntry,
        unix_now: u64,
    ) -> impl Future<Output = Result<EntryOutcome, EntryError>> + Send + use<> {
        let replicator = Arc::clone(&self.replicator);
        let sources = led_by(&self.facts, &self.members.sources());
        let policy = self.members.policy();
        let selects = policy.selects();
        let age = Duration::from_nanos(unix_now.saturating_sub(entry.id.created));
        let is_expired = age > self.horizon;
        async move {
            let rules = EntryRules {
                selects: &*selects,
                is_expired,
            };
            let unseen = UnseenValues::read(&replicator.registry, &policy, &entry).await;
            let outcome = merge_entry(&replicator, &sources, &entry, rules).await;
            let replaced = unseen.replaced(&replicator.registry).await;
            replicator.counts().immutable_conflicts_found(replaced);
            outcome
        }
    }

    fn end_merge(&mut self, id: EntryId, outcome: Result<EntryOutcome, EntryError>) {
        let region = self.source.region();
        let cause = match outcome {
            Ok(EntryOutcome::Done) => {
                self.backlog.finish(id);
                self.done.push(id);
                return;
            }
            Ok(EntryOutcome::Unreached) => Cause::Unreached,
            Ok(EntryOutcome::Ahead(by)) => {
                tracing::debug!(%region, ?by, "a journal entry is ahead of this replica's clock; merging it later");
                Cause::Ahead
            }
            Ok(EntryOutcome::Blocked(reason)) => {
                tracing::debug!(%region, reason, "a journal entry cannot be merged yet");
                Cause::Blocked
            }
            Err(error) => {
                tracing::debug!(%region, %error, "merging a journal entry failed; trying again");
                Cause::Failed
            }
        };
        self.wait(id, cause);
    }

    fn wait(&mut self, id: EntryId, cause: Cause) {
        let now = self.replicator.registry.now();
        self.backlog.wait(id, now, cause);
    }

    /// Lists what is owed: the oldest entries and the youngest; and if most of the oldest wait,
    /// those after them.
    async fn list(&mut self, sweeper: &Sweeper, listed: &Listed) -> Result<(), EntryError> {
        let source = Arc::clone(&self.source);
        let registry = Arc::clone(&self.replicator.registry);
        if !listed.is_known.load(Ordering::Relaxed) {
            let checked = sweeper.check_storage_id(&*source).await;
            let counts = self.replicator.counts();
            counts.set_follows(source.region(), checked.is_ok());
            if let Err(error) = checked {
                let routes = self.routes.load_full();
                let failed = core::future::ready(Err(error));
                return routes.observe(source.region(), failed).await;
            }
            listed.is_known.store(true, Ordering::Relaxed);
        }
        self.tell_done().await?;
        let unix_now = registry.unix_nanos();
        let page = self.page(None).await?;
        *listed.sweep.lock().unwrap_or_else(PoisonError::into_inner) = page.sweep;
        let end = page.entries.last().filter(|_| page.more).map(|it| it.id);
        self.backlog.begin_list();
        let mut due = self.backlog.add(None, page, registry.now(), unix_now);
        if let Some(end) = end {
            let youngest = EntryId {
                created: unix_now.saturating_sub(YOUNG.as_nanos() as u64),
                nonce: 0,
            };
            if youngest > end {
                let page = self.page(Some(youngest)).await?;
                let now = registry.now();
                self.backlog.add(Some(youngest), page, now, unix_now);
            }
            for _ in 0..MAX_FURTHER_PAGES {
                let Some(after) = self
                    .backlog
                    .next_page(end)
                    .filter(|_| due < ENTRIES_AT_ONCE)
                else {
                    break;
                };
                let page = self.page(Some(after)).await?;
                let next = page.entries.last().filter(|_| page.more).map(|it| it.id);
                let now = registry.now();
                due += self.backlog.add(Some(after), page, now, unix_now);
                self.backlog.set_page_end(next);
                if next.is_none() {
                    break;
                }
            }
        }
        self.report(Some(unix_now));
        Ok(())
    }

    async fn page(&self, after: Option<EntryId>) -> Result<JournalPage, EntryError> {
        let routes = self.routes.load_full();
        let asked = self.source.journal(after, MAX_ENTRIES);
        Ok(routes.observe(self.source.region(), asked).await?)
    }

    /// Tells the source what is merged.
    async fn tell_done(&mut self) -> Result<(), EntryError> {
        while let Some(told) = self.telling.join_next().await {
            self.end_telling(told)?;
        }
        if !self.done.is_empty() {
            self.begin_telling();
        }
        while let Some(told) = self.telling.join_next().await {
            self.end_telling(told)?;
        }
        Ok(())
    }

    /// Begins to tell the source what is merged.
    fn begin_telling(&mut self) {
        let (source, done) = (Arc::clone(&self.source), core::mem::take(&mut self.done));
        self.telling.spawn(async move {
            let number = done.len() as u64;
            source.done(done, None).await?;
            Ok(number)
        });
    }

    /// Ends a call that told the source which entries are merged. After a failure the source lists
    /// these entries again, and merging them has no effect.
    fn end_telling(
        &self,
        told: Result<Result<u64, SourceError>, JoinError>,
    ) -> Result<(), EntryError> {
        let stopped = |stopped: JoinError| SourceError {
            region: self.source.region().clone(),
            reason: stopped.to_string(),
        };
        let number = told.map_err(stopped)??;
        let counts = self.replicator.counts();
        counts.update(self.source.region(), |counts| counts.entries_done += number);
        Ok(())
    }

    /// Updates the gauges of the region. `listed_at` is when the list began, if one has ended.
    fn report(&self, listed_at: Option<u64>) {
        let figures = self.backlog.figures(self.replicator.registry.unix_nanos());
        self.replicator
            .counts()
            .update(self.source.region(), |counts| {
                counts.listed_at = listed_at.or(counts.listed_at);
                counts.owed = figures.owed as u64;
                counts.oldest_owed = figures.oldest;
                counts.blocked = figures.blocked as u64;
                counts.ahead = figures.ahead as u64;
            });
    }
}

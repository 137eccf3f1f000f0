//! Follows one other region: merges what its journal says is owed, and sweeps all its keys when the
//! journal is not enough.
//!
//! Every replica has a follower for each region; the one with the lease works. A pass looks at all
//! entries that are owed: those of the last minute first, then the oldest, [`ENTRIES_AT_ONCE`] at a
//! time. No order is needed. An entry that cannot be merged yet is looked at again after a pause
//! that grows.

use core::time::Duration;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_common::time::Time;
use flotilla_common::wire::region::{EntryId, MAX_ENTRIES, OwedEntry};
use flotilla_runtime::shutdown::Shutdown;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::entry::{EntryError, EntryOutcome, EntryRules, merge_entry};
use super::immutable_conflicts::UnseenValues;
use super::lease::Lease;
use super::members::Members;
use super::replicate::{Replicator, ordered};
use super::routes::LiveRoutes;
use super::source::Source;
use super::sweep::Sweeper;

/// Entries merged concurrently.
const ENTRIES_AT_ONCE: usize = 64;
/// Entries after which the source is told what is done, so that a crash repeats little.
const DONE_BATCH: usize = 256;
/// Entries younger than this are merged before older ones.
const YOUNG: Duration = Duration::from_mins(1);
/// The first and the longest pause before an entry is looked at again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// Blocked entries older than this count neither as lag nor hold anything up.
const BLOCKED_LIMIT: Duration = Duration::from_hours(24);
/// Pauses between passes.
const POLL_OWED: Duration = Duration::from_secs(1);
const POLL_IDLE: Duration = Duration::from_secs(5);
const POLL_WITHOUT_LEASE: Duration = Duration::from_secs(10);

/// How often the gauges are updated during a pass.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How often a replica that does not list a region's journal asks for the region's state, so that
/// it knows without requests of clients whether the region answers.
const STATE_INTERVAL: Duration = Duration::from_secs(30);
const STATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why an entry could not be merged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// It is not written yet, or never will be.
    Unreached,
    /// Its stamp is ahead of this replica's clock.
    Ahead,
    /// A region that does not answer may have what it names.
    Blocked,
}

/// An entry that could not be merged yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    until: Time,
    pause: Duration,
    cause: Cause,
}

/// What one pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Entries that are merged and dropped.
    pub(crate) done: usize,
    /// Entries that remain.
    pub(crate) remaining: usize,
}

/// Follows one region.
#[derive(Debug)]
pub(crate) struct Follower {
    replicator: Arc<Replicator>,
    members: Arc<Members>,
    routes: LiveRoutes,
    source: Arc<dyn Source>,
    sweeper: Sweeper,
    waiting: HashMap<EntryId, Waiting>,
    /// When this replica asks for the region's state next, if it does not list the journal.
    ask_state_at: Time,
    /// H, after which no write of an entry can be in flight.
    horizon: Duration,
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
            waiting: HashMap::new(),
            ask_state_at: Time::ZERO,
            horizon,
        }
    }

    /// Works while it holds the lease, until the shutdown begins or the region is left out of the
    /// policy.
    pub(crate) async fn run(mut self, mut lease: Lease, shutdown: Shutdown) {
        loop {
            let pause = tokio::select! {
                biased;
                () = shutdown.wait() => break,
                pause = self.turn(&mut lease) => pause,
            };
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                () = self.members.left(self.source.region()) => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.replicator.counts().lose_lease(self.source.region());
        lease.release().await;
    }

    /// One pass and one step of a sweep, if this replica holds the lease. Returns the pause until
    /// the next turn.
    async fn turn(&mut self, lease: &mut Lease) -> Duration {
        let region = self.source.region().clone();
        let counts = Arc::clone(self.replicator.counts());
        match lease.hold().await {
            Ok(true) => counts.hold_lease(&region, self.replicator.registry.unix_nanos()),
            Ok(false) => {
                counts.lose_lease(&region);
                self.ask_state().await;
                return POLL_WITHOUT_LEASE;
            }
            Err(error) => {
                tracing::debug!(%region, %error, "the lease to follow a region cannot be read");
                // The lag goes on growing: maybe no replica can read the lease.
                counts.set_follows(&region, false);
                self.ask_state().await;
                return POLL_WITHOUT_LEASE;
            }
        }
        let passed = async {
            let source = Arc::clone(&self.source);
            let routes = self.routes.load_full();
            let checked = self.sweeper.check_storage_id(&*source).await;
            counts.set_follows(source.region(), checked.is_ok());
            if let Err(error) = checked {
                let failed = core::future::ready(Err(error));
                return routes.observe(source.region(), failed).await;
            }
            let (pass, owed_sweep) = self.pass().await?;
            let sweeps = self.sweeper.step(&self.source, owed_sweep).await?;
            Ok::<_, EntryError>((pass, sweeps))
        };
        match passed.await {
            Ok((pass, sweeps)) if pass.done > 0 || sweeps => Duration::ZERO,
            Ok((pass, _)) if pass.remaining > 0 => POLL_OWED,
            Ok(_) => POLL_IDLE,
            Err(error) => {
                tracing::debug!(region = %self.source.region(), %error, "following a region failed; trying again");
                POLL_IDLE
            }
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

    /// Merges everything that is owed and due. Also returns the sweep that the source says is owed.
    ///
    /// # Errors
    /// The source or this region's storage failed; what was merged stays merged.
    pub(crate) async fn pass(&mut self) -> Result<(Pass, Option<u128>), EntryError> {
        let registry = Arc::clone(&self.replicator.registry);
        let unix_now = registry.unix_nanos();
        let routes = self.routes.load_full();
        let asked = self.source.journal(None, MAX_ENTRIES);
        let page = routes.observe(self.source.region(), asked).await?;
        let now = registry.now();
        let known: std::collections::HashSet<EntryId> =
            page.entries.iter().map(|entry| entry.id).collect();
        if !page.more {
            self.waiting.retain(|id, _| known.contains(id));
        }
        let mut owed = OwedEntries::of(&page.entries);
        let mut due: Vec<OwedEntry> = page
            .entries
            .into_iter()
            .filter(|entry| {
                let waiting = self.waiting.get(&entry.id);
                waiting.is_none_or(|waiting| waiting.until <= now)
            })
            .collect();
        let age = |id: &EntryId| Duration::from_nanos(unix_now.saturating_sub(id.created));
        owed.report(
            &self.replicator,
            self.source.region(),
            &self.waiting,
            unix_now,
        );
        due.sort_by_key(|entry| (age(&entry.id) > YOUNG, entry.id));
        let sources = ordered(&self.members.sources(), self.source.region());
        let policy = self.members.policy();
        let selects = policy.selects();
        let horizon = self.horizon;
        let (replicator, sources, selects) = (&self.replicator, &sources, &*selects);
        let policy = &policy;
        let merges = stream::iter(due).map(|entry| async move {
            let rules = EntryRules {
                selects,
                is_expired: age(&entry.id) > horizon,
            };
            let unseen = UnseenValues::read(&replicator.registry, policy, &entry).await;
            let outcome = merge_entry(replicator, sources, &entry, rules).await;
            let replaced = unseen.replaced(&replicator.registry).await;
            replicator.counts().immutable_conflicts_found(replaced);
            (entry.id, outcome)
        });
        let mut merges = std::pin::pin!(merges.buffer_unordered(ENTRIES_AT_ONCE));
        let mut done = Vec::new();
        let mut pass = Pass::default();
        let mut failure = None;
        let mut reported_at = now;
        while let Some((id, outcome)) = merges.next().await {
            let mut wait = |cause| wait(&mut self.waiting, id, now, cause);
            match outcome {
                Ok(EntryOutcome::Done) => {
                    self.waiting.remove(&id);
                    owed.entries.remove(&id);
                    done.push(id);
                    if done.len() >= DONE_BATCH {
                        pass.done += done.len();
                        self.source.done(core::mem::take(&mut done), None).await?;
                    }
                }
                Ok(EntryOutcome::Unreached) => wait(Cause::Unreached),
                Ok(EntryOutcome::Ahead(by)) => {
                    tracing::debug!(region = %self.source.region(), ?by, "a journal entry is ahead of this replica's clock; merging it later");
                    wait(Cause::Ahead);
                }
                Ok(EntryOutcome::Blocked(reason)) => {
                    tracing::debug!(region = %self.source.region(), reason, "a journal entry cannot be merged yet");
                    wait(Cause::Blocked);
                }
                Err(error) => failure = Some(error),
            }
            if registry.now().saturating_since(reported_at) >= REPORT_INTERVAL {
                owed.report(
                    &self.replicator,
                    self.source.region(),
                    &self.waiting,
                    unix_now,
                );
                reported_at = registry.now();
            }
        }
        owed.report(
            &self.replicator,
            self.source.region(),
            &self.waiting,
            unix_now,
        );
        if !done.is_empty() {
            pass.done += done.len();
            self.source.done(done, None).await?;
        }
        pass.remaining = owed.entries.len();
        let done = pass.done as u64;
        self.replicator
            .counts()
            .update(self.source.region(), |counts| counts.entries_done += done);
        match failure {
            Some(error) => Err(error),
            None => Ok((pass, page.sweep)),
        }
    }
}

/// The entries that are owed at one time in a pass.
struct OwedEntries {
    entries: BTreeSet<EntryId>,
}

impl OwedEntries {
    fn of(entries: &[OwedEntry]) -> Self {
        Self {
            entries: entries.iter().map(|entry| entry.id).collect(),
        }
    }

    /// Updates the gauges of a region, of which a list was asked for at `unix_now`. They are of use
    /// while a pass lasts: one that is limited by bandwidth may last for hours.
    fn report(
        &self,
        replicator: &Replicator,
        region: &RegionName,
        waiting: &HashMap<EntryId, Waiting>,
        unix_now: u64,
    ) {
        let cause = |id: &EntryId| waiting.get(id).map(|waiting| waiting.cause);
        let limit = u64::try_from(BLOCKED_LIMIT.as_nanos()).unwrap_or(u64::MAX);
        let counts_as_lag = |id: &&EntryId| match cause(id) {
            Some(Cause::Unreached) => false,
            Some(Cause::Blocked) => unix_now.saturating_sub(id.created) < limit,
            Some(Cause::Ahead) | None => true,
        };
        let oldest = self.entries.iter().find(counts_as_lag);
        let number = |of: Cause| {
            let waiting = waiting.values();
            waiting.filter(|waiting| waiting.cause == of).count() as u64
        };
        let (blocked, ahead) = (number(Cause::Blocked), number(Cause::Ahead));
        replicator.counts().update(region, |counts| {
            counts.listed_at = Some(unix_now);
            counts.owed = self.entries.len() as u64;
            counts.oldest_owed = oldest.map(|id| id.created);
            counts.blocked = blocked;
            counts.ahead = ahead;
        });
    }
}

fn wait(waiting: &mut HashMap<EntryId, Waiting>, id: EntryId, now: Time, cause: Cause) {
    let pause = waiting.get(&id).map_or(FIRST_PAUSE, |waiting| {
        (waiting.pause * 2).min(LONGEST_PAUSE)
    });
    waiting.insert(
        id,
        Waiting {
            until: now + pause,
            pause,
            cause,
        },
    );
}

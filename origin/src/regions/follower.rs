//! Follows one other region: merges what its journal says is owed, and sweeps all its keys when the
//! journal is not enough.
//!
//! Every replica has a follower for each region; the one with the lease works. A pass looks at all
//! entries that are owed: those of the last minute first, then the oldest, [`ENTRIES_AT_ONCE`] at a
//! time. No order is needed. An entry that cannot be merged yet is looked at again after a pause
//! that grows.

use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use flotilla_common::time::Time;
use flotilla_common::wire::region::{EntryId, MAX_ENTRIES, OwedEntry};
use flotilla_runtime::shutdown::Shutdown;
use futures_util::{StreamExt, stream};

use super::entry::{EntryError, EntryOutcome, EntryRules, merge_entry};
use super::lease::Lease;
use super::members::Members;
use super::replicate::{Replicator, ordered};
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

/// An entry that could not be merged yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    until: Time,
    pause: Duration,
    is_blocked: bool,
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
    source: Arc<dyn Source>,
    sweeper: Sweeper,
    waiting: HashMap<EntryId, Waiting>,
    /// H, after which no write of an entry can be in flight.
    horizon: Duration,
}

impl Follower {
    pub(crate) fn new(
        replicator: Arc<Replicator>,
        members: Arc<Members>,
        source: Arc<dyn Source>,
        sweeper: Sweeper,
        horizon: Duration,
    ) -> Self {
        Self {
            replicator,
            members,
            source,
            sweeper,
            waiting: HashMap::new(),
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
        lease.release().await;
    }

    /// One pass and one step of a sweep, if this replica holds the lease. Returns the pause until
    /// the next turn.
    async fn turn(&mut self, lease: &mut Lease) -> Duration {
        match lease.hold().await {
            Ok(true) => {}
            Ok(false) => {
                self.replicator
                    .counts()
                    .set_follows(self.source.region(), false);
                return POLL_WITHOUT_LEASE;
            }
            Err(error) => {
                tracing::debug!(region = %self.source.region(), %error, "the lease to follow a region cannot be read");
                return POLL_WITHOUT_LEASE;
            }
        }
        self.replicator
            .counts()
            .set_follows(self.source.region(), true);
        let passed = async {
            self.sweeper.check_storage_id(&*self.source).await?;
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

    /// Merges everything that is owed and due. Also returns the sweep that the source says is owed.
    ///
    /// # Errors
    /// The source or this region's storage failed; what was merged stays merged.
    pub(crate) async fn pass(&mut self) -> Result<(Pass, Option<u128>), EntryError> {
        let page = self.source.journal(None, MAX_ENTRIES).await?;
        let registry = Arc::clone(&self.replicator.registry);
        let now = registry.now();
        let unix_now = registry.unix_nanos();
        let known: std::collections::HashSet<EntryId> =
            page.entries.iter().map(|entry| entry.id).collect();
        if !page.more {
            self.waiting.retain(|id, _| known.contains(id));
        }
        let found = page.entries.len();
        let mut due: Vec<OwedEntry> = page
            .entries
            .into_iter()
            .filter(|entry| {
                let waiting = self.waiting.get(&entry.id);
                waiting.is_none_or(|waiting| waiting.until <= now)
            })
            .collect();
        let age = |id: &EntryId| Duration::from_nanos(unix_now.saturating_sub(id.created));
        due.sort_by_key(|entry| (age(&entry.id) > YOUNG, entry.id));
        let sources = ordered(&self.members.sources(), self.source.region());
        let policy = self.members.policy();
        let selects = policy.selects();
        let horizon = self.horizon;
        let (replicator, sources, selects) = (&self.replicator, &sources, &*selects);
        let merges = stream::iter(due).map(|entry| async move {
            let rules = EntryRules {
                selects,
                is_expired: age(&entry.id) > horizon,
            };
            let outcome = merge_entry(replicator, sources, &entry, rules).await;
            (entry.id, outcome)
        });
        let mut merges = std::pin::pin!(merges.buffer_unordered(ENTRIES_AT_ONCE));
        let mut done = Vec::new();
        let mut pass = Pass::default();
        let mut failure = None;
        while let Some((id, outcome)) = merges.next().await {
            match outcome {
                Ok(EntryOutcome::Done) => {
                    self.waiting.remove(&id);
                    done.push(id);
                    if done.len() >= DONE_BATCH {
                        pass.done += done.len();
                        self.source.done(core::mem::take(&mut done), None).await?;
                    }
                }
                Ok(EntryOutcome::Unreached) => wait(&mut self.waiting, id, now, false),
                Ok(EntryOutcome::Blocked(reason)) => {
                    tracing::debug!(region = %self.source.region(), reason, "a journal entry cannot be merged yet");
                    wait(&mut self.waiting, id, now, true);
                }
                Err(error) => failure = Some(error),
            }
        }
        if !done.is_empty() {
            pass.done += done.len();
            self.source.done(done, None).await?;
        }
        pass.remaining = found.saturating_sub(pass.done);
        self.report(pass, unix_now);
        match failure {
            Some(error) => Err(error),
            None => Ok((pass, page.sweep)),
        }
    }

    /// Updates the gauges of this region.
    fn report(&self, pass: Pass, unix_now: u64) {
        let limit = u64::try_from(BLOCKED_LIMIT.as_nanos()).unwrap_or(u64::MAX);
        let blocked = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.is_blocked);
        let ages = blocked
            .clone()
            .map(|(id, _)| unix_now.saturating_sub(id.created));
        let lag = ages.filter(|age| *age < limit).max().unwrap_or(0);
        let blocked = blocked.count() as u64;
        self.replicator
            .counts()
            .update(self.source.region(), |counts| {
                counts.entries_done += pass.done as u64;
                counts.owed = pass.remaining as u64;
                counts.blocked = blocked;
                counts.lag_nanos = lag;
            });
    }
}

fn wait(waiting: &mut HashMap<EntryId, Waiting>, id: EntryId, now: Time, is_blocked: bool) {
    let pause = waiting.get(&id).map_or(FIRST_PAUSE, |waiting| {
        (waiting.pause * 2).min(LONGEST_PAUSE)
    });
    waiting.insert(
        id,
        Waiting {
            until: now + pause,
            pause,
            is_blocked,
        },
    );
}

//! Values read from storage, kept for a time-to-live that counts from the *start* of their read.
//!
//! ```text
//! get         the value, if it is fresh; once it is old enough to refresh, start a fill as well
//!             else join the running fill, if it started within the time-to-live, in this epoch
//!             else join the queued fill, or queue one
//! fill        wait for the previous fill -> note time and epoch -> read
//!             -> keep the value, if the epoch is still the same
//! write       note time and epoch -> write to storage -> advance the epoch
//!             -> keep the value, if the epoch was still the same; else drop the key
//! invalidate  advance the epoch, drop the value
//! ```
//! So a key has at most one running and one queued fill, however many readers wait. A value that
//! was read before a write and arrives after it is not kept, and is not handed to a reader that
//! started after the write. Absence is never kept, and never taken from a read that started before
//! the reader asked. Entries are bounded by bytes, fills by a timeout. A replica that the others
//! may not know keeps what they can change only briefly ([`CacheTerm`]).
//!
//! Moka's `try_get_with` replaces only the sharing of reads: it has no rule about the age of a read
//! that is joined, about absence, or about writes during a read.

mod rules;
mod term;

use core::fmt;
use core::hash::{BuildHasher, Hash};
use core::time::Duration;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::time::Time;
use flotilla_runtime::clock::Clock;
use tokio::sync::watch;

use crate::storage::StorageError;

pub(crate) use rules::{Rules, ShippedRules};
#[cfg(test)]
pub(crate) use term::Term;
pub(crate) use term::{CUT_OFF_TIME_TO_LIVE, CacheTerm};

/// Counters in the table of epochs. Keys share them by hash: a collision costs an extra read.
const EPOCHS: usize = 4096;
/// How long an expired value is kept, to be served while storage is unavailable.
const STALE_FOR: Duration = Duration::from_mins(10);

/// The limits of one cache.
#[derive(Clone, Debug)]
pub(crate) struct CacheLimits {
    /// From the start of a read.
    pub(crate) time_to_live: Duration,
    /// Outside of this term the time-to-live is short; `None` for facts that only this replica
    /// changes, or that are never acted upon when they are old.
    pub(crate) term: Option<Arc<CacheTerm>>,
    /// Age from which a hit starts a fill in the background; `None` for never.
    pub(crate) refresh_after: Option<Duration>,
    /// Bytes of all entries.
    pub(crate) bytes: u64,
    /// For one fill.
    pub(crate) fill_timeout: Duration,
}

/// A value and its age.
#[derive(Clone, Debug)]
pub(crate) struct Cached<V> {
    pub(crate) value: V,
    /// When its read started.
    pub(crate) read_at: Time,
    /// The value is past its time-to-live and served because storage is unavailable.
    pub(crate) stale: bool,
}

/// What a write did to its key in storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect<V> {
    /// Storage holds this value: the write succeeded, or found it there.
    Stored(V),
    /// Storage may hold another value or none; the next reader reads it.
    Changed,
    /// Nothing was written.
    Unchanged,
}

/// Counts the writes and invalidations of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CacheEpoch(u64);

/// The value and when its read started; `None` if storage has none.
type Filled<V> = Result<Option<CacheEntry<V>>, Arc<StorageError>>;
/// Gets the result of a fill when it ends.
type FillResult<V> = watch::Receiver<Option<Filled<V>>>;

#[derive(Clone)]
struct CacheEntry<V> {
    value: V,
    read_at: Time,
}

struct RunningFill<V> {
    result: FillResult<V>,
    started: Time,
    epoch: CacheEpoch,
}

/// The fills of one key.
struct KeyFills<V> {
    running: Option<RunningFill<V>>,
    queued: Option<FillResult<V>>,
}

type FillTable<K, V> = HashMap<K, KeyFills<V>>;

/// A cache; clones share it.
pub(crate) struct Cache<K, V, R = ShippedRules> {
    inner: Arc<CacheInner<K, V, R>>,
}

struct CacheInner<K, V, R> {
    rules: R,
    limits: CacheLimits,
    clock: Clock,
    entries: moka::sync::Cache<K, CacheEntry<V>>,
    fills: Mutex<FillTable<K, V>>,
    epochs: Box<[AtomicU64]>,
    hasher: RandomState,
    stale_answers: AtomicU64,
}

impl<K, V, R> Clone for Cache<K, V, R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K, V, R> fmt::Debug for Cache<K, V, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("limits", &self.inner.limits)
            .finish_non_exhaustive()
    }
}

impl<K, V> Cache<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache whose entries weigh `bytes_of` each.
    pub(crate) fn new(
        limits: CacheLimits,
        clock: Clock,
        bytes_of: impl Fn(&K, &V) -> usize + Send + Sync + 'static,
    ) -> Self {
        Self::with_rules(ShippedRules, limits, clock, bytes_of)
    }
}

impl<K, V, R> Cache<K, V, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    R: Rules,
{
    /// The same with other rules.
    pub(crate) fn with_rules(
        rules: R,
        limits: CacheLimits,
        clock: Clock,
        bytes_of: impl Fn(&K, &V) -> usize + Send + Sync + 'static,
    ) -> Self {
        let weigher = move |key: &K, entry: &CacheEntry<V>| {
            u32::try_from(bytes_of(key, &entry.value)).unwrap_or(u32::MAX)
        };
        let entries = moka::sync::Cache::builder()
            .max_capacity(limits.bytes)
            .weigher(weigher)
            .time_to_live(limits.time_to_live.saturating_add(STALE_FOR))
            .build();
        let inner = CacheInner {
            rules,
            limits,
            clock,
            entries,
            fills: Mutex::default(),
            epochs: (0..EPOCHS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            stale_answers: AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The value of `key`, from memory or by `fill`. `None` comes only from a read that started
    /// after this call.
    ///
    /// # Errors
    /// The error of the read, if there is not even an expired value.
    pub(crate) async fn get<F>(
        &self,
        key: &K,
        fill: impl Fn() -> F,
    ) -> Result<Option<Cached<V>>, Arc<StorageError>>
    where
        F: Future<Output = Result<Option<V>, StorageError>> + Send + 'static,
    {
        let mut may_join_running = true;
        loop {
            let (mut result, was_running) = match self.hit_or_fill(key, may_join_running, &fill) {
                Ok(hit) => return Ok(Some(hit)),
                Err(fill) => fill,
            };
            let filled = match result.wait_for(Option::is_some).await {
                Ok(filled) => filled.clone().unwrap_or(Ok(None)),
                Err(_) => Err(Arc::new(StorageError::unavailable(
                    "fill cache",
                    "entry",
                    "the read was cancelled",
                ))),
            };
            match filled {
                Ok(Some(entry)) => return Ok(Some(entry.into_cached())),
                Ok(None) if was_running && !self.inner.rules.accepts_earlier_absence() => {
                    may_join_running = false;
                }
                Ok(None) => return Ok(None),
                Err(error) => return self.stale(key).map(Some).ok_or(error),
            }
        }
    }

    /// The value if it is in memory and neither expired nor due to be refreshed.
    pub(crate) fn fresh(&self, key: &K) -> Option<V> {
        let entry = self.inner.entries.get(key)?;
        let now = self.inner.clock.now();
        let time_to_live = self.inner.time_to_live(entry.read_at, now);
        let refresh_after = self.inner.limits.refresh_after;
        let bound = refresh_after.unwrap_or(time_to_live).min(time_to_live);
        (now.saturating_since(entry.read_at) < bound).then_some(entry.value)
    }

    /// The value if it is in memory, of any age. For facts that never change.
    pub(crate) fn peek(&self, key: &K) -> Option<Cached<V>> {
        self.inner.entries.get(key).map(CacheEntry::into_cached)
    }

    /// Runs `write`, which may write `key` in storage, and takes its effect into the cache.
    ///
    /// A stored value is kept with the time at which this call started, unless another write or an
    /// invalidation came in between: their order in storage is unknown then, so the key is dropped.
    /// It is dropped after an error, too.
    ///
    /// # Errors
    /// The error of `write`.
    pub(crate) async fn write<T, E>(
        &self,
        key: &K,
        write: impl Future<Output = Result<(Effect<V>, T), E>>,
    ) -> Result<T, E> {
        let started = self.inner.clock.now();
        let before = self.inner.epoch(key);
        let written = write.await;
        match written {
            Ok((Effect::Stored(value), result)) => {
                self.keep_written(key, before, started, value);
                Ok(result)
            }
            Ok((Effect::Unchanged, result)) => Ok(result),
            Ok((Effect::Changed, result)) => {
                self.invalidate_written(key);
                Ok(result)
            }
            Err(error) => {
                self.invalidate_written(key);
                Err(error)
            }
        }
    }

    /// Drops the value and detaches fills: after a change by another replica.
    pub(crate) fn invalidate(&self, key: &K) {
        if self.inner.rules.invalidation_advances_epoch() {
            self.invalidate_written(key);
        } else {
            self.inner.entries.invalidate(key);
        }
    }

    /// How many expired values were served because storage was unavailable.
    pub(crate) fn stale_answers(&self) -> u64 {
        self.inner.stale_answers.load(Ordering::Relaxed)
    }

    fn keep_written(&self, key: &K, before: CacheEpoch, started: Time, value: V) {
        let _fills = self.inner.lock();
        if self.inner.advance_epoch(key) == before {
            let entry = CacheEntry {
                value,
                read_at: started,
            };
            self.inner.entries.insert(key.clone(), entry);
        } else {
            self.inner.entries.invalidate(key);
        }
    }

    fn invalidate_written(&self, key: &K) {
        let _fills = self.inner.lock();
        self.inner.advance_epoch(key);
        self.inner.entries.invalidate(key);
    }

    /// A fresh value, or a fill to wait for and whether it was running before.
    fn hit_or_fill<F>(
        &self,
        key: &K,
        may_join_running: bool,
        fill: &impl Fn() -> F,
    ) -> Result<Cached<V>, (FillResult<V>, bool)>
    where
        F: Future<Output = Result<Option<V>, StorageError>> + Send + 'static,
    {
        let now = self.inner.clock.now();
        if let Some(entry) = self.inner.unexpired(key, now) {
            let age = now.saturating_since(entry.read_at);
            if self
                .inner
                .limits
                .refresh_after
                .is_some_and(|refresh_after| age >= refresh_after)
            {
                let mut fills = self.inner.lock();
                if !fills.contains_key(key) {
                    self.queue_fill(&mut fills, key, fill());
                }
            }
            return Ok(entry.into_cached());
        }
        let mut fills = self.inner.lock();
        // A fill may have ended since the check above.
        if may_join_running && let Some(entry) = self.inner.unexpired(key, now) {
            return Ok(entry.into_cached());
        }
        if let Some(key_fills) = fills.get(key) {
            if may_join_running
                && let Some(running) = &key_fills.running
                && self.inner.may_join(key, running, now)
            {
                return Err((running.result.clone(), true));
            }
            if let Some(queued) = &key_fills.queued {
                return Err((queued.clone(), false));
            }
        }
        Err((self.queue_fill(&mut fills, key, fill()), false))
    }

    /// Starts a fill that runs after the running one, if there is one.
    fn queue_fill<F>(&self, fills: &mut FillTable<K, V>, key: &K, read: F) -> FillResult<V>
    where
        F: Future<Output = Result<Option<V>, StorageError>> + Send + 'static,
    {
        let (sender, result) = watch::channel(None);
        let key_fills = fills.entry(key.clone()).or_insert(KeyFills {
            running: None,
            queued: None,
        });
        let previous = key_fills
            .running
            .as_ref()
            .map(|running| running.result.clone());
        key_fills.queued = Some(result.clone());
        tokio::spawn(Arc::clone(&self.inner).fill(key.clone(), previous, sender, read));
        result
    }

    fn stale(&self, key: &K) -> Option<Cached<V>> {
        let entry = self.inner.entries.get(key)?;
        self.inner.stale_answers.fetch_add(1, Ordering::Relaxed);
        Some(Cached {
            stale: true,
            ..entry.into_cached()
        })
    }
}

impl<V> CacheEntry<V> {
    fn into_cached(self) -> Cached<V> {
        Cached {
            value: self.value,
            read_at: self.read_at,
            stale: false,
        }
    }
}

impl<K, V, R> CacheInner<K, V, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    R: Rules,
{
    fn lock(&self) -> MutexGuard<'_, FillTable<K, V>> {
        self.fills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epoch_counter(&self, key: &K) -> &AtomicU64 {
        &self.epochs[self.hasher.hash_one(key) as usize % EPOCHS]
    }

    fn epoch(&self, key: &K) -> CacheEpoch {
        CacheEpoch(self.epoch_counter(key).load(Ordering::SeqCst))
    }

    /// Advances the epoch and returns the one before.
    fn advance_epoch(&self, key: &K) -> CacheEpoch {
        CacheEpoch(self.epoch_counter(key).fetch_add(1, Ordering::SeqCst))
    }

    fn unexpired(&self, key: &K, now: Time) -> Option<CacheEntry<V>> {
        let entry = self.entries.get(key)?;
        let time_to_live = self.time_to_live(entry.read_at, now);
        (now.saturating_since(entry.read_at) < time_to_live).then_some(entry)
    }

    /// The time-to-live at `now` of a value whose read started at `read_at`.
    fn time_to_live(&self, read_at: Time, now: Time) -> Duration {
        let whole = self.limits.time_to_live;
        let term = self.limits.term.as_ref();
        term.map_or(whole, |term| term.load().time_to_live(whole, read_at, now))
    }

    fn may_join(&self, key: &K, running: &RunningFill<V>, now: Time) -> bool {
        let age = now.saturating_since(running.started);
        let time_to_live = self.time_to_live(running.started, now);
        running.epoch == self.epoch(key) && self.rules.may_join(age, time_to_live)
    }

    async fn fill<F>(
        self: Arc<Self>,
        key: K,
        previous: Option<FillResult<V>>,
        sender: watch::Sender<Option<Filled<V>>>,
        read: F,
    ) where
        F: Future<Output = Result<Option<V>, StorageError>> + Send + 'static,
    {
        if let Some(mut previous) = previous {
            // A fill that hangs holds up the next one no longer than its timeout.
            let ended = previous.wait_for(Option::is_some);
            let _ended = tokio::time::timeout(self.limits.fill_timeout, ended).await;
        }
        let (started, epoch) = self.begin_fill(&key, &sender);
        let read = tokio::time::timeout(self.limits.fill_timeout, read).await;
        let filled = match read {
            Ok(Ok(value)) => Ok(value.map(|value| CacheEntry {
                value,
                read_at: started,
            })),
            Ok(Err(error)) => Err(Arc::new(error)),
            Err(_) => Err(Arc::new(StorageError::unavailable(
                "fill cache",
                "entry",
                "storage did not answer in time",
            ))),
        };
        self.end_fill(&key, epoch, started, &filled);
        sender.send_replace(Some(filled));
    }

    /// Makes the queued fill the running one.
    fn begin_fill(&self, key: &K, sender: &watch::Sender<Option<Filled<V>>>) -> (Time, CacheEpoch) {
        let mut fills = self.lock();
        let started = self.clock.now();
        let epoch = self.epoch(key);
        let running = RunningFill {
            result: sender.subscribe(),
            started,
            epoch,
        };
        fills.insert(
            key.clone(),
            KeyFills {
                running: Some(running),
                queued: None,
            },
        );
        (started, epoch)
    }

    /// Keeps the value if its key was not written since, and makes way for the queued fill.
    fn end_fill(&self, key: &K, epoch: CacheEpoch, started: Time, filled: &Filled<V>) {
        let mut fills = self.lock();
        if let Ok(Some(entry)) = filled
            && self.epoch(key) == epoch
        {
            self.entries.insert(key.clone(), entry.clone());
        }
        if let Some(key_fills) = fills.get_mut(key)
            && key_fills
                .running
                .as_ref()
                .is_some_and(|running| running.started == started)
        {
            key_fills.running = None;
            if key_fills.queued.is_none() {
                fills.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests;

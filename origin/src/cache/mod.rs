//! Values read from storage, kept for a time-to-live that counts from the *start* of their read.
//!
//! ```text
//! get     fresh -> the value             old enough to refresh ahead -> the value, and a fill behind its back
//!         else join the fill that runs, if it began within the time-to-live and nothing invalidated it;
//!              else join the one that waits; else become the one that waits
//! fill    wait for the one before -> note time and epoch -> read -> keep it, if the epoch is still the same
//! write   note epoch -> compare-and-swap -> bump the epoch; keep the value if the epoch was still the same
//! ```
//! So at most one fill runs and one waits per key, however many ask. What was read before a write
//! and arrives after it is not kept, and not handed to a reader that began after the write. Absence
//! is never kept, nor taken from a read that began before it was asked for. Everything is bounded:
//! entries by bytes, fills by a time-out.

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

/// Slots of the hashed table of epochs: keys that share one only cost each other a read now and
/// then.
const EPOCHS: usize = 4096;
/// How long an expired entry is kept for when storage cannot be reached.
const STALE_FOR: Duration = Duration::from_mins(10);

/// The limits of one cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the start of a read on.
    pub(crate) time_to_live: Duration,
    /// Age from which a hit starts a fill behind its back; none for never.
    pub(crate) refresh_after: Option<Duration>,
    /// Bytes of all entries.
    pub(crate) bytes: u64,
    /// For one fill.
    pub(crate) fill_timeout: Duration,
}

/// A value with what its reader must know about it.
#[derive(Clone, Debug)]
pub(crate) struct Cached<V> {
    pub(crate) value: V,
    /// When its read began.
    pub(crate) read_at: Time,
    /// Served past its time, since storage cannot be reached.
    pub(crate) stale: bool,
}

/// The epoch of a key, noted before a write of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch(u64);

/// What a fill gives: the value and when its read began, or that there is none.
type Filled<V> = Result<Option<Entry<V>>, Arc<StorageError>>;
type Flight<V> = watch::Receiver<Option<Filled<V>>>;

#[derive(Clone)]
struct Entry<V> {
    value: V,
    read_at: Time,
}

struct Running<V> {
    flight: Flight<V>,
    started: Time,
    epoch: u64,
}

/// The fills of one key.
struct Slot<V> {
    running: Option<Running<V>>,
    waiting: Option<Flight<V>>,
}

/// A cache; clones share it.
pub(crate) struct Cache<K, V> {
    shared: Arc<Shared<K, V>>,
}

/// Rules that a story can take out, to see what each is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A fill older than the time-to-live is not joined.
    OldFillsAreLeft,
    /// Absence is not taken from a read that began before it was asked for.
    AbsenceIsReadAnew,
}

/// What a story does to a cache.
#[cfg(test)]
#[derive(Debug, Default)]
struct Story {
    /// Nanoseconds by which the cache's clock is ahead.
    passed: AtomicU64,
    without: std::sync::OnceLock<Rule>,
}

struct Shared<K, V> {
    #[cfg(test)]
    story: Story,
    limits: Limits,
    entries: moka::sync::Cache<K, Entry<V>>,
    slots: Mutex<HashMap<K, Slot<V>>>,
    epochs: Box<[AtomicU64]>,
    hasher: RandomState,
    stale_answers: AtomicU64,
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("limits", &self.shared.limits)
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
        limits: Limits,
        bytes_of: impl Fn(&K, &V) -> usize + Send + Sync + 'static,
    ) -> Self {
        let weigher = move |key: &K, entry: &Entry<V>| {
            u32::try_from(bytes_of(key, &entry.value)).unwrap_or(u32::MAX)
        };
        let entries = moka::sync::Cache::builder()
            .max_capacity(limits.bytes)
            .weigher(weigher)
            .time_to_live(limits.time_to_live.saturating_add(STALE_FOR))
            .build();
        let epochs = (0..EPOCHS).map(|_| AtomicU64::new(0)).collect();
        let (slots, hasher, stale_answers) = Default::default();
        let shared = Shared {
            #[cfg(test)]
            story: Story::default(),
            limits,
            entries,
            slots,
            epochs,
            hasher,
            stale_answers,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The value of `key`, from memory or by `fill`; `None` only by a read that began after this
    /// call.
    ///
    /// # Errors
    /// The storage's error, if there is not even an expired value.
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
            let (mut flight, joined_running) =
                match self.hit_or_flight(key, may_join_running, &fill) {
                    Ok(hit) => return Ok(Some(hit)),
                    Err(flight) => flight,
                };
            let filled = match flight.wait_for(Option::is_some).await {
                Ok(filled) => filled.clone().unwrap_or(Ok(None)),
                Err(_) => Err(Arc::new(StorageError::unavailable(
                    "fill cache",
                    "entry",
                    "the fill was dropped",
                ))),
            };
            match filled {
                Ok(Some(entry)) => return Ok(Some(entry.fresh())),
                Ok(None) if joined_running && !self.shared.is_without(Rule::AbsenceIsReadAnew) => {
                    may_join_running = false;
                }
                Ok(None) => return Ok(None),
                Err(error) => return self.stale(key).map(Some).ok_or(error),
            }
        }
    }

    /// The value if it is in memory, and neither too old nor due to be refreshed.
    pub(crate) fn fresh(&self, key: &K) -> Option<V> {
        let entry = self.shared.entries.get(key)?;
        let (limits, age) = (
            &self.shared.limits,
            self.shared.now().saturating_since(entry.read_at),
        );
        let bound = limits
            .refresh_after
            .unwrap_or(limits.time_to_live)
            .min(limits.time_to_live);
        (age < bound).then_some(entry.value)
    }

    /// The value if it is in memory, however old: for what never changes.
    pub(crate) fn peek(&self, key: &K) -> Option<Cached<V>> {
        self.shared.entries.get(key).map(Entry::fresh)
    }

    /// The key's epoch, to be noted before a write.
    pub(crate) fn epoch(&self, key: &K) -> Epoch {
        Epoch(self.shared.epoch_of(key).load(Ordering::SeqCst))
    }

    /// After a write that began at `started`, when the epoch was `before`: detaches fills, and
    /// keeps the value written unless another write came between.
    pub(crate) fn wrote(&self, key: &K, before: Epoch, started: Time, value: V) {
        let _slots = self.shared.lock();
        if self.shared.epoch_of(key).fetch_add(1, Ordering::SeqCst) == before.0 {
            self.shared.entries.insert(
                key.clone(),
                Entry {
                    value,
                    read_at: started,
                },
            );
        } else {
            self.shared.entries.invalidate(key);
        }
    }

    /// Drops the value and detaches fills.
    pub(crate) fn invalidate(&self, key: &K) {
        let _slots = self.shared.lock();
        self.shared.epoch_of(key).fetch_add(1, Ordering::SeqCst);
        self.shared.entries.invalidate(key);
    }

    /// Drops the value, and leaves fills in flight alone: what invalidating would be without
    /// epochs.
    #[cfg(test)]
    pub(crate) fn drop_only(&self, key: &K) {
        self.shared.entries.invalidate(key);
    }

    /// Time passes.
    #[cfg(test)]
    pub(crate) fn let_pass(&self, time: Duration) {
        self.shared
            .story
            .passed
            .fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
    }

    /// The same cache without a rule.
    #[cfg(test)]
    pub(crate) fn without(self, rule: Rule) -> Self {
        self.shared.story.without.get_or_init(|| rule);
        self
    }

    /// How often an expired value was served since storage could not be reached.
    pub(crate) fn stale_answers(&self) -> u64 {
        self.shared.stale_answers.load(Ordering::Relaxed)
    }

    fn hit_or_flight<F>(
        &self,
        key: &K,
        may_join_running: bool,
        fill: &impl Fn() -> F,
    ) -> Result<Cached<V>, (Flight<V>, bool)>
    where
        F: Future<Output = Result<Option<V>, StorageError>> + Send + 'static,
    {
        let now = self.shared.now();
        if let Some(entry) = self.shared.fresh(key, now) {
            let age = now.saturating_since(entry.read_at);
            if self
                .shared
                .limits
                .refresh_after
                .is_some_and(|refresh_after| age >= refresh_after)
            {
                let mut slots = self.shared.lock();
                if !slots.contains_key(key) {
                    self.take_off(&mut slots, key, fill());
                }
            }
            return Ok(entry.fresh());
        }
        let mut slots = self.shared.lock();
        // A fill may have ended since the look above.
        if may_join_running && let Some(entry) = self.shared.fresh(key, now) {
            return Ok(entry.fresh());
        }
        if let Some(slot) = slots.get(key) {
            if may_join_running
                && let Some(running) = &slot.running
                && running.epoch == self.epoch(key).0
                && (now.saturating_since(running.started) < self.shared.limits.time_to_live
                    || self.shared.is_without(Rule::OldFillsAreLeft))
            {
                return Err((running.flight.clone(), true));
            }
            if let Some(waiting) = &slot.waiting {
                return Err((waiting.clone(), false));
            }
        }
        Err((self.take_off(&mut slots, key, fill()), false))
    }

    /// Starts a fill behind the one that runs, if any.
    fn take_off<F>(&self, slots: &mut HashMap<K, Slot<V>>, key: &K, read: F) -> Flight<V>
    where
        F: Future<Output = Result<Option<V>, StorageError>> + Send + 'static,
    {
        let (land, flight) = watch::channel(None);
        let slot = slots.entry(key.clone()).or_insert(Slot {
            running: None,
            waiting: None,
        });
        let before = slot.running.as_ref().map(|running| running.flight.clone());
        slot.waiting = Some(flight.clone());
        tokio::spawn(Arc::clone(&self.shared).fill(key.clone(), before, land, read));
        flight
    }

    fn stale(&self, key: &K) -> Option<Cached<V>> {
        let entry = self.shared.entries.get(key)?;
        self.shared.stale_answers.fetch_add(1, Ordering::Relaxed);
        Some(Cached {
            stale: true,
            ..entry.fresh()
        })
    }
}

impl<V> Entry<V> {
    fn fresh(self) -> Cached<V> {
        Cached {
            value: self.value,
            read_at: self.read_at,
            stale: false,
        }
    }
}

impl<K, V> Shared<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Slot<V>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epoch_of(&self, key: &K) -> &AtomicU64 {
        &self.epochs[self.hasher.hash_one(key) as usize % EPOCHS]
    }

    #[cfg(not(test))]
    fn now(&self) -> Time {
        Clock::system().now()
    }

    #[cfg(test)]
    fn now(&self) -> Time {
        Time::from_nanos(
            Clock::system().now().as_nanos() + self.story.passed.load(Ordering::SeqCst),
        )
    }

    #[cfg(not(test))]
    const fn is_without(&self, _: Rule) -> bool {
        false
    }

    #[cfg(test)]
    fn is_without(&self, rule: Rule) -> bool {
        self.story.without.get() == Some(&rule)
    }

    fn fresh(&self, key: &K, now: Time) -> Option<Entry<V>> {
        let entry = self.entries.get(key)?;
        (now.saturating_since(entry.read_at) < self.limits.time_to_live).then_some(entry)
    }

    async fn fill<F>(
        self: Arc<Self>,
        key: K,
        before: Option<Flight<V>>,
        land: watch::Sender<Option<Filled<V>>>,
        read: F,
    ) where
        F: Future<Output = Result<Option<V>, StorageError>> + Send + 'static,
    {
        if let Some(mut before) = before {
            // A fill that hangs is left behind after its time-out.
            let _ended =
                tokio::time::timeout(self.limits.fill_timeout, before.wait_for(Option::is_some))
                    .await;
        }
        let (started, epoch) = self.begin(&key, &land);
        let read = tokio::time::timeout(self.limits.fill_timeout, read).await;
        let filled = match read {
            Ok(Ok(value)) => Ok(value.map(|value| Entry {
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
        self.end(&key, epoch, started, &filled);
        land.send_replace(Some(filled));
    }

    /// From waiting to running.
    fn begin(&self, key: &K, land: &watch::Sender<Option<Filled<V>>>) -> (Time, u64) {
        let mut slots = self.lock();
        let (started, epoch) = (self.now(), self.epoch_of(key).load(Ordering::SeqCst));
        let running = Running {
            flight: land.subscribe(),
            started,
            epoch,
        };
        slots.insert(
            key.clone(),
            Slot {
                running: Some(running),
                waiting: None,
            },
        );
        (started, epoch)
    }

    /// Keeps the value if no write came since, and leaves the slot to who waits.
    fn end(&self, key: &K, epoch: u64, started: Time, filled: &Filled<V>) {
        let mut slots = self.lock();
        if let Ok(Some(entry)) = filled
            && self.epoch_of(key).load(Ordering::SeqCst) == epoch
        {
            self.entries.insert(key.clone(), entry.clone());
        }
        if let Some(slot) = slots.get_mut(key)
            && slot
                .running
                .as_ref()
                .is_some_and(|running| running.started == started)
        {
            slot.running = None;
            if slot.waiting.is_none() {
                slots.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests;

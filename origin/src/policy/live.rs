//! The policy in use by a running origin.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_common::time::Time;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::{Mutex, watch};

use super::stored::{self, StoredPolicy};
use super::{Policy, PolicyError};
use crate::nonce::random_bytes;
use crate::storage::{Storage, StorageError, Version};

/// The maximum time between two reads in the background; the minimum is three quarters of it.
const REFRESH_EVERY: Duration = Duration::from_mins(1);
/// The maximum age of the copy by which a change is written.
const MAX_AGE_FOR_WRITES: Duration = Duration::from_mins(2);

/// Why an origin cannot start with the policy of its bucket.
#[derive(Debug, thiserror::Error)]
pub enum PolicyStartError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The policy is not valid.
    #[error(
        "the policy in the storage: {0}; replace it (`flotilla origin policy set FILE --storage URL`)"
    )]
    Policy(#[from] PolicyError),
    /// The policy does not list the origin's region.
    #[error(
        "the policy in the storage has no [[region]] for {region}, the region of this origin (it lists {listed}): check \
         region and storage; or add it (`flotilla origin policy set FILE --storage URL`)"
    )]
    Region {
        /// The region of the origin.
        region: RegionName,
        /// The regions of the policy, for people.
        listed: String,
    },
}

/// The policy of a bucket, read again and again. Clones share it.
///
/// A policy that the origin cannot use (invalid, without the origin's own region, or deleted) is
/// logged as an error and not taken up, and the last good one stays: a change that is written
/// without regard to another region would never get there.
#[derive(Clone)]
pub struct LivePolicy {
    shared: Arc<Shared>,
}

struct Shared {
    storage: Arc<dyn Storage>,
    own: RegionName,
    clock: Clock,
    current: watch::Sender<Arc<Policy>>,
    /// When the last read that succeeded began, in nanoseconds of the clock.
    read_at: AtomicU64,
    /// Locked while the policy is read.
    last_read: Mutex<LastRead>,
}

struct LastRead {
    /// The version of the object; `None` if there was none.
    version: Option<Version>,
    has_failed: bool,
}

impl LivePolicy {
    /// Reads the policy of the bucket of the origin of region `own`.
    ///
    /// # Errors
    /// [`PolicyStartError`]: each names the fix.
    pub async fn start(
        storage: Arc<dyn Storage>,
        own: RegionName,
        clock: Clock,
    ) -> Result<Self, PolicyStartError> {
        let at = clock.now();
        let stored = stored::read(&*storage).await?;
        let policy = match &stored {
            Some(stored) => usable(stored, &own)?,
            None => Policy::none(),
        };
        let last_read = LastRead {
            version: stored.map(|stored| stored.version().clone()),
            has_failed: false,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                storage,
                own,
                clock,
                current: watch::Sender::new(Arc::new(policy)),
                read_at: AtomicU64::new(at.as_nanos()),
                last_read: Mutex::new(last_read),
            }),
        })
    }

    /// The policy to serve reads by. It may be older than 2 minutes while the storage fails.
    pub fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.shared.current.borrow())
    }

    /// Notifies of each change of the policy.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Policy>> {
        self.shared.current.subscribe()
    }

    /// The policy to write a change by: at most 2 minutes old, by the start of its read. Reads the
    /// storage if necessary; concurrent callers share that read.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`]: the change cannot be written either.
    pub async fn for_write(&self) -> Result<Arc<Policy>, StorageError> {
        if self.shared.is_too_old_for_writes() {
            let mut last_read = self.shared.last_read.lock().await;
            if self.shared.is_too_old_for_writes() {
                self.shared.read(&mut last_read).await?;
            }
        }
        Ok(self.current())
    }

    /// Reads the policy now, not only within a minute: for a program that has just set it.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`]: the previous policy stays in use.
    pub async fn read_now(&self) -> Result<Arc<Policy>, StorageError> {
        let mut last_read = self.shared.last_read.lock().await;
        self.shared.read(&mut last_read).await?;
        drop(last_read);
        Ok(self.current())
    }

    /// Reads the policy each minute until the shutdown.
    pub fn keep_fresh(&self, shutdown: &Shutdown) {
        let (live, stop) = (self.clone(), shutdown.clone());
        shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.wait() => return,
                    () = tokio::time::sleep(refresh_delay()) => {}
                }
                live.refresh().await;
            }
        });
    }

    async fn refresh(&self) {
        let mut last_read = self.shared.last_read.lock().await;
        let is_repeated = last_read.has_failed;
        if let Err(error) = self.shared.read(&mut last_read).await
            && !is_repeated
        {
            tracing::warn!(%error, "reading the policy failed; reads are served by the previous one, and writes fail once it is older than 2 minutes");
        }
    }
}

/// Different in each process and round, so that replicas do not read at the same time.
fn refresh_delay() -> Duration {
    let [jitter] = random_bytes::<1>();
    REFRESH_EVERY * 3 / 4 + REFRESH_EVERY / 4 * u32::from(jitter) / 255
}

impl Shared {
    fn is_too_old_for_writes(&self) -> bool {
        let read_at = Time::from_nanos(self.read_at.load(Ordering::Acquire));
        self.clock.now().saturating_since(read_at) > MAX_AGE_FOR_WRITES
    }

    /// Reads the policy and takes it up if it is usable.
    async fn read(&self, last_read: &mut LastRead) -> Result<(), StorageError> {
        let at = self.clock.now();
        let stored = stored::read(&*self.storage).await;
        last_read.has_failed = stored.is_err();
        let stored = stored?;
        let version = stored.as_ref().map(StoredPolicy::version);
        if version != last_read.version.as_ref() {
            // An unusable policy is reported once: its version is known from here on.
            last_read.version = version.cloned();
            self.take_up(stored.as_ref());
        }
        self.read_at.store(at.as_nanos(), Ordering::Release);
        Ok(())
    }

    fn take_up(&self, stored: Option<&StoredPolicy>) {
        let Some(stored) = stored else {
            tracing::error!(
                "the policy was deleted from the storage; keeping the previous one until a restart; store it again (`flotilla origin policy set`)"
            );
            return;
        };
        match usable(stored, &self.own) {
            Ok(policy) => {
                let regions = policy.regions().len();
                let is_changed = self.current.send_if_modified(|current| {
                    let is_changed = **current != policy;
                    if is_changed {
                        *current = Arc::new(policy);
                    }
                    is_changed
                });
                if is_changed {
                    tracing::info!(regions, "policy changed");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the new policy cannot be used; keeping the previous one");
            }
        }
    }
}

impl fmt::Debug for LivePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LivePolicy")
            .field("region", &self.shared.own)
            .field("current", &self.shared.current.borrow())
            .finish_non_exhaustive()
    }
}

/// Parses a policy, which must list the origin's own region.
fn usable(stored: &StoredPolicy, own: &RegionName) -> Result<Policy, PolicyStartError> {
    let policy = stored.parse()?;
    if policy.region(own).is_none() {
        let names = policy.regions().iter().map(|region| region.name.as_str());
        return Err(PolicyStartError::Region {
            region: own.clone(),
            listed: names.collect::<Vec<_>>().join(", "),
        });
    }
    Ok(policy)
}

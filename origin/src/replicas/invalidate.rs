//! Sends invalidations, and waits for replicas that do not answer until they cannot serve the old
//! values any more.

use core::time::Duration;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::time::Time;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::IdentityError;
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::discovery::Replicas;
use super::exchange::{Exchange, ExchangeError, SealedMessage};
use super::leases::{GrantedLeases, HeldLeases, ProcessId};
use super::message::{Changed, Content, Secret};
use super::standing::{LastStanding, Unanswered};
use crate::cache::CacheTerm;

/// Concurrent requests to all replicas; an invalidation that gets no permit waits for its
/// time-to-live.
const MAX_IN_FLIGHT: usize = 512;
/// Delay between two attempts at one replica.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Invalidations sent and received, for metrics.
#[derive(Debug, Default)]
pub(crate) struct InvalidationCounts {
    answered: AtomicU64,
    waited_out: AtomicU64,
    left_out: AtomicU64,
    refused: AtomicU64,
    pub(super) received: AtomicU64,
}

impl InvalidationCounts {
    /// Invalidations sent to one replica each, by outcome.
    pub(crate) fn by_outcome(&self) -> [(&'static str, u64); 4] {
        [
            ("answered", self.answered.load(Ordering::Relaxed)),
            ("refused", self.refused.load(Ordering::Relaxed)),
            ("left_out", self.left_out.load(Ordering::Relaxed)),
            ("waited_out", self.waited_out.load(Ordering::Relaxed)),
        ]
    }

    /// Messages received.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Keeps the promise of a region's replicas to each other: sends invalidations, holds and grants
/// leases, and asks about storage.
#[derive(Debug)]
pub(crate) struct Invalidator {
    pub(super) replicas: Replicas,
    pub(super) exchange: Exchange,
    pub(super) clock: Clock,
    pub(super) term: Arc<CacheTerm>,
    pub(super) held: Mutex<OwnLeases>,
    pub(super) granted: Mutex<GrantedLeases>,
    pub(super) unanswered: Mutex<Unanswered>,
    pub(super) standing: LastStanding,
    permits: Semaphore,
    counts: Arc<InvalidationCounts>,
}

/// The leases that this replica holds, until it leaves.
#[derive(Debug, Default)]
pub(super) struct OwnLeases {
    pub(super) leases: HeldLeases,
    pub(super) has_left: bool,
}

/// How an invalidation of one replica ended.
enum Ended {
    Answered,
    Refused,
}

impl Invalidator {
    pub(crate) fn new(
        replicas: Replicas,
        secret: Secret,
        clock: Clock,
    ) -> Result<Self, IdentityError> {
        let exchange = Exchange::new(secret)?;
        let granted = GrantedLeases::new(exchange.process(), clock.now());
        let own = Self {
            replicas,
            exchange,
            clock,
            term: Arc::default(),
            held: Mutex::default(),
            granted: Mutex::new(granted),
            unanswered: Mutex::default(),
            standing: LastStanding::default(),
            permits: Semaphore::new(MAX_IN_FLIGHT),
            counts: Arc::default(),
        };
        if own.replicas.is_none() {
            own.set_term(Time::MAX);
        }
        Ok(own)
    }

    /// Sets until when the caches may keep values for their whole time-to-live. The caller holds
    /// the lock of the leases, or is the only one.
    pub(super) fn set_term(&self, until: Time) {
        let mut term = self.term.load();
        term.set(self.clock.now(), until);
        self.term.store(term);
    }

    pub(crate) fn counts(&self) -> Arc<InvalidationCounts> {
        Arc::clone(&self.counts)
    }

    /// The term in which this replica may keep what other replicas can change.
    pub(crate) fn cache_term(&self) -> Arc<CacheTerm> {
        Arc::clone(&self.term)
    }

    /// The number of listed replicas.
    pub(crate) fn replica_count(&self) -> usize {
        self.replicas.current().len()
    }

    pub(super) fn granted(&self) -> MutexGuard<'_, GrantedLeases> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once no listed replica serves the old values of `changed`: each has acknowledged, or
    /// does not run, or cannot serve them any more. That is the case `time_to_live` after this
    /// call, which comes after the write, at the latest.
    pub(crate) async fn invalidate(&self, changed: Vec<Changed>, time_to_live: Duration) {
        let replicas = self.replicas.current();
        if replicas.is_empty() || changed.is_empty() {
            return;
        }
        let written = self.clock.now();
        let message = match self.exchange.seal(Content::Invalidate(changed)) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, "a cache invalidation could not be encoded; acknowledging the change after the time-to-live");
                return sleep(time_to_live).await;
            }
        };
        let change = Change {
            message,
            written,
            time_to_live,
            invalidated: Mutex::default(),
        };
        let invalidations = replicas
            .iter()
            .map(|replica| self.invalidate_one(*replica, &change));
        join_all(invalidations).await;
    }

    async fn invalidate_one(&self, replica: SocketAddr, change: &Change) {
        let attempts = async {
            let Ok(_permit) = self.permits.acquire().await else {
                return core::future::pending().await;
            };
            loop {
                match self.exchange.send(replica, &change.message).await {
                    Ok(answer) => {
                        change.invalidated().insert(answer.process);
                        self.granted().answered(replica, answer.process);
                        return Ended::Answered;
                    }
                    Err(ExchangeError::Refused) => return Ended::Refused,
                    Err(ExchangeError::Failed(reason)) => {
                        tracing::debug!(%replica, reason, "invalidation failed; retrying");
                        sleep(RETRY_AFTER).await;
                    }
                }
            }
        };
        let counter = tokio::select! {
            ended = attempts => match ended {
                Ended::Answered => &self.counts.answered,
                Ended::Refused => &self.counts.refused,
            },
            now = self.wait_for_silent(replica, change) => {
                let waited = now.saturating_since(change.written);
                if waited < change.time_to_live {
                    tracing::debug!(%replica, ?waited, "replica does not answer and holds no lease; acknowledged the change without it");
                    &self.counts.left_out
                } else {
                    tracing::warn!(%replica, "replica did not answer a cache invalidation; acknowledged the change after the time-to-live");
                    &self.counts.waited_out
                }
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until a replica that does not answer cannot serve the old values any more.
    async fn wait_for_silent(&self, replica: SocketAddr, change: &Change) -> Time {
        loop {
            let (until, now) = {
                // A grant comes either before this, and is seen, or after it, and then its holder
                // forgets the values that it read before.
                let granted = self.granted();
                let until = granted.waits_until(
                    replica,
                    change.written,
                    change.time_to_live,
                    &change.invalidated(),
                );
                (until, self.clock.now())
            };
            if now >= until {
                return now;
            }
            // The wait may become shorter when another replica acknowledges.
            sleep(until.saturating_since(now).min(RETRY_AFTER)).await;
        }
    }
}

/// A change that is being told to the listed replicas.
struct Change {
    message: SealedMessage,
    written: Time,
    time_to_live: Duration,
    /// The processes that have acknowledged it.
    invalidated: Mutex<BTreeSet<ProcessId>>,
}

impl Change {
    fn invalidated(&self) -> MutexGuard<'_, BTreeSet<ProcessId>> {
        self.invalidated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

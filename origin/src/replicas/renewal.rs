//! Asks the listed replicas for leases, once a second, until this replica drains.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use flotilla_common::time::Time;
use flotilla_runtime::shutdown::Shutdown;
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Invalidator;
use super::exchange::ExchangeError;
use super::message::Content;
use crate::cache::CUT_OFF_TIME_TO_LIVE;

/// Between two requests to one replica.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// For one request: two may be lost before a lease ends.
const RENEW_TIMEOUT: Duration = Duration::from_millis(900);
/// For telling the other replicas that this one drains.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

impl Invalidator {
    /// Starts asking for leases, until the shutdown.
    pub(crate) fn keep_leases(self: &Arc<Self>, shutdown: &Shutdown) {
        if self.replicas.is_none() {
            return;
        }
        let (invalidator, stop) = (Arc::clone(self), shutdown.clone());
        shutdown.spawn(async move {
            let mut tick = interval(RENEW_EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut changes = invalidator.replicas.changes();
            let mut was_valid = true;
            loop {
                tokio::select! {
                    () = stop.wait() => return,
                    _ = tick.tick() => {}
                    () = changes.next() => {}
                }
                tokio::select! {
                    () = stop.wait() => return,
                    () = invalidator.renew_all() => {}
                }
                invalidator.log_term(&mut was_valid);
            }
        });
    }

    async fn renew_all(&self) {
        let listed = self.replicas.current();
        self.apply_leases(None);
        let renewals = listed.iter().map(|replica| self.renew(*replica));
        join_all(renewals).await;
    }

    async fn renew(&self, replica: SocketAddr) {
        let asked_at = self.clock.now();
        let Ok(message) = self.exchange.seal(Content::Renew) else {
            return;
        };
        let sent = self.exchange.send(replica, &message);
        let outcome = timeout(RENEW_TIMEOUT, sent).await;
        self.note_answer(replica, outcome.as_ref().ok());
        match outcome {
            Ok(Ok(answer)) => {
                self.granted().answered(replica, answer.process);
                self.apply_leases(Some((replica, asked_at)));
            }
            // A process that begins there after this request asks this one before it keeps
            // anything, and waits for leases that it may not know of before it acknowledges.
            Ok(Err(ExchangeError::Refused)) => self.apply_leases(Some((replica, asked_at))),
            Ok(Err(ExchangeError::Failed(reason))) => {
                tracing::debug!(%replica, reason, "replica granted no lease");
            }
            Err(_) => tracing::debug!(%replica, "replica granted no lease within its timeout"),
        }
    }

    /// Notes a renewed lease, and sets the term of the caches by the leases that are held now.
    fn apply_leases(&self, renewed: Option<(SocketAddr, Time)>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.has_left {
            return;
        }
        if let Some((replica, asked_at)) = renewed {
            held.leases.renewed(replica, asked_at);
        }
        let until = held.leases.held_until(&self.replicas.current());
        // The time is read after the answer arrived: a new term must not begin earlier.
        self.set_term(until);
    }

    fn log_term(&self, was_valid: &mut bool) {
        let is_valid = self.term.load().is_valid(self.clock.now());
        if *was_valid && !is_valid {
            tracing::warn!(
                time_to_live = ?CUT_OFF_TIME_TO_LIVE,
                "a listed replica does not answer; tags, manifests and memberships are cached only briefly until it does, or is removed from the list"
            );
        } else if is_valid && !*was_valid {
            tracing::info!("all listed replicas answer; caching for the whole time-to-live");
        }
        *was_valid = is_valid;
    }

    /// Gives all leases back, then tells the other replicas, which do not wait for this one any
    /// more.
    pub(crate) async fn leave(&self) {
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if self.replicas.is_none() || held.has_left {
                return;
            }
            held.has_left = true;
            self.set_term(Time::ZERO);
        }
        let Ok(message) = self.exchange.seal(Content::Leave) else {
            return;
        };
        let listed = self.replicas.current();
        let told = listed
            .iter()
            .map(|replica| timeout(LEAVE_TIMEOUT, self.exchange.send(*replica, &message)));
        // A replica that is not told waits until the leases have ended.
        join_all(told).await;
    }
}

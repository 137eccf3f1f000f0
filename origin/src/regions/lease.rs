//! A lease saves work: at most one replica does a job most of the time. Nothing relies on it; two
//! holders at once do no harm.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::time::Time;
use flotilla_runtime::clock::Clock;

use crate::layout;
use crate::nonce::nonce;
use crate::record::{LeaseRecord, decode, encode};
use crate::storage::{Key, Storage, StorageError, Version};

/// A lease whose version has not changed for this long, by the contender's clock, is taken over.
pub(crate) const EXPIRES_AFTER: Duration = Duration::from_secs(30);
/// How often the holder renews.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(10);

/// A lease as one replica sees it.
#[derive(Debug)]
pub(crate) struct Lease {
    storage: Arc<dyn Storage>,
    clock: Clock,
    key: Key,
    id: u128,
    /// The version that was seen last, and when it was first seen.
    seen: Option<(Version, Time)>,
    /// When this replica last renewed.
    renewed: Option<Time>,
    /// Whether this replica had the lease when it last knew who has it.
    is_holder: bool,
}

impl Lease {
    pub(crate) fn new(storage: Arc<dyn Storage>, clock: Clock, job: &str) -> Self {
        Self {
            storage,
            clock,
            key: layout::lease(job),
            id: nonce(),
            seen: None,
            renewed: None,
            is_holder: false,
        }
    }

    /// Whether this replica holds the lease; acquires or renews it if that is due.
    ///
    /// # Errors
    /// Those of the storage; the lease is not held then.
    pub(crate) async fn hold(&mut self) -> Result<bool, StorageError> {
        let now = self.clock.now();
        let is_renewed = |renewed: Time| now.saturating_since(renewed) < RENEW_AFTER;
        if self.renewed.is_some_and(is_renewed) {
            return Ok(true);
        }
        self.renewed = None;
        let Some(present) = self.storage.read(&self.key).await? else {
            return self.write(None, 0, now).await;
        };
        let record: LeaseRecord = decode(&self.key, &present.body)?;
        let is_mine = record.holder == Some(self.id);
        if record.holder.is_some() && !is_mine {
            let first_seen = match &self.seen {
                Some((version, first_seen)) if *version == present.version => *first_seen,
                _ => now,
            };
            self.seen = Some((present.version.clone(), first_seen));
            if now.saturating_since(first_seen) < EXPIRES_AFTER {
                self.is_holder = false;
                return Ok(false);
            }
        }
        self.write(Some(&present.version), record.round + 1, now)
            .await
    }

    /// Whether this replica holds the lease; a holder that does not renew it is noticed by a second
    /// look, so this may take half a minute. For jobs that are done once in a while.
    pub(crate) async fn hold_or_take_over(&mut self) -> bool {
        if self.hold_if_storage_answers().await {
            return true;
        }
        tokio::time::sleep(EXPIRES_AFTER + RENEW_AFTER).await;
        self.hold_if_storage_answers().await
    }

    async fn hold_if_storage_answers(&mut self) -> bool {
        let held = self.hold().await;
        held.unwrap_or_else(|error| {
            tracing::debug!(key = %self.key, %error, "a lease could not be acquired");
            false
        })
    }

    /// Renews the lease for as long as this replica holds it: run it beside the work. Returns once
    /// another replica has the lease.
    ///
    /// # Errors
    /// The storage has failed for so long that another replica may have the lease.
    pub(crate) async fn keep(&mut self) -> Result<(), StorageError> {
        let mut held_at = self.clock.now();
        loop {
            tokio::time::sleep(RENEW_AFTER).await;
            let now = self.clock.now();
            match self.hold().await {
                Ok(true) => held_at = now,
                Ok(false) => return Ok(()),
                Err(error) if now.saturating_since(held_at) >= EXPIRES_AFTER => return Err(error),
                Err(error) => {
                    tracing::debug!(key = %self.key, %error, "a lease could not be renewed; trying again");
                }
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait.
    pub(crate) async fn release(&mut self) {
        self.renewed = None;
        if !core::mem::take(&mut self.is_holder) {
            return;
        }
        let released = async {
            let Some(present) = self.storage.read(&self.key).await? else {
                return Ok(());
            };
            let record: LeaseRecord = decode(&self.key, &present.body)?;
            if record.holder != Some(self.id) {
                return Ok(());
            }
            let body = self.body(None, record.round + 1)?;
            self.storage
                .swap(&self.key, &present.version, body)
                .await
                .map(drop)
        };
        if let Err(error) = released.await {
            let _: StorageError = error;
            tracing::debug!(key = %self.key, "a lease could not be released; it expires");
        }
    }

    fn body(&self, holder: Option<u128>, round: u64) -> Result<Bytes, StorageError> {
        let record = LeaseRecord {
            holder,
            round,
            nonce: nonce(),
        };
        Ok(encode(&self.key, &record)?.into())
    }

    async fn write(
        &mut self,
        seen: Option<&Version>,
        round: u64,
        now: Time,
    ) -> Result<bool, StorageError> {
        let body = self.body(Some(self.id), round)?;
        let written = match seen {
            None => self.storage.create(&self.key, body).await,
            Some(version) => self.storage.swap(&self.key, version, body).await,
        };
        match written {
            Ok(_) => {
                self.renewed = Some(now);
                self.is_holder = true;
                Ok(true)
            }
            Err(StorageError::Conflict { .. }) => {
                self.is_holder = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::open;

    #[tokio::test(start_paused = true)]
    async fn silent_holder_is_replaced_and_a_renewing_one_is_not() {
        let storage = open("memory:///", 0).expect("storage");
        let clock = Clock::tokio();
        let mut first = Lease::new(Arc::clone(&storage), clock, "job");
        let mut second = Lease::new(storage, clock, "job");
        assert!(first.hold().await.expect("storage"));
        for _ in 0..10 {
            tokio::time::advance(RENEW_AFTER).await;
            assert!(first.hold().await.expect("storage"));
            assert!(!second.hold().await.expect("storage"));
        }
        tokio::time::advance(EXPIRES_AFTER).await;
        assert!(second.hold().await.expect("storage"));
        assert!(!first.hold().await.expect("storage"), "it was replaced");
        second.release().await;
        assert!(first.hold().await.expect("storage"), "without a wait");
    }

    /// A replica that dies in the middle of a job that is done hourly.
    #[tokio::test(start_paused = true)]
    async fn lease_of_a_dead_holder_is_taken_over_at_once() {
        let storage = open("memory:///", 0).expect("storage");
        let clock = Clock::tokio();
        let mut dead = Lease::new(Arc::clone(&storage), clock, "job");
        assert!(dead.hold().await.expect("storage"));
        drop(dead);
        let mut next = Lease::new(Arc::clone(&storage), clock, "job");
        assert!(next.hold_or_take_over().await);
        let mut third = Lease::new(storage, clock, "job");
        tokio::select! {
            kept = next.keep() => panic!("{kept:?}"),
            is_held = third.hold_or_take_over() => assert!(!is_held),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn kept_leases_are_not_taken_over_however_long_the_work() {
        let storage = open("memory:///", 0).expect("storage");
        let clock = Clock::tokio();
        let mut first = Lease::new(Arc::clone(&storage), clock, "job");
        let mut second = Lease::new(storage, clock, "job");
        assert!(first.hold().await.expect("storage"));
        let contend = async {
            for _ in 0..100 {
                tokio::time::sleep(RENEW_AFTER).await;
                assert!(!second.hold().await.expect("storage"));
            }
        };
        tokio::select! {
            kept = first.keep() => panic!("{kept:?}"),
            () = contend => {}
        }
        // The work ends in the middle of a renewal, or before one.
        first.release().await;
        assert!(second.hold().await.expect("storage"), "without a wait");
        let lost = tokio::time::timeout(EXPIRES_AFTER, first.keep()).await;
        lost.expect("at the next renewal").expect("storage");
    }
}

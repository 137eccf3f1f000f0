//! A large blob is copied by one replica at a time; the others wait for its copy.
//!
//! Leases are shared by 256 groups of digests, so that they need no collection. Like every lease
//! they only save work: two replicas that copy the same blob at once do no harm.

use core::pin::pin;
use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;

use super::lease::{Lease, RENEW_AFTER};
use crate::registry::{Registry, RegistryError};

/// The size from which a blob is copied under a lease, in bytes.
pub(super) const LEASED_SIZE: u64 = 64 << 20;
/// How often a replica looks whether another one's copy has ended.
const POLL: Duration = Duration::from_secs(1);
/// How long a replica waits for another one's copy.
const MAX_WAIT: Duration = Duration::from_hours(1);

/// What came of waiting for a lease.
#[derive(Debug)]
pub(super) enum Turn {
    /// This replica copies.
    Mine(CopyLease),
    /// The blob is here: another replica has copied it.
    Copied,
    /// Another replica is still copying it.
    TimedOut,
}

/// A lease that is held.
#[derive(Debug)]
pub(super) struct CopyLease(Lease);

impl CopyLease {
    /// Waits until no other replica copies a blob of the digest's group, or `is_here` says that the
    /// blob has arrived.
    ///
    /// # Errors
    /// Those of `is_here`, and of the storage.
    pub(super) async fn acquire<F>(
        registry: &Arc<Registry>,
        digest: &Digest,
        is_here: impl Fn() -> F,
    ) -> Result<Turn, RegistryError>
    where
        F: Future<Output = Result<bool, RegistryError>>,
    {
        let storage = Arc::clone(registry.storage());
        let mut lease = Lease::new(storage, registry.clock(), &job(digest));
        let started = registry.now();
        let mut has_waited = false;
        while !lease.hold().await? {
            has_waited = true;
            if registry.now().saturating_since(started) >= MAX_WAIT {
                return Ok(Turn::TimedOut);
            }
            tokio::time::sleep(POLL).await;
            if is_here().await? {
                return Ok(Turn::Copied);
            }
        }
        if has_waited && is_here().await? {
            lease.release().await;
            return Ok(Turn::Copied);
        }
        Ok(Turn::Mine(Self(lease)))
    }

    /// Does `work`, keeps the lease meanwhile and gives it up afterwards.
    pub(super) async fn during<T>(mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let done = loop {
            let renewed = async {
                tokio::time::sleep(RENEW_AFTER).await;
                self.0.hold().await
            };
            tokio::select! {
                done = &mut work => break done,
                // A lease that was taken over means that two replicas copy: no harm, only work.
                renewed = renewed => if let Err(error) = renewed {
                    tracing::debug!(%error, "the lease of a copy could not be renewed");
                }
            }
        };
        self.0.release().await;
        done
    }
}

/// The lease of the digest's group.
fn job(digest: &Digest) -> String {
    let group = digest.hash().first().copied().unwrap_or(0);
    format!("copy-{group:02x}")
}

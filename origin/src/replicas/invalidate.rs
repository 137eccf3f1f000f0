//! Sends invalidations, and waits for replicas that do not answer until their cached values have
//! expired.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flotilla_common::wire::origin::INVALIDATE_PATH;
use flotilla_runtime::identity::{IdentityError, client_without_trust};
use futures_util::future::join_all;
use reqwest::Client;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::discovery::Replicas;
use super::message::{Changed, InvalidationMessage, MAC_LEN, Secret, is_equal};
use crate::nonce::nonce;

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
    pub(super) received: AtomicU64,
}

impl InvalidationCounts {
    /// Invalidations sent to one replica each, by outcome.
    pub(crate) fn by_outcome(&self) -> [(&'static str, u64); 2] {
        [
            ("answered", self.answered.load(Ordering::Relaxed)),
            ("waited_out", self.waited_out.load(Ordering::Relaxed)),
        ]
    }

    /// Messages received.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Sends invalidations to the listed replicas.
#[derive(Debug)]
pub(crate) struct Invalidator {
    replicas: Replicas,
    secret: Secret,
    id: u128,
    http: Client,
    permits: Semaphore,
    counts: Arc<InvalidationCounts>,
}

impl Invalidator {
    pub(crate) fn new(replicas: Replicas, secret: Secret) -> Result<Self, IdentityError> {
        // Messages are authenticated by their MAC, so plain HTTP will do. The builder needs a TLS
        // configuration nevertheless.
        let http = Client::builder()
            .tls_backend_preconfigured(client_without_trust()?)
            .no_proxy();
        let http = http
            .build()
            .map_err(|error| IdentityError::Tls(error.to_string()))?;
        let permits = Semaphore::new(MAX_IN_FLIGHT);
        Ok(Self {
            replicas,
            secret,
            id: nonce(),
            http,
            permits,
            counts: Arc::default(),
        })
    }

    pub(crate) const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Identifies the messages of this process.
    pub(crate) const fn id(&self) -> u128 {
        self.id
    }

    pub(crate) fn counts(&self) -> Arc<InvalidationCounts> {
        Arc::clone(&self.counts)
    }

    /// The number of listed replicas.
    pub(crate) fn replica_count(&self) -> usize {
        self.replicas.current().len()
    }

    /// Returns once no listed replica serves the old values of `changed`: each has acknowledged, or
    /// `time_to_live` has passed since this call, which comes after the write.
    pub(crate) async fn invalidate(&self, changed: Vec<Changed>, time_to_live: Duration) {
        let replicas = self.replicas.current();
        if replicas.is_empty() || changed.is_empty() {
            return;
        }
        let expired = Instant::now() + time_to_live;
        let (body, answer) = match self.secret.seal(&InvalidationMessage {
            sender: self.id,
            changed,
        }) {
            Ok((body, answer)) => (Bytes::from(body), answer),
            Err(error) => {
                tracing::error!(%error, "a cache invalidation could not be encoded; acknowledging the change after the time-to-live");
                return tokio::time::sleep_until(expired).await;
            }
        };
        let invalidations = replicas
            .iter()
            .map(|replica| self.invalidate_one(*replica, &body, &answer, expired));
        join_all(invalidations).await;
    }

    async fn invalidate_one(
        &self,
        replica: SocketAddr,
        body: &Bytes,
        answer: &[u8; MAC_LEN],
        expired: Instant,
    ) {
        let acknowledged = async {
            let Ok(_permit) = self.permits.acquire().await else {
                return;
            };
            while let Err(reason) = self.attempt(replica, body, answer).await {
                tracing::debug!(%replica, reason, "invalidation failed; retrying");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        };
        if tokio::time::timeout_at(expired, acknowledged).await.is_ok() {
            self.counts.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.counts.waited_out.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%replica, "replica did not answer a cache invalidation; acknowledged the change after the time-to-live");
        }
    }

    async fn attempt(
        &self,
        replica: SocketAddr,
        body: &Bytes,
        answer: &[u8; MAC_LEN],
    ) -> Result<(), String> {
        let request = self
            .http
            .post(format!("http://{replica}{INVALIDATE_PATH}"))
            .body(body.clone());
        let response = request.send().await.map_err(|error| error.to_string())?;
        if response.content_length() != Some(MAC_LEN as u64) {
            return Err(format!("answered {}", response.status()));
        }
        let proof = response.bytes().await.map_err(|error| error.to_string())?;
        if is_equal(&proof, answer) {
            Ok(())
        } else {
            Err("the answer has a wrong MAC; is it a replica of another storage?".to_owned())
        }
    }
}

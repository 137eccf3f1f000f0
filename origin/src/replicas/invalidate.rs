//! Telling the others, and waiting for those who do not answer until what they remember has
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
use super::message::{Changed, MAC_LEN, Message, Secret, is_same};
use crate::nonce::nonce;

/// Requests in flight to all replicas; what does not get its turn waits for its time-to-live.
const MAX_IN_FLIGHT: usize = 512;
/// Between two attempts at one replica.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// What was told and heard, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    answered: AtomicU64,
    waited_out: AtomicU64,
    pub(super) received: AtomicU64,
}

impl Counts {
    /// Each outcome of telling one replica of one change.
    pub(crate) fn by_outcome(&self) -> [(&'static str, u64); 2] {
        [
            ("answered", self.answered.load(Ordering::Relaxed)),
            ("waited_out", self.waited_out.load(Ordering::Relaxed)),
        ]
    }

    /// Messages from others.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Tells the listed replicas what this one changed.
#[derive(Debug)]
pub(crate) struct Invalidator {
    replicas: Replicas,
    secret: Secret,
    id: u128,
    http: Client,
    turns: Semaphore,
    counts: Arc<Counts>,
}

impl Invalidator {
    pub(crate) fn new(replicas: Replicas, secret: Secret) -> Result<Self, IdentityError> {
        // Plain HTTP: what is sent is authenticated by itself, and the builder wants to know of a
        // provider all the same.
        let http = Client::builder()
            .tls_backend_preconfigured(client_without_trust()?)
            .no_proxy();
        let http = http
            .build()
            .map_err(|error| IdentityError::Tls(error.to_string()))?;
        let turns = Semaphore::new(MAX_IN_FLIGHT);
        Ok(Self {
            replicas,
            secret,
            id: nonce(),
            http,
            turns,
            counts: Arc::default(),
        })
    }

    pub(crate) const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What tells this process's own messages from the others'.
    pub(crate) const fn id(&self) -> u128 {
        self.id
    }

    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// How many replicas are listed.
    pub(crate) fn listed(&self) -> usize {
        self.replicas.now().len()
    }

    /// Returns when every listed replica has forgotten what `changed` names: it said so, or
    /// `time_to_live`, which counts from now (the swap was before), has passed.
    pub(crate) async fn tell(&self, changed: Vec<Changed>, time_to_live: Duration) {
        let replicas = self.replicas.now();
        if replicas.is_empty() || changed.is_empty() {
            return;
        }
        let expired = Instant::now() + time_to_live;
        let (body, answer) = match self.secret.seal(&Message {
            sender: self.id,
            changed,
        }) {
            Ok((body, answer)) => (Bytes::from(body), answer),
            Err(error) => {
                tracing::error!(%error, "tell replicas");
                return tokio::time::sleep_until(expired).await;
            }
        };
        let told = replicas
            .iter()
            .map(|replica| self.tell_one(*replica, &body, &answer, expired));
        join_all(told).await;
    }

    async fn tell_one(
        &self,
        replica: SocketAddr,
        body: &Bytes,
        answer: &[u8; MAC_LEN],
        expired: Instant,
    ) {
        let answered = async {
            let Ok(_turn) = self.turns.acquire().await else {
                return;
            };
            while let Err(reason) = self.attempt(replica, body, answer).await {
                tracing::debug!(%replica, reason, "tell replica");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        };
        if tokio::time::timeout_at(expired, answered).await.is_ok() {
            self.counts.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.counts.waited_out.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%replica, "a listed replica does not answer; a change waited for its time-to-live");
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
        if is_same(&proof, answer) {
            Ok(())
        } else {
            Err("answered as a stranger".to_owned())
        }
    }
}

//! The listener for messages from the other replicas.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::post;
use flotilla_common::wire::origin::REPLICA_PATH;
use http::StatusCode;
use tokio::time::timeout;

use super::Invalidator;
use super::message::{Answer, Changed, Content, MAX_LEN};

/// For a whole request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the messages of other replicas are about.
#[async_trait]
pub(crate) trait Receiver: Send + Sync + 'static {
    /// Drops a cached value.
    fn invalidate(&self, changed: Changed);

    /// Whether this replica reaches storage now.
    async fn reaches_storage(&self) -> bool;
}

/// A router that passes each message of another replica to `receiver`.
pub(crate) fn router(invalidator: Arc<Invalidator>, receiver: Arc<dyn Receiver>) -> Router {
    let handler = move |body: Body| receive(Arc::clone(&invalidator), Arc::clone(&receiver), body);
    Router::new().route(REPLICA_PATH, post(handler))
}

async fn receive(
    invalidator: Arc<Invalidator>,
    receiver: Arc<dyn Receiver>,
    body: Body,
) -> Result<Vec<u8>, StatusCode> {
    let body = timeout(BODY_TIMEOUT, to_bytes(body, MAX_LEN)).await;
    let body = body
        .map_err(|_| StatusCode::REQUEST_TIMEOUT)?
        .map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    let secret = invalidator.exchange.secret();
    let (message, mac) = secret.open(&body).ok_or(StatusCode::FORBIDDEN)?;
    let process = invalidator.exchange.process();
    let mut reaches_storage = None;
    match message.content {
        // Its own messages: this replica is in its own list.
        Content::Invalidate(_) | Content::Leave if message.sender == process => {}
        Content::Invalidate(changed) => {
            let counts = invalidator.counts();
            counts.received.fetch_add(1, Ordering::Relaxed);
            for changed in changed {
                receiver.invalidate(changed);
            }
        }
        Content::Renew => {
            let now = invalidator.clock.now();
            invalidator.granted().grant(message.sender, now);
        }
        Content::Leave => invalidator.granted().left(message.sender),
        Content::Standing => reaches_storage = Some(receiver.reaches_storage().await),
    }
    let answer = Answer {
        process,
        reaches_storage,
    };
    let sealed = secret.seal_answer(&mac, &answer);
    sealed.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

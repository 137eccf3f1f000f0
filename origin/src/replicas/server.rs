//! The listener for invalidations from the other replicas.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::post;
use flotilla_common::wire::origin::INVALIDATE_PATH;
use http::StatusCode;

use super::Invalidator;
use super::message::{Changed, MAX_LEN};

/// A router that passes each change by another replica to `invalidate`.
pub(crate) fn router(
    invalidator: Arc<Invalidator>,
    invalidate: impl Fn(Changed) + Clone + Send + Sync + 'static,
) -> Router {
    let handler = move |body: Body| receive(Arc::clone(&invalidator), invalidate.clone(), body);
    Router::new().route(INVALIDATE_PATH, post(handler))
}

async fn receive(
    invalidator: Arc<Invalidator>,
    invalidate: impl Fn(Changed),
    body: Body,
) -> Result<Vec<u8>, StatusCode> {
    let body = to_bytes(body, MAX_LEN)
        .await
        .map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    let (message, answer) = invalidator
        .secret()
        .open(&body)
        .ok_or(StatusCode::FORBIDDEN)?;
    if message.sender != invalidator.id() {
        invalidator
            .counts()
            .received
            .fetch_add(1, Ordering::Relaxed);
        message.changed.into_iter().for_each(invalidate);
    }
    Ok(answer.to_vec())
}

//! Being told: a listener of its own, for the other replicas only.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::routing::post;
use flotilla_common::wire::origin::INVALIDATE_PATH;
use http::StatusCode;

use super::message::MAX_LEN;
use crate::http::Api;

/// The service.
pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route(INVALIDATE_PATH, post(told))
        .with_state(api)
}

async fn told(State(api): State<Arc<Api>>, body: Body) -> Result<Vec<u8>, StatusCode> {
    let body = to_bytes(body, MAX_LEN)
        .await
        .map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    let invalidator = api.registry.invalidator();
    let (message, answer) = invalidator
        .secret()
        .open(&body)
        .ok_or(StatusCode::FORBIDDEN)?;
    if message.sender != invalidator.id() {
        invalidator
            .counts()
            .received
            .fetch_add(1, Ordering::Relaxed);
        message
            .changed
            .into_iter()
            .for_each(|changed| api.registry.forget_changed(changed));
    }
    Ok(answer.to_vec())
}

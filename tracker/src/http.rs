//! The tracker's HTTP: two endpoints for peers, and what people and their tools look at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use flotilla_common::codec::{self, CodecError};
use flotilla_common::wire::tracker::{ANNOUNCE_PATH, LEASE_PATH};
use flotilla_runtime::admin::{self, Readiness};
use flotilla_runtime::http::ClientIdentity;
use serde::Deserialize;

use crate::metrics;
use crate::service::Service;
use crate::state::{Refusal, SwarmStatus};

/// Swarms in an answer for people, unless they ask for another number.
const SWARMS_SHOWN: usize = 100;
/// Seconds after which a peer that was turned away may try again.
const RETRY_AFTER_SECS: &str = "30";

pub(crate) fn router(service: Arc<Service>, readiness: Readiness) -> Router {
    let limits = &service.config().limits;
    let announce = post(announce).layer(DefaultBodyLimit::max(limits.announce_bytes as usize));
    let lease = post(lease).layer(DefaultBodyLimit::max(limits.lease_bytes as usize));
    let registry = metrics::registry(Arc::clone(&service));
    Router::new()
        .route(ANNOUNCE_PATH, announce)
        .route(LEASE_PATH, lease)
        .route("/admin/swarms", get(swarms))
        .with_state(service)
        .merge(admin::router(Arc::new(registry), readiness))
}

async fn announce(
    State(service): State<Arc<Service>>,
    Extension(identity): Extension<ClientIdentity>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let began = Instant::now();
    let answer = || -> Result<Response, Reject> {
        let request = codec::decode(&body?)?;
        let answer = service.announce(request, identity.0.as_ref(), client.ip())?;
        Ok(encoded(codec::encode(&answer)))
    };
    let response = answered(&service, "announce", began, answer());
    service
        .metrics()
        .handout_seconds
        .observe(began.elapsed().as_secs_f64());
    response
}

async fn lease(
    State(service): State<Arc<Service>>,
    Extension(identity): Extension<ClientIdentity>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let began = Instant::now();
    let answer = async || -> Result<Response, Reject> {
        let request = codec::decode(&body?)?;
        let answer = service.lease(request, identity.0.as_ref()).await?;
        Ok(encoded(codec::encode(&answer)))
    };
    let answer = answer().await;
    answered(&service, "lease", began, answer)
}

/// The answer, counted.
fn answered(
    service: &Service,
    route: &'static str,
    began: Instant,
    answer: Result<Response, Reject>,
) -> Response {
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    service
        .metrics()
        .requests
        .answered(route, response.status(), began.elapsed());
    response
}

/// How many swarms to show.
#[derive(Debug, Deserialize)]
struct Shown {
    limit: Option<usize>,
}

async fn swarms(
    State(service): State<Arc<Service>>,
    Query(shown): Query<Shown>,
) -> Json<Vec<SwarmStatus>> {
    Json(service.swarms(shown.limit.unwrap_or(SWARMS_SHOWN)))
}

fn encoded(answer: Result<Vec<u8>, CodecError>) -> Response {
    match answer {
        Ok(body) => ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "encode answer");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("encode answer: {error}\n"),
            )
                .into_response()
        }
    }
}

/// Why a peer's request is not served.
#[derive(Debug, thiserror::Error)]
enum Reject {
    #[error("read body: {}", .0.body_text())]
    Body(#[from] BytesRejection),
    #[error("decode body: {0}")]
    Decode(#[from] CodecError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl IntoResponse for Reject {
    fn into_response(self) -> Response {
        let text = format!("{self}\n");
        let status = match self {
            Self::Body(rejection) => rejection.status(),
            Self::Refused(Refusal::OtherIdentity { .. } | Refusal::NoIdentity { .. }) => {
                StatusCode::FORBIDDEN
            }
            Self::Refused(Refusal::TooManyPeers | Refusal::TooManyZones) => {
                let retry_after = [(header::RETRY_AFTER, RETRY_AFTER_SECS)];
                return (StatusCode::SERVICE_UNAVAILABLE, retry_after, text).into_response();
            }
            Self::Decode(_) | Self::Refused(_) => StatusCode::BAD_REQUEST,
        };
        (status, text).into_response()
    }
}

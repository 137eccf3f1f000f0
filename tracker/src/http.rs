//! The tracker's HTTP endpoints: those of peers on the public port, those of operators on another.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bincode::{Decode, Encode};
use flotilla_common::codec::{self, CodecError};
use flotilla_common::name::PeerId;
use flotilla_common::time::Time;
use flotilla_common::wire::tracker::{
    ANNOUNCE_PATH, AnnounceAnswer, AnnounceRequest, LEASE_PATH, LeaseAnswer, LeaseRequest, v1,
};
use flotilla_runtime::admin::{self, Readiness};
use flotilla_runtime::http::ClientIdentity;
use serde::Deserialize;
use tokio::time::timeout;

use crate::metrics;
use crate::service::Service;
use crate::state::{RequestError, SwarmStatus};

/// Swarms in an answer of `/admin/swarms`, unless the query names another number.
const DEFAULT_SWARMS: usize = 100;
/// How long a peer may take to send the body of a request. Until then the request holds one of the
/// tracker's connections.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds after which a peer may try again when the tracker is full.
const RETRY_AFTER_SECS: &str = "30";

/// The endpoints of the public port.
pub(crate) fn public(service: Arc<Service>, readiness: Readiness) -> Router {
    let limits = &service.config().limits;
    let announce_bytes = DefaultBodyLimit::max(limits.announce_bytes as usize);
    let announce_v1 = post(announce::<v1::AnnounceRequest, v1::AnnounceAnswer>);
    let announce_v1 = announce_v1.layer(announce_bytes);
    let announce = post(announce::<AnnounceRequest, AnnounceAnswer>).layer(announce_bytes);
    let lease_bytes = DefaultBodyLimit::max(limits.lease_bytes as usize);
    let lease_v1 = post(lease::<v1::LeaseRequest, v1::LeaseAnswer>).layer(lease_bytes);
    let lease = post(lease::<LeaseRequest, LeaseAnswer>).layer(lease_bytes);
    Router::new()
        .route(ANNOUNCE_PATH, announce)
        .route(v1::ANNOUNCE_PATH, announce_v1)
        .route(LEASE_PATH, lease)
        .route(v1::LEASE_PATH, lease_v1)
        .with_state(service)
        .merge(admin::health(readiness))
}

/// The endpoints for operators.
pub(crate) fn operators(service: Arc<Service>) -> Router {
    let state = Arc::clone(&service);
    let read = move || state.figures();
    let registry = metrics::registry(
        Arc::clone(service.metrics()),
        service.identity().cloned(),
        read,
    );
    Router::new()
        .route("/admin/swarms", get(swarms))
        .with_state(service)
        .merge(admin::metrics(Arc::new(registry)))
}

/// An announce in the version of `Q`, answered in that of `A`.
async fn announce<Q, A>(
    State(service): State<Arc<Service>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    PeerRequest(request): PeerRequest,
) -> Response
where
    Q: Decode<()> + Into<AnnounceRequest>,
    A: Encode + From<AnnounceAnswer>,
{
    let started = service.clock().now();
    let answer = || -> Result<Response, RejectedRequest> {
        let (peer, body) = request?;
        let request: Q = codec::decode(&body)?;
        let answer = service.announce(request.into(), peer.as_ref(), client.ip())?;
        Ok(encoded(codec::encode(&A::from(answer))))
    };
    let response = answered(&service, "announce", started, answer());
    service
        .metrics()
        .handout_seconds
        .observe(elapsed(&service, started).as_secs_f64());
    response
}

/// A request about leases in the version of `Q`, answered in that of `A`.
async fn lease<Q, A>(
    State(service): State<Arc<Service>>,
    PeerRequest(request): PeerRequest,
) -> Response
where
    Q: Decode<()> + Into<LeaseRequest>,
    A: Encode + From<LeaseAnswer>,
{
    let started = service.clock().now();
    let answer = async || -> Result<Response, RejectedRequest> {
        let (peer, body) = request?;
        let request: Q = codec::decode(&body)?;
        let answer = service.lease(request.into(), peer.as_ref()).await?;
        Ok(encoded(codec::encode(&A::from(answer))))
    };
    let answer = answer().await;
    answered(&service, "lease", started, answer)
}

/// Counts the answer.
fn answered(
    service: &Service,
    route: &'static str,
    started: Time,
    answer: Result<Response, RejectedRequest>,
) -> Response {
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    service
        .metrics()
        .requests
        .count_response(route, response.status(), elapsed(service, started));
    response
}

fn elapsed(service: &Service, started: Time) -> Duration {
    service.clock().now().saturating_since(started)
}

/// A request of a peer: the id in its certificate, if the tracker has TLS, and the body. Or why it
/// is rejected: without a certificate before its body is read.
struct PeerRequest(Result<(Option<PeerId>, Bytes), RejectedRequest>);

impl FromRequest<Arc<Service>> for PeerRequest {
    type Rejection = Infallible;

    async fn from_request(request: Request, service: &Arc<Service>) -> Result<Self, Infallible> {
        let identity = request.extensions().get::<ClientIdentity>();
        let peer = identity.and_then(ClientIdentity::peer).cloned();
        if peer.is_none() && service.identity().is_some() {
            return Ok(Self(Err(RejectedRequest::NoCertificate)));
        }
        let body = timeout(BODY_TIMEOUT, Bytes::from_request(request, service)).await;
        let body = body.map_err(|_| RejectedRequest::BodyTimeout);
        Ok(Self(body.and_then(|body| Ok((peer, body?)))))
    }
}

/// The query of `/admin/swarms`.
#[derive(Debug, Deserialize)]
struct SwarmsQuery {
    limit: Option<usize>,
}

async fn swarms(
    State(service): State<Arc<Service>>,
    Query(query): Query<SwarmsQuery>,
) -> Json<Vec<SwarmStatus>> {
    Json(service.swarms(query.limit.unwrap_or(DEFAULT_SWARMS)))
}

fn encoded(answer: Result<Vec<u8>, CodecError>) -> Response {
    match answer {
        Ok(body) => ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "encoding the response failed; returning 500");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("encode answer: {error}\n"),
            )
                .into_response()
        }
    }
}

/// Why a peer's request is rejected.
#[derive(Debug, thiserror::Error)]
enum RejectedRequest {
    #[error(
        "this tracker requires a client certificate of a peer; set tls-cert and tls-key to those \
         that `flotilla pki issue --peer ID` created"
    )]
    NoCertificate,
    #[error("read request body: {}", .0.body_text())]
    Body(#[from] BytesRejection),
    #[error("read request body: not complete after {} s; send it at once", BODY_TIMEOUT.as_secs())]
    BodyTimeout,
    #[error("decode request body: {0}")]
    Decode(#[from] CodecError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl IntoResponse for RejectedRequest {
    fn into_response(self) -> Response {
        let text = format!("{self}\n");
        let status = match self {
            Self::Body(rejection) => rejection.status(),
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NoCertificate
            | Self::Request(RequestError::OtherIdentity { .. } | RequestError::Address { .. }) => {
                StatusCode::FORBIDDEN
            }
            Self::Request(RequestError::TooManyPeers | RequestError::TooManyZones) => {
                let retry_after = [(header::RETRY_AFTER, RETRY_AFTER_SECS)];
                return (StatusCode::SERVICE_UNAVAILABLE, retry_after, text).into_response();
            }
            Self::Decode(_) | Self::Request(_) => StatusCode::BAD_REQUEST,
        };
        (status, text).into_response()
    }
}

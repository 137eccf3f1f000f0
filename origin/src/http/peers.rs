//! Endpoints for peers and operators beside the OCI interface.

use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::hex;
use flotilla_common::wire::origin::ClosureRequest;
use flotilla_runtime::http::ClientIdentity;
use http::Response;
use serde_json::json;
use tokio::time::timeout;

use super::error::{ApiError, Code};
use super::request_body::whole_body;
use super::{Api, HandlerResult, all_regions, json, text, typed};

/// Maximum bytes of a closure request: a name and a digest.
const MAX_REQUEST_LEN: usize = 1024;

/// `POST /flotilla/v1/closure`: seals and tables of all blobs of a manifest, and a grant for the
/// peer that the client's certificate names.
pub(super) async fn closure(
    api: &Arc<Api>,
    client: Option<&ClientIdentity>,
    body: Body,
) -> HandlerResult {
    let bytes = read_request(api, body).await?;
    closure_of(api, client, &decode_request(&bytes)?).await
}

/// Reads the body of a closure request.
pub(super) async fn read_request(api: &Arc<Api>, body: Body) -> Result<Bytes, ApiError> {
    whole_body(api, body, MAX_REQUEST_LEN).await
}

pub(super) fn decode_request(bytes: &[u8]) -> Result<ClosureRequest, ApiError> {
    codec::decode(bytes).map_err(|error| ApiError::new(Code::RequestInvalid, error))
}

/// The answer to a closure request, from this region.
pub(super) async fn closure_of(
    api: &Arc<Api>,
    client: Option<&ClientIdentity>,
    request: &ClosureRequest,
) -> HandlerResult {
    let peer = client.and_then(ClientIdentity::peer);
    let answer = api
        .registry
        .closure(&request.repository, &request.manifest, peer)
        .await?;
    Ok(typed("application/octet-stream", Body::from(answer)))
}

/// `GET /flotilla/v1/keys`: the public seal keys, for the set-up of a fleet. Peers trust only
/// configured keys.
pub(super) fn keys(api: &Arc<Api>) -> Response<Body> {
    let key = api.registry.seal_key();
    let entry = json!({
        "issuer": key.issuer(),
        "key_id": key.key_id().to_string(),
        "public_key": hex::encode(&key.public()),
    });
    json(json!({"keys": [entry]}).to_string())
}

/// How long storage may take to answer, where another region can serve instead.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// For asking the other replicas whether they reach storage.
const SIBLINGS_TIMEOUT: Duration = Duration::from_secs(1);

/// `GET /readyz`: 200 if the storage can be used and this replica is not draining.
pub(super) async fn ready(api: &Arc<Api>) -> HandlerResult {
    api.readiness
        .check()
        .map_err(|reason| ApiError::new(Code::Unavailable, reason))?;
    let regional = all_regions(api);
    let health = api.storage_health.check(|| api.registry.probe_storage());
    let probed = match regional {
        // Another region may serve, and peers that ask wait a second at most.
        Some(_) => timeout(PROBE_TIMEOUT, health)
            .await
            .unwrap_or_else(|_| Err(format!("storage does not answer within {PROBE_TIMEOUT:?}"))),
        None => health.await,
    };
    let Err(reason) = probed else {
        return Ok(text("ready\n"));
    };
    if let Some(regional) = regional {
        regional.own_failed(reason.clone());
    }
    let reached = api.registry.any_sibling_reaches_storage(SIBLINGS_TIMEOUT);
    let elsewhere = match reached.await {
        // This replica alone is cut off: another one of the region serves its clients better.
        Some(true) => "; another replica reaches it, or may do so",
        sibling => {
            // Requests are served by another region: a balancer that turns away helps no client.
            if let Some(regional) = regional
                && let Some(region) = regional.serving_region().await
            {
                return Ok(text(format!(
                    "degraded: storage is unavailable: {reason}; region {region} serves\n"
                )));
            }
            sibling.map_or("", |_| "; no other replica reaches it")
        }
    };
    Err(ApiError::new(
        Code::Unavailable,
        format_args!("storage is unavailable: {reason}{elsewhere}"),
    ))
}

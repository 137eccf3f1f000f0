//! Short request bodies, which are read as a whole.

use axum::body::Body;
use bytes::{Bytes, BytesMut};

use super::Api;
use super::error::{ApiError, Code};
use crate::registry::RegistryError;
use crate::stall_budget::BudgetExhausted;

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 400 for a longer or broken body, 408 for a client that stalls.
pub(super) async fn whole_body(api: &Api, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    let mut body = body.into_data_stream();
    let mut budget = api.registry.stall_budget();
    loop {
        let piece = budget.next(&mut body).await;
        let Some(piece) = piece.map_err(|BudgetExhausted| RegistryError::Stalled)? else {
            return Ok(bytes.freeze());
        };
        let piece = piece.map_err(|error| ApiError::new(Code::RequestInvalid, error))?;
        if bytes.len() + piece.len() > limit {
            let message = format_args!("the request is longer than {limit} bytes");
            return Err(ApiError::new(Code::RequestInvalid, message));
        }
        bytes.extend_from_slice(&piece);
    }
}

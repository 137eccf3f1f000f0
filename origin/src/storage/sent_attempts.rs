//! Whether one of the HTTP requests of a conditional write may have applied unnoticed.
//!
//! The client library repeats a request after a server error and does not say so. A conflict that
//! follows may be with the caller's own write. A [`SentAttempts`] travels with the request through
//! the library, and [`Transport`](super::transport) notes every attempt in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use object_store::client::{HttpError, HttpErrorKind, HttpResponse};

/// The attempts of one conditional write; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct SentAttempts(Arc<Attempts>);

#[derive(Debug, Default)]
struct Attempts {
    observed: AtomicU32,
    unknown: AtomicBool,
}

impl SentAttempts {
    /// Notes the outcome of an attempt.
    pub(super) fn note(&self, outcome: &Result<HttpResponse, HttpError>) {
        let is_known = match outcome {
            Ok(response) => !response.status().is_server_error(),
            Err(error) => error.kind() == HttpErrorKind::Connect,
        };
        self.0.observed.fetch_add(1, Ordering::Relaxed);
        if !is_known {
            self.0.unknown.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a write whose last attempt was refused may have applied by an earlier one. Yes if no
    /// attempt was observed: then another HTTP client sent it.
    pub(super) fn may_have_applied(&self) -> bool {
        self.0.unknown.load(Ordering::Relaxed) || self.0.observed.load(Ordering::Relaxed) == 0
    }
}

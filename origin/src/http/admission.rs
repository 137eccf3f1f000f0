//! What the origin takes on at once. What is more is refused at once and cheaply, with the time
//! after which to come again, so that what was taken on is finished.
//!
//! | limit | refused with |
//! |---|---|
//! | connections | 503 on a reserve of connections that end after their answer |
//! | requests, from their head to the last byte of their answer | 429 TOOMANYREQUESTS |
//! | uploads whose bytes are received or wait for their turn | 429 TOOMANYREQUESTS |
//! | bytes of manifests that are received | 429 TOOMANYREQUESTS |
//!
//! What operators ask for (health, metrics) is always answered.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ApiError, Code};
use crate::config::Limits;

/// Memory for manifests that are being received: 16 of the largest.
const MANIFEST_BYTES: usize = 64 << 20;

/// What may be too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Connections,
    Requests,
    Uploads,
    Manifests,
}

impl Reason {
    const ALL: [Self; 4] = [
        Self::Connections,
        Self::Requests,
        Self::Uploads,
        Self::Manifests,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Uploads => "uploads",
            Self::Manifests => "manifests",
        }
    }
}

/// A number of things at once, with a bound.
#[derive(Debug)]
struct Gate {
    bound: usize,
    free: Arc<Semaphore>,
}

/// A place among them, or several; free again when it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

impl Gate {
    fn new(bound: usize) -> Self {
        let bound = bound.min(Semaphore::MAX_PERMITS);
        Self {
            bound,
            free: Arc::new(Semaphore::new(bound)),
        }
    }

    fn places(&self, number: usize) -> Option<Place> {
        Arc::clone(&self.free)
            .try_acquire_many_owned(u32::try_from(number).ok()?)
            .ok()
    }

    fn taken(&self) -> u64 {
        (self.bound - self.free.available_permits()) as u64
    }
}

/// The bounds of one origin, and how often each was reached.
#[derive(Debug)]
pub(crate) struct Admission {
    requests: Gate,
    uploads: Gate,
    /// Bytes of manifests.
    manifests: Gate,
    shed: [AtomicU64; Reason::ALL.len()],
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            requests: Gate::new(limits.requests),
            uploads: Gate::new(limits.uploads),
            manifests: Gate::new(MANIFEST_BYTES),
            shed: Default::default(),
        }
    }

    /// A request's place, until its answer's last byte.
    pub(super) fn request(&self) -> Result<Place, ApiError> {
        self.requests
            .places(1)
            .ok_or_else(|| self.refuse(Reason::Requests))
    }

    /// The place of an upload whose bytes come now.
    pub(super) fn upload(&self) -> Result<Place, ApiError> {
        self.uploads
            .places(1)
            .ok_or_else(|| self.refuse(Reason::Uploads))
    }

    /// Memory for the next bytes of a manifest.
    pub(super) fn manifest(&self, len: usize) -> Result<Place, ApiError> {
        self.manifests
            .places(len)
            .ok_or_else(|| self.refuse(Reason::Manifests))
    }

    /// Counts, and says to the client, that this is too much.
    pub(super) fn refuse(&self, reason: Reason) -> ApiError {
        self.shed[reason as usize].fetch_add(1, Ordering::Relaxed);
        let message = format_args!(
            "too many {} at once; repeat the request later",
            reason.label()
        );
        match reason {
            Reason::Connections => ApiError::new(Code::Unavailable, message),
            _ => ApiError::new(Code::TooMany, message),
        }
    }

    /// How often what was refused.
    pub(crate) fn shed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.into_iter().map(|reason| {
            (
                reason.label(),
                self.shed[reason as usize].load(Ordering::Relaxed),
            )
        })
    }

    /// Requests that are under way.
    pub(crate) fn requests_under_way(&self) -> u64 {
        self.requests.taken()
    }

    /// Uploads whose bytes are received, or wait for their turn.
    pub(crate) fn uploads_under_way(&self) -> u64 {
        self.uploads.taken()
    }
}

//! Admission control: how much work the origin accepts at once. Work beyond a limit is refused
//! immediately, before it costs anything, so that accepted work is completed.
//!
//! | limit | answer beyond it |
//! |---|---|
//! | connections | 503 on one of a few reserve connections, which close after their answer |
//! | requests, from their head to the last byte of their answer | 429 TOOMANYREQUESTS |
//! | requests of other regions' origins: half of those | 429 TOOMANYREQUESTS |
//! | uploads that receive bytes or wait for a buffer | 429 TOOMANYREQUESTS |
//! | bytes of manifests being received | 429 TOOMANYREQUESTS |
//!
//! Refusals carry Retry-After. Health and metrics endpoints are exempt.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// Memory for manifests being received, in bytes: 16 of the largest.
const MANIFEST_BYTES: usize = 64 << 20;

/// The limit that a request exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overload {
    Connections,
    Requests,
    RegionRequests,
    Uploads,
    Manifests,
}

impl Overload {
    const ALL: [Self; 5] = [
        Self::Connections,
        Self::Requests,
        Self::RegionRequests,
        Self::Uploads,
        Self::Manifests,
    ];

    /// For messages and as a metric label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::RegionRequests => "region_requests",
            Self::Uploads => "uploads",
            Self::Manifests => "manifests",
        }
    }
}

/// A semaphore that knows its size.
#[derive(Debug)]
struct Gate {
    size: usize,
    semaphore: Arc<Semaphore>,
}

/// One or more units of a limit, released on drop.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Gate {
    fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        Self {
            size,
            semaphore: Arc::new(Semaphore::new(size)),
        }
    }

    fn try_acquire(&self, units: usize) -> Option<Permit> {
        Arc::clone(&self.semaphore)
            .try_acquire_many_owned(u32::try_from(units).ok()?)
            .ok()
    }

    fn in_use(&self) -> u64 {
        (self.size - self.semaphore.available_permits()) as u64
    }
}

/// The limits of one origin, and how often each was exceeded.
#[derive(Debug)]
pub(crate) struct Admission {
    requests: Gate,
    /// Those of other regions' origins, which are also counted by `requests`.
    region_requests: Gate,
    uploads: Gate,
    /// In bytes.
    manifests: Gate,
    refused: [AtomicU64; Overload::ALL.len()],
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            requests: Gate::new(limits.requests),
            region_requests: Gate::new(limits.requests / 2),
            uploads: Gate::new(limits.uploads),
            manifests: Gate::new(MANIFEST_BYTES),
            refused: Default::default(),
        }
    }

    /// Admits a request. The permit is held until the last byte of its answer.
    ///
    /// # Errors
    /// [`Overload::Requests`].
    pub(crate) fn admit_request(&self) -> Result<Permit, Overload> {
        self.requests
            .try_acquire(1)
            .ok_or_else(|| self.refuse(Overload::Requests))
    }

    /// Admits a request of another region's origin, besides its permit of
    /// [`admit_request`](Self::admit_request): however much other regions ask, half of the requests
    /// remain for this region's clients.
    ///
    /// # Errors
    /// [`Overload::RegionRequests`].
    pub(crate) fn admit_region_request(&self) -> Result<Permit, Overload> {
        self.region_requests
            .try_acquire(1)
            .ok_or_else(|| self.refuse(Overload::RegionRequests))
    }

    /// Admits an upload that is about to receive bytes.
    ///
    /// # Errors
    /// [`Overload::Uploads`].
    pub(crate) fn admit_upload(&self) -> Result<Permit, Overload> {
        self.uploads
            .try_acquire(1)
            .ok_or_else(|| self.refuse(Overload::Uploads))
    }

    /// Admits the next `len` bytes of a manifest.
    ///
    /// # Errors
    /// [`Overload::Manifests`].
    pub(crate) fn admit_manifest_bytes(&self, len: usize) -> Result<Permit, Overload> {
        self.manifests
            .try_acquire(len)
            .ok_or_else(|| self.refuse(Overload::Manifests))
    }

    /// Counts a refusal, and returns its reason.
    pub(crate) fn refuse(&self, overload: Overload) -> Overload {
        self.refused[overload as usize].fetch_add(1, Ordering::Relaxed);
        overload
    }

    /// Refusals by reason.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Overload::ALL.into_iter().map(|overload| {
            (
                overload.label(),
                self.refused[overload as usize].load(Ordering::Relaxed),
            )
        })
    }

    /// Requests that are not answered to their last byte.
    pub(crate) fn requests_in_flight(&self) -> u64 {
        self.requests.in_use()
    }

    /// Uploads that receive bytes or wait for a buffer.
    pub(crate) fn uploads_in_flight(&self) -> u64 {
        self.uploads.in_use()
    }
}

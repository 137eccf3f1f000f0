//! Admission control: how much work the origin accepts at once. Work beyond a limit is refused
//! immediately, before it costs anything, so that accepted work is completed.
//!
//! | limit | answer beyond it |
//! |---|---|
//! | connections | 503 on one of a few reserve connections, which close after their answer |
//! | requests, from their head to the last byte of their answer | 429 TOOMANYREQUESTS |
//! | requests of other regions' origins: a share of those | 429 TOOMANYREQUESTS |
//! | questions by which other regions' origins find out what they are owed | 429 TOOMANYREQUESTS |
//! | uploads that receive bytes or wait for a buffer | 429 TOOMANYREQUESTS |
//! | uploads that other regions' origins forward: a share of those | 429 TOOMANYREQUESTS |
//! | bytes of manifests being received | 429 TOOMANYREQUESTS |
//!
//! Refusals carry Retry-After. Health and metrics endpoints are exempt.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// Memory for manifests being received, in bytes: 16 of the largest.
const MANIFEST_BYTES: usize = 64 << 20;
/// Concurrent questions of other regions' origins for this region's state and journal. They do not
/// compete with the pulls of another region's clients: a region that gets no answer to them takes
/// this one for out.
const REGION_QUESTIONS: usize = 64;

/// The limit that a request exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overload {
    Connections,
    Requests,
    RegionRequests,
    RegionQuestions,
    Uploads,
    RegionUploads,
    Manifests,
}

impl Overload {
    const ALL: [Self; 7] = [
        Self::Connections,
        Self::Requests,
        Self::RegionRequests,
        Self::RegionQuestions,
        Self::Uploads,
        Self::RegionUploads,
        Self::Manifests,
    ];

    /// For messages and as a metric label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::RegionRequests => "region_requests",
            Self::RegionQuestions => "region_questions",
            Self::Uploads => "uploads",
            Self::RegionUploads => "region_uploads",
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

/// The permits of an upload, released on drop.
#[derive(Debug)]
pub(crate) struct UploadPermit {
    _upload: Permit,
    _of_region: Option<Permit>,
}

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
    region_questions: Gate,
    uploads: Gate,
    /// Those of other regions' origins, which are also counted by `uploads`.
    region_uploads: Gate,
    /// In bytes.
    manifests: Gate,
    refused: [AtomicU64; Overload::ALL.len()],
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            requests: Gate::new(limits.requests),
            region_requests: Gate::new(limits.share_of_regions(limits.requests)),
            region_questions: Gate::new(REGION_QUESTIONS),
            uploads: Gate::new(limits.uploads),
            region_uploads: Gate::new(limits.share_of_regions(limits.uploads)),
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
    /// [`admit_request`](Self::admit_request): however much other regions ask, the rest of the
    /// requests remains for this region's clients.
    ///
    /// # Errors
    /// [`Overload::RegionRequests`].
    pub(crate) fn admit_region_request(&self) -> Result<Permit, Overload> {
        self.region_requests
            .try_acquire(1)
            .ok_or_else(|| self.refuse(Overload::RegionRequests))
    }

    /// Admits a question of another region's origin for this region's state or journal. It needs no
    /// other permit.
    ///
    /// # Errors
    /// [`Overload::RegionQuestions`].
    pub(crate) fn admit_region_question(&self) -> Result<Permit, Overload> {
        self.region_questions
            .try_acquire(1)
            .ok_or_else(|| self.refuse(Overload::RegionQuestions))
    }

    /// Admits an upload that is about to receive bytes. Those that another region's origin forwards
    /// get their share at most.
    ///
    /// # Errors
    /// [`Overload::Uploads`], [`Overload::RegionUploads`].
    pub(crate) fn admit_upload(&self, is_from_region: bool) -> Result<UploadPermit, Overload> {
        let of_region = is_from_region.then(|| {
            self.region_uploads
                .try_acquire(1)
                .ok_or_else(|| self.refuse(Overload::RegionUploads))
        });
        let of_region = of_region.transpose()?;
        let upload = self
            .uploads
            .try_acquire(1)
            .ok_or_else(|| self.refuse(Overload::Uploads))?;
        Ok(UploadPermit {
            _upload: upload,
            _of_region: of_region,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(region_share: u8) -> Admission {
        Admission::new(&Limits {
            requests: 10,
            uploads: 4,
            region_share,
            ..Limits::default()
        })
    }

    #[test]
    fn other_regions_get_their_share_and_own_clients_the_rest() {
        for (share, requests, uploads) in [(1, 1, 1), (30, 3, 1), (50, 5, 2), (100, 10, 4)] {
            let admission = admission(share);
            let held: Vec<_> = (0..requests)
                .map(|_| admission.admit_region_request().expect("a request"))
                .collect();
            let refused = admission.admit_region_request().expect_err("too many");
            assert_eq!(refused, Overload::RegionRequests, "{share}");
            let held_uploads: Vec<_> = (0..uploads)
                .map(|_| admission.admit_upload(true).expect("an upload"))
                .collect();
            let refused = admission.admit_upload(true).expect_err("too many");
            assert_eq!(refused, Overload::RegionUploads, "{share}");
            for _ in uploads..4 {
                drop(admission.admit_upload(false).expect("the rest"));
            }
            drop((held, held_uploads));
            drop(admission.admit_region_request().expect("room again"));
            drop(admission.admit_upload(true).expect("room again"));
        }
    }

    #[test]
    fn questions_do_not_compete_with_pulls() {
        let admission = admission(50);
        let pulls: Vec<_> = (0..10).map(|_| admission.admit_request()).collect();
        assert!(admission.admit_request().is_err());
        let questions: Vec<_> = (0..REGION_QUESTIONS)
            .map(|_| admission.admit_region_question())
            .collect();
        assert!(questions.iter().all(Result::is_ok));
        assert!(admission.admit_region_question().is_err());
        drop(pulls);
    }
}

//! The peer's counters, for status and metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_common::digest::Digest;

/// A snapshot of a peer's counters. Bytes are payload bytes of blobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Stats {
    /// Received from neighbours and verified.
    pub bytes_from_peers: u64,
    /// Received from origins: verified chunks and passed-through bytes.
    pub bytes_from_origin: u64,
    /// Of the bytes from origins, those passed through to the runtime without being stored.
    pub bytes_passed_through: u64,
    /// Found in the store when a pull began.
    pub bytes_from_store: u64,
    /// Sent to neighbours.
    pub bytes_to_peers: u64,
    /// Sent to the container runtime.
    pub bytes_to_runtime: u64,
    /// Received chunks that failed verification. They were discarded.
    pub corrupt_chunks: u64,
    /// Neighbours quarantined because they sent corrupt chunks.
    pub quarantined_peers: u64,
    /// Blobs quarantined because an origin's seals contradict each other or the bytes.
    pub quarantined_blobs: u64,
    /// Requests of neighbours refused because all upload slots were taken.
    pub refused_busy: u64,
    /// Tags answered from the last known manifest because no origin was available.
    pub stale_tags: u64,
    /// Requests of neighbours refused because they presented no valid grant.
    pub refused_not_permitted: u64,
    /// Connected neighbours now.
    pub neighbours: u64,
    /// The total size of the blobs in the store.
    pub store_bytes: u64,
    /// When the certificate in use expires, in seconds since 1970.
    pub certificate_ends_unix_s: u64,
    /// Every blob in the store.
    pub blobs: Vec<BlobProgress>,
}

/// The progress of one blob.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BlobProgress {
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size, in bytes.
    pub size: u64,
    /// Bytes of the chunks held.
    pub held: u64,
    /// Whether all chunks are held and the whole blob was checked against its digest.
    pub is_complete: bool,
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) from_peers: Counter,
    pub(crate) from_same_zone: Counter,
    pub(crate) from_other_zones: Counter,
    pub(crate) from_origin: Counter,
    pub(crate) origin_leased: Counter,
    pub(crate) origin_unleased: Counter,
    pub(crate) passed_through: Counter,
    pub(crate) from_store: Counter,
    pub(crate) to_peers: Counter,
    pub(crate) to_runtime: Counter,
    pub(crate) corrupt_chunks: Counter,
    pub(crate) quarantined_peers: Counter,
    pub(crate) quarantined_blobs: Counter,
    pub(crate) refused_busy: Counter,
    pub(crate) stale_tags: Counter,
    pub(crate) refused_not_permitted: Counter,
    pub(crate) neighbours: Counter,
    pub(crate) leases: Counter,
}

/// An atomic counter or gauge.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// The counters, without the store.
    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            bytes_from_peers: self.from_peers.value(),
            bytes_from_origin: self.from_origin.value(),
            bytes_passed_through: self.passed_through.value(),
            bytes_from_store: self.from_store.value(),
            bytes_to_peers: self.to_peers.value(),
            bytes_to_runtime: self.to_runtime.value(),
            corrupt_chunks: self.corrupt_chunks.value(),
            quarantined_peers: self.quarantined_peers.value(),
            quarantined_blobs: self.quarantined_blobs.value(),
            refused_busy: self.refused_busy.value(),
            stale_tags: self.stale_tags.value(),
            refused_not_permitted: self.refused_not_permitted.value(),
            neighbours: self.neighbours.value(),
            ..Stats::default()
        }
    }
}

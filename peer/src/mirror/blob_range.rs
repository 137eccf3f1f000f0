//! The bytes of a blob that a response carries.

use core::ops::Range;

use flotilla_common::digest::Digest;
use flotilla_runtime::http::range::RequestedRange;

/// A range of a blob.
#[derive(Debug, Clone)]
pub(super) struct BlobRange {
    pub(super) digest: Digest,
    pub(super) range: Range<u64>,
    /// The size of the whole blob, in bytes.
    pub(super) size: u64,
    /// Whether the response has status 206, which it also has for a range that covers the blob.
    pub(super) is_partial: bool,
}

impl BlobRange {
    /// The range that a `Range` header selects from a blob of `size` bytes; `None` if it is not
    /// satisfiable.
    pub(super) fn requested(digest: Digest, header: Option<&str>, size: u64) -> Option<Self> {
        let (range, is_partial) = match RequestedRange::parse(header, size) {
            RequestedRange::Whole => (0..size, false),
            RequestedRange::Part(range) => (range, true),
            RequestedRange::Unsatisfiable => return None,
        };
        Some(Self {
            digest,
            range,
            size,
            is_partial,
        })
    }
}

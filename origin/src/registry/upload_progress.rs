//! The progress of an upload, as a client sees it.

use crate::upload::id::Generation;

/// What a Location says of its upload, so that any replica finds its last log entry with one read.
/// It may be outdated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LocationHint {
    /// The offset of the last log entry; `None` if there was none.
    pub(crate) last_entry: Option<u64>,
}

/// The progress of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UploadProgress {
    pub(crate) upload: Generation,
    /// Bytes received.
    pub(crate) end: u64,
    /// For the Location.
    pub(crate) hint: LocationHint,
}

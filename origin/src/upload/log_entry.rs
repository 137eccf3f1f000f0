//! The entries of an upload log, `upload/<id>/<offset>`. They are create-only: the request that
//! creates the key owns the offset.

use bincode::{Decode, Encode};
use flotilla_common::seal::BlobFacts;

use super::hash::Midstates;
use crate::record::{BlobRecord, RecordState, Segment, TableLocation};

/// The effect of an entry at its offset.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum EntryKind {
    /// The bytes from the offset to `end` arrived.
    Data {
        /// The hash states after all bytes before `end`.
        midstates: Midstates,
    },
    /// The upload is finished as this blob. The entry has everything that the blob's record has, so
    /// that every attempt to finish writes the same record.
    Finish {
        /// They include the digest: the first finish fixes it.
        facts: BlobFacts,
        table: TableLocation,
    },
    /// The upload is cancelled; no entry follows.
    Cancel,
}

/// An entry of an upload log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogEntry {
    pub(crate) kind: EntryKind,
    /// Bytes of the upload after this entry.
    pub(crate) end: u64,
    /// Number of entries before this one.
    pub(crate) index: u32,
    /// The offset of the base entry, which lists the segments before `segments`; `None` if
    /// `segments` has all.
    pub(crate) base: Option<u64>,
    /// The segments after those of the base entry, up to `end`.
    pub(crate) segments: Vec<Segment>,
    pub(crate) nonce: u128,
}

impl LogEntry {
    /// The record of the blob that a finish entry fixes; `None` for any other entry.
    pub(crate) fn record(&self, nonce: u128) -> Option<BlobRecord> {
        let EntryKind::Finish { facts, table } = &self.kind else {
            return None;
        };
        Some(BlobRecord {
            state: RecordState::Live,
            facts: facts.clone(),
            segments: self.segments.clone(),
            table: table.clone(),
            nonce,
        })
    }
}

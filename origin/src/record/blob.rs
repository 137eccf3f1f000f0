//! A blob's record, and a repository's claim to a blob.

use bincode::{Decode, Encode};
use flotilla_common::seal::BlobFacts;
use flotilla_common::tree::ChunkTable;

use super::State;
use crate::upload::id::Generation;

/// Values of a table that its record holds itself; a longer one is an object of its own.
pub(crate) const EMBEDDED_VALUES: usize = 1024;

/// One data object of a blob: `seg/<generation>/<nonce>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Segment {
    pub(crate) nonce: u128,
    /// Bytes.
    pub(crate) size: u64,
}

/// Where a blob's chunk table is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum TableAt {
    /// The blob is one chunk or less.
    Nowhere,
    /// In the record.
    Here(ChunkTable),
    /// In `seg/<generation>/<nonce>`.
    Object { nonce: u128 },
}

/// `blob/<digest>/<generation>`: what the blob's bytes are and where.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BlobRecord {
    pub(crate) state: State,
    pub(crate) facts: BlobFacts,
    /// In the order of the blob's bytes.
    pub(crate) segments: Vec<Segment>,
    pub(crate) table: TableAt,
    pub(crate) nonce: u128,
}

/// `rb/<name>/_/<digest>`: the repository has the blob. Its generation is the hint that saves a
/// listing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MembershipRecord {
    pub(crate) state: State,
    pub(crate) generation: Generation,
    pub(crate) nonce: u128,
}

//! The record of a blob, and the membership of a blob in a repository.

use bincode::{Decode, Encode};
use flotilla_common::hash_tree::ChunkTable;
use flotilla_common::seal::BlobFacts;

use super::RecordState;
use crate::upload::id::Generation;

/// Chaining values up to which a chunk table is embedded in its record; a longer one is an object
/// of its own.
pub(crate) const EMBEDDED_VALUES: usize = 1024;

/// One data object of a blob: `seg/<generation>/<nonce>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Segment {
    pub(crate) nonce: u128,
    /// In bytes.
    pub(crate) size: u64,
}

/// Where the chunk table of a blob is stored.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum TableLocation {
    /// The blob needs none: it is one chunk or less.
    None,
    /// In the record.
    Embedded(ChunkTable),
    /// In `seg/<generation>/<nonce>`.
    Object { nonce: u128 },
}

/// `blob/<digest>/<generation>`: identifies the bytes of a blob and says where they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BlobRecord {
    pub(crate) state: RecordState,
    pub(crate) facts: BlobFacts,
    /// In the order of the bytes of the blob.
    pub(crate) segments: Vec<Segment>,
    pub(crate) table: TableLocation,
    pub(crate) nonce: u128,
}

/// `rb/<name>/_/<digest>`: the repository has the blob. The generation saves a listing of the
/// digest's generations.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MembershipRecord {
    pub(crate) state: RecordState,
    pub(crate) generation: Generation,
    pub(crate) nonce: u128,
}

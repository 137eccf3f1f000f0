//! The links of an upload's chain, `upload/<id>/<offset>`: create-only, so who creates the key owns
//! the offset.

use bincode::{Decode, Encode};
use flotilla_common::seal::BlobFacts;

use super::hash::Midstates;
use crate::record::{BlobRecord, Segment, State, TableAt};

/// What a link does at its offset.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Act {
    /// The bytes from the offset to `end` arrived.
    Data {
        /// The hashes of all bytes before `end`.
        midstates: Midstates,
    },
    /// The upload is this blob. Carries all that its record says, so that every attempt writes the
    /// same.
    Finish {
        /// The digest is among them: the first finish fixes it.
        facts: BlobFacts,
        /// The chunk table.
        table: TableAt,
    },
    /// Nothing more will come.
    Cancel,
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Link {
    pub(crate) act: Act,
    /// Bytes of the upload after this link.
    pub(crate) end: u64,
    /// How many links came before.
    pub(crate) index: u32,
    /// The offset of the link that lists the segments before `segments`; none if these are all.
    pub(crate) base: Option<u64>,
    /// Segments after those of `base`, up to `end`.
    pub(crate) segments: Vec<Segment>,
    pub(crate) nonce: u128,
}

impl Link {
    /// The record of the blob that a finish link fixes; `None` for any other link.
    pub(crate) fn record(&self, nonce: u128) -> Option<BlobRecord> {
        let Act::Finish { facts, table } = &self.act else {
            return None;
        };
        Some(BlobRecord {
            state: State::Live,
            facts: facts.clone(),
            segments: self.segments.clone(),
            table: table.clone(),
            nonce,
        })
    }
}

//! The bodies of small objects: versioned encodings, each with a fresh nonce, so that no two writes
//! have equal bytes.

mod blob;
mod journal;
mod manifest;
mod region;
mod state;
mod tag;

use bincode::{Decode, Encode};
use flotilla_common::codec;

pub(crate) use blob::{BlobRecord, EMBEDDED_VALUES, MembershipRecord, Segment, TableLocation};
pub(crate) use flotilla_common::stamp::Stamp;
pub(crate) use journal::{JournalRecord, TrimMark};
pub(crate) use manifest::{ManifestRecord, ManifestState};
pub(crate) use region::{LeaseRecord, RegionRecord, Selection, SweepState, Unfinished};
pub(crate) use state::{RecordState, Rescue};
pub(crate) use tag::{Pointer, ReferrerValue, TOMBSTONE_LIMIT, TagValue};

use crate::storage::{Key, StorageError};

/// Encodes a record.
pub(crate) fn encode<T: Encode>(key: &Key, record: &T) -> Result<Vec<u8>, StorageError> {
    codec::encode(record).map_err(|error| StorageError::unavailable("encode record", key, error))
}

/// Decodes an object that was read at `key`. A record that cannot be decoded is a fault of the
/// storage and is logged.
pub(crate) fn decode<T: Decode<()>>(key: &Key, body: &[u8]) -> Result<T, StorageError> {
    codec::decode(body).map_err(|error| {
        tracing::error!(%key, %error, "stored record cannot be decoded; run `flotilla origin check`");
        StorageError::unavailable("decode record", key, error)
    })
}

//! The bodies of small objects: versioned encodings, each with a fresh nonce, so that no two writes
//! have equal bytes.

mod blob;
mod manifest;
mod state;
mod tag;

use bincode::{Decode, Encode};
use flotilla_common::codec;
use flotilla_common::name::RegionName;

pub(crate) use blob::{BlobRecord, EMBEDDED_VALUES, MembershipRecord, Segment, TableLocation};
pub(crate) use manifest::ManifestRecord;
pub(crate) use state::{RecordState, Rescue};
pub(crate) use tag::{Pointer, ReferrerValue, TOMBSTONE_LIMIT, TagValue};

use crate::storage::{Key, StorageError};

/// When and where a tag, a manifest or a referrer was last changed. The higher clock wins; a tie
/// goes by region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Stamp {
    /// A hybrid clock: nanoseconds since 1970, and never less than a clock seen before.
    pub(crate) clock: u64,
    /// Where it was changed.
    pub(crate) region: RegionName,
}

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

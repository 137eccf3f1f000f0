//! The bodies of small objects: versioned encodings, each with a fresh nonce, so that no two writes
//! are equal.

mod blob;
mod manifest;
mod state;
mod tag;

use bincode::{Decode, Encode};
use flotilla_common::codec;
use flotilla_common::name::RegionName;

pub(crate) use blob::{BlobRecord, EMBEDDED_VALUES, MembershipRecord, Segment, TableAt};
pub(crate) use manifest::ManifestRecord;
pub(crate) use state::{Rescue, State};
pub(crate) use tag::{Pointer, ReferrerValue, TOMBSTONE_LIMIT, TagValue};

use crate::storage::{Key, StorageError};

/// When and where a tag, a manifest or a referrer was last changed: the higher clock wins, ties by
/// region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Stamp {
    /// A hybrid clock: nanoseconds since 1970, and never less than what was seen before.
    pub(crate) clock: u64,
    /// The region that changed it.
    pub(crate) region: RegionName,
}

/// Encodes a record.
pub(crate) fn encode<T: Encode>(key: &Key, record: &T) -> Result<Vec<u8>, StorageError> {
    codec::encode(record).map_err(|error| StorageError::unavailable("encode record", key, error))
}

/// Decodes what was read at `key`. A record that cannot be decoded is a fault of the storage, and
/// loud.
pub(crate) fn decode<T: Decode<()>>(key: &Key, body: &[u8]) -> Result<T, StorageError> {
    codec::decode(body).map_err(|error| {
        tracing::error!(%key, %error, "decode record");
        StorageError::unavailable("decode record", key, error)
    })
}

//! The identity of a storage: regions recognize each other's buckets by it.

use core::fmt;
use core::str::FromStr;

use bincode::{Decode, Encode};

use crate::hex;

/// 16 random bytes that the first replica of a bucket chose. They never change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct StorageId([u8; 16]);

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a storage id: 32 lower-case hexadecimal digits are expected")]
pub struct StorageIdError(String);

impl StorageId {
    /// An id from random bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for StorageId {
    type Err = StorageIdError;

    fn from_str(text: &str) -> Result<Self, StorageIdError> {
        let bytes = hex::decode_exact(text);
        bytes
            .map(Self)
            .ok_or_else(|| StorageIdError(text.to_owned()))
    }
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_errors() {
        let id = StorageId::from_bytes([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "a5", &"A5".repeat(16), &"a5".repeat(17)] {
            assert!(bad.parse::<StorageId>().is_err(), "{bad}");
        }
    }
}

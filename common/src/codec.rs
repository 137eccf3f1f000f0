//! The binary encoding of messages and records: bincode 2 with a version byte and a size limit.
//!
//! bincode is finished and unmaintained, so only this file calls its functions and can replace it.
//! A body never changes within a version: a changed message is a new kind or a new version.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

/// The version of every encoding in this build.
pub const VERSION: u8 = 1;
/// Bytes that one encoded value may have: a table of 16,384 chunks with room to spare.
pub const MAX_LEN: usize = 4 << 20;

/// Why bytes could not be decoded, or a value not encoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Written by another version.
    #[error("encoded with version {0}, this build reads version {VERSION}")]
    Version(u8),
    /// Longer than [`MAX_LEN`].
    #[error("encoded value of {0} bytes exceeds the limit of {MAX_LEN}")]
    TooLong(usize),
    /// Empty, truncated, or followed by other bytes.
    #[error("malformed encoding: {0}")]
    Malformed(String),
}

fn configuration() -> Configuration<LittleEndian, Varint, Limit<MAX_LEN>> {
    config::standard().with_limit::<MAX_LEN>()
}

/// Encodes a value, after the version byte.
///
/// # Errors
/// [`CodecError::TooLong`] beyond [`MAX_LEN`].
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(value, &mut bytes, configuration())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if bytes.len() > MAX_LEN {
        return Err(CodecError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a value from exactly these bytes. Never panics, and never allocates more than
/// [`MAX_LEN`], whatever lengths the bytes claim.
///
/// # Errors
/// The fault of the bytes.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_LEN {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let (version, body) = bytes
        .split_first()
        .ok_or_else(|| CodecError::Malformed("no bytes".to_owned()))?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    let (value, used) = bincode::decode_from_slice(body, configuration())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if used != body.len() {
        return Err(CodecError::Malformed(format!(
            "{} bytes left over",
            body.len() - used
        )));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_length_and_trailing_bytes_are_checked() {
        let bytes = encode(&(7_u32, "x".to_owned())).expect("encodes");
        assert_eq!(
            decode::<(u32, String)>(&bytes).expect("own bytes"),
            (7, "x".to_owned())
        );
        assert!(matches!(decode::<u32>(&[]), Err(CodecError::Malformed(_))));
        assert!(matches!(
            decode::<u32>(&[9, 1]),
            Err(CodecError::Version(9))
        ));
        assert!(matches!(
            decode::<u32>(&[VERSION, 1, 1]),
            Err(CodecError::Malformed(_))
        ));
        assert!(matches!(
            decode::<u32>(&vec![VERSION; MAX_LEN + 1]),
            Err(CodecError::TooLong(_))
        ));
        let huge_length = [VERSION, 253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(matches!(
            decode::<Vec<u64>>(&huge_length),
            Err(CodecError::Malformed(_))
        ));
    }
}

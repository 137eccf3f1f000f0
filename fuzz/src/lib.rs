//! Helpers that the fuzz targets share.

use core::fmt::Debug;

use bincode::{Decode, Encode};
use flotilla_common::codec;

/// Decodes a value and checks that it survives encoding and decoding. `None` if the bytes are not
/// valid.
pub fn round_trip<T: Encode + Decode<()> + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value = codec::decode::<T>(bytes).ok()?;
    let again = codec::encode(&value).expect("a decoded value can be encoded");
    assert_eq!(
        codec::decode::<T>(&again).expect("an encoded value can be decoded"),
        value
    );
    Some(value)
}

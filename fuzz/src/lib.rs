//! What the targets share.

use core::fmt::Debug;

use bincode::{Decode, Encode};
use flotilla_common::codec;

/// Decodes any bytes; what comes of it survives another round.
pub fn round_trip<T: Encode + Decode<()> + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value = codec::decode::<T>(bytes).ok()?;
    let again = codec::encode(&value).expect("what was decoded is encoded");
    assert_eq!(codec::decode::<T>(&again).expect("own bytes"), value);
    Some(value)
}

//! Frames on a QUIC stream: {kind: u8, length: u32 big-endian, body}.
//!
//! A reader skips the body of an unknown kind, so that later versions may add kinds.

use crate::codec::{self, CodecError};

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 5;
/// The maximum length of a frame's body, bytes.
pub const MAX_BODY_LEN: usize = codec::MAX_LEN;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind of the body.
    pub kind: u8,
    /// Bytes of the body.
    pub len: usize,
}

impl Header {
    /// Parses a header.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] if it announces a body beyond [`MAX_BODY_LEN`].
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, CodecError> {
        let [kind, length @ ..] = bytes;
        let len = u32::from_be_bytes(length) as usize;
        if len > MAX_BODY_LEN {
            return Err(CodecError::TooLong(len));
        }
        Ok(Self { kind, len })
    }

    /// The bytes of this header.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = (self.len as u32).to_be_bytes();
        [self.kind, a, b, c, d]
    }
}

/// A message that travels in frames: each variant has a kind and a body of its own.
pub trait Message: Sized {
    /// The kind and the encoded body.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] for a body beyond the limit.
    fn encode(&self) -> Result<(u8, Vec<u8>), CodecError>;

    /// The message of a kind and a body; `None` for a kind that this version does not know.
    ///
    /// # Errors
    /// The body is not valid.
    fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, CodecError>;

    /// Header and body, ready to send.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn to_frame(&self) -> Result<Vec<u8>, CodecError> {
        let (kind, body) = self.encode()?;
        let mut frame = Header {
            kind,
            len: body.len(),
        }
        .to_bytes()
        .to_vec();
        frame.extend_from_slice(&body);
        Ok(frame)
    }
}

/// Declares an enum of messages, each with its kind, whose variants hold one encodable body each.
macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident($body:ty) = $kind:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant($body),)*
        }

        impl $crate::wire::frame::Message for $name {
            fn encode(&self) -> Result<(u8, Vec<u8>), $crate::codec::CodecError> {
                match self {
                    $(Self::$variant(body) => Ok(($kind, $crate::codec::encode(body)?)),)*
                }
            }

            fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, $crate::codec::CodecError> {
                match kind {
                    $($kind => Ok(Some(Self::$variant($crate::codec::decode(body)?))),)*
                    _ => Ok(None),
                }
            }
        }
    };
}

pub(crate) use messages;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip_and_limit() {
        let header = Header {
            kind: 3,
            len: 70_000,
        };
        assert_eq!(Header::parse(header.to_bytes()).expect("own bytes"), header);
        assert!(matches!(
            Header::parse([1, 255, 0, 0, 0]),
            Err(CodecError::TooLong(_))
        ));
    }
}

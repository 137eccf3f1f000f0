//! Between two peers, over QUIC (ALPN [`ALPN`]).
//!
//! ```text
//! dialler                                   listener
//!    | ---- control stream (bidirectional): Hello ----> |
//!    | <--------------- Hello ------------------------- |
//!    | <--- About ------------------------------------> |   both, once
//!    | <--- Holds, Have, Forgot, ProofWanted, Proof,    |
//!    |      SlotFree, Claims -------------------------> |   both ways, any time
//!    |                                                  |
//!    | ---- a bidirectional stream per chunk: Ask ----> |
//!    | <--- Refused | Parts, then the chunk's bytes --- |
//!    |                                                  |
//!    | ---- a bidirectional stream: AskImage ---------> |   if Hello had HANDS_ON
//!    | <--- Refused | Image --------------------------- |
//! ```

use bincode::{Decode, Encode};

use crate::chunk_map::ChunkMap;
use crate::digest::Digest;
use crate::grant::Grant;
use crate::hash_tree::ChainingValue;
use crate::name::{RegionName, ZoneName};
use crate::proof;
use crate::wire::frame::messages;

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"flotilla/1";
/// The version of the peer protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Feature: answers [`AskImage`].
pub const HANDS_ON: u64 = 1;

/// The first message of either side.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Oldest protocol version spoken.
    pub oldest: u16,
    /// Newest protocol version spoken; both sides use the newest that both speak.
    pub newest: u16,
    /// Feature bits; unknown ones are ignored.
    pub features: u64,
}

impl Hello {
    /// The hello of this build.
    pub const fn ours() -> Self {
        Self {
            oldest: PROTOCOL_VERSION,
            newest: PROTOCOL_VERSION,
            features: HANDS_ON,
        }
    }

    /// The newest version that both sides speak.
    pub fn common_version(&self, other: &Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// Where the sender is and how fast: the second message of either side.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct About {
    /// Its region.
    pub region: RegionName,
    /// Its zone.
    pub zone: ZoneName,
    /// Its uplink in bits per second, if it is capped or known.
    pub up_bits_per_second: Option<u64>,
}

/// All chunks that the sender holds of one blob; sent when a connection starts, and for a new blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holds {
    /// The blob.
    pub digest: Digest,
    /// Its chunks that the sender holds, verified.
    pub holding: Holding,
}

/// The chunks of a blob that a peer holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Holding {
    /// Every chunk.
    Complete,
    /// These chunks.
    Partial(ChunkMap),
}

/// Chunks that the sender holds since its last message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Have {
    /// The blob.
    pub digest: Digest,
    /// The new chunks.
    pub chunks: Vec<u32>,
}

/// Chunks that the sender, or a peer from which it heard that, fetches from an origin without a
/// lease: the receiver leaves them alone, and hands new claims on to its own neighbours once.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Claims {
    /// The blob.
    pub digest: Digest,
    /// The claims.
    pub claims: Vec<Claim>,
}

/// One chunk of [`Claims`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Claim {
    /// The chunk.
    pub chunk: u32,
    /// How long the claim lasts unless it is renewed or the chunk is seen, in milliseconds.
    pub term_ms: u32,
}

/// The sender holds nothing of this blob any more.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Forgot {
    /// The blob.
    pub digest: Digest,
}

/// The sender wants the seal and table of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProofWanted {
    /// The blob.
    pub digest: Digest,
}

/// The sender has a free upload slot, and refused a request of the receiver as [`Refusal::Busy`] a
/// while ago.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SlotFree;

messages! {
    /// Messages of the control stream.
    Control {
        /// Versions and features.
        Hello(Hello) = 1,
        /// All chunks held of one blob.
        Holds(Holds) = 2,
        /// New chunks held of one blob.
        Have(Have) = 3,
        /// A blob was evicted.
        Forgot(Forgot) = 4,
        /// A request for a proof.
        ProofWanted(ProofWanted) = 5,
        /// A proof, forwarded.
        Proof(proof::Proof) = 6,
        /// Where the sender is.
        About(About) = 7,
        /// An upload slot is free.
        SlotFree(SlotFree) = 8,
        /// Chunks that are being fetched without a lease.
        Claims(Claims) = 9,
    }
}

/// Requests one chunk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// The blob.
    pub digest: Digest,
    /// The chunk; 0 for a blob that is exchanged as a whole.
    pub chunk: u32,
    /// The permission, where the fleet requires one.
    pub grant: Option<Grant>,
}

/// Why a chunk is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// For [`Ask`]: all upload slots are taken. A [`SlotFree`] may follow; without one, retry after
    /// five times the transfer time of a chunk. For [`AskImage`]: too many are being answered.
    #[error("no free upload slot")]
    Busy,
    /// The chunk is not held (any more).
    #[error("chunk not held")]
    Gone,
    /// The requesting peer has no valid grant.
    #[error("no valid grant")]
    NotPermitted,
}

/// The chaining values of a chunk's parts, which merge to its entry in the chunk table. The chunk's
/// bytes follow the frame, as many as the geometry says. Empty for a blob that is exchanged as a
/// whole.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Parts {
    /// One per part, in order.
    pub values: Vec<ChainingValue>,
}

/// Requests an image from a peer that cannot reach an origin: the manifest, and the proofs of the
/// blobs that it names.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AskImage {
    /// The manifest.
    pub manifest: Digest,
    /// The permission, where the fleet requires one; it names the manifest.
    pub grant: Option<Grant>,
}

/// An image from a neighbour. The receiver trusts nothing in it: it checks the manifest against its
/// digest, and verifies the proofs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ImageBundle {
    /// The manifest's media type, as the origin sent it.
    pub media_type: String,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The known proofs of its blobs, as many as fit into a frame.
    pub proofs: Vec<proof::Proof>,
}

messages! {
    /// Messages of a chunk's stream.
    Chunk {
        /// The request.
        Ask(Ask) = 32,
        /// The request is refused.
        Refused(Refusal) = 33,
        /// The request is granted; the bytes follow.
        Parts(Parts) = 34,
        /// A request for an image.
        AskImage(AskImage) = 35,
        /// The image.
        Image(ImageBundle) = 36,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::{HEADER_LEN, Header, Message};

    #[test]
    fn common_version_of_overlapping_ranges() {
        let hello = |oldest, newest| Hello {
            oldest,
            newest,
            features: 0,
        };
        assert_eq!(hello(1, 3).common_version(&hello(2, 5)), Some(3));
        assert_eq!(hello(1, 1).common_version(&hello(2, 5)), None);
    }

    #[test]
    fn message_round_trip_and_unknown_kinds() {
        let have = Control::Have(Have {
            digest: Digest::sha256(b"x"),
            chunks: vec![1, 70_000],
        });
        let frame = have.to_frame().expect("encodes");
        let header =
            Header::parse(frame[..HEADER_LEN].try_into().expect("five bytes")).expect("own header");
        assert_eq!(
            Control::decode(header.kind, &frame[HEADER_LEN..]).expect("own body"),
            Some(have)
        );
        let claims = Control::Claims(Claims {
            digest: Digest::sha256(b"x"),
            claims: vec![Claim {
                chunk: 70_000,
                term_ms: 2000,
            }],
        });
        let frame = claims.to_frame().expect("encodes");
        assert_eq!(frame[0], 9, "the kind that other builds know or skip");
        assert_eq!(
            Control::decode(9, &frame[HEADER_LEN..]).expect("own body"),
            Some(claims)
        );
        assert_eq!(Control::decode(200, b"whatever").expect("skipped"), None);
    }

    proptest! {
        #[test]
        fn decoders_do_not_panic(kind in 0_u8..40, body: Vec<u8>) {
            let _ = Control::decode(kind, &body);
            let _ = Chunk::decode(kind, &body);
        }
    }
}

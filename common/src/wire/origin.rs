//! Between a peer and an origin, beside the OCI interface: what proves all blobs of a manifest, in one request.

use bincode::{Decode, Encode};

use crate::digest::Digest;
use crate::grant::Grant;
use crate::name::RepositoryName;
use crate::proof::Proof;

/// Where the closure of a manifest is asked for.
pub const CLOSURE_PATH: &str = "/flotilla/v1/closure";
/// Where the origin shows its public seal keys, as JSON.
pub const KEYS_PATH: &str = "/flotilla/v1/keys";

/// Asks for the proofs of all blobs that a manifest of a repository names.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClosureRequest {
    /// The repository: the request is answered only within it.
    pub repository: RepositoryName,
    /// The manifest, or an index (which has no blobs of its own).
    pub manifest: Digest,
}

/// Seals, tables and a grant for one manifest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClosureAnswer {
    /// One proof per blob, in the manifest's order: configuration, then layers.
    pub proofs: Vec<Proof>,
    /// The permission to receive them from peers, where the fleet requires one.
    pub grant: Option<Grant>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(mut body: Vec<u8>) {
            body.insert(0, codec::VERSION);
            let _ = codec::decode::<ClosureRequest>(&body);
            let _ = codec::decode::<ClosureAnswer>(&body);
        }
    }
}

//! Between a peer and an origin, beside the OCI interface: the proofs of all blobs of a manifest in
//! one request. Also the paths and headers that several crates use.

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::digest::Digest;
use crate::grant::Grant;
use crate::name::RepositoryName;
use crate::proof::Proof;

/// The path of closure requests.
pub const CLOSURE_PATH: &str = "/flotilla/v1/closure";
/// The path of the origin's public seal keys, as JSON.
pub const KEYS_PATH: &str = "/flotilla/v1/keys";
/// The path at which a replica of an origin receives messages from the others.
pub const REPLICA_PATH: &str = "/flotilla/v1/replica";

/// A request header. With the value [`REDIRECT_NEVER`] the origin sends a blob's bytes itself
/// instead of redirecting the client to its object storage. Peers send it because they trust the
/// certificates of their fleet only.
pub const REDIRECT_HEADER: &str = "flotilla-redirect";
/// The value of [`REDIRECT_HEADER`].
pub const REDIRECT_NEVER: &str = "never";

/// A request header. With the value [`OWN_STORAGE_ONLY`] a read is answered from the storage of the
/// region that is asked, even if another region could serve it: it tells whether the region itself
/// has something.
pub const OWN_STORAGE_HEADER: &str = "flotilla-own-storage";
/// The value of [`OWN_STORAGE_HEADER`].
pub const OWN_STORAGE_ONLY: &str = "only";

/// The response header with the digest of the content (OCI distribution specification).
pub const CONTENT_DIGEST_HEADER: &str = "docker-content-digest";
/// The response header with [`API_VERSION`], by which old clients recognize a registry.
pub const API_VERSION_HEADER: &str = "docker-distribution-api-version";
/// The value of [`API_VERSION_HEADER`].
pub const API_VERSION: &str = "registry/2.0";

/// Requests the proofs of all blobs that a manifest of a repository names.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClosureRequest {
    /// The repository that the request is limited to.
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

impl ClosureAnswer {
    /// Adds a grant to an encoded answer that has none, so that the proofs, which are the same for
    /// every peer, are encoded once.
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are not such an answer, or the result is too long.
    pub fn with_grant(encoded: &[u8], grant: Grant) -> Result<Vec<u8>, CodecError> {
        // The grant is the last field; `None` is encoded as one zero byte.
        let Some((0, proofs)) = encoded.split_last() else {
            return Err(CodecError::Malformed(
                "the closure already has a grant".to_owned(),
            ));
        };
        let grant = codec::encode(&Some(grant))?;
        let bytes = [proofs, &grant[1..]].concat();
        if bytes.len() > codec::MAX_LEN {
            Err(CodecError::TooLong(bytes.len()))
        } else {
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::SealKey;

    #[test]
    fn grant_is_added_to_an_encoded_answer() {
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let digest = Digest::sha256(b"x");
        let grant = Grant::sign(&key, "vm-1".parse().expect("a label"), vec![digest], 100);
        let without = ClosureAnswer {
            proofs: vec![Proof::DigestOnly { digest, size: 1 }],
            grant: None,
        };
        let encoded = codec::encode(&without).expect("encodes");
        let granted = ClosureAnswer::with_grant(&encoded, grant.clone()).expect("fits");
        let expected = ClosureAnswer {
            grant: Some(grant.clone()),
            ..without
        };
        assert_eq!(
            codec::decode::<ClosureAnswer>(&granted).expect("own bytes"),
            expected
        );
        assert!(
            ClosureAnswer::with_grant(&granted, grant.clone()).is_err() || granted.ends_with(&[0])
        );
        assert!(ClosureAnswer::with_grant(&[], grant).is_err());
    }

    proptest! {
        #[test]
        fn decoders_do_not_panic(mut body: Vec<u8>) {
            body.insert(0, codec::VERSION);
            let _ = codec::decode::<ClosureRequest>(&body);
            let _ = codec::decode::<ClosureAnswer>(&body);
        }
    }
}

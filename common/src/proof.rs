//! Proofs by which the bytes of a blob are verified.

use bincode::{Decode, Encode};

use crate::chunk::{Geometry, MAX_BLOB_SIZE};
use crate::digest::Digest;
use crate::hash_tree::ChunkTable;
use crate::seal::{Seal, TrustError, TrustedKeys};

/// The proof of the bytes of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Proof {
    /// A seal signs the root of the blob's hash tree, and the table verifies each chunk. A blob of
    /// at most one chunk has no table: its digest verifies it.
    Sealed {
        /// The signature.
        seal: Seal,
        /// The chunk table.
        table: Option<ChunkTable>,
    },
    /// Only the digest is known, as of a blob of another registry. It is shared as a whole, after
    /// it is verified.
    DigestOnly {
        /// The digest.
        digest: Digest,
        /// Bytes, as the manifest says.
        size: u64,
    },
}

/// Why a proof is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The seal is not accepted.
    #[error("invalid seal: {0}")]
    Seal(#[from] TrustError),
    /// The size exceeds the limit of a blob.
    #[error("{0} bytes exceed the maximum size of a blob")]
    Size(u64),
    /// The table is missing, or does not merge to the sealed root.
    #[error("the chunk table does not match the sealed root")]
    Table,
}

impl Proof {
    /// The digest of the blob.
    pub const fn digest(&self) -> &Digest {
        match self {
            Self::Sealed { seal, .. } => &seal.facts.digest,
            Self::DigestOnly { digest, .. } => digest,
        }
    }

    /// Bytes of the blob.
    pub const fn size(&self) -> u64 {
        match self {
            Self::Sealed { seal, .. } => seal.facts.size,
            Self::DigestOnly { size, .. } => *size,
        }
    }

    /// Verifies seal and table from an untrusted source, and returns the geometry of the blob.
    ///
    /// # Errors
    /// The proof is not valid.
    pub fn check(&self, trusted: &TrustedKeys) -> Result<Geometry, ProofError> {
        match self {
            Self::Sealed { seal, table } => {
                let geometry = trusted.check(seal)?;
                let proved = match table {
                    Some(table) => table.proves(&geometry, &seal.facts.root),
                    None => geometry.is_single_chunk(),
                };
                if proved {
                    Ok(geometry)
                } else {
                    Err(ProofError::Table)
                }
            }
            Self::DigestOnly { size, .. } if *size > MAX_BLOB_SIZE => Err(ProofError::Size(*size)),
            Self::DigestOnly { size, .. } => Ok(Geometry::whole(*size)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_tree::TreeHasher;
    use crate::seal::{BlobFacts, SealKey};

    #[test]
    fn table_is_checked_against_the_seal() {
        let bytes = vec![5; 600 << 10];
        let mut hasher = TreeHasher::new();
        hasher.update(&bytes);
        let tree = hasher.finish();
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let mut trusted = TrustedKeys::none();
        trusted.add(key.issuer(), &key.public()).expect("a key");
        let seal = key.seal(BlobFacts {
            digest: Digest::sha256(&bytes),
            size: tree.geometry.size(),
            chunk_log2: tree.geometry.chunk_log2(),
            root: tree.root,
        });
        let proof = Proof::Sealed {
            seal: seal.clone(),
            table: tree.table,
        };
        assert_eq!(proof.check(&trusted), Ok(tree.geometry));
        assert_eq!(
            Proof::Sealed { seal, table: None }.check(&trusted),
            Err(ProofError::Table)
        );
        let whole = Proof::DigestOnly {
            digest: Digest::sha256(&bytes),
            size: 600 << 10,
        };
        assert_eq!(
            whole
                .check(&TrustedKeys::none())
                .map(|geometry| geometry.chunks()),
            Ok(1)
        );
    }
}

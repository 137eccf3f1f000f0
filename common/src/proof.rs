//! How the bytes of a blob can be checked.

use bincode::{Decode, Encode};

use crate::chunk::{Geometry, MAX_BLOB_SIZE};
use crate::digest::Digest;
use crate::hash_tree::ChunkTable;
use crate::seal::{Seal, TrustError, TrustedKeys};

/// What proves a blob's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Proof {
    /// An origin vouches for the blob's tree; with the table each chunk can be checked. A blob of
    /// one chunk or less has no table: its digest is its check.
    Sealed {
        /// The signature.
        seal: Seal,
        /// The chunk table.
        table: Option<ChunkTable>,
    },
    /// Only the digest is known (the blob of a registry that is not ours): shared as a whole, once
    /// checked.
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
    #[error("check seal: {0}")]
    Seal(#[from] TrustError),
    /// No blob is that large.
    #[error("{0} bytes are more than a blob may have")]
    Size(u64),
    /// There is no table, or it does not roll up to the sealed root.
    #[error("the chunk table does not roll up to the sealed root")]
    Table,
}

impl Proof {
    /// The blob that is proved.
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

    /// Checks seal and table, wherever they came from, and tells how the blob is exchanged.
    ///
    /// # Errors
    /// Why the proof proves nothing.
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
    fn a_table_from_anybody_is_checked_against_the_seal() {
        let bytes = vec![5; 600 << 10];
        let mut hasher = TreeHasher::new();
        hasher.update(&bytes);
        let tree = hasher.finish();
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let mut trusted = TrustedKeys::none();
        trusted.add(&key.public()).expect("a key");
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

//! OCI digests: an algorithm and the hash of some bytes, and a hasher of streams.
//!
//! Follows the OCI image specification, "Digests": `sha256:` with 64 and `sha512:` with 128
//! lower-case hexadecimal digits. Anything else is not a digest here.

use core::fmt;
use core::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256, Sha512};

use crate::hex;

/// A registered digest algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, the default of all clients.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::UnknownAlgorithm),
        }
    }
}

/// The digest of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Digest {
    /// A SHA-256 hash.
    Sha256([u8; 32]),
    /// A SHA-512 hash.
    Sha512([u8; 64]),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// The digest of `bytes` under `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = DigestHasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash: 32 or 64 bytes.
    pub const fn hash(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }

    /// The hash as hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.hash())
    }

    /// Whether this is the digest of `bytes`.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        Self::of(self.algorithm(), bytes) == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = self.hex();
        write!(f, "{}:{}", self.algorithm().as_str(), &hex[..12])
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, encoded) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        match algorithm.parse()? {
            Algorithm::Sha256 => hex::decode_exact(encoded).map(Self::Sha256),
            Algorithm::Sha512 => hex::decode_exact(encoded).map(Self::Sha512),
        }
        .ok_or(DigestError::BadEncoding)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The colon is missing.
    #[error("a digest is ALGORITHM:HEX, for example sha256: and 64 lower-case hexadecimal digits")]
    NoAlgorithm,
    /// The algorithm is not registered.
    #[error("unsupported digest algorithm; use sha256 or sha512")]
    UnknownAlgorithm,
    /// The hash is not lower-case hexadecimal of the algorithm's length.
    #[error(
        "malformed digest: the hash must be 64 (sha256) or 128 (sha512) lower-case hexadecimal digits"
    )]
    BadEncoding,
    /// A stored midstate is not valid.
    #[error("malformed hash midstate")]
    BadMidstate,
}

/// The maximum number of blocks that a midstate may have hashed, far above any blob. Beyond it, the
/// hashers' own count of bits overflows.
const MAX_BLOCKS: u64 = 1 << 48;

/// Hashes a stream of bytes into a [`Digest`]; its midstate can be stored and resumed elsewhere.
#[derive(Clone)]
pub enum DigestHasher {
    /// Hashing SHA-256.
    Sha256(Sha256),
    /// Hashing SHA-512.
    Sha512(Sha512),
}

impl DigestHasher {
    /// A hasher of no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }

    /// The state after the bytes so far: 104 bytes for SHA-256, 208 for SHA-512.
    pub fn midstate(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hasher) => hasher.serialize().to_vec(),
            Self::Sha512(hasher) => hasher.serialize().to_vec(),
        }
    }

    /// A hasher that resumes from a [`midstate`](Self::midstate).
    ///
    /// # Errors
    /// [`DigestError::BadMidstate`] if the bytes are not a midstate of `algorithm`.
    pub fn from_midstate(algorithm: Algorithm, state: &[u8]) -> Result<Self, DigestError> {
        let bad = DigestError::BadMidstate;
        match algorithm {
            Algorithm::Sha256 => {
                let blocks = state.get(32..40).and_then(|blocks| blocks.try_into().ok());
                blocks
                    .map(u64::from_le_bytes)
                    .filter(|blocks| *blocks <= MAX_BLOCKS)
                    .ok_or(bad)?;
                let state = state.try_into().map_err(|_| bad)?;
                Sha256::deserialize(state)
                    .map(Self::Sha256)
                    .map_err(|_| bad)
            }
            Algorithm::Sha512 => {
                let blocks = state.get(64..80).and_then(|blocks| blocks.try_into().ok());
                blocks
                    .map(u128::from_le_bytes)
                    .filter(|blocks| *blocks <= MAX_BLOCKS.into())
                    .ok_or(bad)?;
                let state = state.try_into().map_err(|_| bad)?;
                Sha512::deserialize(state)
                    .map(Self::Sha512)
                    .map_err(|_| bad)
            }
        }
    }
}

impl fmt::Debug for DigestHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256(_) => "DigestHasher(sha256)",
            Self::Sha512(_) => "DigestHasher(sha512)",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digest_of_the_empty_blob() {
        let digest = Digest::sha256(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
    }

    #[test]
    fn malformed_digests_have_distinct_errors() {
        assert_eq!("abc".parse::<Digest>(), Err(DigestError::NoAlgorithm));
        assert_eq!(
            "md5:00".parse::<Digest>(),
            Err(DigestError::UnknownAlgorithm)
        );
        assert_eq!("sha256:00".parse::<Digest>(), Err(DigestError::BadEncoding));
        let upper = format!("sha256:{}", "A".repeat(64));
        assert_eq!(upper.parse::<Digest>(), Err(DigestError::BadEncoding));
    }

    proptest! {
        #[test]
        fn midstate_resumes_the_hash(bytes: Vec<u8>, cut: prop::sample::Index, wide: bool) {
            let algorithm = if wide { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let cut = cut.index(bytes.len() + 1);
            let mut first = DigestHasher::new(algorithm);
            first.update(&bytes[..cut]);
            let mut second = DigestHasher::from_midstate(algorithm, &first.midstate()).expect("own midstate");
            second.update(&bytes[cut..]);
            prop_assert_eq!(second.finish(), Digest::of(algorithm, &bytes));
        }

        #[test]
        fn arbitrary_midstates_do_not_panic(state in prop::collection::vec(any::<u8>(), 0..300)) {
            let fitting = [state.clone(), [state.clone(), vec![255; 208]].concat()];
            for state in fitting.iter().flat_map(|state| [state.get(..104), state.get(..208), Some(state)]).flatten() {
                for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                    // Found by fuzzing: a count of blocks that overflows when the hash is finished.
                    if let Ok(mut hasher) = DigestHasher::from_midstate(algorithm, state) {
                        hasher.update(b"more");
                        hasher.finish();
                    }
                }
            }
        }
    }
}

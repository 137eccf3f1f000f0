//! Hashing of an upload's bytes: always sha256 and the BLAKE3 tree, and sha512 if the client
//! announced it.

use bincode::{Decode, Encode};
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::hash_tree::{Tree, TreeHasher, TreeState};

/// The hashers of all bytes so far.
#[derive(Clone, Debug)]
pub(crate) struct Hashes {
    sha256: DigestHasher,
    sha512: Option<DigestHasher>,
    tree: TreeHasher,
}

/// The states of the hashers, as a log entry stores them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Midstates {
    sha256: Vec<u8>,
    sha512: Option<Vec<u8>>,
    /// Covers whole parts only; resuming requires the bytes after them.
    tree: TreeState,
}

impl Midstates {
    /// Number of bytes that the tree's state covers.
    pub(crate) fn covered(&self) -> u64 {
        self.tree.covered()
    }
}

/// The stored states are not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid hash midstates of an upload")]
pub(crate) struct BadMidstates;

impl Hashes {
    pub(crate) fn new(with_sha512: bool) -> Self {
        Self {
            sha256: DigestHasher::new(Algorithm::Sha256),
            sha512: with_sha512.then(|| DigestHasher::new(Algorithm::Sha512)),
            tree: TreeHasher::new(),
        }
    }

    /// Hashes the next bytes. Takes about a third of a millisecond per MiB, so it must not run on a
    /// thread that serves sockets.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
        self.tree.update(bytes);
    }

    /// The states for a log entry.
    pub(crate) fn midstates(&self) -> Midstates {
        let sha512 = self.sha512.as_ref().map(DigestHasher::midstate);
        Midstates {
            sha256: self.sha256.midstate(),
            sha512,
            tree: self.tree.state(),
        }
    }

    /// Restores the hashers. `tail` are the bytes after those that the tree's state covers.
    pub(crate) fn resume(midstates: Midstates, tail: &[u8]) -> Result<Self, BadMidstates> {
        let hasher = |algorithm, state: &[u8]| {
            DigestHasher::from_midstate(algorithm, state).map_err(|_| BadMidstates)
        };
        let sha512 = midstates
            .sha512
            .map(|state| hasher(Algorithm::Sha512, &state))
            .transpose()?;
        let tree = TreeHasher::from_state(midstates.tree, tail).map_err(|_| BadMidstates)?;
        Ok(Self {
            sha256: hasher(Algorithm::Sha256, &midstates.sha256)?,
            sha512,
            tree,
        })
    }

    /// The digest and the tree; no digest if `algorithm` was not announced.
    pub(crate) fn finish(self, algorithm: Algorithm) -> (Option<Digest>, Tree) {
        let hasher = match algorithm {
            Algorithm::Sha256 => Some(self.sha256),
            Algorithm::Sha512 => self.sha512,
        };
        (hasher.map(DigestHasher::finish), self.tree.finish())
    }
}

#[cfg(test)]
mod tests {
    use flotilla_common::chunk::PART_SIZE;

    use super::*;

    #[test]
    fn hashing_resumes_at_any_offset() {
        let part = PART_SIZE as usize;
        let bytes: Vec<u8> = (0..3 * part + 9).map(|index| (index % 251) as u8).collect();
        let mut whole = Hashes::new(true);
        whole.update(&bytes);
        let (digest, tree) = whole.finish(Algorithm::Sha512);
        for cut in [
            0,
            1,
            part - 1,
            part,
            part + 1,
            2 * part,
            3 * part,
            bytes.len(),
        ] {
            let mut first = Hashes::new(true);
            first.update(&bytes[..cut]);
            let midstates = first.midstates();
            let covered = midstates.covered() as usize;
            assert!(cut - covered <= part, "tail of {} bytes", cut - covered);
            let mut second =
                Hashes::resume(midstates, &bytes[covered..cut]).expect("own midstates");
            second.update(&bytes[cut..]);
            assert_eq!(
                second.finish(Algorithm::Sha512),
                (digest, tree.clone()),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn hashing_resumes_after_exactly_one_part() {
        let bytes = vec![7; PART_SIZE as usize];
        let mut first = Hashes::new(false);
        first.update(&bytes);
        let midstates = first.midstates();
        let tail = &bytes[midstates.covered() as usize..];
        let second = Hashes::resume(midstates, tail).expect("own midstates");
        let (digest, tree) = second.finish(Algorithm::Sha256);
        assert_eq!(digest, Some(Digest::sha256(&bytes)));
        assert_eq!(tree.root, flotilla_common::hash_tree::root_of(&bytes));
    }
}

//! Which of several trackers is responsible for a blob: rendezvous hashing by digest.
//!
//! Peers announce a blob to the best two of the list, and take leases from the first that lives;
//! the second keeps a warm roster. Who leaves the list moves only the blobs that were its own.
//! Peers and trackers must have the same list, in any order.

use crate::digest::Digest;

/// The indices of `trackers`, best first, for a blob.
pub fn ranked<T: AsRef<str>>(trackers: &[T], digest: &Digest) -> Vec<usize> {
    let digest = digest.to_string();
    let mut ranked: Vec<([u8; 32], usize)> = trackers
        .iter()
        .enumerate()
        .map(|(index, tracker)| {
            let mut hasher = blake3::Hasher::new();
            hasher
                .update(digest.as_bytes())
                .update(b" ")
                .update(tracker.as_ref().as_bytes());
            (*hasher.finalize().as_bytes(), index)
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_spread_and_a_tracker_that_leaves_moves_only_its_own() {
        let all = ["http://t1", "http://t2", "http://t3"];
        let fewer = ["http://t3", "http://t1"];
        let mut firsts = [0; 3];
        for blob in 0..300_u32 {
            let digest = Digest::sha256(&blob.to_le_bytes());
            let before = all[ranked(&all, &digest)[0]];
            let after = fewer[ranked(&fewer, &digest)[0]];
            firsts[ranked(&all, &digest)[0]] += 1;
            assert!(before == after || before == "http://t2");
        }
        assert!(
            firsts.iter().all(|count| (60..140).contains(count)),
            "{firsts:?}"
        );
    }
}

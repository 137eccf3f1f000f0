//! Which of several trackers are responsible for a blob: rendezvous hashing by digest.
//!
//! Peers announce a blob to the best two trackers of the list, and request leases from the first
//! one that answers; the second one has a warm roster. If a tracker is removed from the list, only
//! its own blobs move. Peers and trackers must have the same list, in any order.

use crate::digest::Digest;

/// The indices of `trackers` for a blob, best first.
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
    fn blobs_are_spread_and_removed_tracker_moves_only_its_own() {
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

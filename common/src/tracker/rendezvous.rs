//! Which of several trackers are responsible for a blob: rendezvous hashing by digest.
//!
//! Peers announce a blob to the best two trackers of the list, and request leases from the first
//! one that answers; the second one has a warm roster. If a tracker is removed from the list, only
//! its own blobs move. Peers and trackers must have the same list, in any order.

use crate::digest::Digest;
use crate::wire::tracker::{LeaseAsk, LeaseRequest};

/// The trackers that share the blobs of a region, from the view of one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackerGroup {
    urls: Vec<String>,
    own: Option<String>,
}

impl TrackerGroup {
    /// The trackers at `urls`, of which this one is `own`. Both are empty for one tracker alone.
    pub const fn new(urls: Vec<String>, own: Option<String>) -> Self {
        Self { urls, own }
    }

    /// Whether another tracker of the group must be asked: a lease is granted by the first one of
    /// the blob, unless the peer cannot reach it.
    pub fn is_for_another(&self, request: &LeaseRequest) -> bool {
        matches!(request.ask, LeaseAsk::Take { .. })
            && !request.first_unreachable
            && !self.is_first(&request.digest)
    }

    fn is_first(&self, digest: &Digest) -> bool {
        let ranked = ranked(&self.urls, digest);
        ranked.first().map(|first| &self.urls[*first]) == self.own.as_ref()
    }
}

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
    use crate::chunk_map::ChunkMap;

    #[test]
    fn only_the_first_tracker_of_a_blob_grants_its_leases() {
        let urls: Vec<String> = ["http://t1", "http://t2"].map(str::to_owned).to_vec();
        let digest = Digest::sha256(b"blob");
        let take = LeaseAsk::Take {
            number: 1,
            missing: ChunkMap::full(4),
            starving: false,
            unreachable: Vec::new(),
            origins: 1,
        };
        let request = |first_unreachable, ask: &LeaseAsk| LeaseRequest {
            peer: "vm-1".parse().expect("a label"),
            digest,
            first_unreachable,
            ask: ask.clone(),
        };
        let group = |place: usize| {
            let own = urls[ranked(&urls, &digest)[place]].clone();
            TrackerGroup::new(urls.clone(), Some(own))
        };
        assert!(!group(0).is_for_another(&request(false, &take)));
        assert!(group(1).is_for_another(&request(false, &take)));
        assert!(!group(1).is_for_another(&request(true, &take)));
        assert!(!group(1).is_for_another(&request(false, &LeaseAsk::Drop)));
        assert!(!TrackerGroup::default().is_for_another(&request(false, &take)));
    }

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

//! How many claims are heard from each neighbour.
//!
//! A claim keeps others from a chunk, so a hostile neighbour could claim all of them and fetch
//! none. Each neighbour has a limit of open claims. A claim that ends without its chunk halves the
//! limit, one whose chunk was seen raises it by one. A neighbour at zero is heard for one claim
//! after [`MUTE_TIME`]. An honest neighbour that handed on the claims of a peer that died recovers
//! with the claims that it hands on after that.

use core::time::Duration;

use super::io::PeerSlot;
use crate::time::Time;

/// How long a neighbour whose limit fell to zero is not heard.
const MUTE_TIME: Duration = Duration::from_secs(60);

/// The limits by neighbour; those that are not in the list have the greatest.
#[derive(Debug, Default)]
pub(super) struct ClaimHearing {
    limits: Vec<Limit>,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    claims: u8,
    /// While there are none.
    muted_until: Time,
}

impl ClaimHearing {
    /// The greatest limit.
    pub(super) const MAX: u8 = 24;

    /// Maximum number of open claims that are heard from the neighbour.
    pub(super) fn limit(&self, now: Time, peer: PeerSlot) -> usize {
        match self.limits.get(peer.0 as usize) {
            Some(limit) if limit.claims == 0 => usize::from(limit.muted_until <= now),
            Some(limit) => limit.claims.into(),
            None => Self::MAX.into(),
        }
    }

    /// The chunk of a claim that was heard from the neighbour was seen.
    pub(super) fn on_seen(&mut self, peer: PeerSlot) {
        let limit = self.entry(peer);
        limit.claims = (limit.claims + 1).min(Self::MAX);
    }

    /// A claim that was heard from the neighbour ended, and its chunk was not seen.
    pub(super) fn on_expired(&mut self, now: Time, peer: PeerSlot) {
        let limit = self.entry(peer);
        limit.claims /= 2;
        if limit.claims == 0 {
            limit.muted_until = now + MUTE_TIME;
        }
    }

    fn entry(&mut self, peer: PeerSlot) -> &mut Limit {
        let index = peer.0 as usize;
        if index >= self.limits.len() {
            let full = Limit {
                claims: Self::MAX,
                muted_until: Time::ZERO,
            };
            self.limits.resize(index + 1, full);
        }
        &mut self.limits[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerSlot = PeerSlot(3);

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn limit_halves_with_each_expired_claim_and_grows_with_each_chunk() {
        let mut hearing = ClaimHearing::default();
        assert_eq!(hearing.limit(at(0), PEER), 24);
        hearing.on_expired(at(0), PEER);
        hearing.on_expired(at(0), PEER);
        assert_eq!(hearing.limit(at(0), PEER), 6);
        hearing.on_seen(PEER);
        assert_eq!(hearing.limit(at(0), PEER), 7);
        assert_eq!(hearing.limit(at(0), PeerSlot(2)), 24, "another neighbour");
        (0..30).for_each(|_| hearing.on_seen(PEER));
        assert_eq!(hearing.limit(at(0), PEER), 24);
    }

    #[test]
    fn neighbour_without_credit_is_heard_for_one_claim_a_minute() {
        let mut hearing = ClaimHearing::default();
        (0..24).for_each(|_| hearing.on_expired(at(10), PEER));
        assert_eq!(hearing.limit(at(69), PEER), 0);
        assert_eq!(hearing.limit(at(70), PEER), 1);
        hearing.on_expired(at(80), PEER);
        assert_eq!(hearing.limit(at(80), PEER), 0);
        assert_eq!(hearing.limit(at(140), PEER), 1);
        hearing.on_seen(PEER);
        assert_eq!(hearing.limit(at(140), PEER), 1, "credit again");
    }
}

//! When each peer may be asked for a chunk, and how far away it is: dense, for every choice looks at all neighbours.

use super::{Nearness, PeerSlot};
use crate::time::Time;

/// One peer's turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Not asked before this; never while a request of ours is open.
    free_at: Time,
    pub(super) nearness: Nearness,
}

/// The turns, by peer slot.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Turn>);

impl Turn {
    pub(super) fn is_free(&self, now: Time) -> bool {
        self.free_at <= now
    }

    pub(super) fn is_near(&self) -> bool {
        self.nearness == Nearness::SameZone
    }

    /// When it may be asked again, if that is known.
    pub(super) fn rests_until(&self) -> Option<Time> {
        (self.free_at != Time::MAX).then_some(self.free_at)
    }

    /// Whether a request of ours is open.
    pub(super) fn is_asked(&self) -> bool {
        self.free_at == Time::MAX
    }
}

impl Turns {
    /// Takes note of how far away a peer is. The table grows to the highest slot named.
    pub(super) fn place(&mut self, peer: PeerSlot, nearness: Nearness) {
        let index = peer.0 as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, Turn { free_at: Time::ZERO, nearness: Nearness::Elsewhere });
        }
        self.0[index].nearness = nearness;
    }

    pub(super) fn of(&self, peer: PeerSlot) -> &Turn {
        &self.0[peer.0 as usize]
    }

    /// A request is open: nothing more is asked of the peer until [`Self::rest`].
    pub(super) fn ask(&mut self, peer: PeerSlot) {
        self.0[peer.0 as usize].free_at = Time::MAX;
    }

    /// The peer may be asked from `until` on.
    pub(super) fn rest(&mut self, peer: PeerSlot, until: Time) {
        self.0[peer.0 as usize].free_at = until;
    }
}

//! When each peer may be asked for a chunk, and how far away it is: dense, for every choice looks
//! at all neighbours.

use super::{Nearness, PeerSlot};
use crate::time::Time;

/// One peer's turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Not asked before this.
    rests_until: Time,
    /// When the one open request is nearly done; [`Time::MAX`] while that is not known.
    nearly_done_at: Time,
    /// Requests of ours that are open: at most two, and the second only when the first is nearly
    /// done.
    open: u8,
    pub(super) nearness: Nearness,
}

/// The turns, by peer slot.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Turn>);

impl Default for Turn {
    fn default() -> Self {
        Self {
            rests_until: Time::ZERO,
            nearly_done_at: Time::MAX,
            open: 0,
            nearness: Nearness::Elsewhere,
        }
    }
}

impl Turn {
    pub(super) fn is_free(&self, now: Time) -> bool {
        let has_room = match self.open {
            0 => true,
            1 => self.nearly_done_at <= now,
            _ => false,
        };
        has_room && self.rests_until <= now
    }

    pub(super) fn is_near(&self) -> bool {
        self.nearness == Nearness::SameZone
    }

    /// Until when it is left alone.
    pub(super) fn rests_until(&self) -> Time {
        self.rests_until
    }

    /// Requests of ours that are open.
    pub(super) fn open(&self) -> u8 {
        self.open
    }
}

impl Turns {
    /// Takes note of how far away a peer is. The table grows to the highest slot named.
    pub(super) fn place(&mut self, peer: PeerSlot, nearness: Nearness) {
        let index = peer.0 as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, Turn::default);
        }
        self.0[index].nearness = nearness;
    }

    pub(super) fn of(&self, peer: PeerSlot) -> &Turn {
        &self.0[peer.0 as usize]
    }

    /// A request is open.
    pub(super) fn ask(&mut self, peer: PeerSlot) {
        let turn = &mut self.0[peer.0 as usize];
        turn.open += 1;
        turn.nearly_done_at = Time::MAX;
    }

    /// A request moves, and is nearly done at `at`. With two of them nobody needs to know.
    pub(super) fn moves(&mut self, peer: PeerSlot, at: Time) {
        let turn = &mut self.0[peer.0 as usize];
        if turn.open == 1 {
            turn.nearly_done_at = at;
        }
    }

    /// A request is over.
    pub(super) fn end(&mut self, peer: PeerSlot) {
        let turn = &mut self.0[peer.0 as usize];
        turn.open = turn.open.saturating_sub(1);
        turn.nearly_done_at = Time::MAX;
        turn.rests_until = Time::ZERO;
    }

    /// The peer may be asked from `until` on.
    pub(super) fn rest(&mut self, peer: PeerSlot, until: Time) {
        self.0[peer.0 as usize].rests_until = until;
    }
}

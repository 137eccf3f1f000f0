//! When each peer may be asked for a chunk, and how near it is. The times are in tables of their
//! own because the picker looks at every neighbour each time.

use core::time::Duration;

use super::io::{Nearness, PeerSlot};
use crate::time::Time;

/// How long a neighbour that did not deliver is not asked, doubling each time in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// How often that doubles.
const MAX_DOUBLINGS: u32 = 6;

/// The requests at one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestWindow {
    /// When the one open request is nearly done; [`Time::MAX`] while that is not known.
    nearly_done_at: Time,
    /// Times in a row that the peer did not deliver.
    failures: u32,
    /// Open requests: at most two, and the second only when the first is nearly done.
    open: u8,
    /// Whether it is paused because it had no free upload slot.
    is_busy: bool,
}

impl Default for RequestWindow {
    fn default() -> Self {
        Self {
            nearly_done_at: Time::MAX,
            failures: 0,
            open: 0,
            is_busy: false,
        }
    }
}

impl RequestWindow {
    /// Open requests.
    pub(super) fn open(&self) -> u8 {
        self.open
    }

    /// How often the timeout for its first byte doubles.
    pub(super) fn doublings(&self) -> u32 {
        self.failures.min(MAX_DOUBLINGS)
    }

    /// When the open requests leave room for another one.
    fn has_room_at(&self) -> Time {
        match self.open {
            0 => Time::ZERO,
            1 => self.nearly_done_at,
            _ => Time::MAX,
        }
    }
}

/// The windows by peer slot.
#[derive(Debug, Default)]
pub(super) struct RequestWindows {
    windows: Vec<RequestWindow>,
    /// Until when each peer is not asked.
    paused_until: Vec<Time>,
    /// When each peer may be asked: neither paused nor without room for another request.
    free_at: Vec<Time>,
    nearness: Vec<Nearness>,
    /// The last peer that had a free upload slot and was not asked since.
    preferred: Option<PeerSlot>,
}

impl RequestWindows {
    /// Records how near a peer is. The table grows to the highest slot named.
    pub(super) fn register_peer(&mut self, peer: PeerSlot, nearness: Nearness) {
        let index = peer.0 as usize;
        if index >= self.windows.len() {
            self.windows.resize_with(index + 1, RequestWindow::default);
            self.paused_until.resize(index + 1, Time::ZERO);
            self.free_at.resize(index + 1, Time::ZERO);
            self.nearness.resize(index + 1, Nearness::Elsewhere);
        }
        self.nearness[index] = nearness;
    }

    /// The window of a peer that was introduced.
    pub(super) fn of(&self, peer: PeerSlot) -> &RequestWindow {
        &self.windows[peer.0 as usize]
    }

    pub(super) fn known_nearness(&self, peer: PeerSlot) -> Option<Nearness> {
        self.nearness.get(peer.0 as usize).copied()
    }

    pub(super) fn nearness(&self, peer: PeerSlot) -> Nearness {
        self.nearness[peer.0 as usize]
    }

    pub(super) fn is_same_zone(&self, peer: PeerSlot) -> bool {
        self.nearness(peer) == Nearness::SameZone
    }

    /// Whether the peer may be asked for another chunk.
    pub(super) fn is_free(&self, now: Time, peer: PeerSlot) -> bool {
        self.free_at[peer.0 as usize] <= now
    }

    /// Which of these peers may be asked for another chunk, one bit each.
    pub(super) fn free(&self, now: Time, peers: &[PeerSlot]) -> u64 {
        one_bit_each(peers, |peer| self.is_free(now, peer))
    }

    /// Whether a peer that is free probably has an upload slot for us: it delivered or told so
    /// last, or its transfer to us is nearly done.
    pub(super) fn is_preferred(&self, peer: PeerSlot) -> bool {
        self.preferred == Some(peer) || self.of(peer).open() > 0
    }

    /// Which of these peers are in the own zone, one bit each.
    pub(super) fn same_zone(&self, peers: &[PeerSlot]) -> u64 {
        one_bit_each(peers, |peer| self.is_same_zone(peer))
    }

    /// Until when the peer is not asked.
    pub(super) fn paused_until(&self, peer: PeerSlot) -> Time {
        self.paused_until[peer.0 as usize]
    }

    /// The peer has a free upload slot: it is the first to be asked.
    pub(super) fn prefer(&mut self, peer: PeerSlot) {
        self.preferred = Some(peer);
    }

    /// A request was sent.
    pub(super) fn open(&mut self, peer: PeerSlot) {
        if self.preferred == Some(peer) {
            self.preferred = None;
        }
        let window = &mut self.windows[peer.0 as usize];
        window.open += 1;
        window.nearly_done_at = Time::MAX;
        self.update(peer);
    }

    /// A request moves and is nearly done at `at`. With two open requests that does not matter.
    pub(super) fn set_nearly_done(&mut self, peer: PeerSlot, at: Time) {
        let window = &mut self.windows[peer.0 as usize];
        if window.open == 1 {
            window.nearly_done_at = at;
            self.update(peer);
        }
    }

    /// A request has ended.
    pub(super) fn close(&mut self, peer: PeerSlot) {
        let window = &mut self.windows[peer.0 as usize];
        window.open = window.open.saturating_sub(1);
        window.nearly_done_at = Time::MAX;
        self.pause(peer, Time::ZERO);
    }

    /// Does not ask the peer before `until`.
    pub(super) fn pause(&mut self, peer: PeerSlot, until: Time) {
        self.paused_until[peer.0 as usize] = until;
        self.windows[peer.0 as usize].is_busy = false;
        self.update(peer);
    }

    /// Does not ask the peer, which has no free upload slot, before `until` or
    /// [`Self::end_busy_pause`].
    pub(super) fn pause_busy(&mut self, peer: PeerSlot, until: Time) {
        self.pause(peer, until);
        self.windows[peer.0 as usize].is_busy = true;
    }

    /// Ends the pause of a busy peer. False if it is not paused for that reason.
    pub(super) fn end_busy_pause(&mut self, peer: PeerSlot) -> bool {
        let was_busy = self.windows[peer.0 as usize].is_busy;
        if was_busy {
            self.pause(peer, Time::ZERO);
        }
        was_busy
    }

    /// The peer did not deliver: it is not asked for a while, longer each time in a row.
    pub(super) fn back_off(&mut self, now: Time, peer: PeerSlot) {
        let window = &mut self.windows[peer.0 as usize];
        let until = now + FIRST_BACKOFF * (1 << window.doublings());
        window.failures += 1;
        self.pause(peer, until);
    }

    /// The peer delivered a chunk.
    pub(super) fn clear_failures(&mut self, peer: PeerSlot) {
        self.windows[peer.0 as usize].failures = 0;
    }

    fn update(&mut self, peer: PeerSlot) {
        let index = peer.0 as usize;
        self.free_at[index] = self.paused_until[index].max(self.windows[index].has_room_at());
    }
}

/// The first peer's answer is the lowest bit.
fn one_bit_each(peers: &[PeerSlot], is_set: impl Fn(PeerSlot) -> bool) -> u64 {
    let peers = peers.iter().rev();
    peers.fold(0, |bits, peer| bits << 1 | u64::from(is_set(*peer)))
}

//! When each peer may be asked for a chunk, and how near it is. The table is dense because the
//! picker looks at every neighbour each time.

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
    /// Not asked before this.
    paused_until: Time,
    /// When the one open request is nearly done; [`Time::MAX`] while that is not known.
    nearly_done_at: Time,
    /// Times in a row that the peer did not deliver.
    failures: u32,
    /// Open requests: at most two, and the second only when the first is nearly done.
    open: u8,
    nearness: Nearness,
}

impl Default for RequestWindow {
    fn default() -> Self {
        Self {
            paused_until: Time::ZERO,
            nearly_done_at: Time::MAX,
            failures: 0,
            open: 0,
            nearness: Nearness::Elsewhere,
        }
    }
}

impl RequestWindow {
    /// Whether the peer may be asked for another chunk.
    pub(super) fn is_free(&self, now: Time) -> bool {
        let has_room = match self.open {
            0 => true,
            1 => self.nearly_done_at <= now,
            _ => false,
        };
        has_room && self.paused_until <= now
    }

    pub(super) fn nearness(&self) -> Nearness {
        self.nearness
    }

    pub(super) fn is_same_zone(&self) -> bool {
        self.nearness == Nearness::SameZone
    }

    /// Until when the peer is not asked.
    pub(super) fn paused_until(&self) -> Time {
        self.paused_until
    }

    /// Open requests.
    pub(super) fn open(&self) -> u8 {
        self.open
    }

    /// How often the timeout for its first byte doubles.
    pub(super) fn doublings(&self) -> u32 {
        self.failures.min(MAX_DOUBLINGS)
    }
}

/// The windows by peer slot.
#[derive(Debug, Default)]
pub(super) struct RequestWindows(Vec<RequestWindow>);

impl RequestWindows {
    /// Records how near a peer is. The table grows to the highest slot named.
    pub(super) fn register_peer(&mut self, peer: PeerSlot, nearness: Nearness) {
        let index = peer.0 as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, RequestWindow::default);
        }
        self.0[index].nearness = nearness;
    }

    /// The window of a peer that was introduced.
    pub(super) fn of(&self, peer: PeerSlot) -> &RequestWindow {
        &self.0[peer.0 as usize]
    }

    /// A request was sent.
    pub(super) fn open(&mut self, peer: PeerSlot) {
        let window = &mut self.0[peer.0 as usize];
        window.open += 1;
        window.nearly_done_at = Time::MAX;
    }

    /// A request moves and is nearly done at `at`. With two open requests that does not matter.
    pub(super) fn set_nearly_done(&mut self, peer: PeerSlot, at: Time) {
        let window = &mut self.0[peer.0 as usize];
        if window.open == 1 {
            window.nearly_done_at = at;
        }
    }

    /// A request has ended.
    pub(super) fn close(&mut self, peer: PeerSlot) {
        let window = &mut self.0[peer.0 as usize];
        window.open = window.open.saturating_sub(1);
        window.nearly_done_at = Time::MAX;
        window.paused_until = Time::ZERO;
    }

    /// Does not ask the peer before `until`.
    pub(super) fn pause(&mut self, peer: PeerSlot, until: Time) {
        self.0[peer.0 as usize].paused_until = until;
    }

    /// The peer did not deliver: it is not asked for a while, longer each time in a row.
    pub(super) fn back_off(&mut self, now: Time, peer: PeerSlot) {
        let window = &mut self.0[peer.0 as usize];
        window.paused_until = now + FIRST_BACKOFF * (1 << window.doublings());
        window.failures += 1;
    }

    /// The peer delivered a chunk.
    pub(super) fn clear_failures(&mut self, peer: PeerSlot) {
        self.0[peer.0 as usize].failures = 0;
    }
}

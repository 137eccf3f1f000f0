//! One download of one chunk, and the table of those under way.

use super::io::{BlobSlot, ChunkSource, PeerSlot, TransferId};
use super::progress::TransferProgress;
use super::request_window::RequestWindows;
use super::slot_count::SlotCount;
use crate::origin_region::OriginRegion;
use crate::time::Time;

/// Why a chunk may be fetched from its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// The source is a neighbour; no permission is needed.
    NotNeeded,
    /// The tracker granted a lease, and may have named the region whose origin is asked first.
    Leased { from: Option<OriginRegion> },
    /// No tracker answers, and no other peer was known to fetch the chunk.
    Claimed,
    /// None was granted: the pull had not moved for too long.
    Fallback,
}

impl Permission {
    /// Whether the tracker granted a lease.
    pub(super) fn is_leased(self) -> bool {
        matches!(self, Self::Leased { .. })
    }

    /// Whether the source is an origin, and there is no lease.
    pub(super) fn is_unleased(self) -> bool {
        matches!(self, Self::Claimed | Self::Fallback)
    }

    /// A transfer is slow if each other slot receives more than so many times as many bytes. A
    /// chunk from a neighbour has a higher limit, because another one in its stead takes another
    /// neighbour's upload slot; so has one from an origin without a lease, because another one adds
    /// to the origin's load. A chunk under a lease is lacking everywhere until it has arrived.
    fn slow_factor(self) -> u64 {
        match self {
            Self::Leased { .. } => 2,
            Self::NotNeeded | Self::Claimed | Self::Fallback => 6,
        }
    }
}

/// One download of one chunk.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) id: TransferId,
    pub(super) blob: BlobSlot,
    pub(super) chunk: u32,
    pub(super) source: ChunkSource,
    pub(super) permission: Permission,
    /// When it last moved.
    pub(super) moved_at: Time,
    /// When its answer is late: an idle neighbour nearby would have answered.
    pub(super) late_at: Time,
    /// Its first byte has arrived.
    pub(super) has_begun: bool,
    /// The region of the origin that sends it, as far as the driver has said.
    pub(super) sent_from: Option<OriginRegion>,
    pub(super) progress: TransferProgress,
}

impl Transfer {
    /// The neighbour that it comes from.
    pub(super) fn peer(&self) -> Option<PeerSlot> {
        match self.source {
            ChunkSource::Peer(peer) => Some(peer),
            ChunkSource::Origin => None,
        }
    }

    /// Whether it is slow for the link, so that it takes no slot.
    fn is_slow(&self, total: u64, slots: u32) -> bool {
        let factor = self.permission.slow_factor();
        self.has_begun && self.progress.is_slow(total, slots, factor)
    }
}

/// The downloads under way: a handful.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    running: Vec<Transfer>,
    next_id: u64,
    /// The slots that they take; not valid once one of them has changed.
    count: SlotCount,
    /// Bytes that all transfers have received so far, ended ones too.
    total: u64,
}

impl Transfers {
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Transfer> {
        self.running.iter()
    }

    pub(super) fn of_blob(&self, blob: BlobSlot) -> impl Iterator<Item = &Transfer> {
        self.iter().filter(move |transfer| transfer.blob == blob)
    }

    /// The transfer with a number, which may move on.
    pub(super) fn find(&mut self, id: TransferId) -> Option<&mut Transfer> {
        self.count = SlotCount::default();
        self.running.iter_mut().find(|transfer| transfer.id == id)
    }

    /// The transfer of a chunk, which may change.
    pub(super) fn of_chunk(&mut self, blob: BlobSlot, chunk: u32) -> Option<&mut Transfer> {
        self.count = SlotCount::default();
        self.running
            .iter_mut()
            .find(|transfer| (transfer.blob, transfer.chunk) == (blob, chunk))
    }

    /// The first byte of a transfer moves now.
    pub(super) fn begin(&mut self, now: Time, id: TransferId) -> Option<&Transfer> {
        let total = self.total;
        let transfer = self.find(id)?;
        transfer.moved_at = now;
        transfer.has_begun = true;
        transfer.progress.restart(now, total);
        Some(transfer)
    }

    /// Bytes that all transfers have received so far, ended ones too.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Counts bytes that a transfer has received.
    pub(super) fn count_received(&mut self, bytes: u64) {
        self.total += bytes;
    }

    /// A number for the next transfer.
    pub(super) fn next_id(&mut self) -> TransferId {
        let id = TransferId(self.next_id);
        self.next_id += 1;
        id
    }

    pub(super) fn push(&mut self, transfer: Transfer) {
        self.count = SlotCount::default();
        self.running.push(transfer);
    }

    pub(super) fn take(&mut self, id: TransferId) -> Option<Transfer> {
        let at = self.running.iter().position(|transfer| transfer.id == id)?;
        self.count = SlotCount::default();
        Some(self.running.swap_remove(at))
    }

    /// Transfers that count against the slots: those that are neither nearly done nor slow.
    /// Requests whose answer is late have a limit of their own, of the same size: a refusal that is
    /// queued behind other chunks must not keep a slot from useful work.
    pub(super) fn busy(&self, now: Time, slots: u32) -> u32 {
        let count = self.count(now, slots);
        count.busy() + count.late().saturating_sub(slots)
    }

    /// When the number of busy transfers may change next, or an answer is late.
    pub(super) fn busy_changes_at(&self, now: Time, slots: u32) -> Time {
        self.count(now, slots).changes_at()
    }

    /// Counts the slots that are taken, and keeps the number for as long as it holds.
    pub(super) fn recount(&mut self, now: Time, slots: u32) {
        self.count = self.count(now, slots);
    }

    fn count(&self, now: Time, slots: u32) -> SlotCount {
        if self.count.is_valid(now, slots) {
            return self.count;
        }
        let mut count = SlotCount::empty(slots);
        for transfer in &self.running {
            if transfer.is_slow(self.total, slots) {
                continue;
            }
            if transfer.has_begun {
                count.add(now, transfer.progress.free_at());
            } else if transfer.peer().is_some() {
                count.add_unanswered(now, transfer.late_at);
            } else {
                count.add(now, Time::MAX);
                if transfer.late_at > now {
                    count.change_by(transfer.late_at);
                }
            }
        }
        count
    }

    /// Transfers from other zones.
    pub(super) fn count_from_other_zones(&self, windows: &RequestWindows) -> u32 {
        let is_crossing = |peer: &PeerSlot| !windows.is_same_zone(*peer);
        self.iter()
            .filter_map(Transfer::peer)
            .filter(is_crossing)
            .count() as u32
    }

    /// Transfers from origins without a lease.
    pub(super) fn unleased(&self) -> usize {
        let is_unleased = |transfer: &&Transfer| transfer.permission.is_unleased();
        self.iter().filter(is_unleased).count()
    }
}

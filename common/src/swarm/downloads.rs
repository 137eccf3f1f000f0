//! Downloads: filling the slots, and the life of each transfer.
//!
//! A transfer marks its chunk as pending; the mark goes when the transfer ends in any way.

use core::time::Duration;

use super::context::{Context, Work};
use super::io::{BlobSlot, ChunkSource, Nearness, Output, PeerFacts, PeerSlot, TransferId};
use super::neighbours::Neighbours;
use super::picker::{Picker, PickerView};
use super::progress::TransferProgress;
use super::pull::{Pull, Pulls};
use super::request_window::RequestWindows;
use super::timers::Timer;
use super::transfer::{Permission, Transfer, Transfers};
use crate::origin_region::OriginRegion;
use crate::time::Time;

/// A busy neighbour is not asked for so many chunk times, and for [`MAX_BUSY_PAUSE`] at most.
/// Usually it tells when it has a free slot before that.
const BUSY_CHUNK_TIMES: u32 = 5;
const MAX_BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Chunk times that are added to the timeout for a neighbour's first byte: on a slow link it comes
/// behind other chunks.
const FIRST_BYTE_CHUNK_TIMES: u32 = 4;
/// The timeout for an origin's first byte, as a multiple of [`SwarmConfig::stall_timeout`]: an
/// origin has to ask its storage.
///
/// [`SwarmConfig::stall_timeout`]: super::config::SwarmConfig::stall_timeout
const ORIGIN_FACTOR: u32 = 2;

/// The blob and source of a transfer that moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) blob: BlobSlot,
    pub(super) source: ChunkSource,
}

/// All downloads of the peer.
#[derive(Debug, Default)]
pub(super) struct Downloads {
    transfers: Transfers,
    windows: RequestWindows,
    pulls: Pulls,
    picker: Picker,
}

// Blobs and peers.
impl Downloads {
    pub(super) fn add_blob(&mut self, slot: BlobSlot) {
        self.pulls.insert(slot, Pull::new());
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.pulls.remove(slot);
    }

    pub(super) fn pull(&self, slot: BlobSlot) -> Option<&Pull> {
        self.pulls.get(slot)
    }

    /// The blob is wanted from now on.
    pub(super) fn start_pull(&mut self, now: Time, slot: BlobSlot, jitter: f64) {
        if let Some(pull) = self.pulls.get_mut(slot) {
            pull.start(now, jitter);
        }
    }

    /// Bytes of the blob came, or it is wanted again.
    pub(super) fn mark_moved(&mut self, now: Time, slot: BlobSlot) {
        if let Some(pull) = self.pulls.get_mut(slot) {
            pull.mark_moved(now);
        }
    }

    /// Fetches nothing of the blob before `until`.
    pub(super) fn pause_pull(&mut self, slot: BlobSlot, until: Time) {
        if let Some(pull) = self.pulls.get_mut(slot) {
            pull.pause(until);
        }
    }

    /// No origin delivered a chunk of the blob: none is asked for a while.
    pub(super) fn delay_origin(&mut self, ctx: &Context, slot: BlobSlot) {
        if let Some(pull) = self.pulls.get_mut(slot) {
            pull.delay_origin(ctx.now, ctx.config.origin_retry_delay);
        }
    }

    /// An origin delivered a chunk of the blob, or is usable again.
    pub(super) fn clear_origin_delay(&mut self, slot: BlobSlot) {
        if let Some(pull) = self.pulls.get_mut(slot) {
            pull.clear_origin_delay();
        }
    }

    /// Whether an origin may be asked for a chunk of the blob now.
    pub(super) fn may_ask_origin(&self, ctx: &Context, slot: BlobSlot) -> bool {
        let pull = self.pulls.get(slot);
        ctx.has_origin && pull.is_some_and(|pull| pull.origin_retry_at() <= ctx.now)
    }

    /// Sets the lowest chunk that a reader of the blob waits for.
    pub(super) fn set_cursor(&mut self, slot: BlobSlot, cursor: Option<u32>) {
        if let Some(pull) = self.pulls.get_mut(slot) {
            pull.set_cursor(cursor);
        }
    }

    /// Records how near a peer is.
    pub(super) fn register_peer(&mut self, facts: &PeerFacts) {
        self.windows.register_peer(facts.peer, facts.nearness);
    }

    /// How near a peer is; `None` if it was never registered.
    pub(super) fn nearness(&self, peer: PeerSlot) -> Option<Nearness> {
        self.windows.known_nearness(peer)
    }

    /// A new connection: earlier failures of the peer do not count.
    pub(super) fn on_connected(&mut self, peer: PeerSlot) {
        self.windows.pause(peer, Time::ZERO);
        self.windows.clear_failures(peer);
    }

    /// The connection is gone, and its transfers with it.
    pub(super) fn on_disconnected(&mut self, ctx: &mut Context, peer: PeerSlot) {
        while let Some(id) = self.first(|transfer| transfer.peer() == Some(peer)) {
            ctx.counters.failures += 1;
            self.end(ctx, id);
        }
    }

    /// The peer has no free upload slot: it is not asked until it has one, or for a few chunk times.
    pub(super) fn on_busy(&mut self, ctx: &Context, peer: PeerSlot, blob: BlobSlot) {
        let pause = ctx.blobs.chunk_time(blob) * BUSY_CHUNK_TIMES;
        self.windows
            .pause_busy(peer, ctx.now + pause.min(MAX_BUSY_PAUSE));
    }

    /// The peer has a free upload slot. That only counts if it was busy when it was asked last.
    pub(super) fn on_slot_free(&mut self, ctx: &mut Context, peer: PeerSlot) {
        if self.windows.end_busy_pause(peer) {
            self.windows.prefer(peer);
            ctx.due.add(Work::FillSlots);
        }
    }

    /// The peer did not deliver: it is not asked for a while.
    pub(super) fn back_off(&mut self, now: Time, peer: PeerSlot) {
        self.windows.back_off(now, peer);
    }

    /// A transfer delivered its chunk, as one that [`Self::end`] returned.
    pub(super) fn on_delivered(&mut self, transfer: &Transfer) {
        self.transfers.count_received(transfer.progress.left());
        if let Some(peer) = transfer.peer() {
            self.windows.clear_failures(peer);
            // It probably has a free upload slot for the next chunk.
            self.windows.prefer(peer);
        }
    }
}

// Transfers.
impl Downloads {
    /// Fills the slots as far as neighbours hold something that is missing here.
    pub(super) fn fill(&mut self, ctx: &mut Context, neighbours: &Neighbours) {
        ctx.due.remove(Work::FillSlots);
        if ctx.blobs.wanted().is_empty() {
            return;
        }
        self.transfers.recount(ctx.now, ctx.slots);
        while self.has_free_slot(ctx) && self.transfers.len() < 2 * ctx.slots as usize + 2 {
            let view = PickerView {
                neighbours,
                windows: &self.windows,
                pulls: &self.pulls,
                count_from_other_zones: self.transfers.count_from_other_zones(&self.windows),
            };
            let Some(pick) = self.picker.pick(ctx, view) else {
                return self.schedule_fill_when_unpaused(ctx);
            };
            self.windows.open(pick.peer);
            let source = ChunkSource::Peer(pick.peer);
            self.start(ctx, pick.blob, pick.chunk, source, Permission::NotNeeded);
            self.transfers.recount(ctx.now, ctx.slots);
        }
        self.schedule_fill_when_slot_is_free(ctx);
    }

    /// Starts a transfer.
    pub(super) fn start(
        &mut self,
        ctx: &mut Context,
        slot: BlobSlot,
        chunk: u32,
        source: ChunkSource,
        permission: Permission,
    ) {
        let length = ctx.blobs.get_mut(slot).map_or(0, |blob| {
            blob.mark_pending(chunk);
            blob.chunk_len(chunk)
        });
        let transfer = Transfer {
            id: self.transfers.next_id(),
            blob: slot,
            chunk,
            source,
            permission,
            moved_at: ctx.now,
            late_at: ctx.now + ctx.config.nearly_done,
            has_begun: false,
            sent_from: None,
            progress: TransferProgress::new(ctx.now, length, self.transfers.total()),
        };
        let deadline = ctx.now + self.timeout(ctx, &transfer);
        ctx.timers.wake_by(Timer::Stall, deadline);
        ctx.output(Output::Fetch {
            transfer: transfer.id,
            blob: slot,
            chunk,
            source,
            first: match permission {
                Permission::Leased { from } => from,
                _ => None,
            },
        });
        self.transfers.push(transfer);
    }

    /// The source accepted: its answer has begun.
    pub(super) fn on_first_byte(&mut self, ctx: &Context, id: TransferId) -> Option<Progress> {
        let transfer = self.transfers.begin(ctx.now, id)?;
        let Transfer { blob, source, .. } = *transfer;
        self.mark_moved(ctx.now, blob);
        Some(Progress { blob, source })
    }

    /// Bytes came: `received` in all. `None` if that is nothing new.
    pub(super) fn on_progress(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        id: TransferId,
        received: u64,
    ) -> Option<Progress> {
        let total = self.transfers.total();
        let transfer = self.transfers.find(id)?;
        let before = transfer.progress.moved();
        if received <= before {
            return None;
        }
        transfer.moved_at = ctx.now;
        if !core::mem::replace(&mut transfer.has_begun, true) {
            transfer.progress.compare_from(total);
        }
        let peer = transfer.peer();
        let round_trip = peer.map_or(Duration::ZERO, |peer| neighbours.round_trip(peer));
        let nearly_done = ctx.config.nearly_done.max(round_trip);
        transfer.progress.update(ctx.now, received, nearly_done);
        let free_at = transfer.progress.free_at();
        ctx.timers.wake_by(Timer::Fill, free_at);
        let Transfer { blob, source, .. } = *transfer;
        self.transfers.count_received(received - before);
        if let Some(peer) = peer {
            self.windows.set_nearly_done(peer, free_at);
        }
        self.mark_moved(ctx.now, blob);
        Some(Progress { blob, source })
    }

    /// Ends a transfer and clears its marks; `None` if it is unknown, because it was cancelled.
    pub(super) fn end(&mut self, ctx: &mut Context, id: TransferId) -> Option<Transfer> {
        let transfer = self.transfers.take(id)?;
        if let Some(peer) = transfer.peer() {
            self.windows.close(peer);
        }
        if let Some(blob) = ctx.blobs.get_mut(transfer.blob) {
            blob.clear_pending(transfer.chunk);
        }
        ctx.due.add(Work::FillSlots);
        Some(transfer)
    }

    /// Cancels the first transfer that has not moved for too long; `None` when there is none.
    pub(super) fn cancel_stalled(&mut self, ctx: &mut Context) -> Option<Transfer> {
        let mut stalled = None;
        for transfer in self.transfers.iter() {
            let deadline = transfer.moved_at + self.timeout(ctx, transfer);
            if deadline <= ctx.now {
                stalled = Some(transfer.id);
                break;
            }
            ctx.timers.wake_by(Timer::Stall, deadline);
        }
        self.cancel(ctx, stalled?)
    }

    /// Cancels all transfers of a blob.
    pub(super) fn cancel_blob(&mut self, ctx: &mut Context, slot: BlobSlot) {
        while let Some(id) = self.first(|transfer| transfer.blob == slot) {
            self.cancel(ctx, id);
        }
    }

    /// Puts the transfer of a chunk under a lease; false if the chunk is not being fetched.
    pub(super) fn put_under_lease(&mut self, slot: BlobSlot, chunk: u32) -> bool {
        let transfer = self.transfers.of_chunk(slot, chunk);
        transfer.is_some_and(|transfer| {
            transfer.permission = Permission::Leased { from: None };
            true
        })
    }

    /// The tracker has moved a lease to the origins of another region: a transfer that gets
    /// nothing from there yet begins anew.
    pub(super) fn on_lease_moved(
        &mut self,
        ctx: &mut Context,
        slot: BlobSlot,
        chunk: u32,
        to: OriginRegion,
    ) {
        if let Some(transfer) = self.transfers.of_chunk(slot, chunk)
            && transfer.permission.is_leased()
            && transfer.source == ChunkSource::Origin
            && transfer.sent_from != Some(to)
        {
            let id = transfer.id;
            self.cancel(ctx, id);
            let permission = Permission::Leased { from: Some(to) };
            self.start(ctx, slot, chunk, ChunkSource::Origin, permission);
        }
    }

    /// An origin of this region has begun to send.
    pub(super) fn on_origin_answered(&mut self, id: TransferId, region: OriginRegion) {
        if let Some(transfer) = self.transfers.find(id) {
            transfer.sent_from = Some(region);
        }
    }

    /// Cancels the transfer of a chunk whose lease is lost. One that has received bytes continues,
    /// because the rest is on its way.
    pub(super) fn on_lease_lost(&mut self, ctx: &mut Context, slot: BlobSlot, chunk: u32) {
        if let Some(transfer) = self.transfers.of_chunk(slot, chunk)
            && transfer.permission.is_leased()
            && transfer.progress.moved() == 0
        {
            let id = transfer.id;
            self.cancel(ctx, id);
        }
    }

    fn cancel(&mut self, ctx: &mut Context, id: TransferId) -> Option<Transfer> {
        ctx.output(Output::Cancel { transfer: id });
        self.end(ctx, id)
    }

    fn first(&self, is_wanted: impl Fn(&Transfer) -> bool) -> Option<TransferId> {
        let mut transfers = self.transfers.iter();
        transfers
            .find(|transfer| is_wanted(transfer))
            .map(|transfer| transfer.id)
    }
}

// Queries.
impl Downloads {
    /// Whether a slot is free.
    pub(super) fn has_free_slot(&self, ctx: &Context) -> bool {
        self.transfers.busy(ctx.now, ctx.slots) < ctx.slots
    }

    /// Whether the peer may be asked for another chunk.
    pub(super) fn is_free(&self, now: Time, peer: PeerSlot) -> bool {
        self.windows.is_free(now, peer)
    }

    /// Whether a request is open at the peer.
    pub(super) fn has_request_at(&self, peer: PeerSlot) -> bool {
        self.windows.of(peer).open() > 0
    }

    /// Number of transfers of a blob.
    pub(super) fn count(&self, slot: BlobSlot) -> usize {
        self.transfers.of_blob(slot).count()
    }

    /// Whether bytes of a blob are arriving.
    pub(super) fn is_moving(&self, slot: BlobSlot) -> bool {
        self.transfers
            .of_blob(slot)
            .any(|transfer| transfer.has_begun)
    }

    /// Bytes received of a chunk that is being fetched, otherwise 0; and the region of the origin
    /// that sends them, if that is known.
    pub(super) fn received(&self, slot: BlobSlot, chunk: u32) -> (u64, Option<OriginRegion>) {
        let mut transfers = self.transfers.of_blob(slot);
        transfers
            .find(|transfer| transfer.chunk == chunk)
            .map_or((0, None), |transfer| {
                (transfer.progress.moved(), transfer.sent_from)
            })
    }

    /// The chunks of a blob that are being fetched from an origin, and the bytes received of each.
    pub(super) fn origin_fetches(&self, slot: BlobSlot) -> impl Iterator<Item = (u32, u64)> + '_ {
        let transfers = self.transfers.of_blob(slot);
        transfers
            .filter(|transfer| transfer.source == ChunkSource::Origin)
            .map(|transfer| (transfer.chunk, transfer.progress.moved()))
    }

    /// Transfers from origins without a lease.
    pub(super) fn unleased(&self) -> usize {
        self.transfers.unleased()
    }

    /// The transfers under way, for invariants.
    #[cfg(test)]
    pub(super) fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.transfers.iter()
    }

    /// Open requests at a peer, for invariants.
    #[cfg(test)]
    pub(super) fn open_requests(&self, peer: PeerSlot) -> usize {
        usize::from(self.windows.of(peer).open())
    }
}

// Deadlines.
impl Downloads {
    /// How long a transfer may go without moving.
    fn timeout(&self, ctx: &Context, transfer: &Transfer) -> Duration {
        let stalled = ctx.config.stall_timeout;
        match transfer.source {
            ChunkSource::Origin if transfer.progress.moved() == 0 => stalled * ORIGIN_FACTOR,
            ChunkSource::Peer(peer) if !transfer.has_begun => {
                let chunk_time = ctx.blobs.chunk_time(transfer.blob);
                let first_byte =
                    ctx.config.first_byte_timeout + chunk_time * FIRST_BYTE_CHUNK_TIMES;
                let doublings = self.windows.of(peer).doublings();
                (first_byte * (1 << doublings)).min(stalled)
            }
            _ => stalled,
        }
    }

    /// All slots are busy: looks again when a transfer is nearly done, or its answer is late.
    fn schedule_fill_when_slot_is_free(&self, ctx: &mut Context) {
        let changes_at = self.transfers.busy_changes_at(ctx.now, ctx.slots);
        ctx.timers.wake_by(Timer::Fill, changes_at);
    }

    /// Slots are free, but no neighbour may be asked: looks again when the first pause ends.
    fn schedule_fill_when_unpaused(&self, ctx: &mut Context) {
        for slot in ctx.blobs.wanted() {
            let (Some(blob), Some(pull)) = (ctx.blobs.get(*slot), self.pulls.get(*slot)) else {
                continue;
            };
            for peer in blob.neighbours() {
                let until = self.windows.paused_until(*peer);
                if until > ctx.now {
                    ctx.timers.wake_by(Timer::Fill, until);
                }
            }
            if pull.is_paused(ctx.now) {
                ctx.timers.wake_by(Timer::Fill, pull.paused_until());
            }
        }
    }
}

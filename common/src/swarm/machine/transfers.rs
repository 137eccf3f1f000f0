//! The events of transfers: progress, ends, and leases that start or move one.

use core::time::Duration;

use super::PeerMachine;
use crate::origin_region::OriginRegion;
use crate::swarm::downloads::Progress;
use crate::swarm::io::{
    BlobSlot, ChunkSource, DownloadFailure, PeerSlot, RefusalReason, TransferId,
};
use crate::swarm::transfer::{Permission, Transfer};
use crate::swarm::transfer_failures::TransferFailures;

impl PeerMachine {
    pub(super) fn on_moved(&mut self, progress: Option<Progress>) {
        if let Some(Progress { blob, source }) = progress {
            self.stalls.on_moved(self.ctx.now, blob);
            if let ChunkSource::Peer(peer) = source {
                self.neighbours.mark_responsive(&mut self.ctx, peer);
            }
        }
    }

    pub(super) fn on_received(&mut self, id: TransferId) {
        let Some(transfer) = self.downloads.end(&mut self.ctx, id) else {
            return;
        };
        let slot = transfer.blob;
        let chunk = transfer.chunk;
        self.downloads.on_delivered(&transfer);
        match transfer.source {
            ChunkSource::Peer(peer) => {
                self.neighbours.mark_responsive(&mut self.ctx, peer);
                self.leases.reset_starving(slot);
                self.ctx.counters.from_peers += 1;
            }
            ChunkSource::Origin => {
                self.downloads.clear_origin_delay(slot);
                match transfer.permission {
                    Permission::Leased { .. } => self.ctx.counters.from_origin_leased += 1,
                    _ => self.ctx.counters.from_origin_unleased += 1,
                }
            }
        }
        let Some(blob) = self.ctx.blobs.get_mut(slot) else {
            return;
        };
        let is_new = blob.hold(chunk);
        if transfer.permission.is_unleased() {
            let was_claimed = transfer.permission == Permission::Claimed;
            self.fallback.on_received(&mut self.ctx, slot, was_claimed);
        }
        if is_new {
            self.have_batches.add(&mut self.ctx, slot, chunk);
        }
        self.downloads.mark_moved(self.ctx.now, slot);
        self.stalls.on_moved(self.ctx.now, slot);
        self.leases
            .on_chunk_received(&mut self.ctx, slot, chunk, transfer.sent_from);
        self.complete_if_held(slot);
    }

    pub(super) fn on_slot_free(&mut self, peer: PeerSlot) {
        if self.neighbours.is_connected(peer) {
            self.neighbours.mark_responsive(&mut self.ctx, peer);
            self.downloads.on_slot_free(&mut self.ctx, peer);
        }
    }

    pub(super) fn on_refused(&mut self, id: TransferId, reason: RefusalReason) {
        let Some(transfer) = self.downloads.end(&mut self.ctx, id) else {
            return;
        };
        self.failures().on_refused(&transfer, reason);
    }

    /// The transfer failed, or was cancelled because it stalled.
    pub(super) fn on_failed(&mut self, transfer: &Transfer, why: DownloadFailure) {
        self.failures().on_failed(transfer, why);
        let is_origin_delayed = !self.downloads.may_ask_origin(&self.ctx, transfer.blob);
        if transfer.source == ChunkSource::Origin && is_origin_delayed {
            self.far_peers.use_for(transfer.blob);
            self.use_far_peers(transfer.blob);
        }
    }

    pub(super) fn failures(&mut self) -> TransferFailures<'_> {
        TransferFailures {
            ctx: &mut self.ctx,
            neighbours: &mut self.neighbours,
            downloads: &mut self.downloads,
            uploads: &mut self.uploads,
            leases: &mut self.leases,
            fallback: &mut self.fallback,
        }
    }

    pub(super) fn on_lease_granted(
        &mut self,
        (slot, chunk): (BlobSlot, u32),
        term: Duration,
        from: Option<OriginRegion>,
        is_out: bool,
    ) {
        let may_ask_origin = self.downloads.may_ask_origin(&self.ctx, slot);
        let ctx = &mut self.ctx;
        if self
            .leases
            .on_granted(ctx, slot, chunk, term, may_ask_origin)
            && !self.downloads.put_under_lease(slot, chunk)
        {
            let (source, permission) = (ChunkSource::Origin, Permission::Leased { from });
            self.downloads.start(ctx, slot, chunk, source, permission);
            if is_out {
                self.leases.report_waiting(&mut self.ctx, slot, chunk);
            }
        }
    }
}

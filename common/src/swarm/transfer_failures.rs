//! The consequences of a transfer that ended without its chunk.

use core::time::Duration;

use super::context::{Context, Work};
use super::downloads::Downloads;
use super::io::{ChunkSource, DownloadFailure, PeerSlot, RefusalReason};
use super::leases::Leases;
use super::neighbours::Neighbours;
use super::origin_fallback::OriginFallback;
use super::timers::Timer;
use super::transfer::{Permission, Transfer};
use super::uploads::Uploads;

/// How long a pull is paused after the own store failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The sub-machines that a failed transfer concerns.
#[derive(Debug)]
pub(super) struct TransferFailures<'a> {
    pub(super) ctx: &'a mut Context,
    pub(super) neighbours: &'a mut Neighbours,
    pub(super) downloads: &'a mut Downloads,
    pub(super) uploads: &'a mut Uploads,
    pub(super) leases: &'a mut Leases,
    pub(super) fallback: &'a mut OriginFallback,
}

impl TransferFailures<'_> {
    /// The source refused the chunk.
    pub(super) fn on_refused(&mut self, transfer: &Transfer, reason: RefusalReason) {
        self.ctx.counters.refused_by_others += 1;
        let peer = match transfer.source {
            ChunkSource::Peer(peer) => peer,
            ChunkSource::Origin => return self.on_origin_failed(transfer),
        };
        self.neighbours.mark_responsive(self.ctx, peer);
        match reason {
            RefusalReason::Busy => self.downloads.on_busy(self.ctx, peer, transfer.blob),
            RefusalReason::Gone => {
                if let Some(blob) = self.ctx.blobs.get_mut(transfer.blob) {
                    blob.mark_lacking(peer, transfer.chunk);
                    self.ctx.due.add(Work::SeekLeases);
                }
            }
        }
    }

    /// The transfer failed or was cancelled because it stalled.
    pub(super) fn on_failed(&mut self, transfer: &Transfer, why: DownloadFailure) {
        self.ctx.counters.failures += 1;
        self.ctx.counters.corrupt += u64::from(why == DownloadFailure::Corrupt);
        match (why, transfer.source) {
            (DownloadFailure::Store, _) => self.on_store_failed(transfer),
            (DownloadFailure::Corrupt, ChunkSource::Peer(peer)) => self.quarantine(peer),
            (_, ChunkSource::Peer(peer)) => {
                self.downloads.back_off(self.ctx.now, peer);
                if why == DownloadFailure::Timeout
                    && self.neighbours.on_request_timeout(self.ctx, peer)
                {
                    self.uploads.drop_peer(self.ctx, self.neighbours, peer);
                }
            }
            (_, ChunkSource::Origin) => self.on_origin_failed(transfer),
        }
    }

    /// Ends the transfers over a connection that is gone.
    pub(super) fn on_disconnected(&mut self, peer: PeerSlot) {
        self.downloads.on_disconnected(self.ctx, peer);
        self.uploads.drop_peer(self.ctx, self.neighbours, peer);
        self.neighbours.update_slots(self.ctx);
    }

    fn quarantine(&mut self, peer: PeerSlot) {
        if self.neighbours.quarantine(self.ctx, peer) {
            self.on_disconnected(peer);
        }
    }

    fn on_store_failed(&mut self, transfer: &Transfer) {
        let until = self.ctx.now + STORE_PAUSE;
        self.downloads.pause_pull(transfer.blob, until);
        // Without neighbours, nothing else would wake a pull whose last chunk failed here.
        self.ctx.timers.wake_by(Timer::Fallback, until);
        if transfer.permission.is_leased() {
            let Transfer { blob, chunk, .. } = *transfer;
            self.leases.on_fetch_failed(self.ctx, blob, chunk);
        }
    }

    /// No origin delivered the chunk.
    fn on_origin_failed(&mut self, transfer: &Transfer) {
        let Transfer { blob, chunk, .. } = *transfer;
        self.downloads.delay_origin(self.ctx, blob);
        if transfer.permission.is_leased() {
            self.leases.on_fetch_failed(self.ctx, blob, chunk);
        } else {
            let was_claimed = transfer.permission == Permission::Claimed;
            self.fallback.on_failed(self.ctx, blob, was_claimed);
        }
    }
}

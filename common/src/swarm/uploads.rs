//! Uploads: a peer whose slots are taken refuses at once, so that the request goes elsewhere. When
//! an upload ends and a slot is free, it tells the neighbours that it refused last: those refused
//! earlier have probably found another uploader.

use std::collections::VecDeque;

use super::context::Context;
use super::io::{BlobSlot, Output, PeerSlot, RefusalReason, UploadId};
use super::neighbours::Neighbours;
use super::progress::TransferProgress;
use super::slot_count::SlotCount;
use crate::time::Time;

/// Neighbours that are told of a free slot. Not every one has a free slot itself by then.
const TOLD_PER_SLOT: usize = 2;
/// Maximum number of refused neighbours that are remembered.
const MAX_REFUSED: usize = 16;
/// Uploads to one neighbour that are not nearly done. It asks for the next chunk when the last one
/// is nearly done.
const MAX_PER_NEIGHBOUR: usize = 2;
/// An upload is slow, and takes no slot, if each other slot sends more than so many times as much.
const SLOW_FACTOR: u64 = 6;

#[derive(Debug)]
struct RunningUpload {
    id: UploadId,
    peer: PeerSlot,
    progress: TransferProgress,
}

/// The uploads that are being served.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    running: Vec<RunningUpload>,
    /// The slots that they take; not valid once one of them has changed.
    count: SlotCount,
    /// Bytes that all uploads have sent so far, ended ones too.
    total: u64,
    /// Neighbours whose last request was refused and that were told nothing since, newest last.
    refused: VecDeque<PeerSlot>,
}

impl Uploads {
    /// Serves or refuses a neighbour's request.
    pub(super) fn on_request(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        peer: PeerSlot,
        slot: BlobSlot,
        chunk: u32,
        upload: UploadId,
    ) {
        // The most frequent case first.
        if !self.has_free_slot(ctx) || self.count_busy_with(ctx.now, peer) >= MAX_PER_NEIGHBOUR {
            ctx.counters.refused_busy += 1;
            self.remember_refused(peer);
            return refuse(ctx, upload, RefusalReason::Busy);
        }
        let blob = ctx
            .blobs
            .get(slot)
            .filter(|blob| neighbours.is_connected(peer) && blob.held().contains(chunk));
        let Some(length) = blob.map(|blob| blob.chunk_len(chunk)) else {
            return refuse(ctx, upload, RefusalReason::Gone);
        };
        ctx.counters.served += 1;
        self.forget_refused(peer);
        self.count = SlotCount::default();
        self.running.push(RunningUpload {
            id: upload,
            peer,
            progress: TransferProgress::new(ctx.now, length, self.total),
        });
        ctx.output(Output::Serve { upload });
    }

    /// `sent` bytes of an upload have left.
    pub(super) fn on_progress(
        &mut self,
        ctx: &Context,
        neighbours: &Neighbours,
        id: UploadId,
        sent: u64,
    ) {
        if let Some(upload) = self.running.iter_mut().find(|upload| upload.id == id) {
            let round_trip = neighbours.round_trip(upload.peer);
            let nearly_done = ctx.config.nearly_done.max(round_trip);
            self.total += sent.saturating_sub(upload.progress.moved());
            upload.progress.update(ctx.now, sent, nearly_done);
            self.count = SlotCount::default();
        }
    }

    /// An upload has ended.
    pub(super) fn on_ended(&mut self, ctx: &mut Context, neighbours: &Neighbours, id: UploadId) {
        self.end(ctx, neighbours, |upload| upload.id == id);
    }

    /// The uploads to a peer take no slot any longer.
    pub(super) fn drop_peer(&mut self, ctx: &mut Context, neighbours: &Neighbours, peer: PeerSlot) {
        self.forget_refused(peer);
        self.end(ctx, neighbours, |upload| upload.peer == peer);
    }

    /// Ends uploads. If any ended, and a slot is free now, refused neighbours are told.
    fn end(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        has_ended: impl Fn(&RunningUpload) -> bool,
    ) {
        let before = self.running.len();
        for upload in self.running.iter().filter(|upload| has_ended(upload)) {
            // The rest was not reported. An upload that ends earlier was cancelled.
            if upload.progress.free_at() <= ctx.now {
                self.total += upload.progress.left();
            }
        }
        self.running.retain(|upload| !has_ended(upload));
        self.count = SlotCount::default();
        if self.running.len() < before && !self.refused.is_empty() && self.has_free_slot(ctx) {
            self.tell_slot_free(ctx, neighbours);
        }
    }

    /// Whether a peer is being served.
    pub(super) fn serves(&self, peer: PeerSlot) -> bool {
        self.running.iter().any(|upload| upload.peer == peer)
    }

    fn remember_refused(&mut self, peer: PeerSlot) {
        self.forget_refused(peer);
        if self.refused.len() == MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(peer);
    }

    fn forget_refused(&mut self, peer: PeerSlot) {
        self.refused.retain(|other| *other != peer);
    }

    fn tell_slot_free(&mut self, ctx: &mut Context, neighbours: &Neighbours) {
        let mut told = 0;
        for at in (0..self.refused.len()).rev() {
            let peer = self.refused[at];
            if told == TOLD_PER_SLOT {
                break;
            }
            if self.count_busy_with(ctx.now, peer) >= MAX_PER_NEIGHBOUR {
                continue; // It would be refused again.
            }
            self.refused.remove(at);
            if neighbours.is_connected(peer) {
                ctx.output(Output::TellSlotFree { peer });
                told += 1;
            }
        }
    }

    /// Whether another upload may begin. Uploads that are nearly done take no slot, but all
    /// together are bounded.
    fn has_free_slot(&mut self, ctx: &Context) -> bool {
        let slots = ctx.slots as usize;
        self.busy(ctx.now, ctx.slots) < slots && self.running.len() < 2 * slots
    }

    /// Uploads that take a slot: those that are neither nearly done nor slow.
    fn busy(&mut self, now: Time, slots: u32) -> usize {
        if !self.count.is_valid(now, slots) {
            self.count = SlotCount::empty(slots);
            for upload in &self.running {
                if !upload.progress.is_slow(self.total, slots, SLOW_FACTOR) {
                    self.count.add(now, upload.progress.free_at());
                }
            }
        }
        self.count.busy() as usize
    }

    /// Uploads to a neighbour that are not nearly done.
    fn count_busy_with(&self, now: Time, peer: PeerSlot) -> usize {
        let running = self.running.iter();
        running
            .filter(|upload| upload.peer == peer && upload.progress.free_at() > now)
            .count()
    }
}

fn refuse(ctx: &mut Context, upload: UploadId, reason: RefusalReason) {
    ctx.output(Output::Refuse { upload, reason });
}

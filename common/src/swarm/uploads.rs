//! Uploads: a peer whose slots are taken refuses at once, so that the request goes elsewhere.

use super::context::Context;
use super::eta::TransferEta;
use super::io::{BlobSlot, Output, PeerSlot, RefusalReason, UploadId};
use super::neighbours::Neighbours;
use super::slot_count::SlotCount;
use crate::time::Time;

#[derive(Debug)]
struct RunningUpload {
    id: UploadId,
    peer: PeerSlot,
    eta: TransferEta,
}

/// The uploads that are being served.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    running: Vec<RunningUpload>,
    /// The slots that they take; not valid once one of them has changed.
    count: SlotCount,
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
        // The most frequent case first. Uploads that are nearly done take no slot, but all together
        // are bounded.
        let slots = ctx.slots as usize;
        if self.busy(ctx.now) >= slots || self.running.len() >= 2 * slots {
            ctx.counters.refused_busy += 1;
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
        self.count = SlotCount::default();
        self.running.push(RunningUpload {
            id: upload,
            peer,
            eta: TransferEta::new(ctx.now, length),
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
            upload.eta.update(ctx.now, sent, nearly_done);
            self.count = SlotCount::default();
        }
    }

    /// An upload has ended.
    pub(super) fn on_ended(&mut self, id: UploadId) {
        self.running.retain(|upload| upload.id != id);
        self.count = SlotCount::default();
    }

    /// The uploads to a peer take no slot any longer.
    pub(super) fn drop_peer(&mut self, peer: PeerSlot) {
        self.running.retain(|upload| upload.peer != peer);
        self.count = SlotCount::default();
    }

    /// Whether a peer is being served.
    pub(super) fn serves(&self, peer: PeerSlot) -> bool {
        self.running.iter().any(|upload| upload.peer == peer)
    }

    /// Uploads that take a slot: those that are not nearly done.
    fn busy(&mut self, now: Time) -> usize {
        if !self.count.is_valid(now) {
            self.count = SlotCount::EMPTY;
            for upload in &self.running {
                self.count.add(now, upload.eta.free_at());
            }
        }
        self.count.busy() as usize
    }
}

fn refuse(ctx: &mut Context, upload: UploadId, reason: RefusalReason) {
    ctx.output(Output::Refuse { upload, reason });
}

//! Upload slots: who is full refuses at once.

use core::time::Duration;

use super::machine::PeerMachine;
use super::neighbours::Peer;
use super::pace::Pace;
use super::{BlobSlot, Output, PeerSlot, Refusal, UploadId};
use crate::time::Time;

#[derive(Debug)]
struct Upload {
    id: UploadId,
    peer: PeerSlot,
    pace: Pace,
}

/// The uploads that are being served.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    running: Vec<Upload>,
}

impl Uploads {
    /// Uploads that count against the slots: those not nearly done.
    fn busy(&self, now: Time) -> usize {
        self.running
            .iter()
            .filter(|upload| !upload.pace.is_free(now))
            .count()
    }

    pub(super) fn serves(&self, peer: PeerSlot) -> bool {
        self.running.iter().any(|upload| upload.peer == peer)
    }

    pub(super) fn drop_peer(&mut self, peer: PeerSlot) {
        self.running.retain(|upload| upload.peer != peer);
    }

    pub(super) fn ended(&mut self, id: UploadId) {
        self.running.retain(|upload| upload.id != id);
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }
}

impl PeerMachine {
    pub(super) fn on_upload_request(
        &mut self,
        now: Time,
        peer: PeerSlot,
        slot: BlobSlot,
        chunk: u32,
        upload: UploadId,
    ) {
        // First what is most often so. Whoever is nearly done does not count, but the sum is
        // bounded all the same.
        let slots = self.slots as usize;
        if self.uploads.busy(now) >= slots || self.uploads.len() >= 2 * slots {
            self.stats.refused_busy += 1;
            self.outputs.push_back(Output::Refuse {
                upload,
                reason: Refusal::Busy,
            });
            return;
        }
        let is_known = self.peers.get(peer.0 as usize).is_some_and(Peer::is_up);
        let length = match self.blobs.get(slot) {
            Some(blob) if is_known && blob.held.contains(chunk) => blob.geometry.chunk_len(chunk),
            _ => {
                return self.outputs.push_back(Output::Refuse {
                    upload,
                    reason: Refusal::Gone,
                });
            }
        };
        self.stats.served += 1;
        self.uploads.running.push(Upload {
            id: upload,
            peer,
            pace: Pace::new(now, length),
        });
        self.outputs.push_back(Output::Serve { upload });
    }

    pub(super) fn on_upload_progress(&mut self, now: Time, id: UploadId, sent: u64) {
        if let Some(upload) = self
            .uploads
            .running
            .iter_mut()
            .find(|upload| upload.id == id)
        {
            let round_trip = self
                .peers
                .get(upload.peer.0 as usize)
                .map_or(Duration::ZERO, |peer| peer.round_trip);
            upload
                .pace
                .progress(now, sent, self.config.nearly_done.max(round_trip));
        }
    }
}

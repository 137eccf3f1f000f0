//! What the mirror and the own tasks say, told to the machine in its own words; and looking after
//! what it forgot.

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::swarm::{BlobSlot, Failure, Input, WaitTimes};
use flotilla_common::time::Time;

use super::tasks::{Fetched, Whole};
use super::{Command, Driver, LINGER, Reach, Report};
use crate::store::{Pin, StoredBlob, blocking};

impl Driver {
    /// Before anything else: what the store holds, and whether there is a tracker.
    pub(super) fn begin(&mut self, now: Time) {
        for stored in self.shared.store.blobs() {
            self.add(now, stored);
        }
        if self.shared.trackers.is_empty() {
            self.machine.handle(now, Input::TrackerUnreachable);
        }
    }

    pub(super) fn on_command(&mut self, now: Time, command: Command) {
        match command {
            // It was put in quarantine while this was on its way, and is not fetched again.
            Command::Want { pin, .. } if pin.blob().is_removed() => {}
            Command::Want {
                pin,
                repository,
                grant,
            } => {
                let slot = self.slot_of(now, pin.blob());
                self.want(now, slot, pin);
                if let Some(blob) = self.roster.blob_mut(slot) {
                    blob.repository = Some(repository);
                    blob.grant = grant.or(blob.grant.take());
                }
                self.readers_moved(now, slot);
            }
            Command::ReadersMoved(digest) => {
                if let Some(slot) = self.roster.blob_slot(&digest) {
                    self.readers_moved(now, slot);
                }
                self.settle_pulls(now);
            }
            Command::Reach {
                digest,
                chunk,
                answer,
            } => {
                // A reader that is gone needs no answer.
                let _ = answer.send(self.reach(now, &digest, chunk));
            }
            Command::Lost { digest, chunk } => self.lost(now, &digest, chunk),
            Command::Evicted(digests) => {
                for slot in digests
                    .iter()
                    .filter_map(|digest| self.roster.blob_slot(digest))
                    .collect::<Vec<_>>()
                {
                    self.forget(now, slot);
                }
            }
            Command::Quarantine { digest, why } => self.quarantine(now, &digest, &why),
            Command::Seek { manifest, answer } => self.seek(manifest, answer),
            Command::Pull(opened) => self.open_pull(now, opened),
            Command::Status(sender) => {
                // Who asked may have gone.
                let _ = sender.send(Box::new(self.status(now)));
            }
        }
    }

    pub(super) fn on_report(&mut self, now: Time, report: Report) {
        match report {
            Report::FirstByte(transfer) => self.machine.handle(now, Input::FirstByte { transfer }),
            Report::Progress(transfer, received) => {
                self.shared.moved.note(now);
                self.flowed(now, transfer, received);
                self.machine
                    .handle(now, Input::Progress { transfer, received });
            }
            Report::Fetched(transfer, fetched) => {
                // Cancelled in the meantime: the machine does not wait for it any more. What it
                // brought is in the store all the same, and found there.
                if matches!(fetched, Fetched::Received)
                    && let Some(bytes) = self.fetches.get(&transfer).map(|fetch| fetch.bytes)
                {
                    self.flowed(now, transfer, bytes);
                }
                let Some(fetch) = self.fetches.remove(&transfer) else {
                    return;
                };
                let counters = &self.shared.counters;
                let input = match fetched {
                    Fetched::Received => {
                        self.shared.moved.note(now);
                        self.count_received(now, &fetch);
                        Input::Received { transfer }
                    }
                    Fetched::Refused(reason) => Input::Refused { transfer, reason },
                    Fetched::Failed(why) => {
                        counters
                            .corrupt_chunks
                            .add(u64::from(why == Failure::Corrupt));
                        Input::Failed { transfer, why }
                    }
                };
                let store_failed = input
                    == Input::Failed {
                        transfer,
                        why: Failure::Store,
                    };
                self.machine.handle(now, input);
                if store_failed {
                    self.unwant(now, fetch.blob);
                }
            }
            Report::UploadProgress(upload, sent) => {
                self.flowed_out(now, upload, sent);
                self.machine
                    .handle(now, Input::UploadProgress { upload, sent });
            }
            Report::UploadEnded(upload, sent) => {
                self.flowed_out(now, upload, sent);
                self.uploads.remove(&upload);
                self.machine.handle(now, Input::UploadEnded { upload });
            }
            Report::Lost(digest, chunk) => self.lost(now, &digest, chunk),
            Report::Checked(digest, whole) => self.checked(now, &digest, whole),
            Report::Granted(grant) => self.granted(&grant),
            Report::HandedOn(manifest, image) => self.handed_on(&manifest, &image),
        }
    }

    /// Lets go of what nobody has used for a while, and saves what changed.
    pub(super) fn keep_house(&mut self, now: Time) {
        let idle: Vec<BlobSlot> = self
            .roster
            .blobs()
            .filter(|(_, blob)| {
                blob.pin.is_some() && blob.stored.cursor().is_none() && blob.used_at + LINGER <= now
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in idle {
            self.unwant(now, slot);
        }
        self.renew_grants(now);
        self.renew_figures(now);
        let shared = Arc::clone(&self.shared);
        self.shared.shutdown.spawn(blocking(move || {
            shared.store.save();
            Ok(())
        }));
    }

    fn slot_of(&mut self, now: Time, stored: &Arc<StoredBlob>) -> BlobSlot {
        match self.roster.blob_slot(stored.digest()) {
            Some(slot)
                if self
                    .roster
                    .blob(slot)
                    .is_some_and(|blob| Arc::ptr_eq(&blob.stored, stored)) =>
            {
                slot
            }
            Some(slot) => {
                // Evicted and taken in again before the eviction was heard of.
                self.forget(now, slot);
                self.add(now, Arc::clone(stored))
            }
            None => self.add(now, Arc::clone(stored)),
        }
    }

    fn add(&mut self, now: Time, stored: Arc<StoredBlob>) -> BlobSlot {
        let (geometry, held) = (*stored.geometry(), stored.held());
        let blob = self.roster.add_blob(stored, now);
        self.machine.handle(
            now,
            Input::AddBlob {
                blob,
                geometry,
                held,
            },
        );
        blob
    }

    fn want(&mut self, now: Time, slot: BlobSlot, pin: Pin) {
        let Some(blob) = self.roster.blob_mut(slot) else {
            return;
        };
        blob.used_at = now;
        if blob.pin.is_none() {
            blob.stored.revive();
            blob.pin = Some(pin);
            blob.waited = WaitTimes::default();
            self.machine.handle(now, Input::Want { blob: slot });
        }
    }

    fn unwant(&mut self, now: Time, slot: BlobSlot) {
        self.count_waits(now, slot);
        self.machine.handle(now, Input::Unwant { blob: slot });
        if let Some(blob) = self.roster.blob_mut(slot) {
            blob.pin = None;
        }
    }

    fn readers_moved(&mut self, now: Time, slot: BlobSlot) {
        let Some(blob) = self.roster.blob_mut(slot) else {
            return;
        };
        blob.used_at = now;
        let cursor = blob.stored.cursor();
        self.machine
            .handle(now, Input::Reader { blob: slot, cursor });
    }

    fn reach(&self, now: Time, digest: &Digest, chunk: u32) -> Reach {
        let slot = self.roster.blob_slot(digest);
        let is_out = slot.is_none_or(|slot| self.machine.is_out_of_reach(now, slot, chunk));
        if is_out { Reach::Out } else { Reach::Within }
    }

    fn lost(&mut self, now: Time, digest: &Digest, chunk: u32) {
        if let Some(blob) = self.roster.blob_slot(digest) {
            self.machine.handle(now, Input::Lost { blob, chunk });
        }
    }

    fn checked(&mut self, now: Time, digest: &Digest, whole: Whole) {
        let Some(slot) = self.roster.blob_slot(digest) else {
            return;
        };
        let Some(blob) = self.roster.blob_mut(slot) else {
            return;
        };
        blob.is_being_checked = false;
        match whole {
            Whole::Right => {
                blob.stored.complete();
                self.shared.pulls.completed(now, digest);
                self.settle_pulls(now);
            }
            Whole::Damaged(chunks) => {
                tracing::warn!(blob = %digest, ?chunks, "stored chunks were damaged and are fetched again");
                chunks
                    .into_iter()
                    .for_each(|chunk| self.lost(now, digest, chunk));
            }
            Whole::Wrong => {
                self.quarantine(
                    now,
                    digest,
                    "its chunks are as sealed, but the whole has another digest",
                );
            }
        }
    }

    /// Says loudly that an origin contradicts itself, and has nothing more to do with the blob:
    /// readers get it from the origin directly, and check it themselves.
    fn quarantine(&mut self, now: Time, digest: &Digest, why: &str) {
        tracing::error!(blob = %digest, why, "QUARANTINE: an origin's seal cannot be trusted for this blob");
        self.shared.counters.quarantined_blobs.add(1);
        self.shared.pulls.failed(digest, why);
        if let Some(stored) = self.shared.store.get(digest) {
            stored.bypass();
        }
        self.shared.store.ban(digest);
        if let Some(slot) = self.roster.blob_slot(digest) {
            self.forget(now, slot);
        }
    }

    /// The blob is not in the store any more.
    fn forget(&mut self, now: Time, slot: BlobSlot) {
        self.tell_forgot(slot);
        self.machine.handle(now, Input::Forget { blob: slot });
        self.act();
        if let Some(blob) = self.roster.remove_blob(slot) {
            self.uploads.retain(|_, upload| {
                let stays = !Arc::ptr_eq(&upload.stored, &blob.stored);
                if let (false, Some(task)) = (stays, &upload.task) {
                    task.abort();
                }
                stays
            });
        }
        self.shared.trackers.announce();
    }
}

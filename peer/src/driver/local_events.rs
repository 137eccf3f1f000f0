//! Events of this process: the mirror's commands and the reports of the driver's tasks, translated
//! into the machine's inputs; and the housekeeping.

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::failover;
use flotilla_common::swarm::{BlobSlot, DownloadFailure, Input, StallTimes};
use flotilla_common::time::Time;
use flotilla_common::tracker::Urgency;

use super::tasks::{Fetched, TaskReport, Verdict};
use super::{Driver, DriverCommand, UNREAD_DOWNLOAD_TIMEOUT};
use crate::store::{Pin, StoredBlob, run_blocking};

impl Driver {
    /// Adds the blobs in the store to the machine, and tells it if there is no tracker.
    pub(super) fn begin(&mut self, now: Time) {
        for stored in self.context.stores.blobs.blobs() {
            self.add(now, stored);
        }
        if self.context.network.trackers.is_empty() {
            self.machine.handle(now, Input::TrackerUnreachable);
        }
    }

    pub(super) fn on_command(&mut self, now: Time, command: DriverCommand) {
        match command {
            // The blob was quarantined after the command was sent.
            DriverCommand::Want { pin, .. } if pin.blob().is_removed() => {}
            DriverCommand::Want {
                pin,
                repository,
                grant,
            } => {
                let slot = self.slot_of(now, pin.blob());
                self.want(now, slot, pin);
                if let Some(blob) = self.tables.blob_mut(slot) {
                    blob.repository = Some(repository);
                    blob.grant = grant.or(blob.grant.take());
                }
                self.update_cursor(now, slot);
            }
            DriverCommand::ReadersMoved { digest, lowest } => {
                if let Some(slot) = self.tables.blob_slot(&digest) {
                    if let Some(blob) = self.tables.blob_mut(slot) {
                        blob.cursor = lowest;
                        blob.was_read |= lowest.is_some();
                    }
                    self.update_cursor(now, slot);
                    self.release_pin(slot);
                }
                self.end_finished_pulls(now);
            }
            DriverCommand::HasSource {
                digest,
                chunk,
                answer,
            } => {
                // A closed reader needs no answer.
                let _ = answer.send(self.has_source(now, &digest, chunk));
            }
            DriverCommand::Damaged { digest, chunk } => self.chunk_lost(now, &digest, chunk),
            DriverCommand::Evicted(digests) => {
                // A blob may have been stored again since it was evicted.
                let is_gone = |slot: &_| {
                    let blob = self.tables.blob(*slot);
                    blob.is_some_and(|blob| blob.stored.is_removed())
                };
                for slot in digests
                    .iter()
                    .filter_map(|digest| self.tables.blob_slot(digest))
                    .filter(is_gone)
                    .collect::<Vec<_>>()
                {
                    self.forget(now, slot);
                }
            }
            DriverCommand::Quarantine { digest, reason } => self.quarantine(now, &digest, &reason),
            DriverCommand::SeekImage { manifest, answer } => self.seek_image(now, manifest, answer),
            DriverCommand::StartPull(start) => self.open_pull(now, start),
            DriverCommand::Status(sender) => {
                // A request that timed out needs no answer.
                let _ = sender.send(Box::new(self.status(now)));
            }
        }
    }

    pub(super) fn on_report(&mut self, now: Time, report: TaskReport) {
        match report {
            TaskReport::FirstByte(transfer) => {
                self.machine.handle(now, Input::FirstByte { transfer })
            }
            TaskReport::Origin(transfer, origin) => {
                if let Some(fetch) = self.fetches.get_mut(&transfer) {
                    fetch.origin = Some(origin);
                }
                if let Some(region) = self.context.upstream.origins.region_of(origin) {
                    let answered = Input::OriginAnswered { transfer, region };
                    self.machine.handle(now, answered);
                }
            }
            TaskReport::Progress(transfer, received) => {
                self.context.telemetry.last_received.set(now);
                self.count_download(now, transfer, received);
                self.machine
                    .handle(now, Input::Progress { transfer, received });
            }
            TaskReport::Fetched(transfer, fetched) => {
                // If the download was cancelled meanwhile, the machine no longer waits for it. The
                // chunk is in the store nevertheless, where a later download finds it.
                if matches!(fetched, Fetched::Received)
                    && let Some(bytes) = self.fetches.get(&transfer).map(|fetch| fetch.bytes)
                {
                    self.count_download(now, transfer, bytes);
                }
                let Some(fetch) = self.fetches.remove(&transfer) else {
                    return;
                };
                let counters = &self.context.telemetry.counters;
                let input = match fetched {
                    Fetched::Received => {
                        self.context.telemetry.last_received.set(now);
                        self.count_chunk(now, &fetch);
                        Input::Received { transfer }
                    }
                    Fetched::Refused(reason) => Input::Refused { transfer, reason },
                    Fetched::Failed(why) => {
                        counters
                            .corrupt_chunks
                            .add(u64::from(why == DownloadFailure::Corrupt));
                        Input::Failed { transfer, why }
                    }
                };
                let store_failed = input
                    == Input::Failed {
                        transfer,
                        why: DownloadFailure::Store,
                    };
                self.machine.handle(now, input);
                if store_failed {
                    self.unwant(now, fetch.blob);
                }
            }
            TaskReport::UploadProgress(upload, sent) => {
                self.count_upload(now, upload, sent);
                self.machine
                    .handle(now, Input::UploadProgress { upload, sent });
            }
            TaskReport::UploadEnded(upload, sent) => {
                self.count_upload(now, upload, sent);
                self.uploads.remove(&upload);
                self.machine.handle(now, Input::UploadEnded { upload });
            }
            TaskReport::Damaged(digest, chunk) => self.chunk_lost(now, &digest, chunk),
            TaskReport::Verified(digest, verdict) => self.verified(now, &digest, verdict),
            TaskReport::Granted(grant) => self.granted(&grant),
            TaskReport::ImageReceived(manifest, image) => {
                self.image_received(now, manifest, &image)
            }
        }
    }

    /// Stops the download of blobs that were not read for a while, renews grants, updates the
    /// telemetry, and saves changed records.
    pub(super) fn run_housekeeping(&mut self, now: Time) {
        let idle: Vec<BlobSlot> = self
            .tables
            .blobs()
            .filter(|(_, blob)| {
                blob.is_wanted
                    && blob.cursor.is_none()
                    && blob.used_at + UNREAD_DOWNLOAD_TIMEOUT <= now
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in idle {
            self.unwant(now, slot);
        }
        self.renew_grants(now);
        self.update_telemetry(now);
        let store = Arc::clone(&self.context.stores.blobs);
        self.context.shutdown.spawn(run_blocking(move || {
            store.save();
            Ok(())
        }));
    }

    fn slot_of(&mut self, now: Time, stored: &Arc<StoredBlob>) -> BlobSlot {
        match self.tables.blob_slot(stored.digest()) {
            Some(slot)
                if self
                    .tables
                    .blob(slot)
                    .is_some_and(|blob| Arc::ptr_eq(&blob.stored, stored)) =>
            {
                slot
            }
            Some(slot) => {
                // The blob was evicted and inserted again before the eviction was reported.
                self.forget(now, slot);
                self.add(now, Arc::clone(stored))
            }
            None => self.add(now, Arc::clone(stored)),
        }
    }

    fn add(&mut self, now: Time, stored: Arc<StoredBlob>) -> BlobSlot {
        let (geometry, held) = (*stored.geometry(), stored.held());
        let blob = self.tables.add_blob(stored, now);
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
        let Some(blob) = self.tables.blob_mut(slot) else {
            return;
        };
        blob.used_at = now;
        blob.pin = Some(pin);
        if !blob.is_wanted {
            blob.stored.clear_bypass();
            blob.is_wanted = true;
            blob.was_read = false;
            blob.waited = StallTimes::default();
            self.machine.handle(now, Input::Want { blob: slot });
        }
    }

    fn unwant(&mut self, now: Time, slot: BlobSlot) {
        self.count_waits(now, slot);
        self.machine.handle(now, Input::Unwant { blob: slot });
        if let Some(blob) = self.tables.blob_mut(slot) {
            blob.is_wanted = false;
            blob.pin = None;
        }
    }

    /// Allows the eviction of a blob that is complete and whose readers have ended. It was used
    /// last, so it is evicted last: a runtime that opens it again soon still finds it. A blob that
    /// was not read yet, or is being downloaded for a runtime that may return, stays pinned until
    /// it is no longer wanted.
    fn release_pin(&mut self, slot: BlobSlot) {
        let Some(blob) = self.tables.blob_mut(slot) else {
            return;
        };
        if blob.pin.is_some() && blob.was_read && blob.cursor.is_none() && blob.stored.is_complete()
        {
            blob.pin = None;
            self.context.stores.blobs.touch(&blob.stored);
        }
    }

    /// Passes the position of a blob's readers to the machine.
    fn update_cursor(&mut self, now: Time, slot: BlobSlot) {
        let Some(blob) = self.tables.blob_mut(slot) else {
            return;
        };
        blob.used_at = now;
        let geometry = blob.stored.geometry();
        let cursor = blob.cursor.map(|offset| geometry.chunk_at(offset));
        self.machine
            .handle(now, Input::Reader { blob: slot, cursor });
    }

    /// Whether any known source can deliver a chunk now. If none can, origins are probed sooner.
    fn has_source(&self, now: Time, digest: &Digest, chunk: u32) -> bool {
        let slot = self.tables.blob_slot(digest);
        let has_source = slot.is_some_and(|slot| !self.machine.is_out_of_reach(now, slot, chunk));
        if !has_source && !self.has_origin {
            let sources = self.context.upstream.origins.sources();
            sources.handle(failover::Input::Demand);
        }
        has_source
    }

    fn chunk_lost(&mut self, now: Time, digest: &Digest, chunk: u32) {
        if let Some(blob) = self.tables.blob_slot(digest) {
            self.machine.handle(now, Input::Lost { blob, chunk });
        }
    }

    fn verified(&mut self, now: Time, digest: &Digest, verdict: Verdict) {
        let Some(slot) = self.tables.blob_slot(digest) else {
            return;
        };
        let Some(blob) = self.tables.blob_mut(slot) else {
            return;
        };
        blob.is_being_checked = false;
        match verdict {
            Verdict::Valid => {
                blob.stored.mark_complete();
                self.context.telemetry.pulls.completed(now, digest);
                self.release_pin(slot);
                self.end_finished_pulls(now);
            }
            Verdict::Damaged(chunks) => {
                tracing::warn!(
                    blob = %digest, ?chunks,
                    "stored chunks are damaged; downloading them again"
                );
                chunks
                    .into_iter()
                    .for_each(|chunk| self.chunk_lost(now, digest, chunk));
            }
            Verdict::WrongDigest => {
                self.quarantine(
                    now,
                    digest,
                    "every chunk matches the seal, but the whole blob has another digest",
                );
            }
        }
    }

    /// Removes a blob from the store and the swarm, because an origin's statements about it are
    /// contradictory. The runtime gets it from the origin directly and checks its digest.
    fn quarantine(&mut self, now: Time, digest: &Digest, reason: &str) {
        tracing::error!(
            blob = %digest, reason,
            "blob quarantined: an origin's seal is wrong; passing the blob through"
        );
        let telemetry = &self.context.telemetry;
        telemetry.counters.quarantined_blobs.add(1);
        telemetry.pulls.failed(digest, reason);
        let store = &self.context.stores.blobs;
        if let Some(stored) = store.get(digest) {
            stored.mark_bypassed();
        }
        store.quarantine(digest);
        if let Some(slot) = self.tables.blob_slot(digest) {
            self.forget(now, slot);
        }
    }

    /// Forgets a blob that left the store.
    fn forget(&mut self, now: Time, slot: BlobSlot) {
        self.send_forgot(slot);
        self.machine.handle(now, Input::Forget { blob: slot });
        self.carry_out_all();
        if let Some(blob) = self.tables.remove_blob(slot) {
            self.uploads.retain(|_, upload| {
                let is_kept = !Arc::ptr_eq(&upload.stored, &blob.stored);
                if let (false, Some(task)) = (is_kept, &upload.task) {
                    task.abort();
                }
                is_kept
            });
        }
        self.context.network.trackers.announce(Urgency::Soon);
    }
}

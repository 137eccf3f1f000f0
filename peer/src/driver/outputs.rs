//! Carries out the outputs of the machine.

use std::sync::Arc;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::swarm::{
    BlobSlot, ChunkSource, Claim, DownloadFailure, HaveBatch, Input, Output, PeerSlot,
    RefusalReason, TransferId, UploadId,
};
use flotilla_common::tracker::{LeaseUpdate, Urgency};
use flotilla_common::wire::peer::{self, Claims, Control, Forgot, Have, Holding, Holds, SlotFree};
use tokio::task::JoinHandle;

use super::{Driver, Fetch, tasks};
use crate::transport::{ChunkRequest, CloseReason};

impl Driver {
    /// Carries out all outputs that the machine has.
    pub(super) fn carry_out_all(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { peer } => self.dial(peer),
            Output::HangUp { peer } => self.hang_up(peer),
            Output::SendChunkMap { peer, blob } => self.send_chunk_map(peer, blob),
            Output::Have { blob, batch } => self.send_have(blob, &batch),
            Output::Claims { blob, claims } => self.send_claims(blob, &claims),
            Output::TellClaims { peer, blob, claims } => {
                if let (Some(link), Some(message)) =
                    (self.tables.link(peer), self.claims_message(blob, &claims))
                {
                    link.send(message);
                }
            }
            Output::Fetch {
                transfer,
                blob,
                chunk,
                source,
                first,
            } => self.fetch(transfer, blob, chunk, (source, first)),
            Output::Cancel { transfer } => {
                if let Some(fetch) = self.fetches.remove(&transfer) {
                    fetch.task.abort();
                }
            }
            Output::Serve { upload } => self.serve(upload),
            Output::TellSlotFree { peer } => {
                if let Some(link) = self.tables.link(peer) {
                    link.send(Control::SlotFree(SlotFree));
                }
            }
            Output::Refuse { upload, reason } => self.refuse(upload, reason),
            Output::Announce => self.context.network.trackers.announce(Urgency::Now),
            Output::AnnounceSoon => self.context.network.trackers.announce(Urgency::Soon),
            Output::LeaseTake {
                blob,
                missing,
                starving,
            } => {
                self.request_lease(blob, missing, starving);
            }
            Output::LeaseDrop { blob } => {
                if let Some(blob) = self.tables.blob(blob) {
                    let digest = *blob.stored.digest();
                    self.context.network.trackers.withdraw_request(digest);
                }
            }
            Output::LeaseRenew {
                blob,
                chunk,
                received,
                from,
            } => {
                let update = LeaseUpdate::Renew {
                    chunk,
                    received,
                    from,
                };
                self.update_lease(blob, update);
            }
            Output::LeaseWaiting { blob, chunk, from } => {
                self.update_lease(blob, LeaseUpdate::Waiting { chunk, from });
            }
            Output::LeaseDone { blob, chunk, from } => {
                self.update_lease(blob, LeaseUpdate::Done { chunk, from });
            }
            Output::LeaseFailed { blob, chunk } => {
                self.update_lease(blob, LeaseUpdate::Failed { chunk });
            }
            Output::Complete { blob } => self.verify_whole(blob),
            Output::Quarantine { peer, until } => {
                if let Some(peer) = self.tables.peer_mut(peer) {
                    tracing::error!(
                        peer = %peer.id,
                        "neighbour quarantined: it sent a chunk that failed verification"
                    );
                    peer.quarantined_until = until;
                    self.context.telemetry.counters.quarantined_peers.add(1);
                }
            }
        }
    }

    fn dial(&mut self, slot: PeerSlot) {
        let Some(peer) = self.tables.peer(slot) else {
            return;
        };
        match &peer.info {
            Some(info) => self
                .context
                .network
                .transport
                .dial(peer.id.clone(), info.addr),
            None => self
                .machine
                .handle(self.context.clock.now(), Input::DialFailed { peer: slot }),
        }
    }

    fn hang_up(&mut self, slot: PeerSlot) {
        let now = self.context.clock.now();
        let Some(peer) = self.tables.peer_mut(slot) else {
            return;
        };
        let why = if peer.quarantined_until > now {
            CloseReason::Misbehaved
        } else {
            CloseReason::Done
        };
        if let Some(link) = peer.link.take() {
            link.close(why);
        }
        self.count_neighbours();
    }

    fn send_chunk_map(&self, peer: PeerSlot, slot: BlobSlot) {
        let (Some(link), Some(blob), Some(held)) = (
            self.tables.link(peer),
            self.tables.blob(slot),
            self.machine.held(slot),
        ) else {
            return;
        };
        let holding = if held.is_full() {
            Holding::Complete
        } else {
            Holding::Partial(held.clone())
        };
        link.send(Control::Holds(Holds {
            digest: *blob.stored.digest(),
            holding,
        }));
    }

    fn send_have(&self, slot: BlobSlot, batch: &HaveBatch) {
        let Some(blob) = self.tables.blob(slot) else {
            return;
        };
        let have = Control::Have(Have {
            digest: *blob.stored.digest(),
            chunks: batch.chunks().to_vec(),
        });
        for link in self
            .machine
            .have_recipients(slot, batch)
            .filter_map(|peer| self.tables.link(peer))
        {
            link.send(have.clone());
        }
    }

    fn send_claims(&self, slot: BlobSlot, claims: &[Claim]) {
        let Some(message) = self.claims_message(slot, claims) else {
            return;
        };
        for link in self
            .machine
            .claim_recipients(slot)
            .filter_map(|peer| self.tables.link(peer))
        {
            link.send(message.clone());
        }
    }

    fn claims_message(&self, slot: BlobSlot, claims: &[Claim]) -> Option<Control> {
        let blob = self.tables.blob(slot)?;
        let to_wire = |claim: &Claim| peer::Claim {
            chunk: claim.chunk,
            term_ms: u32::try_from(claim.term.as_millis()).unwrap_or(u32::MAX),
        };
        Some(Control::Claims(Claims {
            digest: *blob.stored.digest(),
            claims: claims.iter().map(to_wire).collect(),
        }))
    }

    /// Tells the neighbours that exchange a blob that it left the store. This must happen before
    /// the machine forgets the blob.
    pub(super) fn send_forgot(&self, slot: BlobSlot) {
        let Some(blob) = self.tables.blob(slot) else {
            return;
        };
        let forgot = Control::Forgot(Forgot {
            digest: *blob.stored.digest(),
        });
        for link in self
            .machine
            .neighbours(slot)
            .filter_map(|peer| self.tables.link(peer))
        {
            link.send(forgot.clone());
        }
    }

    fn fetch(
        &mut self,
        transfer: TransferId,
        slot: BlobSlot,
        chunk: u32,
        (source, first): (ChunkSource, Option<OriginRegion>),
    ) {
        // A download that was cancelled may have completed nevertheless.
        if self
            .tables
            .blob(slot)
            .is_some_and(|blob| blob.stored.holds(chunk))
        {
            return self
                .machine
                .handle(self.context.clock.now(), Input::Received { transfer });
        }
        let task = match source {
            ChunkSource::Peer(peer) => self.fetch_from_peer(transfer, slot, chunk, peer),
            ChunkSource::Origin => self.fetch_from_origin(transfer, slot, chunk, first),
        };
        let bytes = self
            .tables
            .blob(slot)
            .map_or(0, |blob| blob.stored.geometry().chunk_len(chunk));
        match task {
            Some(task) => {
                let task = task.abort_handle();
                let fetch = Fetch {
                    blob: slot,
                    chunk,
                    bytes,
                    received: 0,
                    source,
                    origin: None,
                    task,
                };
                self.fetches.insert(transfer, fetch);
            }
            None => self.machine.handle(
                self.context.clock.now(),
                Input::Failed {
                    transfer,
                    why: DownloadFailure::Link,
                },
            ),
        }
    }

    fn fetch_from_peer(
        &self,
        transfer: TransferId,
        slot: BlobSlot,
        chunk: u32,
        peer: PeerSlot,
    ) -> Option<JoinHandle<Option<()>>> {
        let (blob, link) = (self.tables.blob(slot)?, self.tables.link(peer)?.clone());
        let task = tasks::fetch_from_peer(
            transfer,
            link,
            Arc::clone(&blob.stored),
            chunk,
            blob.grant.clone(),
            self.context.upstream.download_limit.clone(),
            self.reports.clone(),
        );
        Some(self.context.shutdown.spawn(task))
    }

    fn fetch_from_origin(
        &self,
        transfer: TransferId,
        slot: BlobSlot,
        chunk: u32,
        first: Option<OriginRegion>,
    ) -> Option<JoinHandle<Option<()>>> {
        let blob = self.tables.blob(slot)?;
        let task = tasks::fetch_from_origin(
            transfer,
            self.context.upstream.clone(),
            blob.repository.clone()?,
            Arc::clone(&blob.stored),
            (chunk, first),
            self.reports.clone(),
        );
        Some(self.context.shutdown.spawn(task))
    }

    fn serve(&mut self, id: UploadId) {
        let Some(upload) = self.uploads.get_mut(&id) else {
            return;
        };
        let Some(request) = upload.request.take() else {
            return;
        };
        let task = tasks::serve(
            id,
            request,
            Arc::clone(&upload.stored),
            self.context.network.upload_limit.clone(),
            Arc::clone(&self.context.telemetry),
            Arc::clone(&self.context.interceptor),
            self.reports.clone(),
        );
        upload.task = Some(self.context.shutdown.spawn(task).abort_handle());
    }

    fn refuse(&mut self, id: UploadId, reason: RefusalReason) {
        let Some(request) = self.uploads.remove(&id).and_then(|upload| upload.request) else {
            return;
        };
        let why = match reason {
            RefusalReason::Busy => {
                self.context.telemetry.counters.refused_busy.add(1);
                peer::Refusal::Busy
            }
            RefusalReason::Gone => peer::Refusal::Gone,
        };
        self.spawn_refusal(request, why);
    }

    /// Refuses a neighbour's request in a task of its own.
    pub(super) fn spawn_refusal(&self, request: ChunkRequest, why: peer::Refusal) {
        self.context.shutdown.spawn(async move {
            if let Err(error) = request.refuse(why).await {
                tracing::debug!(%error, "refusal of a neighbour's request failed");
            }
        });
    }

    fn request_lease(&self, slot: BlobSlot, missing: ChunkMap, starving: bool) {
        if let Some(blob) = self.tables.blob(slot) {
            let digest = *blob.stored.digest();
            let unreachable = self.unreachable(Some(slot));
            self.context
                .network
                .trackers
                .request_lease(digest, missing, starving, unreachable);
        }
    }

    fn update_lease(&self, slot: BlobSlot, update: LeaseUpdate) {
        if let Some(blob) = self.tables.blob(slot) {
            let digest = *blob.stored.digest();
            self.context.network.trackers.update_lease(digest, update);
        }
    }

    fn verify_whole(&mut self, slot: BlobSlot) {
        let now = self.context.clock.now();
        self.count_waits(now, slot);
        let Some(blob) = self.tables.blob_mut(slot) else {
            return;
        };
        if blob.stored.is_complete() {
            self.context
                .telemetry
                .pulls
                .completed(now, blob.stored.digest());
        } else if !blob.is_being_checked {
            blob.is_being_checked = true;
            self.context.shutdown.spawn(tasks::verify(
                Arc::clone(&blob.stored),
                self.reports.clone(),
            ));
        }
    }
}

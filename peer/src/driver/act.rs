//! Doing what the machine says, output by output.

use std::sync::Arc;

use flotilla_common::map::ChunkMap;
use flotilla_common::swarm::{
    Batch, BlobSlot, Failure, Input, OriginSlot, Output, PeerSlot, Refusal, Source, TransferId,
    UploadId,
};
use flotilla_common::wire::peer::{self, Control, Forgot, Have, Holding, Holds};
use flotilla_common::wire::tracker::LeaseAsk;
use tokio::task::JoinHandle;

use super::{Driver, Fetch, tasks};
use crate::transport::{Goodbye, Question};

impl Driver {
    /// Does everything that the machine has to say.
    pub(super) fn act(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { peer } => self.dial(peer),
            Output::HangUp { peer } => self.hang_up(peer),
            Output::Greet { peer, blob } => self.greet(peer, blob),
            Output::Have { blob, batch } => self.tell_have(blob, &batch),
            Output::Fetch {
                transfer,
                blob,
                chunk,
                source,
            } => self.fetch(transfer, blob, chunk, source),
            Output::Cancel { transfer } => {
                if let Some(fetch) = self.fetches.remove(&transfer) {
                    fetch.task.abort();
                }
            }
            Output::Serve { upload } => self.serve(upload),
            Output::Refuse { upload, reason } => self.refuse(upload, reason),
            Output::Announce => self.shared.trackers.announce(),
            Output::LeaseTake {
                blob,
                missing,
                starving,
            } => {
                self.take_lease(blob, missing, starving);
            }
            Output::LeaseDrop { blob } => {
                if let Some(blob) = self.roster.blob_mut(blob) {
                    blob.lease_ticket = 0;
                }
                self.tell_lease(blob, LeaseAsk::Drop);
            }
            Output::LeaseRenew {
                blob,
                chunk,
                received,
            } => {
                self.tell_lease(blob, LeaseAsk::Renew { chunk, received });
            }
            Output::LeaseDone { blob, chunk } => self.tell_lease(blob, LeaseAsk::Done { chunk }),
            Output::LeaseFailed { blob, chunk } => {
                self.tell_lease(blob, LeaseAsk::Failed { chunk })
            }
            Output::Complete { blob } => self.check_whole(blob),
            Output::Quarantine { peer, until } => {
                if let Some(peer) = self.roster.peer_mut(peer) {
                    tracing::error!(peer = %peer.id, "a neighbour sent bytes that fail their check; it is not used any more");
                    peer.quarantined_until = until;
                    self.shared.counters.quarantined_peers.add(1);
                }
            }
        }
    }

    fn dial(&mut self, slot: PeerSlot) {
        let Some(peer) = self.roster.peer(slot) else {
            return;
        };
        match &peer.info {
            Some(info) => self.shared.transport.dial(peer.id.clone(), info.addr),
            None => self
                .machine
                .handle(self.shared.clock.now(), Input::DialFailed { peer: slot }),
        }
    }

    fn hang_up(&mut self, slot: PeerSlot) {
        let now = self.shared.clock.now();
        let Some(peer) = self.roster.peer_mut(slot) else {
            return;
        };
        let why = if peer.quarantined_until > now {
            Goodbye::Misbehaved
        } else {
            Goodbye::Done
        };
        if let Some(link) = peer.link.take() {
            link.close(why);
        }
        self.count_neighbours();
    }

    fn greet(&self, peer: PeerSlot, slot: BlobSlot) {
        let (Some(link), Some(blob), Some(held)) = (
            self.roster.link(peer),
            self.roster.blob(slot),
            self.machine.held(slot),
        ) else {
            return;
        };
        let holding = if held.is_full() {
            Holding::Complete
        } else {
            Holding::Partial(held.clone())
        };
        link.say(Control::Holds(Holds {
            digest: *blob.stored.digest(),
            holding,
        }));
    }

    fn tell_have(&self, slot: BlobSlot, batch: &Batch) {
        let Some(blob) = self.roster.blob(slot) else {
            return;
        };
        let have = Control::Have(Have {
            digest: *blob.stored.digest(),
            chunks: batch.chunks().to_vec(),
        });
        for link in self
            .machine
            .audience(slot, batch)
            .filter_map(|peer| self.roster.link(peer))
        {
            link.say(have.clone());
        }
    }

    /// Tells everybody with whom a blob was exchanged that it is gone; before the machine forgets
    /// it.
    pub(super) fn tell_forgot(&self, slot: BlobSlot) {
        let Some(blob) = self.roster.blob(slot) else {
            return;
        };
        let forgot = Control::Forgot(Forgot {
            digest: *blob.stored.digest(),
        });
        for link in self
            .machine
            .neighbours(slot)
            .filter_map(|peer| self.roster.link(peer))
        {
            link.say(forgot.clone());
        }
    }

    fn fetch(&mut self, transfer: TransferId, slot: BlobSlot, chunk: u32, source: Source) {
        // A cancelled download may have come to its end all the same.
        if self
            .roster
            .blob(slot)
            .is_some_and(|blob| blob.stored.holds(chunk))
        {
            return self
                .machine
                .handle(self.shared.clock.now(), Input::Received { transfer });
        }
        let task = match source {
            Source::Peer(peer) => self.fetch_from_peer(transfer, slot, chunk, peer),
            Source::Origin(origin) => self.fetch_from_origin(transfer, slot, chunk, origin),
        };
        let bytes = self
            .roster
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
                    task,
                };
                self.fetches.insert(transfer, fetch);
            }
            None => self.machine.handle(
                self.shared.clock.now(),
                Input::Failed {
                    transfer,
                    why: Failure::Link,
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
        let (blob, link) = (self.roster.blob(slot)?, self.roster.link(peer)?.clone());
        let work = tasks::from_peer(
            transfer,
            link,
            Arc::clone(&blob.stored),
            chunk,
            blob.grant.clone(),
            self.shared.down.clone(),
            self.reports.clone(),
        );
        Some(self.shared.shutdown.spawn(work))
    }

    fn fetch_from_origin(
        &self,
        transfer: TransferId,
        slot: BlobSlot,
        chunk: u32,
        origin: OriginSlot,
    ) -> Option<JoinHandle<Option<()>>> {
        let blob = self.roster.blob(slot)?;
        let work = tasks::from_origin(
            transfer,
            Arc::clone(&self.shared),
            origin,
            blob.repository.clone()?,
            Arc::clone(&blob.stored),
            chunk,
            self.reports.clone(),
        );
        Some(self.shared.shutdown.spawn(work))
    }

    fn serve(&mut self, id: UploadId) {
        let Some(upload) = self.uploads.get_mut(&id) else {
            return;
        };
        let Some(question) = upload.question.take() else {
            return;
        };
        let work = tasks::serve(
            id,
            question,
            Arc::clone(&upload.stored),
            Arc::clone(&self.shared),
            Arc::clone(&self.shared.outbound),
            self.reports.clone(),
        );
        upload.task = Some(self.shared.shutdown.spawn(work).abort_handle());
    }

    fn refuse(&mut self, id: UploadId, reason: Refusal) {
        let Some(question) = self.uploads.remove(&id).and_then(|upload| upload.question) else {
            return;
        };
        let why = match reason {
            Refusal::Busy => {
                self.shared.counters.refused_busy.add(1);
                peer::Refusal::Busy
            }
            Refusal::Gone => peer::Refusal::Gone,
        };
        self.say_no(question, why);
    }

    /// Refuses a question, behind the scenes.
    pub(super) fn say_no(&self, question: Question, why: peer::Refusal) {
        self.shared.shutdown.spawn(async move {
            if let Err(error) = question.refuse(why).await {
                tracing::debug!(%error, "refuse chunk");
            }
        });
    }

    fn take_lease(&mut self, slot: BlobSlot, missing: ChunkMap, starving: bool) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let unreachable = self.unreachable(Some(slot));
        if let Some(blob) = self.roster.blob_mut(slot) {
            blob.lease_ticket = ticket;
            let ask = LeaseAsk::Take {
                number: ticket,
                missing,
                starving,
                unreachable,
            };
            self.shared
                .trackers
                .take_lease(*blob.stored.digest(), ticket, ask);
        }
    }

    fn tell_lease(&self, slot: BlobSlot, ask: LeaseAsk) {
        if let Some(blob) = self.roster.blob(slot) {
            self.shared.trackers.tell_lease(*blob.stored.digest(), ask);
        }
    }

    fn check_whole(&mut self, slot: BlobSlot) {
        let now = self.shared.clock.now();
        self.count_waits(now, slot);
        let Some(blob) = self.roster.blob_mut(slot) else {
            return;
        };
        if blob.stored.is_complete() {
            self.shared.pulls.completed(now, blob.stored.digest());
        } else if !blob.is_being_checked {
            blob.is_being_checked = true;
            self.shared
                .shutdown
                .spawn(tasks::check(Arc::clone(&blob.stored), self.reports.clone()));
        }
    }

    pub(super) fn count_neighbours(&self) {
        let neighbours = self
            .roster
            .peers()
            .filter(|peer| peer.link.is_some())
            .count();
        self.shared.counters.neighbours.set(neighbours as u64);
    }
}

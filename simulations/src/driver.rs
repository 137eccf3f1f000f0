//! The driver of each peer's machine: carries out its outputs with simulated bytes.

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::failover::{ContentKey, Need};
use flotilla_common::swarm::{
    BlobSlot, ChunkSource, DownloadFailure, Input, Output, PeerSlot, RefusalReason, TransferId,
    UploadId,
};
use flotilla_common::tracker::{LeaseUpdate, SessionInput};

use crate::event::Event;
use crate::fetch::{FetchPurpose, FetchSource, SimulatedFetch};
use crate::network::FlowEvent;
use crate::slab::Key;
use crate::world::World;

impl World<'_> {
    pub(crate) fn act(&mut self, peer: u32, output: Output) {
        match output {
            Output::Dial { peer: slot } => self.dial(peer, slot.0),
            Output::HangUp { peer: slot } => {
                let other = self.peers[peer as usize].links.at(slot.0).peer;
                let notice = self.delay(peer, other);
                self.hang_up(peer, slot.0, notice);
            }
            Output::SendChunkMap { peer: slot, blob } => self.send_chunk_map(peer, slot.0, blob),
            Output::Have { blob, batch } => self.broadcast(peer, blob, batch),
            Output::Fetch {
                transfer,
                blob,
                chunk,
                source,
            } => self.fetch(peer, transfer, blob, chunk, source),
            Output::Cancel { transfer } => self.cancel(peer, transfer),
            Output::Serve { upload } => self.serve(Key::from_bits(upload.0)),
            Output::Refuse { upload, reason } => self.refuse(Key::from_bits(upload.0), reason),
            Output::Announce => self.feed_session(peer, SessionInput::StateChanged),
            Output::LeaseTake {
                blob,
                missing,
                starving,
            } => self.request_lease(peer, blob, missing, starving),
            Output::LeaseDrop { blob } => {
                let digest = self.digests[blob.0 as usize];
                self.feed_session(peer, SessionInput::WithdrawRequest { digest });
            }
            Output::LeaseRenew {
                blob,
                chunk,
                received,
            } => self.update_lease(peer, blob, LeaseUpdate::Renew { chunk, received }),
            Output::LeaseWaiting { blob, chunk } => {
                self.update_lease(peer, blob, LeaseUpdate::Waiting { chunk });
            }
            Output::LeaseDone { blob, chunk } => {
                self.update_lease(peer, blob, LeaseUpdate::Done { chunk });
            }
            Output::LeaseFailed { blob, chunk } => {
                self.update_lease(peer, blob, LeaseUpdate::Failed { chunk });
            }
            Output::Complete { blob } => self.on_complete(peer, blob),
            // The machine itself refuses peers in quarantine.
            Output::Quarantine { .. } => {}
        }
    }

    fn request_lease(&mut self, peer: u32, blob: BlobSlot, missing: ChunkMap, starving: bool) {
        let unreachable = self.unreachable(peer, Some(blob));
        let digest = self.digests[blob.0 as usize];
        self.feed_session(
            peer,
            SessionInput::RequestLease {
                digest,
                missing,
                starving,
                unreachable,
            },
        );
    }

    fn update_lease(&mut self, peer: u32, blob: BlobSlot, update: LeaseUpdate) {
        let digest = self.digests[blob.0 as usize];
        self.feed_session(peer, SessionInput::UpdateLease { digest, update });
    }

    fn fetch(
        &mut self,
        peer: u32,
        transfer: TransferId,
        blob: BlobSlot,
        chunk: u32,
        source: ChunkSource,
    ) {
        let simulated = &self.peers[peer as usize];
        let (source, delay) = match source {
            ChunkSource::Peer(slot) => {
                let link = simulated.links.at(slot.0);
                if !link.is_up {
                    return; // `Closed` is on its way to the machine.
                }
                (
                    FetchSource::Peer {
                        peer: link.peer,
                        requester: link.remote,
                    },
                    self.delay(peer, link.peer),
                )
            }
            ChunkSource::Origin => {
                let need = Need::Content(ContentKey(u64::from(blob.0)));
                let purpose = FetchPurpose::Chunk { transfer, chunk };
                return self.fetch_from_origin(peer, purpose, need, blob);
            }
        };
        let fetch = self.fetches.insert(SimulatedFetch {
            peer,
            purpose: FetchPurpose::Chunk { transfer, chunk },
            source,
            blob,
            flow: None,
            request: None,
        });
        self.peers[peer as usize].fetches.push((transfer, fetch));
        self.queue
            .push_after(self.now, delay, Event::Requested { fetch });
    }

    pub(crate) fn on_requested(&mut self, key: Key) {
        let Some(&SimulatedFetch {
            peer,
            purpose,
            source,
            blob,
            ..
        }) = self.fetches.get(key)
        else {
            return;
        };
        match source {
            FetchSource::Peer {
                peer: uploader,
                requester,
            } => {
                let FetchPurpose::Chunk { chunk, .. } = purpose else {
                    return;
                };
                let upload = UploadId(key.to_bits());
                self.feed(
                    uploader,
                    Input::UploadRequest {
                        peer: PeerSlot(requester),
                        blob,
                        chunk,
                        upload,
                    },
                );
            }
            FetchSource::Origin { region } if self.serves(peer, purpose, region) => {
                self.start_flow(key, self.peers.len() as u32 + region);
            }
            FetchSource::Origin { region } => {
                let delay = self.delay_to_region(peer, region);
                self.queue
                    .push_after(self.now, delay, Event::SourceFailed { fetch: key });
            }
        }
    }

    fn serve(&mut self, key: Key) {
        let Some(&SimulatedFetch {
            source: FetchSource::Peer { peer: uploader, .. },
            purpose: FetchPurpose::Chunk { chunk, .. },
            blob,
            ..
        }) = self.fetches.get(key)
        else {
            return;
        };
        if !self.peers[uploader as usize].verified[blob.0 as usize].contains(chunk) {
            self.oracle.complain(|| {
                format!("peer {uploader} served chunk {chunk}, which it has not verified")
            });
        }
        self.start_flow(key, uploader);
    }

    fn start_flow(&mut self, key: Key, from: u32) {
        let Some(&SimulatedFetch {
            peer,
            purpose,
            blob,
            source,
            ..
        }) = self.fetches.get(key)
        else {
            return;
        };
        let bytes = purpose.bytes(&self.geometries[blob.0 as usize]);
        if purpose != FetchPurpose::Proofs {
            let flow = self
                .network
                .start(self.now, from, peer, bytes, key.to_bits());
            if let Some(fetch) = self.fetches.get_mut(key) {
                fetch.flow = Some(flow);
            }
            self.record_flow_start(key);
        }
        let delay = self.way_back(peer, source);
        self.queue
            .push_after(self.now, delay, Event::FirstByte { fetch: key });
    }

    fn refuse(&mut self, key: Key, reason: RefusalReason) {
        if let Some(fetch) = self.fetches.get(key) {
            let delay = self.way_back(fetch.peer, fetch.source);
            self.queue
                .push_after(self.now, delay, Event::Refused { fetch: key, reason });
        }
    }

    pub(crate) fn on_refusal(&mut self, key: Key, reason: RefusalReason) {
        if let Some((peer, FetchPurpose::Chunk { transfer, .. })) = self.take_fetch(key) {
            self.feed(peer, Input::Refused { transfer, reason });
        }
    }

    pub(crate) fn on_first_byte(&mut self, key: Key) {
        self.on_origin_answered(key);
        let Some(&SimulatedFetch { peer, purpose, .. }) = self.fetches.get(key) else {
            return;
        };
        match purpose {
            FetchPurpose::Chunk { transfer, .. } => {
                self.feed(peer, Input::FirstByte { transfer });
            }
            FetchPurpose::Proofs => {
                self.take_fetch(key);
                self.on_proofs(peer);
            }
            FetchPurpose::PassThrough { .. } => {}
        }
    }

    pub(crate) fn on_flow_event(&mut self, event: FlowEvent) {
        match event {
            FlowEvent::Progress { tag, moved } => {
                let Some(&SimulatedFetch {
                    peer,
                    purpose,
                    source,
                    blob,
                    ..
                }) = self.fetches.get(Key::from_bits(tag))
                else {
                    return;
                };
                self.peers[peer as usize].reads.last_received_at = self.now;
                let FetchPurpose::Chunk { transfer, .. } = purpose else {
                    return self.on_passing_through(peer, blob, moved);
                };
                self.feed(
                    peer,
                    Input::Progress {
                        transfer,
                        received: moved,
                    },
                );
                if let FetchSource::Peer { peer: uploader, .. } = source {
                    self.feed(
                        uploader,
                        Input::UploadProgress {
                            upload: UploadId(tag),
                            sent: moved,
                        },
                    );
                }
            }
            FlowEvent::Done { tag, .. } => {
                let key = Key::from_bits(tag);
                let Some(fetch) = self.fetches.get_mut(key) else {
                    return;
                };
                fetch.flow = None;
                let &mut SimulatedFetch { peer, source, .. } = fetch;
                self.count_bytes(key, None);
                let delay = self.way_back(peer, source);
                self.queue
                    .push_after(self.now, delay, Event::Arrived { fetch: key });
                if let FetchSource::Peer { peer: uploader, .. } = source {
                    self.feed(
                        uploader,
                        Input::UploadEnded {
                            upload: UploadId(tag),
                        },
                    );
                }
            }
        }
    }

    pub(crate) fn on_arrived(&mut self, key: Key) {
        let Some(&SimulatedFetch { blob, source, .. }) = self.fetches.get(key) else {
            return;
        };
        let (peer, transfer, chunk) = match self.take_fetch(key) {
            Some((peer, FetchPurpose::Chunk { transfer, chunk })) => (peer, transfer, chunk),
            Some((peer, FetchPurpose::PassThrough { .. })) => {
                return self.on_passed_through(peer, blob);
            }
            Some((_, FetchPurpose::Proofs)) | None => return,
        };
        let is_corrupt =
            matches!(source, FetchSource::Peer { peer, .. } if self.peers[peer as usize].is_liar);
        if is_corrupt {
            self.feed(
                peer,
                Input::Failed {
                    transfer,
                    why: DownloadFailure::Corrupt,
                },
            );
            return;
        }
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        if !simulated.is_alive {
            return;
        }
        if !simulated.verified[blob.0 as usize].insert(chunk) {
            self.oracle
                .complain(|| format!("peer {peer} fetched chunk {chunk} twice"));
        }
        if (blob, chunk) == (BlobSlot(0), 0) {
            simulated.first_byte_at = Some(now);
        }
        simulated.reads.last_received_at = now;
        self.advance_reader(peer, blob);
        self.feed(peer, Input::Received { transfer });
    }

    /// The store has all bytes of a blob.
    fn on_complete(&mut self, peer: u32, blob: BlobSlot) {
        if !self.peers[peer as usize].reads.is_passing(blob) {
            self.on_blob_delivered(peer, blob);
        }
    }

    /// The runtime has all bytes of a blob, or reads the rest of them from the store.
    pub(crate) fn on_blob_delivered(&mut self, peer: u32, blob: BlobSlot) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        if simulated.delivered.insert(blob.0) && simulated.delivered.is_full() {
            simulated.completed_at = Some(now);
            self.unfinished -= 1;
        }
    }

    fn cancel(&mut self, peer: u32, transfer: TransferId) {
        let fetches = &self.peers[peer as usize].fetches;
        if let Some(key) = fetches
            .iter()
            .find(|(id, _)| *id == transfer)
            .map(|(_, key)| *key)
        {
            let source = self.fetches.get(key).map(|fetch| fetch.source);
            self.end_fetch(key);
            if let Some(FetchSource::Peer { peer: uploader, .. }) = source {
                self.feed(
                    uploader,
                    Input::UploadEnded {
                        upload: UploadId(key.to_bits()),
                    },
                );
            }
        }
    }

    /// Ends a fetch in any state. Bytes that have flowed are counted.
    pub(crate) fn end_fetch(&mut self, key: Key) {
        if let Some(flow) = self
            .fetches
            .get_mut(key)
            .and_then(|fetch| fetch.flow.take())
        {
            let moved = self.network.abort(self.now, flow);
            self.count_bytes(key, moved);
        }
        self.take_fetch(key);
    }

    pub(super) fn take_fetch(&mut self, key: Key) -> Option<(u32, FetchPurpose)> {
        let fetch = self.fetches.remove(key)?;
        let peer = &mut self.peers[fetch.peer as usize];
        match fetch.purpose {
            FetchPurpose::Chunk { .. } => peer.fetches.retain(|(_, other)| *other != key),
            FetchPurpose::Proofs | FetchPurpose::PassThrough { .. } => {
                peer.mirror_fetches.retain(|other| *other != key);
            }
        }
        Some((fetch.peer, fetch.purpose))
    }

    /// Counts the bytes of a fetch: `moved`, or the whole chunk.
    fn count_bytes(&mut self, key: Key, moved: Option<u64>) {
        let Some(fetch) = self.fetches.get(key) else {
            return;
        };
        let geometry = &self.geometries[fetch.blob.0 as usize];
        let bytes = moved.unwrap_or_else(|| fetch.purpose.bytes(geometry));
        let (to, source) = (self.locations[fetch.peer as usize], fetch.source);
        self.record_bytes(key, bytes);
        match source {
            FetchSource::Origin { region } => {
                self.origin_bytes += bytes;
                self.wan_bytes += if region == to.region { 0 } else { bytes };
            }
            FetchSource::Peer { peer, .. } => {
                let from = self.locations[peer as usize];
                if from.region != to.region {
                    self.wan_bytes += bytes;
                } else if from.zone != to.zone {
                    self.cross_zone_bytes += bytes;
                }
            }
        }
    }

    /// One-way delay from the source to the requesting peer.
    fn way_back(&self, peer: u32, source: FetchSource) -> core::time::Duration {
        match source {
            FetchSource::Peer { peer: source, .. } => self.delay(source, peer),
            FetchSource::Origin { region } => self.delay_to_region(peer, region),
        }
    }
}

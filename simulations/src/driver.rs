//! The driver of each peer's machine: carries out its outputs with simulated bytes.

use core::time::Duration;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::digest::Digest;
use flotilla_common::failover::Need;
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::swarm::{
    BlobSlot, ChunkSource, DownloadFailure, Input, Output, PeerSlot, RefusalReason, TransferId,
    UploadId,
};
use flotilla_common::tracker::{LeaseUpdate, SessionInput, Urgency};

use crate::delays::Transport;
use crate::event::Event;
use crate::fetch::{FetchPurpose, FetchSource, SimulatedFetch};
use crate::links::Told;
use crate::network::FlowEvent;
use crate::reads::{content_key, content_of};
use crate::record::ByteSource;
use crate::scenario::Fault;
use crate::slab::Key;
use crate::world::World;

impl World<'_> {
    pub(crate) fn act(&mut self, peer: u32, output: Output) {
        match output {
            Output::Dial { peer: slot } => self.dial(peer, slot.0),
            Output::HangUp { peer: slot } => {
                let other = self.peers[peer as usize].links.at(slot.0).peer;
                let notice = self.quic_delay(peer, other);
                self.hang_up(peer, slot.0, notice);
            }
            Output::SendChunkMap { peer: slot, blob } => self.send_chunk_map(peer, slot.0, blob),
            Output::Have { blob, batch } => self.broadcast(peer, blob, &Told::Have(batch)),
            Output::Claims { blob, claims } => {
                self.broadcast(peer, blob, &Told::Claims(claims));
            }
            Output::TellClaims {
                peer: slot,
                blob,
                claims,
            } => self.tell_claims(peer, slot.0, blob, claims),
            Output::Fetch {
                transfer,
                blob,
                chunk,
                source,
                first,
            } => self.fetch(peer, transfer, blob, chunk, (source, first)),
            Output::Cancel { transfer } => self.cancel(peer, transfer),
            Output::Serve { upload } => self.serve(Key::from_bits(upload.0)),
            Output::TellSlotFree { peer: slot } => self.tell_slot_free(peer, slot.0),
            Output::Refuse { upload, reason } => self.refuse(Key::from_bits(upload.0), reason),
            Output::Announce => {
                self.feed_session(peer, SessionInput::StateChanged(Urgency::Now));
            }
            Output::AnnounceSoon => {
                self.feed_session(peer, SessionInput::StateChanged(Urgency::Soon));
            }
            Output::LeaseTake {
                blob,
                missing,
                starving,
            } => self.request_lease(peer, blob, missing, starving),
            Output::LeaseDrop { blob } => {
                let digest = self.digest(peer, blob);
                self.feed_session(peer, SessionInput::WithdrawRequest { digest });
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
                self.update_lease(peer, blob, update);
            }
            Output::LeaseWaiting { blob, chunk, from } => {
                self.update_lease(peer, blob, LeaseUpdate::Waiting { chunk, from });
            }
            Output::LeaseDone { blob, chunk, from } => {
                self.update_lease(peer, blob, LeaseUpdate::Done { chunk, from });
            }
            Output::LeaseFailed { blob, chunk } => {
                self.update_lease(peer, blob, LeaseUpdate::Failed { chunk });
            }
            Output::Complete { blob } => self.on_complete(peer, blob),
            // The machine itself refuses peers in quarantine.
            Output::Quarantine { .. } => {}
        }
    }

    fn digest(&self, peer: u32, blob: BlobSlot) -> Digest {
        let id = self.peers[peer as usize].blobs.at(blob).id;
        self.images.blob(id).digest
    }

    fn request_lease(&mut self, peer: u32, blob: BlobSlot, missing: ChunkMap, starving: bool) {
        let unreachable = self.unreachable(peer, Some(blob));
        let digest = self.digest(peer, blob);
        self.feed_session(
            peer,
            SessionInput::RequestLease {
                digest,
                missing,
                starving,
                unreachable,
                origins: u8::try_from(self.origins.len()).unwrap_or(u8::MAX),
            },
        );
    }

    fn update_lease(&mut self, peer: u32, blob: BlobSlot, update: LeaseUpdate) {
        let digest = self.digest(peer, blob);
        self.feed_session(peer, SessionInput::UpdateLease { digest, update });
    }

    fn fetch(
        &mut self,
        peer: u32,
        transfer: TransferId,
        blob: BlobSlot,
        chunk: u32,
        (source, first): (ChunkSource, Option<OriginRegion>),
    ) {
        let blob = self.peers[peer as usize].blobs.at(blob).id;
        let slot = match source {
            ChunkSource::Peer(slot) => slot.0,
            ChunkSource::Origin => {
                let purpose = FetchPurpose::Chunk { transfer, chunk };
                let need = first.map_or(content_of(blob), |first| Need::ContentOf {
                    key: content_key(blob),
                    region: first.0.into(),
                });
                return self.fetch_from_origin(peer, purpose, need, blob);
            }
        };
        let link = *self.peers[peer as usize].links.at(slot);
        if !link.is_up {
            return; // `Closed` is on its way to the machine.
        }
        let fetch = self.fetches.insert(SimulatedFetch {
            peer,
            purpose: FetchPurpose::Chunk { transfer, chunk },
            source: FetchSource::Peer {
                peer: link.peer,
                requester: link.remote,
            },
            blob,
            flow: None,
            moved: 0,
            way_back: Duration::ZERO,
            origin: None,
        });
        self.peers[peer as usize].fetches.push((transfer, fetch));
        self.check_downloads(peer);
        let delay = self.quic_delay(peer, link.peer);
        self.queue
            .push_after(self.now, delay, Event::Requested { fetch });
    }

    /// A request reaches a peer.
    pub(crate) fn on_requested(&mut self, key: Key) {
        let Some(&SimulatedFetch {
            source: FetchSource::Peer { peer, requester },
            purpose: FetchPurpose::Chunk { chunk, .. },
            blob,
            ..
        }) = self.fetches.get(key)
        else {
            return;
        };
        let simulated = &self.peers[peer as usize];
        match simulated.fault {
            Some(Fault::IsMute) => return,
            Some(Fault::IsBusy) => return self.refuse(key, RefusalReason::Busy),
            Some(Fault::Lies) | None => {}
        }
        let slot = simulated.blobs.slot(blob);
        let Some(blob) = slot.filter(|slot| simulated.machine.held(*slot).is_some()) else {
            return self.refuse(key, RefusalReason::Gone);
        };
        let request = Input::UploadRequest {
            peer: PeerSlot(requester),
            blob,
            chunk,
            upload: UploadId(key.to_bits()),
        };
        self.feed(peer, request);
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
        let blobs = &self.peers[uploader as usize].blobs;
        let slot = blobs.slot(blob);
        if !slot.is_some_and(|slot| blobs.at(slot).verified.contains(chunk)) {
            self.oracle.complain(|| {
                format!("peer {uploader} served chunk {chunk}, which it has not verified")
            });
        }
        self.start_flow(key, uploader);
        self.check_uploads(uploader);
    }

    fn start_flow(&mut self, key: Key, from: u32) {
        let Some(&SimulatedFetch {
            peer,
            purpose,
            source: FetchSource::Peer { requester, .. },
            blob,
            ..
        }) = self.fetches.get(key)
        else {
            return;
        };
        let epoch = self.peers[from as usize].links.at(requester).epoch;
        let bytes = purpose.bytes(self.images.geometry(blob));
        let middle = self.middle(from, peer, epoch);
        let flow = self
            .network
            .start(self.now, (from, peer), middle, bytes, key.to_bits());
        let way_back = self.quic_delay(peer, from);
        if let Some(fetch) = self.fetches.get_mut(key) {
            fetch.flow = Some(flow);
            fetch.way_back = way_back;
        }
        self.record_flow_start(key);
        self.queue
            .push_after(self.now, way_back, Event::FirstByte { fetch: key });
    }

    fn refuse(&mut self, key: Key, reason: RefusalReason) {
        if let Some(&SimulatedFetch {
            peer,
            source: FetchSource::Peer { peer: uploader, .. },
            ..
        }) = self.fetches.get(key)
        {
            let delay = self.quic_delay(peer, uploader);
            self.queue
                .push_after(self.now, delay, Event::Refused { fetch: key, reason });
        }
    }

    pub(crate) fn on_refusal(&mut self, key: Key, reason: RefusalReason) {
        if let Some(SimulatedFetch {
            peer,
            purpose: FetchPurpose::Chunk { transfer, .. },
            ..
        }) = self.take_fetch(key)
        {
            self.feed(peer, Input::Refused { transfer, reason });
        }
    }

    pub(crate) fn on_first_byte(&mut self, key: Key) {
        if let Some(&SimulatedFetch {
            peer,
            purpose: FetchPurpose::Chunk { transfer, .. },
            ..
        }) = self.fetches.get(key)
        {
            self.feed(peer, Input::FirstByte { transfer });
        }
    }

    pub(crate) fn on_flow_event(&mut self, event: FlowEvent) {
        match event {
            FlowEvent::Progress { tag, from, moved } if self.is_origin(from) => {
                self.on_call_progress(Key::from_bits(tag), moved);
            }
            FlowEvent::Done { tag, from, .. } if self.is_origin(from) => {
                self.on_call_sent(Key::from_bits(tag));
            }
            FlowEvent::Progress { tag, from, moved } => {
                let Some(SimulatedFetch {
                    peer,
                    purpose: FetchPurpose::Chunk { transfer, .. },
                    moved: moved_before,
                    ..
                }) = self.fetches.get_mut(Key::from_bits(tag))
                else {
                    return;
                };
                let (peer, transfer, received) = (*peer, *transfer, moved);
                if moved > core::mem::replace(moved_before, moved) {
                    self.note_delivery(peer);
                }
                self.feed(peer, Input::Progress { transfer, received });
                let (upload, sent) = (UploadId(tag), moved);
                self.feed(from, Input::UploadProgress { upload, sent });
            }
            FlowEvent::Done { tag, from, to } => {
                let key = Key::from_bits(tag);
                let Some(fetch) = self.fetches.get_mut(key) else {
                    return;
                };
                fetch.flow = None;
                let way_back = fetch.way_back;
                self.count_bytes(key, None);
                let route = self.route(from, to);
                let delay = way_back + self.delays.retransmissions(Transport::Quic, route);
                self.queue
                    .push_after(self.now, delay, Event::Arrived { fetch: key });
                let upload = UploadId(tag);
                self.feed(from, Input::UploadEnded { upload });
            }
        }
    }

    pub(crate) fn on_arrived(&mut self, key: Key) {
        let Some(fetch) = self.take_fetch(key) else {
            return;
        };
        let (peer, blob, source) = (fetch.peer, fetch.blob, fetch.source);
        let (transfer, chunk) = match fetch.purpose {
            FetchPurpose::Chunk { transfer, chunk } => (transfer, chunk),
            FetchPurpose::PassThrough { .. } => return self.on_passed_through(peer, blob),
            // They have no body.
            FetchPurpose::Manifest { .. } | FetchPurpose::Proofs { .. } => return,
        };
        let lies = |peer: u32| self.peers[peer as usize].lies();
        let is_corrupt = matches!(source, FetchSource::Peer { peer, .. } if lies(peer));
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
        let simulated = &mut self.peers[peer as usize];
        let Some(slot) = simulated.blobs.slot(blob).filter(|_| simulated.is_alive) else {
            return;
        };
        if !simulated.blobs.at_mut(slot).verified.insert(chunk) {
            self.oracle
                .complain(|| format!("peer {peer} fetched chunk {chunk} twice"));
        }
        let bytes = self.images.geometry(blob).chunk_len(chunk);
        let region = self.locations[peer as usize].region;
        self.holders.add(region, blob, chunk, bytes);
        if chunk == 0 {
            self.note_first_byte(peer, blob);
        }
        self.note_delivery(peer);
        self.advance_reader(peer, slot);
        self.feed(peer, Input::Received { transfer });
    }

    /// The store has all bytes of a blob.
    fn on_complete(&mut self, peer: u32, blob: BlobSlot) {
        let completed = self.peers[peer as usize].blobs.at(blob);
        // A lazy runtime goes on with its reads.
        if !completed.is_passing && !self.images.blob(completed.id).is_read_lazily() {
            self.on_blob_delivered(peer, blob);
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

    pub(super) fn take_fetch(&mut self, key: Key) -> Option<SimulatedFetch> {
        self.close_calls(key);
        let fetch = self.fetches.remove(key)?;
        let peer = &mut self.peers[fetch.peer as usize];
        match fetch.purpose {
            FetchPurpose::Chunk { .. } => peer.fetches.retain(|(_, other)| *other != key),
            FetchPurpose::Manifest { .. }
            | FetchPurpose::Proofs { .. }
            | FetchPurpose::PassThrough { .. } => {
                peer.mirror_fetches.retain(|other| *other != key);
            }
        }
        Some(fetch)
    }

    /// Counts the bytes of a fetch from a peer: `moved`, or the whole chunk.
    fn count_bytes(&mut self, key: Key, moved: Option<u64>) {
        let Some(fetch) = self.fetches.get(key) else {
            return;
        };
        let FetchSource::Peer { peer, .. } = fetch.source else {
            return;
        };
        let geometry = self.images.geometry(fetch.blob);
        let bytes = moved.unwrap_or_else(|| fetch.purpose.bytes(geometry));
        let to = self.locations[fetch.peer as usize];
        let from = self.locations[peer as usize];
        self.record_bytes(key, ByteSource::of_peer(from, to), bytes);
        if from.region != to.region {
            self.count_wan_bytes(key, bytes);
        } else if from.zone != to.zone {
            self.cross_zone_bytes += bytes;
        }
    }

    /// Counts bytes that the origin of the region `from` sent for a fetch of a peer, by way of that
    /// of the region `by`: they came into the peer's region from origins.
    pub(crate) fn count_origin_bytes(
        &mut self,
        fetch: Key,
        (from, by): (u32, u32),
        peer: u32,
        bytes: u64,
    ) {
        let own = self.locations[peer as usize].region;
        let source = if from == own {
            ByteSource::OwnOrigin
        } else {
            ByteSource::OtherOrigin
        };
        self.record_bytes(fetch, source, bytes);
        self.origins[from as usize].sent_bytes += bytes;
        self.origin_bytes[own as usize] += bytes;
        self.count_wan_bytes(
            fetch,
            bytes * (u64::from(from != by) + u64::from(by != own)),
        );
    }

    /// Counts bytes of a fetch that came from another region.
    fn count_wan_bytes(&mut self, key: Key, bytes: u64) {
        self.wan_bytes += bytes;
        if let Some(&SimulatedFetch {
            peer,
            purpose: FetchPurpose::Chunk { chunk, .. },
            blob,
            ..
        }) = self.fetches.get(key)
        {
            let region = self.locations[peer as usize].region;
            if self.holders.has_holder(region, blob, chunk) {
                self.repeated_wan_bytes += bytes;
            }
        }
    }

    pub(crate) fn is_origin(&self, end: u32) -> bool {
        self.region_of_end(end).is_some()
    }
}

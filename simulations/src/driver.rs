//! The peer's driver: does what the machine says, with simulated bytes.

use flotilla_common::map::ChunkMap;
use flotilla_common::swarm::{
    BlobSlot, Failure, Input, Output, PeerSlot, Refusal, Source, TransferId, UploadId,
};
use flotilla_common::tracker::{LeaseUpdate, SessionInput};

use crate::network::Moved;
use crate::slab::Key;
use crate::world::{Event, Origin, Request, World, millis};

impl World<'_> {
    pub(crate) fn act(&mut self, peer: u32, output: Output) {
        match output {
            Output::Dial { peer: slot } => self.dial(peer, slot.0),
            Output::HangUp { peer: slot } => {
                let other = self.nodes[peer as usize].links.at(slot.0).peer;
                let notice = self.delay(peer, other);
                self.hang_up(peer, slot.0, notice);
            }
            Output::Greet { peer: slot, blob } => self.greet(peer, slot.0, blob),
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
            Output::LeaseDone { blob, chunk } => {
                self.update_lease(peer, blob, LeaseUpdate::Done { chunk });
            }
            Output::LeaseFailed { blob, chunk } => {
                self.update_lease(peer, blob, LeaseUpdate::Failed { chunk });
            }
            Output::Complete { .. } => self.on_complete(peer),
            // The machine itself refuses whom it has quarantined.
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
        source: Source,
    ) {
        let node = &self.nodes[peer as usize];
        let (source, delay) = match source {
            Source::Peer(slot) => {
                let link = node.links.at(slot.0);
                if !link.is_up {
                    return; // The news of its end is on its way to the machine.
                }
                (
                    Origin::Peer {
                        peer: link.peer,
                        asker: link.remote,
                    },
                    self.delay(peer, link.peer),
                )
            }
            Source::Origin(place) => {
                let regions = self.origins_up.len() as u32;
                let region = (self.places[peer as usize].region + place.0) % regions;
                let delay =
                    self.delay_to_region(peer, region) + millis(self.scenario.origin.think_ms);
                (Origin::Region(region), delay)
            }
        };
        let request = self.requests.insert(Request {
            peer,
            transfer,
            source,
            blob,
            chunk,
            flow: None,
        });
        self.nodes[peer as usize].fetches.push((transfer, request));
        self.queue
            .push_after(self.now, delay, Event::Asked { request });
    }

    pub(crate) fn on_asked(&mut self, key: Key) {
        let Some(&Request {
            peer,
            source,
            blob,
            chunk,
            ..
        }) = self.requests.get(key)
        else {
            return;
        };
        match source {
            Origin::Peer {
                peer: uploader,
                asker,
            } => {
                let upload = UploadId(key.to_bits());
                self.feed(
                    uploader,
                    Input::UploadRequest {
                        peer: PeerSlot(asker),
                        blob,
                        chunk,
                        upload,
                    },
                );
            }
            Origin::Region(region) if self.origins_up[region as usize] => {
                self.start_flow(key, self.nodes.len() as u32 + region);
            }
            Origin::Region(region) => {
                let delay = self.delay_to_region(peer, region);
                self.queue
                    .push_after(self.now, delay, Event::SourceFailed { request: key });
            }
        }
    }

    fn serve(&mut self, key: Key) {
        let Some(&Request {
            source: Origin::Peer { peer: uploader, .. },
            blob,
            chunk,
            ..
        }) = self.requests.get(key)
        else {
            return;
        };
        if !self.nodes[uploader as usize].verified[blob.0 as usize].contains(chunk) {
            self.oracle.complain(|| {
                format!("peer {uploader} served chunk {chunk}, which it has not verified")
            });
        }
        self.start_flow(key, uploader);
    }

    fn start_flow(&mut self, key: Key, from: u32) {
        let Some(&Request {
            peer,
            blob,
            chunk,
            source,
            ..
        }) = self.requests.get(key)
        else {
            return;
        };
        let bytes = self.geometries[blob.0 as usize].chunk_len(chunk);
        let flow = self
            .network
            .start(self.now, from, peer, bytes, key.to_bits());
        if let Some(request) = self.requests.get_mut(key) {
            request.flow = Some(flow);
        }
        let delay = self.way_back(peer, source);
        self.queue
            .push_after(self.now, delay, Event::FirstByte { request: key });
    }

    fn refuse(&mut self, key: Key, reason: Refusal) {
        if let Some(request) = self.requests.get(key) {
            let delay = self.way_back(request.peer, request.source);
            self.queue.push_after(
                self.now,
                delay,
                Event::Refused {
                    request: key,
                    reason,
                },
            );
        }
    }

    pub(crate) fn on_refusal(&mut self, key: Key, reason: Refusal) {
        if let Some((peer, transfer)) = self.take_request(key) {
            self.feed(peer, Input::Refused { transfer, reason });
        }
    }

    pub(crate) fn on_first_byte(&mut self, key: Key) {
        if let Some(&Request { peer, transfer, .. }) = self.requests.get(key) {
            self.feed(peer, Input::FirstByte { transfer });
        }
    }

    pub(crate) fn on_source_failed(&mut self, key: Key) {
        if let Some((peer, transfer)) = self.take_request(key) {
            self.feed(
                peer,
                Input::Failed {
                    transfer,
                    why: Failure::Link,
                },
            );
        }
    }

    pub(crate) fn on_moved(&mut self, moved: Moved) {
        match moved {
            Moved::Progress { tag, moved } => {
                let Some(&Request {
                    peer,
                    transfer,
                    source,
                    ..
                }) = self.requests.get(Key::from_bits(tag))
                else {
                    return;
                };
                self.feed(
                    peer,
                    Input::Progress {
                        transfer,
                        received: moved,
                    },
                );
                if let Origin::Peer { peer: uploader, .. } = source {
                    self.feed(
                        uploader,
                        Input::UploadProgress {
                            upload: UploadId(tag),
                            sent: moved,
                        },
                    );
                }
            }
            Moved::Done { tag, .. } => {
                let key = Key::from_bits(tag);
                let Some(request) = self.requests.get_mut(key) else {
                    return;
                };
                request.flow = None;
                let &mut Request { peer, source, .. } = request;
                self.count_bytes(key, None);
                let delay = self.way_back(peer, source);
                self.queue
                    .push_after(self.now, delay, Event::Arrived { request: key });
                if let Origin::Peer { peer: uploader, .. } = source {
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
        let Some(&Request {
            blob,
            chunk,
            source,
            ..
        }) = self.requests.get(key)
        else {
            return;
        };
        let Some((peer, transfer)) = self.take_request(key) else {
            return;
        };
        let is_corrupt =
            matches!(source, Origin::Peer { peer, .. } if self.nodes[peer as usize].lies);
        if is_corrupt {
            self.feed(
                peer,
                Input::Failed {
                    transfer,
                    why: Failure::Corrupt,
                },
            );
            return;
        }
        let now = self.now;
        let node = &mut self.nodes[peer as usize];
        if !node.alive {
            return;
        }
        if !node.verified[blob.0 as usize].insert(chunk) {
            self.oracle
                .complain(|| format!("peer {peer} fetched chunk {chunk} twice"));
        }
        if (blob, chunk) == (BlobSlot(0), 0) {
            node.first_byte_at = Some(now);
        }
        self.advance_reader(peer, blob);
        self.feed(peer, Input::Received { transfer });
    }

    /// The reader takes what is there, and waits for the next chunk.
    fn advance_reader(&mut self, peer: u32, blob: BlobSlot) {
        let node = &mut self.nodes[peer as usize];
        let verified: &ChunkMap = &node.verified[blob.0 as usize];
        let cursor = &mut node.cursors[blob.0 as usize];
        if verified.contains(*cursor) {
            let next = verified.first_missing(*cursor);
            *cursor = next.unwrap_or(verified.len());
            self.feed(peer, Input::Reader { blob, cursor: next });
        }
    }

    fn on_complete(&mut self, peer: u32) {
        let now = self.now;
        let node = &mut self.nodes[peer as usize];
        node.complete += 1;
        if node.complete as usize == self.geometries.len() {
            node.completed_at = Some(now);
            self.unfinished -= 1;
        }
    }

    fn cancel(&mut self, peer: u32, transfer: TransferId) {
        let fetches = &self.nodes[peer as usize].fetches;
        if let Some(key) = fetches
            .iter()
            .find(|(id, _)| *id == transfer)
            .map(|(_, key)| *key)
        {
            let source = self.requests.get(key).map(|request| request.source);
            self.end_request(key);
            if let Some(Origin::Peer { peer: uploader, .. }) = source {
                self.feed(
                    uploader,
                    Input::UploadEnded {
                        upload: UploadId(key.to_bits()),
                    },
                );
            }
        }
    }

    /// Ends a request wherever it stands; what has flowed, has.
    pub(crate) fn end_request(&mut self, key: Key) {
        if let Some(flow) = self
            .requests
            .get_mut(key)
            .and_then(|request| request.flow.take())
        {
            let moved = self.network.abort(self.now, flow);
            self.count_bytes(key, moved);
        }
        self.take_request(key);
    }

    fn take_request(&mut self, key: Key) -> Option<(u32, TransferId)> {
        let request = self.requests.remove(key)?;
        self.nodes[request.peer as usize]
            .fetches
            .retain(|(_, other)| *other != key);
        Some((request.peer, request.transfer))
    }

    /// Counts the bytes of a request: `moved`, or all of the chunk.
    fn count_bytes(&mut self, key: Key, moved: Option<u64>) {
        let Some(request) = self.requests.get(key) else {
            return;
        };
        let bytes = moved
            .unwrap_or_else(|| self.geometries[request.blob.0 as usize].chunk_len(request.chunk));
        let to = self.places[request.peer as usize];
        match request.source {
            Origin::Region(region) => {
                self.origin_bytes += bytes;
                self.wan_bytes += if region == to.region { 0 } else { bytes };
            }
            Origin::Peer { peer, .. } => {
                let from = self.places[peer as usize];
                if from.region != to.region {
                    self.wan_bytes += bytes;
                } else if from.zone != to.zone {
                    self.cross_zone_bytes += bytes;
                }
            }
        }
    }

    fn way_back(&self, peer: u32, source: Origin) -> core::time::Duration {
        match source {
            Origin::Peer { peer: source, .. } => self.delay(source, peer),
            Origin::Region(region) => self.delay_to_region(peer, region),
        }
    }
}

//! Events of neighbours and origins, translated into the machine's inputs.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::name::PeerId;
use flotilla_common::swarm::{Claim, HaveBatch, HeldChunks, Input, PeerSlot, UploadId};
use flotilla_common::time::Time;
use flotilla_common::wire::peer::{self, Control, Holding};

use super::tables::facts;
use super::{ActiveUpload, Driver};
use crate::transport::{ChunkRequest, CloseReason, PeerLink, TransportEvent};

/// How long transfers on the surplus one of two connections with a neighbour may go on.
const DUPLICATE_GRACE: Duration = Duration::from_secs(10);

impl Driver {
    pub(super) fn on_transport_event(&mut self, now: Time, event: TransportEvent) {
        match event {
            TransportEvent::Linked(link) => self.on_linked(now, link),
            TransportEvent::Unlinked(link) => self.on_unlinked(now, &link),
            TransportEvent::DialFailed(id) => {
                if let Some(slot) = self.tables.peer_slot(&id) {
                    self.machine.handle(now, Input::DialFailed { peer: slot });
                }
            }
            TransportEvent::Control(link, message) => self.on_message(now, &link, message),
            TransportEvent::ChunkRequested(link, request) => {
                self.on_chunk_request(now, link, request)
            }
            TransportEvent::ImageRequested(link, request) => self.on_image_request(&link, request),
        }
    }

    /// The standing of an origin changed.
    pub(super) fn on_origin_change(&mut self, now: Time) {
        let is_usable = self.context.upstream.origins.sources().is_usable();
        if is_usable != self.has_origin {
            self.has_origin = is_usable;
            let input = if is_usable {
                Input::OriginUsable
            } else {
                Input::OriginUnusable
            };
            self.machine.handle(now, input);
        }
    }

    fn on_linked(&mut self, now: Time, link: PeerLink) {
        let slot = self.intern(link.peer());
        let own = self.context.network.me.id.clone();
        let Some(peer) = self.tables.peer_mut(slot) else {
            return;
        };
        if peer.quarantined_until > now {
            return link.close(CloseReason::Misbehaved);
        }
        if let Some(older) = &peer.link {
            if !link.is_preferred_to(older, &own) {
                return self.retire(slot, link);
            }
            // The neighbour may have restarted. It then knows nothing of the messages on the older
            // link.
            if let Some(older) = peer.link.take() {
                self.retire(slot, older);
            }
            self.machine.handle(now, Input::Disconnected { peer: slot });
        }
        let Some(peer) = self.tables.peer_mut(slot) else {
            return;
        };
        peer.link = Some(link.clone());
        self.count_neighbours();
        let about = link.about();
        let facts = facts(slot, (&about.region, &about.zone), &self.context.network.me);
        self.machine.handle(
            now,
            Input::Connected {
                facts,
                round_trip: link.round_trip(),
            },
        );
        if let Some(bits_per_second) = about.up_bits_per_second {
            self.machine.handle(
                now,
                Input::RateHint {
                    peer: slot,
                    bits_per_second,
                },
            );
        }
        self.ask_for_images(now, &link);
    }

    /// Closes a surplus connection after its transfers had time to finish. An earlier surplus one
    /// is closed at once, so that a peer has two connections at most.
    fn retire(&mut self, slot: PeerSlot, link: PeerLink) {
        if let Some(peer) = self.tables.peer_mut(slot)
            && let Some(earlier) = peer.retired.replace(link.clone())
        {
            earlier.close(CloseReason::Duplicate);
        }
        self.context.shutdown.spawn(async move {
            tokio::time::sleep(DUPLICATE_GRACE).await;
            link.close(CloseReason::Duplicate);
        });
    }

    fn on_unlinked(&mut self, now: Time, link: &PeerLink) {
        self.verified.forget(link.id());
        self.uploads.retain(|_, upload| {
            let is_kept = upload.link.id() != link.id();
            if let (false, Some(task)) = (is_kept, &upload.task) {
                task.abort();
            }
            is_kept
        });
        let Some(slot) = self.tables.peer_slot(link.peer()) else {
            return;
        };
        let Some(peer) = self.tables.peer_mut(slot) else {
            return;
        };
        let is_this = |current: &PeerLink| current.id() == link.id();
        if peer.retired.as_ref().is_some_and(is_this) {
            peer.retired = None;
        }
        if peer.link.as_ref().is_some_and(is_this) {
            peer.link = None;
            self.count_neighbours();
            self.machine.handle(now, Input::Disconnected { peer: slot });
        }
    }

    fn on_message(&mut self, now: Time, link: &PeerLink, message: Control) {
        let Some(peer) = self.tables.peer_slot(link.peer()) else {
            return;
        };
        let (digest, have) = match message {
            Control::Holds(holds) => (
                holds.digest,
                match holds.holding {
                    Holding::Complete => HeldChunks::Complete,
                    Holding::Partial(map) => HeldChunks::Map(map),
                },
            ),
            Control::Have(have) => return self.on_have(now, peer, &have),
            Control::Forgot(forgot) => {
                if let Some(blob) = self.tables.blob_slot(&forgot.digest) {
                    self.machine.handle(now, Input::Forgot { peer, blob });
                }
                return;
            }
            Control::Claims(claims) => return self.on_claims(now, peer, &claims),
            Control::SlotFree(_) => return self.machine.handle(now, Input::SlotFree { peer }),
            // No build requests proofs this way. An answer may have 4 MiB to a question of 40
            // bytes, so a neighbour could fill this peer's memory with answers. Hello and About
            // are exchanged before.
            Control::ProofWanted(_) | Control::Proof(_) | Control::Hello(_) | Control::About(_) => {
                return;
            }
        };
        if let Some(blob) = self.tables.blob_slot(&digest) {
            self.machine.handle(now, Input::Have { peer, blob, have });
        }
    }

    fn on_have(&mut self, now: Time, peer: PeerSlot, have: &peer::Have) {
        let Some(blob) = self.tables.blob_slot(&have.digest) else {
            return;
        };
        // A message with more chunks than the blob has is invalid.
        if self
            .machine
            .held(blob)
            .is_none_or(|held| have.chunks.len() > held.len() as usize)
        {
            return;
        }
        for chunks in have.chunks.chunks(HaveBatch::MAX) {
            let mut batch = HaveBatch::default();
            for chunk in chunks {
                batch.push(*chunk);
            }
            self.machine.handle(
                now,
                Input::Have {
                    peer,
                    blob,
                    have: HeldChunks::Chunks(batch),
                },
            );
        }
    }

    fn on_claims(&mut self, now: Time, peer: PeerSlot, message: &peer::Claims) {
        let Some(blob) = self.tables.blob_slot(&message.digest) else {
            return;
        };
        let from_wire = |claim: &peer::Claim| Claim {
            chunk: claim.chunk,
            term: Duration::from_millis(claim.term_ms.into()),
        };
        // The machine remembers few; further ones in one message are not believed anyway.
        let claims = message.claims.iter().take(Claim::MAX_PER_MESSAGE);
        let claims = claims.map(from_wire).collect();
        self.machine
            .handle(now, Input::Claims { peer, blob, claims });
    }

    fn on_chunk_request(&mut self, now: Time, link: PeerLink, request: ChunkRequest) {
        let Some(peer) = self.tables.peer_slot(link.peer()) else {
            return;
        };
        let Some(blob) = self.tables.blob_slot(&request.ask.digest) else {
            return self.spawn_refusal(request, peer::Refusal::Gone);
        };
        if let Err(error) = self.check_grant(&link, &request.ask.digest, request.ask.grant.as_ref())
        {
            tracing::debug!(
                peer = %link.peer(), blob = %request.ask.digest, %error,
                "refused a neighbour's request for a chunk"
            );
            self.context.telemetry.counters.refused_not_permitted.add(1);
            return self.spawn_refusal(request, peer::Refusal::NotPermitted);
        }
        let Some(stored) = self.tables.blob(blob).map(|blob| Arc::clone(&blob.stored)) else {
            return;
        };
        self.next_upload += 1;
        let upload = UploadId(self.next_upload);
        let chunk = request.ask.chunk;
        self.uploads.insert(
            upload,
            ActiveUpload {
                link,
                stored,
                request: Some(request),
                task: None,
                sent: 0,
            },
        );
        self.machine.handle(
            now,
            Input::UploadRequest {
                peer,
                blob,
                chunk,
                upload,
            },
        );
    }

    pub(super) fn intern(&mut self, id: &PeerId) -> PeerSlot {
        let machine = &self.machine;
        self.tables.intern_peer(id, |slot| machine.is_idle(slot))
    }
}

//! What neighbours, trackers and origins say, told to the machine in its own words.

use core::time::Duration;
use std::collections::HashSet;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::swarm::{Batch, BlobSlot, Have, Input, PeerFacts, PeerSlot, UploadId};
use flotilla_common::time::Time;
use flotilla_common::wire::peer::{self, Control, Holding};
use flotilla_common::wire::tracker::{
    BlobState, Change, Handout, HeldLease, LeaseAnswer, LeaseAsk, PROGRESS_COMPLETE, PeerInfo,
};

use super::roster::{Blob, Peer, facts};
use super::{Driver, Upload};
use crate::origin::Sighting;
use crate::tracker_client::{Snapshot, TrackerEvent};
use crate::transport::{Goodbye, Incident, Link, Question};

/// How long the loser of two connections with one neighbour may finish what it carries.
const DUPLICATE_GRACE: Duration = Duration::from_secs(10);
/// Manifests announced at most, the newest.
const MAX_MANIFESTS: usize = 256;
/// Unreachable peers named to the tracker at most.
const MAX_UNREACHABLE: usize = 32;

impl Driver {
    pub(super) fn on_incident(&mut self, now: Time, incident: Incident) {
        match incident {
            Incident::Linked(link) => self.linked(now, link),
            Incident::Unlinked(link) => self.unlinked(now, &link),
            Incident::DialFailed(id) => {
                if let Some(slot) = self.roster.peer_slot(&id) {
                    self.machine.handle(now, Input::DialFailed { peer: slot });
                }
            }
            Incident::Said(link, message) => self.said(now, &link, message),
            Incident::Asked(link, question) => self.asked(now, link, question),
            Incident::AskedImage(link, question) => self.asked_for_image(&link, question),
        }
    }

    pub(super) fn on_tracker(&mut self, now: Time, event: TrackerEvent) {
        match event {
            TrackerEvent::Snapshot(sender) => {
                // An announce that was given up needs no snapshot.
                let _ = sender.send(self.snapshot());
            }
            TrackerEvent::Handouts(handouts) => {
                for handout in handouts {
                    self.handout(now, &handout);
                }
            }
            TrackerEvent::Lease {
                digest,
                ticket,
                answer,
            } => self.lease(now, &digest, ticket, answer),
            TrackerEvent::LeaseLost { digest, chunk } => {
                if let Some(blob) = self.roster.blob_slot(&digest) {
                    self.machine.handle(now, Input::LeaseLost { blob, chunk });
                }
            }
            TrackerEvent::Reachable => self.machine.handle(now, Input::TrackerReachable),
            TrackerEvent::Unreachable => self.machine.handle(now, Input::TrackerUnreachable),
        }
    }

    pub(super) fn on_sighting(&mut self, now: Time, sighting: Sighting) {
        let Sighting { origin, is_up } = sighting;
        let input = if is_up {
            Input::OriginUp { origin }
        } else {
            Input::OriginDown { origin }
        };
        self.machine.handle(now, input);
    }

    fn linked(&mut self, now: Time, link: Link) {
        let slot = self.intern(link.peer());
        let own = self.shared.me.id.clone();
        let Some(peer) = self.roster.peer_mut(slot) else {
            return;
        };
        if peer.quarantined_until > now {
            return link.close(Goodbye::Misbehaved);
        }
        if let Some(older) = &peer.link {
            if !link.is_preferred_to(older, &own) {
                return self.retire(link);
            }
            // The neighbour may have started again, and knows nothing of what was said on the older
            // one.
            if let Some(older) = peer.link.take() {
                self.retire(older);
            }
            self.machine.handle(now, Input::Disconnected { peer: slot });
        }
        let Some(peer) = self.roster.peer_mut(slot) else {
            return;
        };
        peer.link = Some(link.clone());
        self.count_neighbours();
        let about = link.about();
        let facts = facts(
            slot,
            link.peer(),
            (&about.region, &about.zone),
            &self.shared.me,
        );
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
        self.ask_for_images(&link);
    }

    /// Lets a connection finish what it carries.
    fn retire(&self, link: Link) {
        self.shared.shutdown.spawn(async move {
            tokio::time::sleep(DUPLICATE_GRACE).await;
            link.close(Goodbye::Duplicate);
        });
    }

    fn unlinked(&mut self, now: Time, link: &Link) {
        self.verified.unlinked(link.id());
        self.uploads.retain(|_, upload| {
            let stays = upload.link.id() != link.id();
            if let (false, Some(task)) = (stays, &upload.task) {
                task.abort();
            }
            stays
        });
        let Some(slot) = self.roster.peer_slot(link.peer()) else {
            return;
        };
        let Some(peer) = self.roster.peer_mut(slot) else {
            return;
        };
        if peer
            .link
            .as_ref()
            .is_some_and(|current| current.id() == link.id())
        {
            peer.link = None;
            self.count_neighbours();
            self.machine.handle(now, Input::Disconnected { peer: slot });
        }
    }

    fn said(&mut self, now: Time, link: &Link, message: Control) {
        let Some(peer) = self.roster.peer_slot(link.peer()) else {
            return;
        };
        let (digest, have) = match message {
            Control::Holds(holds) => (
                holds.digest,
                match holds.holding {
                    Holding::Complete => Have::Complete,
                    Holding::Partial(map) => Have::Map(map),
                },
            ),
            Control::Have(have) => return self.heard_have(now, peer, &have),
            Control::Forgot(forgot) => {
                if let Some(blob) = self.roster.blob_slot(&forgot.digest) {
                    self.machine.handle(now, Input::Forgot { peer, blob });
                }
                return;
            }
            Control::ProofWanted(wanted) => {
                if let Some(stored) = self.shared.store.get(&wanted.digest) {
                    link.say(Control::Proof(stored.proof().clone()));
                }
                return;
            }
            // Nobody asked for a proof here, and a greeting comes once.
            Control::Proof(_) | Control::Hello(_) | Control::About(_) => return,
        };
        if let Some(blob) = self.roster.blob_slot(&digest) {
            self.machine.handle(now, Input::Have { peer, blob, have });
        }
    }

    fn heard_have(&mut self, now: Time, peer: PeerSlot, have: &peer::Have) {
        let Some(blob) = self.roster.blob_slot(&have.digest) else {
            return;
        };
        // Nobody has more chunks than there are.
        if self
            .machine
            .held(blob)
            .is_none_or(|held| have.chunks.len() > held.len() as usize)
        {
            return;
        }
        for chunks in have.chunks.chunks(Batch::MAX) {
            let mut batch = Batch::default();
            for chunk in chunks {
                batch.push(*chunk);
            }
            self.machine.handle(
                now,
                Input::Have {
                    peer,
                    blob,
                    have: Have::Chunks(batch),
                },
            );
        }
    }

    fn asked(&mut self, now: Time, link: Link, question: Question) {
        let Some(peer) = self.roster.peer_slot(link.peer()) else {
            return;
        };
        let Some(blob) = self.roster.blob_slot(&question.ask.digest) else {
            return self.say_no(question, peer::Refusal::Gone);
        };
        if let Err(error) =
            self.check_grant(&link, &question.ask.digest, question.ask.grant.as_ref())
        {
            tracing::debug!(peer = %link.peer(), blob = %question.ask.digest, %error, "refuse chunk");
            self.shared.counters.refused_not_permitted.add(1);
            return self.say_no(question, peer::Refusal::NotPermitted);
        }
        let Some(stored) = self.roster.blob(blob).map(|blob| Arc::clone(&blob.stored)) else {
            return;
        };
        self.next_upload += 1;
        let upload = UploadId(self.next_upload);
        let chunk = question.ask.chunk;
        self.uploads.insert(
            upload,
            Upload {
                link,
                stored,
                question: Some(question),
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

    fn handout(&mut self, now: Time, handout: &Handout) {
        let Some(blob) = self.roster.blob_slot(&handout.digest) else {
            return self.image_handout(now, handout);
        };
        let own = self.shared.me.id.clone();
        let others = handout.peers.iter().filter(|info| info.id != own);
        let peers: Vec<PeerFacts> = others.map(|info| self.meet(info)).collect();
        self.machine.handle(now, Input::Handout { blob, peers });
    }

    /// Takes note of where a peer is.
    pub(super) fn meet(&mut self, info: &PeerInfo) -> PeerFacts {
        let slot = self.intern(&info.id);
        if let Some(peer) = self.roster.peer_mut(slot) {
            peer.info = Some(info.clone());
        }
        facts(slot, &info.id, (&info.region, &info.zone), &self.shared.me)
    }

    fn intern(&mut self, id: &PeerId) -> PeerSlot {
        let machine = &self.machine;
        self.roster.intern_peer(id, |slot| machine.is_idle(slot))
    }

    fn lease(&mut self, now: Time, digest: &Digest, ticket: u64, answer: LeaseAnswer) {
        let current = self.roster.blob_slot(digest).filter(|slot| {
            self.roster
                .blob(*slot)
                .is_some_and(|blob| blob.lease_ticket == ticket)
        });
        let Some(blob) = current else {
            // Granted to a request that was withdrawn meanwhile: somebody else may have it.
            if let LeaseAnswer::Granted { chunk, .. } = answer {
                self.shared
                    .trackers
                    .tell_lease(*digest, LeaseAsk::Failed { chunk });
            }
            return;
        };
        if let Some(entry) = self.roster.blob_mut(blob) {
            entry.lease_ticket = 0;
        }
        let wait = |retry_ms| Input::LeaseWait {
            blob,
            retry_after: Duration::from_millis(retry_ms),
        };
        let input = match answer {
            LeaseAnswer::Granted { chunk, term_ms } => Input::LeaseGranted {
                blob,
                chunk,
                term: Duration::from_millis(u64::from(term_ms)),
            },
            LeaseAnswer::Wait { retry_ms } => wait(u64::from(retry_ms)),
            LeaseAnswer::Dial { peer } => {
                let facts = self.meet(&peer);
                self.machine.handle(
                    now,
                    Input::Handout {
                        blob,
                        peers: vec![facts],
                    },
                );
                wait(0)
            }
            LeaseAnswer::Unknown
            | LeaseAnswer::NotFirst
            | LeaseAnswer::Noted
            | LeaseAnswer::NotHeld => wait(0),
        };
        self.machine.handle(now, input);
    }

    fn snapshot(&self) -> Snapshot {
        let wanted: HashSet<BlobSlot> = self.machine.wanted().collect();
        let change = |(slot, blob): (BlobSlot, &Blob)| {
            let held = self.machine.held(slot)?;
            let progress = fifteenths(held.count(), held.len());
            let state = match (wanted.contains(&slot), held.is_empty()) {
                (true, _) => BlobState::Wanted { progress },
                (false, false) => BlobState::Held { progress },
                (false, true) => return None,
            };
            Some(Change {
                digest: *blob.stored.digest(),
                state,
            })
        };
        let lease = |(slot, chunk)| {
            let blob = self.roster.blob(slot)?;
            let chunks = blob.stored.geometry().chunks();
            Some(HeldLease {
                digest: *blob.stored.digest(),
                chunk,
                chunks,
            })
        };
        let named = |peers: &mut dyn Iterator<Item = &Peer>| {
            peers.map(|peer| peer.id.clone()).collect::<Vec<_>>()
        };
        // Manifests have no chunks; who holds one is whom to ask for it when no origin can be.
        let sought = self
            .seeks
            .manifests()
            .map(|digest| (*digest, BlobState::Wanted { progress: 0 }));
        let held = self.shared.manifests.newest(MAX_MANIFESTS).into_iter();
        let held = held.map(|digest| {
            (
                digest,
                BlobState::Held {
                    progress: PROGRESS_COMPLETE,
                },
            )
        });
        let manifests = sought
            .chain(held)
            .map(|(digest, state)| Change { digest, state });
        Snapshot {
            blobs: self
                .roster
                .blobs()
                .filter_map(change)
                .chain(manifests)
                .collect(),
            leases: self.machine.leases().filter_map(lease).collect(),
            connected: named(&mut self.roster.peers().filter(|peer| peer.link.is_some())),
            unreachable: self.unreachable(None),
        }
    }

    /// Whom the tracker must not send us to; those to meet over `blob` first.
    pub(super) fn unreachable(&self, blob: Option<BlobSlot>) -> Vec<PeerId> {
        let unreachable = self.machine.unreachable(self.shared.clock.now(), blob);
        let named = unreachable.filter_map(|slot| Some(self.roster.peer(slot)?.id.clone()));
        named.take(MAX_UNREACHABLE).collect()
    }
}

/// Fifteenths of `chunks` held, rounded down.
fn fifteenths(held: u32, chunks: u32) -> u8 {
    let fifteenths = u64::from(held) * u64::from(PROGRESS_COMPLETE) / u64::from(chunks.max(1));
    u8::try_from(fifteenths).unwrap_or(PROGRESS_COMPLETE)
}

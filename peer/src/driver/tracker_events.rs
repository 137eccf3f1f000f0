//! Events of trackers, translated into the machine's inputs; and the snapshot that trackers are sent.

use core::time::Duration;
use std::collections::HashSet;

use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::swarm::{BlobSlot, Input, PeerFacts};
use flotilla_common::time::Time;
use flotilla_common::wire::tracker::{
    BlobState, Change, Handout, HeldLease, LeaseAnswer, LeaseAsk, PROGRESS_COMPLETE, PeerInfo,
};

use super::Driver;
use super::tables::{BlobEntry, PeerEntry, facts};
use crate::tracker_client::{Snapshot, TrackerEvent};

/// The maximum number of manifests announced. The newest are chosen.
const MAX_MANIFESTS: usize = 256;
/// The maximum number of unreachable peers reported to a tracker.
const MAX_UNREACHABLE: usize = 32;

impl Driver {
    pub(super) fn on_tracker(&mut self, now: Time, event: TrackerEvent) {
        match event {
            TrackerEvent::Snapshot(sender) => {
                // An announce that was cancelled needs no snapshot.
                let _ = sender.send(self.snapshot());
            }
            TrackerEvent::Handouts(handouts) => {
                for handout in handouts {
                    self.on_handout(now, &handout);
                }
            }
            TrackerEvent::Lease {
                digest,
                ticket,
                answer,
            } => self.on_lease_answer(now, &digest, ticket, answer),
            TrackerEvent::LeaseLost { digest, chunk } => {
                if let Some(blob) = self.tables.blob_slot(&digest) {
                    self.machine.handle(now, Input::LeaseLost { blob, chunk });
                }
            }
            TrackerEvent::Reachable => self.machine.handle(now, Input::TrackerReachable),
            TrackerEvent::Unreachable => self.machine.handle(now, Input::TrackerUnreachable),
        }
    }

    fn on_handout(&mut self, now: Time, handout: &Handout) {
        let Some(blob) = self.tables.blob_slot(&handout.digest) else {
            return self.image_handout(now, handout);
        };
        let own = self.context.network.me.id.clone();
        let others = handout.peers.iter().filter(|info| info.id != own);
        let peers: Vec<PeerFacts> = others.map(|info| self.meet(info)).collect();
        self.machine.handle(now, Input::Handout { blob, peers });
    }

    /// Stores the address and location of a peer.
    pub(super) fn meet(&mut self, info: &PeerInfo) -> PeerFacts {
        let slot = self.intern(&info.id);
        if let Some(peer) = self.tables.peer_mut(slot) {
            peer.info = Some(info.clone());
        }
        facts(
            slot,
            &info.id,
            (&info.region, &info.zone),
            &self.context.network.me,
        )
    }

    fn on_lease_answer(&mut self, now: Time, digest: &Digest, ticket: u64, answer: LeaseAnswer) {
        let current = self.tables.blob_slot(digest).filter(|slot| {
            self.tables
                .blob(*slot)
                .is_some_and(|blob| blob.lease_ticket == ticket)
        });
        let Some(blob) = current else {
            // The request was withdrawn meanwhile: the lease is free for another peer.
            if let LeaseAnswer::Granted { chunk, .. } = answer {
                self.context
                    .network
                    .trackers
                    .tell_lease(*digest, LeaseAsk::Failed { chunk });
            }
            return;
        };
        if let Some(entry) = self.tables.blob_mut(blob) {
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
        let change = |(slot, blob): (BlobSlot, &BlobEntry)| {
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
            let blob = self.tables.blob(slot)?;
            let chunks = blob.stored.geometry().chunks();
            Some(HeldLease {
                digest: *blob.stored.digest(),
                chunk,
                chunks,
            })
        };
        let named = |peers: &mut dyn Iterator<Item = &PeerEntry>| {
            peers.map(|peer| peer.id.clone()).collect::<Vec<_>>()
        };
        // Manifests are announced too, without chunks: while no origin is available, peers ask the
        // holders for them.
        let sought = self
            .seeks
            .manifests()
            .map(|digest| (*digest, BlobState::Wanted { progress: 0 }));
        let held = self
            .context
            .stores
            .manifests
            .newest(MAX_MANIFESTS)
            .into_iter();
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
                .tables
                .blobs()
                .filter_map(change)
                .chain(manifests)
                .collect(),
            leases: self.machine.leases().filter_map(lease).collect(),
            connected: named(&mut self.tables.peers().filter(|peer| peer.link.is_some())),
            unreachable: self.unreachable(None),
        }
    }

    /// The peers that a tracker should not name to this peer, those of the handout for `blob` first.
    pub(super) fn unreachable(&self, blob: Option<BlobSlot>) -> Vec<PeerId> {
        let unreachable = self.machine.unreachable(self.context.clock.now(), blob);
        let named = unreachable.filter_map(|slot| Some(self.tables.peer(slot)?.id.clone()));
        named.take(MAX_UNREACHABLE).collect()
    }
}

/// Fifteenths of `chunks` held, rounded down.
fn fifteenths(held: u32, chunks: u32) -> u8 {
    let fifteenths = u64::from(held) * u64::from(PROGRESS_COMPLETE) / u64::from(chunks.max(1));
    u8::try_from(fifteenths).unwrap_or(PROGRESS_COMPLETE)
}

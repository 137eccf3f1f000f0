//! Events of trackers, translated into the machine's inputs; and the snapshot that trackers are
//! sent.

use core::time::Duration;
use std::collections::HashSet;

use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::swarm::{BlobSlot, Input, PeerFacts};
use flotilla_common::time::Time;
use flotilla_common::tracker::{LeaseUpdate, NamedPeers, PeerSnapshot};
use flotilla_common::wire::tracker::{
    BlobState, Change, HeldLease, NeighboursWanted, PROGRESS_COMPLETE, PeerInfo,
};

use super::Driver;
use super::tables::{BlobEntry, PeerEntry, facts};
use crate::tracker_client::TrackerEvent;

/// The maximum number of manifests announced. The newest are chosen.
const MAX_MANIFESTS: usize = 256;
/// Holders of a manifest that a peer looks for.
const SOUGHT_HOLDERS: u8 = 16;

impl Driver {
    pub(super) fn on_tracker(&mut self, now: Time, event: TrackerEvent) {
        match event {
            TrackerEvent::Snapshot(sender) => {
                // An announce that was cancelled needs no snapshot.
                let _ = sender.send(self.snapshot());
            }
            TrackerEvent::Handouts(handouts) => {
                for mut named in handouts {
                    // This peer itself is in the handouts of what it holds.
                    let own = &self.context.network.me.id;
                    let filter = &self.context.dial_filter;
                    let is_kept = |peer: &PeerInfo| peer.id != *own && filter.admits(peer);
                    named.peers.retain(is_kept);
                    self.on_handout(now, &named);
                }
            }
            TrackerEvent::LeaseGranted {
                digest,
                chunk,
                term,
                from,
            } => self.on_lease_granted(now, digest, chunk, (term, from)),
            TrackerEvent::LeaseMoved { digest, chunk, to } => {
                if let Some(blob) = self.tables.blob_slot(&digest) {
                    let moved = Input::LeaseMoved { blob, chunk, to };
                    self.machine.handle(now, moved);
                }
            }
            TrackerEvent::LeaseWait {
                digest,
                retry_after,
            } => {
                if let Some(blob) = self.tables.blob_slot(&digest) {
                    self.machine
                        .handle(now, Input::LeaseWait { blob, retry_after });
                }
            }
            TrackerEvent::LeaseLost { digest, chunk } => {
                if let Some(blob) = self.tables.blob_slot(&digest) {
                    self.machine.handle(now, Input::LeaseLost { blob, chunk });
                }
            }
            TrackerEvent::Reachable => self.machine.handle(now, Input::TrackerReachable),
            TrackerEvent::Unreachable => self.machine.handle(now, Input::TrackerUnreachable),
        }
    }

    /// Handles a handout without this peer and without peers that are not dialled.
    fn on_handout(&mut self, now: Time, named: &NamedPeers) {
        let Some(blob) = self.tables.blob_slot(&named.digest) else {
            return self.image_handout(now, named);
        };
        let peers = named.peers.iter();
        let peers: Vec<PeerFacts> = peers.map(|info| self.store_peer_info(info)).collect();
        self.machine.handle(now, Input::Handout { blob, peers });
    }

    /// Stores the address and location of a peer.
    pub(super) fn store_peer_info(&mut self, info: &PeerInfo) -> PeerFacts {
        let slot = self.intern(&info.id);
        if let Some(peer) = self.tables.peer_mut(slot) {
            peer.info = Some(info.clone());
        }
        facts(slot, (&info.region, &info.zone), &self.context.network.me)
    }

    fn on_lease_granted(
        &mut self,
        now: Time,
        digest: Digest,
        chunk: u32,
        (term, from): (Duration, Option<OriginRegion>),
    ) {
        match self.tables.blob_slot(&digest) {
            Some(blob) => {
                let origins = &self.context.upstream.origins;
                let granted = Input::LeaseGranted {
                    blob,
                    chunk,
                    term,
                    from,
                    is_out: from.is_some_and(|from| origins.is_out(from)),
                };
                self.machine.handle(now, granted);
            }
            // The blob was removed meanwhile: the lease is free for another peer.
            None => self
                .context
                .network
                .trackers
                .update_lease(digest, LeaseUpdate::Failed { chunk }),
        }
    }

    fn snapshot(&self) -> PeerSnapshot {
        let wanted: HashSet<BlobSlot> = self.machine.wanted().collect();
        let change = |(slot, blob): (BlobSlot, &BlobEntry)| {
            let held = self.machine.held(slot)?;
            let state = BlobState::of(held, wanted.contains(&slot))?;
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
            .images
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
        let now = self.context.clock.now();
        let neighbours = |(slot, blob): (BlobSlot, &BlobEntry)| NeighboursWanted {
            digest: *blob.stored.digest(),
            count: self.machine.neighbours_wanted(now, slot),
        };
        let holders = self.images.seeks.manifests();
        let holders = holders.map(|digest| NeighboursWanted {
            digest: *digest,
            count: SOUGHT_HOLDERS,
        });
        let manifests = sought
            .chain(held)
            .map(|(digest, state)| Change { digest, state });
        PeerSnapshot {
            blobs: self
                .tables
                .blobs()
                .filter_map(change)
                .chain(manifests)
                .collect(),
            leases: self.machine.leases().filter_map(lease).collect(),
            neighbours: self.tables.blobs().map(neighbours).chain(holders).collect(),
            connected: named(&mut self.tables.peers().filter(|peer| peer.link.is_some())),
            unreachable: self.unreachable(None),
        }
    }

    /// The peers that a tracker should not name to this peer, those of the handout for `blob`
    /// first.
    pub(super) fn unreachable(&self, blob: Option<BlobSlot>) -> Vec<PeerId> {
        let unreachable = self.machine.unreachable(self.context.clock.now(), blob);
        unreachable
            .filter_map(|slot| Some(self.tables.peer(slot)?.id.clone()))
            .collect()
    }
}

//! Byte and time accounting of what the driver observes: bytes by source and neighbour, waiting
//! times, pulls. No decision depends on it.

use flotilla_common::digest::Digest;
use flotilla_common::swarm::{BlobSlot, ChunkSource, Nearness, PeerSlot, TransferId, UploadId};
use flotilla_common::time::Time;

use super::tables::nearness;
use super::{Driver, Fetch};
use crate::pulls::{ByteSource, PullStart};

impl Driver {
    /// Starts the accounting of an image pull.
    pub(super) fn open_pull(&mut self, now: Time, start: PullStart) {
        let store = &self.context.stores.blobs;
        let held = |digest: &Digest| {
            store
                .get(digest)
                .map_or((0, false), |blob| (blob.held_bytes(), blob.is_complete()))
        };
        let waits = self.machine.total_stall_times(now);
        self.context.telemetry.pulls.open(start, waits, held);
    }

    /// Counts the bytes of a download; `received` is its total so far.
    pub(super) fn count_download(&mut self, now: Time, transfer: TransferId, received: u64) {
        let Some(fetch) = self.fetches.get_mut(&transfer) else {
            return;
        };
        let more = received.saturating_sub(fetch.received);
        fetch.received = fetch.received.max(received);
        self.down.add(now, more);
        if let Some(blob) = self.tables.blob_mut(fetch.blob) {
            blob.down.add(now, more);
        }
        if let ChunkSource::Peer(peer) = fetch.source
            && let Some(peer) = self.tables.peer_mut(peer)
        {
            peer.down.add(now, more);
        }
    }

    /// Counts the bytes of an upload; `sent` is its total so far.
    pub(super) fn count_upload(&mut self, now: Time, upload: UploadId, sent: u64) {
        let Some(upload) = self.uploads.get_mut(&upload) else {
            return;
        };
        let more = sent.saturating_sub(upload.sent);
        upload.sent = upload.sent.max(sent);
        self.up.add(now, more);
        let slot = self.tables.peer_slot(upload.link.peer());
        if let Some(peer) = slot.and_then(|slot| self.tables.peer_mut(slot)) {
            peer.up.add(now, more);
        }
    }

    /// Counts a complete chunk by its source. This must happen before the machine handles
    /// `Received`, which ends the chunk's lease.
    pub(super) fn count_chunk(&self, now: Time, fetch: &Fetch) {
        let counters = &self.context.telemetry.counters;
        let (source, total, share) = match fetch.source {
            ChunkSource::Peer(peer) if self.is_in_own_zone(peer) => (
                ByteSource::SameZone,
                &counters.from_peers,
                &counters.from_same_zone,
            ),
            ChunkSource::Peer(_) => (
                ByteSource::OtherZones,
                &counters.from_peers,
                &counters.from_other_zones,
            ),
            ChunkSource::Origin if self.is_leased(fetch) => (
                ByteSource::OriginLeased,
                &counters.from_origin,
                &counters.origin_leased,
            ),
            ChunkSource::Origin => (
                ByteSource::OriginUnleased,
                &counters.from_origin,
                &counters.origin_unleased,
            ),
        };
        total.add(fetch.bytes);
        share.add(fetch.bytes);
        if let Some(blob) = self.tables.blob(fetch.blob) {
            let pulls = &self.context.telemetry.pulls;
            pulls.received(now, blob.stored.digest(), source, fetch.bytes);
        }
    }

    fn is_in_own_zone(&self, peer: PeerSlot) -> bool {
        self.tables.link(peer).is_some_and(|link| {
            let about = link.about();
            let own = &self.context.network.me;
            nearness((&about.region, &about.zone), own) == Nearness::SameZone
        })
    }

    fn is_leased(&self, fetch: &Fetch) -> bool {
        self.machine
            .leases()
            .any(|lease| lease == (fetch.blob, fetch.chunk))
    }

    /// Counts the time that a blob has waited since the last call.
    pub(super) fn count_waits(&mut self, now: Time, slot: BlobSlot) {
        let waited = self.machine.stall_times(now, slot);
        let Some(blob) = self.tables.blob_mut(slot) else {
            return;
        };
        self.blob_waits += waited - blob.waited;
        blob.waited = waited;
        let pulls = &self.context.telemetry.pulls;
        pulls.waited(blob.stored.digest(), waited);
    }

    /// Updates the figures that are read from outside.
    pub(super) fn update_telemetry(&mut self, now: Time) {
        for slot in self.machine.wanted().collect::<Vec<_>>() {
            self.count_waits(now, slot);
        }
        let telemetry = &self.context.telemetry;
        telemetry
            .waits
            .set(self.machine.total_stall_times(now), self.blob_waits);
        let leases = self.machine.leases().count() as u64;
        telemetry.counters.leases.set(leases);
        self.end_finished_pulls(now);
    }

    /// Ends the accounting of the pulls that are finished.
    pub(super) fn end_finished_pulls(&self, now: Time) {
        let is_being_fetched = |digest: &Digest| {
            let slot = self.tables.blob_slot(digest);
            slot.is_some_and(|slot| self.fetches.values().any(|fetch| fetch.blob == slot))
        };
        let waits = self.machine.total_stall_times(now);
        let pulls = &self.context.telemetry.pulls;
        pulls.end_finished(now, waits, is_being_fetched);
    }

    pub(super) fn count_neighbours(&self) {
        let is_connected = |peer: &&super::tables::PeerEntry| peer.link.is_some();
        let neighbours = self.tables.peers().filter(is_connected).count();
        let counters = &self.context.telemetry.counters;
        counters.neighbours.set(neighbours as u64);
    }
}

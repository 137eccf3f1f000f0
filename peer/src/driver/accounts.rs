//! Keeping accounts of what the driver sees: bytes by source and neighbour, waits, images. Nothing
//! is decided here.

use flotilla_common::digest::Digest;
use flotilla_common::swarm::{BlobSlot, Nearness, PeerSlot, Source, TransferId, UploadId};
use flotilla_common::time::Time;

use super::roster::nearness;
use super::{Driver, Fetch};
use crate::pulls::{From, Opened};

impl Driver {
    /// An image is pulled from now on.
    pub(super) fn open_pull(&mut self, now: Time, opened: Opened) {
        let store = &self.shared.store;
        let held = |digest: &Digest| {
            store
                .get(digest)
                .map_or((0, false), |blob| (blob.held_bytes(), blob.is_complete()))
        };
        self.shared
            .pulls
            .open(opened, self.machine.stood_still(now), held);
    }

    /// A download has brought so many bytes by now.
    pub(super) fn flowed(&mut self, now: Time, transfer: TransferId, received: u64) {
        let Some(fetch) = self.fetches.get_mut(&transfer) else {
            return;
        };
        let more = received.saturating_sub(fetch.received);
        fetch.received = fetch.received.max(received);
        self.down.add(now, more);
        if let Some(blob) = self.roster.blob_mut(fetch.blob) {
            blob.down.add(now, more);
        }
        if let Source::Peer(peer) = fetch.source
            && let Some(peer) = self.roster.peer_mut(peer)
        {
            peer.down.add(now, more);
        }
    }

    /// An upload has sent so many bytes by now.
    pub(super) fn flowed_out(&mut self, now: Time, upload: UploadId, sent: u64) {
        let Some(upload) = self.uploads.get_mut(&upload) else {
            return;
        };
        let more = sent.saturating_sub(upload.sent);
        upload.sent = upload.sent.max(sent);
        self.up.add(now, more);
        let slot = self.roster.peer_slot(upload.link.peer());
        if let Some(peer) = slot.and_then(|slot| self.roster.peer_mut(slot)) {
            peer.up.add(now, more);
        }
    }

    /// A chunk is here, before the machine hears of it: its lease still stands.
    pub(super) fn count_received(&self, now: Time, fetch: &Fetch) {
        let counters = &self.shared.counters;
        let (from, total, share) = match fetch.source {
            Source::Peer(peer) if self.is_in_own_zone(peer) => (
                From::SameZone,
                &counters.from_peers,
                &counters.from_same_zone,
            ),
            Source::Peer(_) => (
                From::OtherZones,
                &counters.from_peers,
                &counters.from_other_zones,
            ),
            Source::Origin(_) if self.is_leased(fetch) => (
                From::OriginLeased,
                &counters.from_origin,
                &counters.origin_leased,
            ),
            Source::Origin(_) => (
                From::OriginUnleased,
                &counters.from_origin,
                &counters.origin_unleased,
            ),
        };
        total.add(fetch.bytes);
        share.add(fetch.bytes);
        if let Some(blob) = self.roster.blob(fetch.blob) {
            self.shared
                .pulls
                .received(now, blob.stored.digest(), from, fetch.bytes);
        }
    }

    fn is_in_own_zone(&self, peer: PeerSlot) -> bool {
        self.roster.link(peer).is_some_and(|link| {
            let about = link.about();
            nearness((&about.region, &about.zone), &self.shared.me) == Nearness::SameZone
        })
    }

    fn is_leased(&self, fetch: &Fetch) -> bool {
        self.machine
            .leases()
            .any(|lease| lease == (fetch.blob, fetch.chunk))
    }

    /// Takes note of what a blob has waited since it was counted last.
    pub(super) fn count_waits(&mut self, now: Time, slot: BlobSlot) {
        let waited = self.machine.waited(now, slot);
        let Some(blob) = self.roster.blob_mut(slot) else {
            return;
        };
        self.blob_waits += waited - blob.waited;
        blob.waited = waited;
        self.shared.pulls.waited(blob.stored.digest(), waited);
    }

    /// Brings up to date what others read.
    pub(super) fn renew_figures(&mut self, now: Time) {
        for slot in self.machine.wanted().collect::<Vec<_>>() {
            self.count_waits(now, slot);
        }
        let still = self.machine.stood_still(now);
        self.shared.waited.write(still, self.blob_waits);
        self.shared
            .counters
            .leases
            .set(self.machine.leases().count() as u64);
        self.settle_pulls(now);
    }

    /// Ends the pulls that are over.
    pub(super) fn settle_pulls(&self, now: Time) {
        let is_on_its_way = |digest: &Digest| {
            let slot = self.roster.blob_slot(digest);
            slot.is_some_and(|slot| self.fetches.values().any(|fetch| fetch.blob == slot))
        };
        self.shared
            .pulls
            .settle(now, self.machine.stood_still(now), is_on_its_way);
    }
}

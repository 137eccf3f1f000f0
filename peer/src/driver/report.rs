//! What people are told: the driver's tables and the machine's opinion in the words of
//! [`crate::status`].

use std::collections::HashMap;

use flotilla_common::digest::Digest;
use flotilla_common::swarm::{BlobSlot, PeerSlot, Source};
use flotilla_common::time::Time;
use flotilla_common::units::BitRate;

use super::roster::{Blob, Peer, nearness};
use super::{Driver, Fetch};
use crate::flow::Flow;
use crate::status::{
    BlobStatus, Direction, Exchange, LeaseStatus, NeighbourStatus, Quarantined, Slots, Status,
    StoreStatus, TransferStatus, rounded, waits,
};

impl Driver {
    /// Everything, as it is now.
    pub(super) fn status(&self, now: Time) -> Status {
        let shared = &self.shared;
        let held: HashMap<Digest, u64> = self
            .roster
            .blobs()
            .map(|(_, blob)| (*blob.stored.digest(), blob.stored.held_bytes()))
            .collect();
        let wanted = self.machine.wanted();
        let leases = self.machine.leases();
        let lease = |(blob, chunk)| {
            Some(LeaseStatus {
                blob: *self.roster.blob(blob)?.stored.digest(),
                chunk,
            })
        };
        Status {
            id: shared.me.id.clone(),
            region: shared.me.region.clone(),
            zone: shared.me.zone.clone(),
            address: shared.me.addr,
            slots: Slots {
                each_way: self.machine.slots(),
                downloads: self.fetches.len() as u32,
                uploads: self
                    .uploads
                    .values()
                    .filter(|upload| upload.task.is_some())
                    .count() as u32,
            },
            down: direction(&self.down, now, shared.pulls.down()),
            up: direction(&self.up, now, shared.up_cap),
            pulls: shared
                .pulls
                .open_now(now, |digest| held.get(digest).copied().unwrap_or_default()),
            finished: shared.pulls.finished(),
            wanted: wanted
                .filter_map(|slot| Some(self.blob(now, slot, self.roster.blob(slot)?)))
                .collect(),
            connected: self
                .roster
                .slots()
                .filter_map(|(slot, peer)| self.neighbour(now, slot, peer))
                .collect(),
            quarantined: self
                .roster
                .peers()
                .filter_map(|peer| quarantined(now, peer))
                .collect(),
            trackers: shared.trackers.status(),
            origins: shared.origins.status(),
            leases: leases.filter_map(lease).collect(),
            store: self.store(),
            stood_still: waits(&self.machine.stood_still(now)),
            counters: shared.stats(),
        }
    }

    fn store(&self) -> StoreStatus {
        let store = &self.shared.store;
        let blobs = store.blobs();
        StoreStatus {
            dir: store.dir().to_owned(),
            bytes: store.bytes(),
            quota: store.quota().0,
            blobs: blobs.len() as u32,
            complete: blobs.iter().filter(|blob| blob.is_complete()).count() as u32,
        }
    }

    fn blob(&self, now: Time, slot: BlobSlot, blob: &Blob) -> BlobStatus {
        let stored = &blob.stored;
        let transfers = self.fetches.values().filter(|fetch| fetch.blob == slot);
        let mut transfers: Vec<_> = transfers.map(|fetch| self.transfer(fetch)).collect();
        transfers.sort_unstable_by_key(|transfer| transfer.chunk);
        BlobStatus {
            digest: *stored.digest(),
            bytes: stored.geometry().size(),
            held: stored.held_bytes(),
            bytes_per_second: blob.down.rate(now).round(),
            neighbours: self.machine.neighbours(slot).count() as u32,
            transfers,
            waits_for: self.machine.waits_for(slot),
            waited: waits(&self.machine.waited(now, slot)),
        }
    }

    fn transfer(&self, fetch: &Fetch) -> TransferStatus {
        let from = match fetch.source {
            Source::Peer(peer) => self
                .roster
                .peer(peer)
                .map(|peer| peer.id.to_string())
                .unwrap_or_default(),
            Source::Origin(origin) => self.shared.origins.url(origin).to_owned(),
        };
        TransferStatus {
            from,
            chunk: fetch.chunk,
            bytes: fetch.bytes,
            received: fetch.received,
        }
    }

    fn neighbour(&self, now: Time, slot: PeerSlot, peer: &Peer) -> Option<NeighbourStatus> {
        let link = peer.link.as_ref()?;
        let about = link.about();
        let down = self
            .fetches
            .values()
            .filter(|fetch| fetch.source == Source::Peer(slot))
            .count();
        let is_to =
            |upload: &&super::Upload| upload.task.is_some() && upload.link.peer() == &peer.id;
        let up = self.uploads.values().filter(is_to).count();
        let exchange = |flow: &Flow, transfers: usize| Exchange {
            bytes_per_second: flow.rate(now).round(),
            bytes: flow.total(),
            transfers: transfers as u32,
        };
        Some(NeighbourStatus {
            id: peer.id.clone(),
            region: about.region.clone(),
            zone: about.zone.clone(),
            nearness: nearness((&about.region, &about.zone), &self.shared.me).into(),
            rtt_seconds: (link.round_trip().as_secs_f64() * 1e6).round() / 1e6,
            down: exchange(&peer.down, down),
            up: exchange(&peer.up, up),
        })
    }
}

fn quarantined(now: Time, peer: &Peer) -> Option<Quarantined> {
    let left = peer.quarantined_until.saturating_since(now);
    let seconds_left = rounded(left.as_secs_f64());
    (!left.is_zero()).then(|| Quarantined {
        id: peer.id.clone(),
        seconds_left,
    })
}

fn direction(flow: &Flow, now: Time, cap: Option<BitRate>) -> Direction {
    Direction {
        bytes_per_second: flow.rate(now).round(),
        bytes: flow.total(),
        cap_bits_per_second: cap,
    }
}

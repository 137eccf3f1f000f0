//! The peer's status: the driver's tables and the machine's state as [`crate::status`] has them.

use std::collections::HashMap;

use flotilla_common::digest::Digest;
use flotilla_common::swarm::{BlobSlot, ChunkSource, PeerSlot};
use flotilla_common::time::Time;
use flotilla_common::units::BitRate;

use super::tables::{BlobEntry, PeerEntry, nearness};
use super::{ActiveUpload, Driver, Fetch};
use crate::rate_meter::RateMeter;
use crate::status::{
    BlobStatus, Direction, Exchange, LeaseStatus, NeighbourStatus, Quarantined, Slots, Status,
    StoreStatus, TransferStatus, rounded, waits,
};

impl Driver {
    /// The status of the whole peer.
    pub(super) fn status(&self, now: Time) -> Status {
        let context = &self.context;
        let (network, telemetry) = (&context.network, &context.telemetry);
        let pulls = &telemetry.pulls;
        let held: HashMap<Digest, u64> = self
            .tables
            .blobs()
            .map(|(_, blob)| (*blob.stored.digest(), blob.stored.held_bytes()))
            .collect();
        Status {
            id: network.me.id.clone(),
            region: network.me.region.clone(),
            zone: network.me.zone.clone(),
            address: network.me.addr,
            slots: self.slots(),
            down: direction(&self.down, now, pulls.down()),
            up: direction(&self.up, now, network.upload_rate),
            pulls: pulls.open_now(now, |digest| held.get(digest).copied().unwrap_or_default()),
            finished: pulls.finished(),
            wanted: self
                .machine
                .wanted()
                .filter_map(|slot| Some(self.blob(now, slot, self.tables.blob(slot)?)))
                .collect(),
            connected: self
                .tables
                .peers_with_slots()
                .filter_map(|(slot, peer)| self.neighbour(now, slot, peer))
                .collect(),
            quarantined: self
                .tables
                .peers()
                .filter_map(|peer| quarantined(now, peer))
                .collect(),
            trackers: network.trackers.status(),
            origins: context.upstream.origins.status(),
            leases: self.leases(),
            store: self.store(),
            stalled: waits(&self.machine.total_stall_times(now)),
            counters: telemetry.stats(&context.stores.blobs, &network.identity),
        }
    }

    fn slots(&self) -> Slots {
        let is_running = |upload: &&ActiveUpload| upload.task.is_some();
        Slots {
            each_way: self.machine.slots(),
            downloads: self.fetches.len() as u32,
            uploads: self.uploads.values().filter(is_running).count() as u32,
        }
    }

    fn leases(&self) -> Vec<LeaseStatus> {
        let lease = |(blob, chunk)| {
            let blob = *self.tables.blob(blob)?.stored.digest();
            Some(LeaseStatus { blob, chunk })
        };
        self.machine.leases().filter_map(lease).collect()
    }

    fn store(&self) -> StoreStatus {
        let store = &self.context.stores.blobs;
        let blobs = store.blobs();
        StoreStatus {
            dir: store.dir().to_owned(),
            bytes: store.bytes(),
            quota: store.quota().0,
            blobs: blobs.len() as u32,
            complete: blobs.iter().filter(|blob| blob.is_complete()).count() as u32,
        }
    }

    fn blob(&self, now: Time, slot: BlobSlot, blob: &BlobEntry) -> BlobStatus {
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
            waits_for: self.machine.stall_reason(slot),
            waited: waits(&self.machine.stall_times(now, slot)),
        }
    }

    fn transfer(&self, fetch: &Fetch) -> TransferStatus {
        let from = match fetch.source {
            ChunkSource::Peer(peer) => self
                .tables
                .peer(peer)
                .map(|peer| peer.id.to_string())
                .unwrap_or_default(),
            ChunkSource::Origin => match fetch.origin {
                Some(origin) => self.context.upstream.origins.url(origin).to_owned(),
                None => "an origin".to_owned(),
            },
        };
        TransferStatus {
            from,
            chunk: fetch.chunk,
            bytes: fetch.bytes,
            received: fetch.received,
        }
    }

    fn neighbour(&self, now: Time, slot: PeerSlot, peer: &PeerEntry) -> Option<NeighbourStatus> {
        let link = peer.link.as_ref()?;
        let about = link.about();
        let is_from = |fetch: &&Fetch| fetch.source == ChunkSource::Peer(slot);
        let downloads = self.fetches.values().filter(is_from).count();
        let is_to =
            |upload: &&ActiveUpload| upload.task.is_some() && upload.link.peer() == &peer.id;
        let uploads = self.uploads.values().filter(is_to).count();
        let exchange = |meter: &RateMeter, transfers: usize| Exchange {
            bytes_per_second: meter.rate(now).round(),
            bytes: meter.total(),
            transfers: transfers as u32,
        };
        let own = &self.context.network.me;
        Some(NeighbourStatus {
            id: peer.id.clone(),
            region: about.region.clone(),
            zone: about.zone.clone(),
            nearness: nearness((&about.region, &about.zone), own).into(),
            rtt_seconds: (link.round_trip().as_secs_f64() * 1e6).round() / 1e6,
            down: exchange(&peer.down, downloads),
            up: exchange(&peer.up, uploads),
        })
    }
}

fn quarantined(now: Time, peer: &PeerEntry) -> Option<Quarantined> {
    let left = peer.quarantined_until.saturating_since(now);
    let seconds_left = rounded(left.as_secs_f64());
    (!left.is_zero()).then(|| Quarantined {
        id: peer.id.clone(),
        seconds_left,
    })
}

fn direction(meter: &RateMeter, now: Time, cap: Option<BitRate>) -> Direction {
    Direction {
        bytes_per_second: meter.rate(now).round(),
        bytes: meter.total(),
        cap_bits_per_second: cap,
    }
}

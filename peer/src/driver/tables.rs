//! The driver's tables of blobs and peers. The machine knows them as small numbers, the slots; the
//! rest of the peer knows them by digest and by id.

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::interner::{Interner, Slot};
use flotilla_common::name::{PeerId, RegionName, RepositoryName, ZoneName};
use flotilla_common::swarm::{BlobSlot, Nearness, PeerFacts, PeerSlot, StallTimes};
use flotilla_common::time::Time;
use flotilla_common::wire::tracker::PeerInfo;

use crate::rate_meter::RateMeter;
use crate::store::{Pin, StoredBlob};
use crate::transport::PeerLink;

/// A blob that the machine knows.
#[derive(Debug)]
pub(super) struct BlobEntry {
    pub(super) stored: Arc<StoredBlob>,
    /// The repository of the last request for the blob, in which origins are asked for it.
    pub(super) repository: Option<RepositoryName>,
    pub(super) grant: Option<Grant>,
    /// Whether a pull needs the blob now or soon.
    pub(super) is_wanted: bool,
    /// Held while the blob is wanted, until it is complete and was read.
    pub(super) pin: Option<Pin>,
    /// Whether it was read since it was wanted first.
    pub(super) was_read: bool,
    /// The lowest offset of the blob's readers; `None` without readers.
    pub(super) cursor: Option<u64>,
    /// When the blob was last wanted or read.
    pub(super) used_at: Time,
    /// Whether the whole blob is being hashed.
    pub(super) is_being_checked: bool,
    /// The rate at which its bytes are received.
    pub(super) down: RateMeter,
    /// The waiting times of the blob that are counted already.
    pub(super) waited: StallTimes,
}

/// A peer that the machine knows.
#[derive(Debug)]
pub(super) struct PeerEntry {
    pub(super) id: PeerId,
    /// Its address and location, if a tracker named it.
    pub(super) info: Option<PeerInfo>,
    pub(super) link: Option<PeerLink>,
    /// A surplus connection, which is closed soon.
    pub(super) retired: Option<PeerLink>,
    pub(super) quarantined_until: Time,
    /// The rates of bytes received from it and sent to it.
    pub(super) down: RateMeter,
    pub(super) up: RateMeter,
}

impl PeerEntry {
    /// Whether the entry may be reused. The entry of a quarantined peer must stay.
    fn is_unused(&self) -> bool {
        self.link.is_none() && self.retired.is_none() && self.quarantined_until == Time::ZERO
    }
}

/// Blobs and peers by slot.
#[derive(Debug, Default)]
pub(super) struct Tables {
    blob_slots: Interner<Digest, BlobSlot>,
    blobs: Vec<Option<BlobEntry>>,
    peer_slots: Interner<PeerId, PeerSlot>,
    peers: Vec<Option<PeerEntry>>,
}

/// The number of peers up to which each peer gets a new slot instead of an unused one.
const PEERS_BEFORE_REUSE: usize = 256;

impl Tables {
    pub(super) fn blob_slot(&self, digest: &Digest) -> Option<BlobSlot> {
        self.blob_slots.slot(digest)
    }

    pub(super) fn blob(&self, slot: BlobSlot) -> Option<&BlobEntry> {
        self.blobs.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn blob_mut(&mut self, slot: BlobSlot) -> Option<&mut BlobEntry> {
        self.blobs.get_mut(slot.0 as usize)?.as_mut()
    }

    /// All blobs, in the order of their slots.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (BlobSlot, &BlobEntry)> {
        (0_u32..)
            .map(BlobSlot)
            .zip(&self.blobs)
            .filter_map(|(slot, blob)| Some((slot, blob.as_ref()?)))
    }

    /// Gives a new blob a slot.
    pub(super) fn add_blob(&mut self, stored: Arc<StoredBlob>, now: Time) -> BlobSlot {
        let digest = *stored.digest();
        let blob = BlobEntry {
            stored,
            repository: None,
            grant: None,
            is_wanted: false,
            pin: None,
            was_read: false,
            cursor: None,
            used_at: now,
            is_being_checked: false,
            down: RateMeter::default(),
            waited: StallTimes::default(),
        };
        let slot = self.blob_slots.intern(&digest);
        insert(&mut self.blobs, slot, blob);
        slot
    }

    /// Removes a blob and frees its slot.
    pub(super) fn remove_blob(&mut self, slot: BlobSlot) -> Option<BlobEntry> {
        self.blob_slots.release(slot)?;
        self.blobs.get_mut(slot.0 as usize)?.take()
    }

    pub(super) fn peer(&self, slot: PeerSlot) -> Option<&PeerEntry> {
        self.peers.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn peer_mut(&mut self, slot: PeerSlot) -> Option<&mut PeerEntry> {
        self.peers.get_mut(slot.0 as usize)?.as_mut()
    }

    pub(super) fn peer_slot(&self, id: &PeerId) -> Option<PeerSlot> {
        self.peer_slots.slot(id)
    }

    /// All peers with their slots.
    pub(super) fn peers_with_slots(&self) -> impl Iterator<Item = (PeerSlot, &PeerEntry)> {
        (0_u32..)
            .map(PeerSlot)
            .zip(&self.peers)
            .filter_map(|(slot, peer)| Some((slot, peer.as_ref()?)))
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &PeerEntry> {
        self.peers.iter().flatten()
    }

    /// The connection with a peer, if there is one.
    pub(super) fn link(&self, slot: PeerSlot) -> Option<&PeerLink> {
        self.peer(slot)?.link.as_ref()
    }

    /// The slot of a peer, which is added if it is new. `is_idle` returns whether the machine no
    /// longer refers to a slot.
    pub(super) fn intern_peer(
        &mut self,
        id: &PeerId,
        is_idle: impl Fn(PeerSlot) -> bool,
    ) -> PeerSlot {
        if let Some(slot) = self.peer_slot(id) {
            return slot;
        }
        if let Some(slot) = self.reusable_slot(is_idle) {
            self.peer_slots.release(slot);
        }
        let peer = PeerEntry {
            id: id.clone(),
            info: None,
            link: None,
            retired: None,
            quarantined_until: Time::ZERO,
            down: RateMeter::default(),
            up: RateMeter::default(),
        };
        let slot = self.peer_slots.intern(id);
        insert(&mut self.peers, slot, peer);
        slot
    }

    fn reusable_slot(&self, is_idle: impl Fn(PeerSlot) -> bool) -> Option<PeerSlot> {
        if self.peers.len() < PEERS_BEFORE_REUSE {
            return None;
        }
        self.peers_with_slots()
            .find(|(slot, peer)| peer.is_unused() && is_idle(*slot))
            .map(|(slot, _)| slot)
    }
}

/// Sets the entry of a slot.
fn insert<T>(entries: &mut Vec<Option<T>>, slot: impl Slot, entry: T) {
    let index = slot.index() as usize;
    if index >= entries.len() {
        entries.resize_with(index + 1, || None);
    }
    entries[index] = Some(entry);
}

/// The facts that the machine needs about a peer in this region and zone.
pub(super) fn facts(
    slot: PeerSlot,
    location: (&RegionName, &ZoneName),
    own: &PeerInfo,
) -> PeerFacts {
    PeerFacts {
        peer: slot,
        nearness: nearness(location, own),
    }
}

/// How far away a region and zone are from this peer.
pub(super) fn nearness((region, zone): (&RegionName, &ZoneName), own: &PeerInfo) -> Nearness {
    if *region != own.region {
        Nearness::Elsewhere
    } else if *zone != own.zone {
        Nearness::SameRegion
    } else {
        Nearness::SameZone
    }
}

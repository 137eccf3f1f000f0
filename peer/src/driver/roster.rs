//! Who is behind a slot: the machine knows blobs and peers as small numbers, everybody else by
//! digest and name.

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::name::{PeerId, RegionName, RepositoryName, ZoneName};
use flotilla_common::swarm::{BlobSlot, Nearness, PeerFacts, PeerSlot, WaitTimes};
use flotilla_common::time::Time;
use flotilla_common::wire::tracker::PeerInfo;

use crate::flow::Flow;
use crate::store::{Pin, StoredBlob};
use crate::transport::Link;

/// A blob that the machine knows.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) stored: Arc<StoredBlob>,
    /// Where the origin is asked for it: the repository of the last request.
    pub(super) repository: Option<RepositoryName>,
    pub(super) grant: Option<Grant>,
    /// Held while the blob is wanted.
    pub(super) pin: Option<Pin>,
    /// When a reader was last seen.
    pub(super) used_at: Time,
    /// Tells the answer to the last lease request from those to earlier ones; 0 while none is under
    /// way.
    pub(super) lease_ticket: u64,
    /// Whether the whole is being hashed.
    pub(super) is_being_checked: bool,
    /// What comes of it.
    pub(super) down: Flow,
    /// What it has waited, as far as it was counted.
    pub(super) waited: WaitTimes,
}

/// A peer that the machine knows.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    /// Where to dial it, if a tracker said so.
    pub(super) info: Option<PeerInfo>,
    pub(super) link: Option<Link>,
    pub(super) quarantined_until: Time,
    /// What comes from it, and what goes there.
    pub(super) down: Flow,
    pub(super) up: Flow,
}

impl Peer {
    /// A quarantine must stay with whom it is for.
    fn is_of_no_interest(&self) -> bool {
        self.link.is_none() && self.quarantined_until == Time::ZERO
    }
}

/// Both tables.
#[derive(Debug, Default)]
pub(super) struct Roster {
    blobs: Vec<Option<Blob>>,
    blob_slots: HashMap<Digest, BlobSlot>,
    peers: Vec<Option<Peer>>,
    peer_slots: HashMap<PeerId, PeerSlot>,
}

/// Peers that are remembered before slots of forgotten ones are used again.
const PEERS_BEFORE_REUSE: usize = 256;

impl Roster {
    pub(super) fn blob_slot(&self, digest: &Digest) -> Option<BlobSlot> {
        self.blob_slots.get(digest).copied()
    }

    pub(super) fn blob(&self, slot: BlobSlot) -> Option<&Blob> {
        self.blobs.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn blob_mut(&mut self, slot: BlobSlot) -> Option<&mut Blob> {
        self.blobs.get_mut(slot.0 as usize)?.as_mut()
    }

    /// Every blob with its slot, in order of slots.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (BlobSlot, &Blob)> {
        (0_u32..)
            .map(BlobSlot)
            .zip(&self.blobs)
            .filter_map(|(slot, blob)| Some((slot, blob.as_ref()?)))
    }

    /// Gives a new blob a slot.
    pub(super) fn add_blob(&mut self, stored: Arc<StoredBlob>, now: Time) -> BlobSlot {
        let digest = *stored.digest();
        let blob = Blob {
            stored,
            repository: None,
            grant: None,
            pin: None,
            used_at: now,
            lease_ticket: 0,
            is_being_checked: false,
            down: Flow::default(),
            waited: WaitTimes::default(),
        };
        let slot = BlobSlot(place(&mut self.blobs, blob));
        self.blob_slots.insert(digest, slot);
        slot
    }

    /// Takes a blob's slot back.
    pub(super) fn remove_blob(&mut self, slot: BlobSlot) -> Option<Blob> {
        let blob = self.blobs.get_mut(slot.0 as usize)?.take()?;
        self.blob_slots.remove(blob.stored.digest());
        Some(blob)
    }

    pub(super) fn peer(&self, slot: PeerSlot) -> Option<&Peer> {
        self.peers.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn peer_mut(&mut self, slot: PeerSlot) -> Option<&mut Peer> {
        self.peers.get_mut(slot.0 as usize)?.as_mut()
    }

    pub(super) fn peer_slot(&self, id: &PeerId) -> Option<PeerSlot> {
        self.peer_slots.get(id).copied()
    }

    /// Every peer with its slot.
    pub(super) fn slots(&self) -> impl Iterator<Item = (PeerSlot, &Peer)> {
        (0_u32..)
            .map(PeerSlot)
            .zip(&self.peers)
            .filter_map(|(slot, peer)| Some((slot, peer.as_ref()?)))
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().flatten()
    }

    /// The link to a peer, if it stands.
    pub(super) fn link(&self, slot: PeerSlot) -> Option<&Link> {
        self.peer(slot)?.link.as_ref()
    }

    /// The slot of a peer, a new one if it has none; `is_idle` says of which peers the machine has
    /// let go.
    pub(super) fn intern_peer(
        &mut self,
        id: &PeerId,
        is_idle: impl Fn(PeerSlot) -> bool,
    ) -> PeerSlot {
        if let Some(slot) = self.peer_slot(id) {
            return slot;
        }
        let peer = Peer {
            id: id.clone(),
            info: None,
            link: None,
            quarantined_until: Time::ZERO,
            down: Flow::default(),
            up: Flow::default(),
        };
        let may_reuse = self.peers.len() >= PEERS_BEFORE_REUSE;
        let forgotten = if may_reuse {
            let is_forgotten = |slot: &PeerSlot| {
                self.peer(*slot).is_some_and(Peer::is_of_no_interest) && is_idle(*slot)
            };
            (0..self.peers.len() as u32)
                .map(PeerSlot)
                .find(is_forgotten)
        } else {
            None
        };
        if let Some(slot) = forgotten
            && let Some(former) = self.peers[slot.0 as usize].take()
        {
            self.peer_slots.remove(&former.id);
        }
        let slot = PeerSlot(place(&mut self.peers, peer));
        self.peer_slots.insert(id.clone(), slot);
        slot
    }
}

/// Puts a value into the first free place, or behind the last.
fn place<T>(places: &mut Vec<Option<T>>, value: T) -> u32 {
    let index = places.iter().position(Option::is_none).unwrap_or_else(|| {
        places.push(None);
        places.len() - 1
    });
    places[index] = Some(value);
    index as u32
}

/// A stable number for a peer's id, the same on every machine.
pub(crate) fn peer_key(id: &PeerId) -> u64 {
    let digest = Digest::sha256(id.as_str().as_bytes());
    digest
        .hash()
        .iter()
        .take(8)
        .fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// What the machine is told about a peer, by where it is and where we are.
pub(super) fn facts(
    slot: PeerSlot,
    id: &PeerId,
    place: (&RegionName, &ZoneName),
    own: &PeerInfo,
) -> PeerFacts {
    PeerFacts {
        peer: slot,
        nearness: nearness(place, own),
        key: peer_key(id),
    }
}

/// How far away a place is.
pub(super) fn nearness((region, zone): (&RegionName, &ZoneName), own: &PeerInfo) -> Nearness {
    if *region != own.region {
        Nearness::Elsewhere
    } else if *zone != own.zone {
        Nearness::SameRegion
    } else {
        Nearness::SameZone
    }
}

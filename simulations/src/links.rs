//! Connections between peers, and the messages on them.

use flotilla_common::swarm::{Claim, HaveBatch, HeldChunks, PeerSlot};
use flotilla_common::time::Time;

use crate::images::BlobId;

/// One peer's view of another peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerLink {
    /// The other peer's number.
    pub(crate) peer: u32,
    /// The slot of this peer at the other one, while they are connected.
    pub(crate) remote: u32,
    pub(crate) is_up: bool,
    pub(crate) is_dialling: bool,
    /// Counts connections, so that messages on an old connection are not taken for messages on a
    /// new one.
    pub(crate) epoch: u32,
    /// When the last control message to the other peer arrives: the next one does not overtake it.
    pub(crate) control_until: Time,
}

impl PeerLink {
    /// When a control message arrives that takes until `at` by itself.
    pub(crate) fn control_arrival(&mut self, at: Time) -> Time {
        self.control_until = self.control_until.max(at);
        self.control_until
    }
}

/// The peers that one peer knows, by the slots that its machine uses.
#[derive(Debug, Default)]
pub(crate) struct LinkTable {
    by_slot: Vec<PeerLink>,
    /// Number and slot, in order of numbers.
    by_number: Vec<(u32, u32)>,
}

impl LinkTable {
    /// The slot of a peer, a new one if it has none.
    pub(crate) fn intern(&mut self, peer: u32) -> u32 {
        match self
            .by_number
            .binary_search_by_key(&peer, |(number, _)| *number)
        {
            Ok(at) => self.by_number[at].1,
            Err(at) => {
                let slot = self.by_slot.len() as u32;
                self.by_slot.push(PeerLink {
                    peer,
                    remote: 0,
                    is_up: false,
                    is_dialling: false,
                    epoch: 0,
                    control_until: Time::ZERO,
                });
                self.by_number.insert(at, (peer, slot));
                slot
            }
        }
    }

    pub(crate) fn at(&self, slot: u32) -> &PeerLink {
        &self.by_slot[slot as usize]
    }

    pub(crate) fn at_mut(&mut self, slot: u32) -> &mut PeerLink {
        &mut self.by_slot[slot as usize]
    }

    /// The numbers of connected peers.
    pub(crate) fn connected(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_slot
            .iter()
            .filter(|link| link.is_up)
            .map(|link| link.peer)
    }

    /// The slots of connected peers.
    pub(crate) fn up_slots(&self) -> Vec<u32> {
        (0_u32..)
            .zip(&self.by_slot)
            .filter(|(_, link)| link.is_up)
            .map(|(slot, _)| slot)
            .collect()
    }
}

/// What a peer tells its neighbours about a blob's chunks.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// They are held.
    Have(HaveBatch),
    /// They are being fetched from an origin without a lease.
    Claims(Vec<Claim>),
}

/// News about chunks on their way to all neighbours that they reach at the same time.
#[derive(Debug)]
pub(crate) struct Broadcast {
    pub(crate) blob: BlobId,
    pub(crate) told: Told,
    pub(crate) to: Vec<Receiver>,
    /// Number of connections that had ended anywhere when it was sent. If it is the same on
    /// arrival, all receivers are still connected.
    pub(crate) closed_connections: u64,
}

/// The receiver's number, its slot for the sender, and the connection's epoch.
pub(crate) type Receiver = (u32, u32, u32);

/// Memory for sending the next broadcast, empty in between.
#[derive(Debug, Default)]
pub(crate) struct BroadcastBuffers {
    pub(crate) recipients: Vec<PeerSlot>,
    /// The receivers by time of arrival.
    pub(crate) by_arrival: Vec<(Time, Vec<Receiver>)>,
    /// Lists of receivers that have arrived, cleared.
    pub(crate) spare: Vec<Vec<Receiver>>,
}

/// The chunks that a peer holds, on their way to one neighbour.
#[derive(Debug)]
pub(crate) struct ChunkMapMessage {
    pub(crate) to: u32,
    pub(crate) slot: u32,
    pub(crate) epoch: u32,
    pub(crate) blob: BlobId,
    pub(crate) have: HeldChunks,
}

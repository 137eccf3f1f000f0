//! The queue of parked lease requests, at most one per peer.
//!
//! Starving peers come first: they have just sent a request, so they are alive. The others are
//! served in rounds, each peer once per round, in random order. In the order of arrival, the first
//! peers of a burst would be served first; they know each other, and chunks that all start in one
//! corner of the swarm are slow to leave it.

use std::collections::BTreeMap;
use std::ops::Bound;

use rand::RngExt as _;
use rand_pcg::Pcg64Mcg;

use crate::chunk_map::ChunkMap;
use crate::time::Time;
use crate::tracker::messages::RequestId;
use crate::tracker::slots::PeerSlot;
use crate::tracker::timers::Ticket;

/// A request that waits.
#[derive(Debug)]
pub(super) struct ParkedRequest {
    pub(super) request: RequestId,
    pub(super) peer: PeerSlot,
    pub(super) number: u64,
    pub(super) missing: ChunkMap,
    pub(super) starving: bool,
    pub(super) unreachable: Vec<PeerSlot>,
    /// The number of regions whose origins the peer may ask.
    pub(super) origins: u8,
    pub(super) deadline: Time,
}

/// All parked requests, by their place in the queue.
#[derive(Debug, Default)]
pub(super) struct ParkedRequests {
    parked: BTreeMap<Ticket, ParkedRequest>,
    tickets: BTreeMap<PeerSlot, Ticket>,
    /// Leases that each peer was granted: the round of its next request.
    rounds: BTreeMap<PeerSlot, u16>,
}

impl ParkedRequests {
    pub(super) fn len(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&ParkedRequest> {
        self.parked.get(&ticket)
    }

    /// The request of a peer.
    pub(super) fn of(&self, peer: PeerSlot) -> Option<&ParkedRequest> {
        self.tickets
            .get(&peer)
            .and_then(|ticket| self.parked.get(ticket))
    }

    /// The first request, or the first one behind `ticket`.
    pub(super) fn after(&self, ticket: Option<Ticket>) -> Option<(Ticket, &ParkedRequest)> {
        let start = ticket.map_or(Bound::Unbounded, Bound::Excluded);
        let mut requests = self.parked.range((start, Bound::Unbounded));
        requests.next().map(|(ticket, parked)| (*ticket, parked))
    }

    /// Parks a request. The peer must have no other one.
    pub(super) fn insert(
        &mut self,
        request: ParkedRequest,
        rng: &mut Pcg64Mcg,
        next_ticket: &mut Ticket,
    ) -> Ticket {
        let round = u64::from(self.rounds.get(&request.peer).copied().unwrap_or(0));
        let place = rng.random_range(0..1_u64 << 16);
        *next_ticket += 1;
        let ticket = u64::from(!request.starving) << 63
            | round.min(0x7fff) << 48
            | place << 32
            | (*next_ticket & 0xffff_ffff);
        self.tickets.insert(request.peer, ticket);
        self.parked.insert(ticket, request);
        ticket
    }

    /// Takes the peer's request out of the queue.
    pub(super) fn remove(&mut self, peer: PeerSlot) -> Option<ParkedRequest> {
        let ticket = self.tickets.remove(&peer)?;
        self.parked.remove(&ticket)
    }

    /// Takes the peer's request out of the queue because it is granted.
    pub(super) fn grant(&mut self, peer: PeerSlot) -> Option<ParkedRequest> {
        let round = self.rounds.entry(peer).or_default();
        *round = round.saturating_add(1);
        self.remove(peer)
    }

    /// The peer left: it starts in the first round if it comes back.
    pub(super) fn forget(&mut self, peer: PeerSlot) {
        self.rounds.remove(&peer);
    }
}

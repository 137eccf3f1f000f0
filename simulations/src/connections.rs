//! Dials, connections and the messages between neighbours.

use core::time::Duration;

use flotilla_common::swarm::{BlobSlot, Claim, HeldChunks, Input, Nearness, PeerFacts, PeerSlot};
use flotilla_common::time::Time;

use crate::event::Event;
use crate::fetch::{FetchSource, SimulatedFetch};
use crate::links::{Broadcast, ChunkMapMessage, Told};
use crate::scenario::seconds;
use crate::slab::Key;
use crate::world::World;

/// How long a dial to a dead peer takes to fail.
const DIAL_TIMEOUT_S: f64 = 3.0;

impl World<'_> {
    /// The facts about the peer `of` for the machine of the peer `to`.
    pub(crate) fn facts(&mut self, of: u32, to: u32) -> PeerFacts {
        let slot = self.peers[to as usize].links.intern(of);
        let one = self.locations[of as usize];
        let other = self.locations[to as usize];
        let nearness = match () {
            () if one.zone == other.zone => Nearness::SameZone,
            () if one.region == other.region => Nearness::SameRegion,
            () => Nearness::Elsewhere,
        };
        PeerFacts {
            peer: PeerSlot(slot),
            nearness,
        }
    }

    pub(crate) fn dial(&mut self, peer: u32, slot: u32) {
        let link = self.peers[peer as usize].links.at_mut(slot);
        link.is_dialling = true;
        let other = link.peer;
        // One round trip for the handshake, and one for the Hello message on the control stream.
        let handshake = (0..4).map(|_| self.quic_delay(peer, other)).sum();
        self.queue
            .push_after(self.now, handshake, Event::Dialled { peer, slot });
    }

    pub(crate) fn on_dialled(&mut self, peer: u32, slot: u32) {
        if !self.peers[peer as usize].is_alive {
            return;
        }
        let link = self.peers[peer as usize].links.at_mut(slot);
        let other = link.peer;
        if link.is_up {
            link.is_dialling = false;
            return;
        }
        let other_region = self.locations[other as usize].region;
        if !self.peers[other as usize].is_alive
            || self.peers[other as usize].frozen.is_some()
            || self.is_cut(self.locations[peer as usize].region, other_region)
        {
            self.queue.push(
                self.now + seconds(DIAL_TIMEOUT_S),
                Event::DialTimeout { peer, slot },
            );
            return;
        }
        let remote = self.peers[other as usize].links.intern(peer);
        let epoch = link_epoch(self, peer, slot).max(link_epoch(self, other, remote)) + 1;
        for (one, at, back) in [(peer, slot, remote), (other, remote, slot)] {
            let link = self.peers[one as usize].links.at_mut(at);
            link.remote = back;
            link.is_up = true;
            link.is_dialling = false;
            link.epoch = epoch;
            link.control_until = Time::ZERO;
        }
        let round_trip = self.route(peer, other).one_way * 2;
        for (one, of) in [(other, peer), (peer, other)] {
            let facts = self.facts(of, one);
            self.feed(one, Input::Connected { facts, round_trip });
            self.check_connections(one);
            if self.scenario.peers.knows_rates {
                let hint = Input::RateHint {
                    peer: facts.peer,
                    bits_per_second: self.peers[of as usize].up,
                };
                self.feed(one, hint);
            }
        }
    }

    pub(crate) fn on_dial_timeout(&mut self, peer: u32, slot: u32) {
        let link = self.peers[peer as usize].links.at_mut(slot);
        if link.is_dialling && !link.is_up {
            link.is_dialling = false;
            self.feed(
                peer,
                Input::DialFailed {
                    peer: PeerSlot(slot),
                },
            );
        }
    }

    /// Closes a connection. The other side learns of it after `notice`.
    pub(crate) fn hang_up(&mut self, peer: u32, slot: u32, notice: Duration) {
        let link = *self.peers[peer as usize].links.at(slot);
        if !link.is_up {
            return;
        }
        self.closed_connections += 1;
        self.peers[peer as usize].links.at_mut(slot).is_up = false;
        self.end_fetches_from(peer, link.peer);
        self.end_fetches_from(link.peer, peer);
        let other = self.peers[link.peer as usize].links.at_mut(link.remote);
        if other.is_up && other.epoch == link.epoch {
            other.is_up = false;
            let closed = Event::Closed {
                peer: link.peer,
                slot: link.remote,
                epoch: link.epoch,
            };
            self.queue.push_after(self.now, notice, closed);
        }
    }

    pub(crate) fn on_closed(&mut self, peer: u32, slot: u32, epoch: u32) {
        let link = self.peers[peer as usize].links.at(slot);
        if link.epoch == epoch {
            self.feed(
                peer,
                Input::Disconnected {
                    peer: PeerSlot(slot),
                },
            );
        }
    }

    /// Tells one neighbour which chunks a peer holds.
    pub(crate) fn send_chunk_map(&mut self, peer: u32, slot: u32, blob: BlobSlot) {
        let simulated = &self.peers[peer as usize];
        let link = *simulated.links.at(slot);
        let Some(held) = simulated.machine.held(blob).filter(|_| link.is_up) else {
            return;
        };
        let have = if held.is_full() {
            HeldChunks::Complete
        } else {
            HeldChunks::Map(held.clone())
        };
        let message = self.chunk_map_messages.insert(ChunkMapMessage {
            to: link.peer,
            slot: link.remote,
            epoch: link.epoch,
            blob: simulated.blobs.at(blob).id,
            have,
        });
        let at = self.control_arrival(peer, slot);
        self.queue.push(at, Event::ChunkMap { message });
    }

    pub(crate) fn on_chunk_map(&mut self, message: Key) {
        let Some(ChunkMapMessage {
            to,
            slot,
            epoch,
            blob,
            have,
        }) = self.chunk_map_messages.remove(message)
        else {
            return;
        };
        if self.is_connected(to, slot, epoch)
            && let Some(blob) = self.peers[to as usize].blobs.slot(blob)
        {
            self.feed(
                to,
                Input::Have {
                    peer: PeerSlot(slot),
                    blob,
                    have,
                },
            );
        }
    }

    /// Tells all interested neighbours about chunks, in one event per time of arrival.
    pub(crate) fn broadcast(&mut self, peer: u32, blob: BlobSlot, told: &Told) {
        let mut buffers = core::mem::take(&mut self.broadcast_buffers);
        let machine = &self.peers[peer as usize].machine;
        match told {
            Told::Have(batch) => buffers
                .recipients
                .extend(machine.have_recipients(blob, batch)),
            Told::Claims(_) => buffers.recipients.extend(machine.claim_recipients(blob)),
        }
        self.check_neighbours(peer, buffers.recipients.len());
        for slot in buffers.recipients.drain(..) {
            let link = *self.peers[peer as usize].links.at(slot.0);
            if !link.is_up {
                continue;
            }
            let at = self.control_arrival(peer, slot.0);
            let receiver = (link.peer, link.remote, link.epoch);
            let mut arrivals = buffers.by_arrival.iter_mut();
            if let Some((_, to)) = arrivals.find(|(other, _)| *other == at) {
                to.push(receiver);
            } else {
                let mut to = buffers.spare.pop().unwrap_or_default();
                to.push(receiver);
                buffers.by_arrival.push((at, to));
            }
        }
        let blob = self.peers[peer as usize].blobs.at(blob).id;
        for (at, to) in buffers.by_arrival.drain(..) {
            let closed_connections = self.closed_connections;
            let broadcast = self.broadcasts.insert(Broadcast {
                blob,
                told: told.clone(),
                to,
                closed_connections,
            });
            self.queue.push(at, Event::Have { broadcast });
        }
        self.broadcast_buffers = buffers;
    }

    /// Tells a new neighbour which chunks are claimed.
    pub(crate) fn tell_claims(&mut self, peer: u32, slot: u32, blob: BlobSlot, claims: Vec<Claim>) {
        let link = *self.peers[peer as usize].links.at(slot);
        if !link.is_up {
            return;
        }
        let broadcast = self.broadcasts.insert(Broadcast {
            blob: self.peers[peer as usize].blobs.at(blob).id,
            told: Told::Claims(claims),
            to: vec![(link.peer, link.remote, link.epoch)],
            closed_connections: self.closed_connections,
        });
        let at = self.control_arrival(peer, slot);
        self.queue.push(at, Event::Have { broadcast });
    }

    pub(crate) fn on_broadcast(&mut self, broadcast: Key) {
        let Some(Broadcast {
            blob,
            told,
            mut to,
            closed_connections,
        }) = self.broadcasts.remove(broadcast)
        else {
            return;
        };
        for (peer, slot, epoch) in to.drain(..) {
            if (self.closed_connections == closed_connections
                || self.is_connected(peer, slot, epoch))
                && let Some(blob) = self.peers[peer as usize].blobs.slot(blob)
            {
                let from = PeerSlot(slot);
                let input = match &told {
                    Told::Have(batch) => Input::Have {
                        peer: from,
                        blob,
                        have: HeldChunks::Chunks(*batch),
                    },
                    Told::Claims(claims) => Input::Claims {
                        peer: from,
                        blob,
                        claims: claims.clone(),
                    },
                };
                self.feed(peer, input);
            }
        }
        self.broadcast_buffers.spare.push(to);
    }

    /// Tells a neighbour that a peer has a free upload slot.
    pub(crate) fn tell_slot_free(&mut self, peer: u32, slot: u32) {
        let link = *self.peers[peer as usize].links.at(slot);
        if !link.is_up {
            return;
        }
        let told = Event::SlotFree {
            peer: link.peer,
            slot: link.remote,
            epoch: link.epoch,
        };
        let at = self.control_arrival(peer, slot);
        self.queue.push(at, told);
    }

    pub(crate) fn on_slot_free(&mut self, peer: u32, slot: u32, epoch: u32) {
        if self.is_connected(peer, slot, epoch) {
            let peer_slot = PeerSlot(slot);
            self.feed(peer, Input::SlotFree { peer: peer_slot });
        }
    }

    /// When a control message of a peer that is sent now reaches the neighbour in a slot.
    fn control_arrival(&mut self, peer: u32, slot: u32) -> Time {
        let other = self.peers[peer as usize].links.at(slot).peer;
        let at = self.now + self.quic_delay(peer, other);
        let links = &mut self.peers[peer as usize].links;
        links.at_mut(slot).control_arrival(at)
    }

    /// Whether the connection on which a message was sent is still open at its receiver.
    fn is_connected(&self, peer: u32, slot: u32, epoch: u32) -> bool {
        let link = self.peers[peer as usize].links.at(slot);
        link.is_up && link.epoch == epoch
    }

    /// Ends the fetches of one peer from another without telling their machines.
    fn end_fetches_from(&mut self, peer: u32, source: u32) {
        let is_from_source = |fetch: &SimulatedFetch| matches!(fetch.source, FetchSource::Peer { peer, .. } if peer == source);
        let ended: Vec<Key> = self.peers[peer as usize]
            .fetches
            .iter()
            .map(|(_, key)| *key)
            .filter(|key| self.fetches.get(*key).is_some_and(is_from_source))
            .collect();
        for key in ended {
            self.end_fetch(key);
        }
    }
}

fn link_epoch(world: &World<'_>, peer: u32, slot: u32) -> u32 {
    world.peers[peer as usize].links.at(slot).epoch
}

//! Connections between peers, and what is said over them.

use core::time::Duration;

use flotilla_common::swarm::{Batch, BlobSlot, Have, Input, Nearness, PeerFacts, PeerSlot};

use crate::slab::Key;
use crate::world::{Event, Origin, World, seconds};

/// How long a dial to a dead machine takes to fail.
const DIAL_TIMEOUT_S: f64 = 3.0;

/// One peer's view of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// The other, by number.
    pub(crate) peer: u32,
    /// The own slot at the other, while connected.
    pub(crate) remote: u32,
    pub(crate) is_up: bool,
    is_dialling: bool,
    /// Counts connections, so that a message of an old one is not taken for one of the new.
    epoch: u32,
}

/// One peer's table of others: slots as its machine knows them.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_slot: Vec<Link>,
    /// Number and slot, by number.
    by_number: Vec<(u32, u32)>,
}

impl Links {
    /// The slot of a peer, a new one if it was not known.
    pub(crate) fn intern(&mut self, peer: u32) -> u32 {
        match self
            .by_number
            .binary_search_by_key(&peer, |(number, _)| *number)
        {
            Ok(at) => self.by_number[at].1,
            Err(at) => {
                let slot = self.by_slot.len() as u32;
                self.by_slot.push(Link {
                    peer,
                    remote: 0,
                    is_up: false,
                    is_dialling: false,
                    epoch: 0,
                });
                self.by_number.insert(at, (peer, slot));
                slot
            }
        }
    }

    pub(crate) fn at(&self, slot: u32) -> &Link {
        &self.by_slot[slot as usize]
    }

    fn at_mut(&mut self, slot: u32) -> &mut Link {
        &mut self.by_slot[slot as usize]
    }

    /// The peers connected to.
    pub(crate) fn connected(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_slot
            .iter()
            .filter(|link| link.is_up)
            .map(|link| link.peer)
    }

    /// The slots of connections that stand.
    pub(crate) fn up_slots(&self) -> Vec<u32> {
        (0_u32..)
            .zip(&self.by_slot)
            .filter(|(_, link)| link.is_up)
            .map(|(slot, _)| slot)
            .collect()
    }
}

/// Newly held chunks on their way to neighbours at one distance.
#[derive(Debug)]
pub(crate) struct Broadcast {
    blob: BlobSlot,
    batch: Batch,
    to: Vec<Receiver>,
    /// Connections that had ended anywhere when it was said: if none has since, it reaches
    /// everybody.
    hang_ups: u64,
}

/// Number of the receiver, its slot for the sender, the connection's epoch.
type Receiver = (u32, u32, u32);

/// What a peer holds, on its way to one neighbour.
#[derive(Debug)]
pub(crate) struct Greeting {
    to: u32,
    slot: u32,
    epoch: u32,
    blob: BlobSlot,
    have: Have,
}

impl World<'_> {
    pub(crate) fn facts(&mut self, of: u32, to: u32) -> PeerFacts {
        let slot = self.nodes[to as usize].links.intern(of);
        let (one, other) = (self.places[of as usize], self.places[to as usize]);
        let nearness = match () {
            () if one.zone == other.zone => Nearness::SameZone,
            () if one.region == other.region => Nearness::SameRegion,
            () => Nearness::Elsewhere,
        };
        PeerFacts {
            peer: PeerSlot(slot),
            nearness,
            key: self.nodes[of as usize].key,
        }
    }

    pub(crate) fn dial(&mut self, peer: u32, slot: u32) {
        let link = self.nodes[peer as usize].links.at_mut(slot);
        link.is_dialling = true;
        let other = link.peer;
        // One round trip for the handshake, and one for the control stream's greeting.
        self.queue.push_after(
            self.now,
            self.delay(peer, other) * 4,
            Event::Dialled { peer, slot },
        );
    }

    pub(crate) fn on_dialled(&mut self, peer: u32, slot: u32) {
        if !self.nodes[peer as usize].alive {
            return;
        }
        let link = self.nodes[peer as usize].links.at_mut(slot);
        let other = link.peer;
        if link.is_up {
            link.is_dialling = false;
            return;
        }
        if !self.nodes[other as usize].alive || self.nodes[other as usize].frozen.is_some() {
            self.queue.push(
                self.now + seconds(DIAL_TIMEOUT_S),
                Event::DialTimeout { peer, slot },
            );
            return;
        }
        let remote = self.nodes[other as usize].links.intern(peer);
        let epoch = link_epoch(self, peer, slot).max(link_epoch(self, other, remote)) + 1;
        for (one, at, back) in [(peer, slot, remote), (other, remote, slot)] {
            let link = self.nodes[one as usize].links.at_mut(at);
            link.remote = back;
            link.is_up = true;
            link.is_dialling = false;
            link.epoch = epoch;
        }
        let round_trip = self.delay(peer, other) * 2;
        for (one, of) in [(other, peer), (peer, other)] {
            let facts = self.facts(of, one);
            self.feed(one, Input::Connected { facts, round_trip });
            let bits_per_second = self.nodes[of as usize].rate();
            self.feed(
                one,
                Input::RateHint {
                    peer: facts.peer,
                    bits_per_second,
                },
            );
        }
    }

    pub(crate) fn on_dial_timeout(&mut self, peer: u32, slot: u32) {
        let link = self.nodes[peer as usize].links.at_mut(slot);
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

    /// Closes a connection; the other side learns of it after `notice`.
    pub(crate) fn hang_up(&mut self, peer: u32, slot: u32, notice: Duration) {
        let link = *self.nodes[peer as usize].links.at(slot);
        if !link.is_up {
            return;
        }
        self.hang_ups += 1;
        self.nodes[peer as usize].links.at_mut(slot).is_up = false;
        self.drop_requests(peer, link.peer);
        self.drop_requests(link.peer, peer);
        let other = self.nodes[link.peer as usize].links.at_mut(link.remote);
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
        let link = self.nodes[peer as usize].links.at(slot);
        if link.epoch == epoch {
            self.feed(
                peer,
                Input::Disconnected {
                    peer: PeerSlot(slot),
                },
            );
        }
    }

    /// Says what a peer holds to one neighbour.
    pub(crate) fn greet(&mut self, peer: u32, slot: u32, blob: BlobSlot) {
        let node = &self.nodes[peer as usize];
        let link = *node.links.at(slot);
        let Some(held) = node.machine.held(blob).filter(|_| link.is_up) else {
            return;
        };
        let have = if held.is_full() {
            Have::Complete
        } else {
            Have::Map(held.clone())
        };
        let greeting = self.greetings.insert(Greeting {
            to: link.peer,
            slot: link.remote,
            epoch: link.epoch,
            blob,
            have,
        });
        self.queue.push_after(
            self.now,
            self.delay(peer, link.peer),
            Event::Greeted { greeting },
        );
    }

    pub(crate) fn on_greeting(&mut self, greeting: Key) {
        let Some(Greeting {
            to,
            slot,
            epoch,
            blob,
            have,
        }) = self.greetings.remove(greeting)
        else {
            return;
        };
        let link = self.nodes[to as usize].links.at(slot);
        if link.is_up && link.epoch == epoch {
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

    /// Says to all who may care that chunks are held, one event per distance.
    pub(crate) fn broadcast(&mut self, peer: u32, blob: BlobSlot, batch: Batch) {
        let node = &self.nodes[peer as usize];
        let mut by_delay: Vec<(Duration, Vec<Receiver>)> = Vec::new();
        for slot in node.machine.audience(blob, &batch) {
            let link = node.links.at(slot.0);
            if !link.is_up {
                continue;
            }
            let delay = self.delay(peer, link.peer);
            let receiver = (link.peer, link.remote, link.epoch);
            match by_delay.iter_mut().find(|(other, _)| *other == delay) {
                Some((_, to)) => to.push(receiver),
                None => by_delay.push((delay, vec![receiver])),
            }
        }
        for (delay, to) in by_delay {
            let hang_ups = self.hang_ups;
            let broadcast = self.broadcasts.insert(Broadcast {
                blob,
                batch,
                to,
                hang_ups,
            });
            self.queue
                .push_after(self.now, delay, Event::Have { broadcast });
        }
    }

    pub(crate) fn on_broadcast(&mut self, broadcast: Key) {
        let Some(Broadcast {
            blob,
            batch,
            to,
            hang_ups,
        }) = self.broadcasts.remove(broadcast)
        else {
            return;
        };
        for (peer, slot, epoch) in to {
            let is_up = || {
                let link = self.nodes[peer as usize].links.at(slot);
                link.is_up && link.epoch == epoch
            };
            if self.hang_ups == hang_ups || is_up() {
                self.feed(
                    peer,
                    Input::Have {
                        peer: PeerSlot(slot),
                        blob,
                        have: Have::Chunks(batch),
                    },
                );
            }
        }
    }

    /// Ends the requests of one peer to another without a word to their machines.
    fn drop_requests(&mut self, peer: u32, source: u32) {
        let is_there =
            |origin: Origin| matches!(origin, Origin::Peer { peer, .. } if peer == source);
        let ended: Vec<Key> = self.nodes[peer as usize]
            .fetches
            .iter()
            .map(|(_, key)| *key)
            .filter(|key| {
                self.requests
                    .get(*key)
                    .is_some_and(|request| is_there(request.source))
            })
            .collect();
        for key in ended {
            self.end_request(key);
        }
    }
}

fn link_epoch(world: &World<'_>, peer: u32, slot: u32) -> u32 {
    world.nodes[peer as usize].links.at(slot).epoch
}

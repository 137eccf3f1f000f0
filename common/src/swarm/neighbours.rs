//! The peers: whom to dial, whom to greet about which blob, whom to leave alone.

use core::time::Duration;

use super::blob::{Interest, News};
use super::dial::Link;
use super::machine::PeerMachine;
use super::timers::Timer;
use super::{BlobSlot, Have, Output, PeerFacts, PeerSlot};
use crate::time::Time;

/// How often the wait between two announces for want of neighbours doubles at most, as a factor.
const MAX_REFILL_WAIT: u32 = 16;

/// A greeting that was not answered for this long was not understood.
const UNANSWERED: Duration = Duration::from_secs(1);

/// One peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: u64,
    pub(super) link: Link,
    pub(super) round_trip: Duration,
    /// Its uplink in bits per second, if it said so.
    pub(super) rate: Option<u64>,
    /// Times in a row that it did not deliver.
    pub(super) strikes: u32,
    pub(super) quarantined_until: Time,
    /// Requests in a row that it did not answer in time.
    pub(super) unanswered: u32,
    /// Taken for silent until then, if it is.
    pub(super) silent_until: Option<Time>,
    /// Blobs that it is a member of.
    pub(super) blobs: Vec<BlobSlot>,
    /// Handouts that name it.
    pub(super) handouts: u32,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            key: 0,
            link: Link::Down {
                not_before: Time::ZERO,
                failures: 0,
            },
            round_trip: Duration::ZERO,
            rate: None,
            strikes: 0,
            quarantined_until: Time::ZERO,
            unanswered: 0,
            silent_until: None,
            blobs: Vec::new(),
            handouts: 0,
        }
    }
}

impl Peer {
    pub(super) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    pub(super) fn is_quarantined(&self, now: Time) -> bool {
        self.quarantined_until > now
    }
}

impl PeerMachine {
    pub(super) fn on_handout(&mut self, now: Time, slot: BlobSlot, peers: &[PeerFacts]) {
        for facts in peers {
            self.introduce(facts);
            if let Some(blob) = self.blobs.get_mut(slot)
                && blob.remember(now, facts.peer)
            {
                self.peers[facts.peer.0 as usize].handouts += 1;
            }
        }
        self.meet(now);
    }

    pub(super) fn on_connected(&mut self, now: Time, facts: &PeerFacts, round_trip: Duration) {
        self.introduce(facts);
        let peer = &mut self.peers[facts.peer.0 as usize];
        if peer.is_up() {
            peer.round_trip = round_trip;
            return;
        }
        self.dialling -= u32::from(matches!(peer.link, Link::Dialling { .. }));
        if peer.is_quarantined(now)
            || (self.connections >= self.config.max_connections && !self.make_room(now))
        {
            self.peers[facts.peer.0 as usize].link = Link::Down {
                not_before: now + self.config.redial,
                failures: 0,
            };
            self.outputs.push_back(Output::HangUp { peer: facts.peer });
            return;
        }
        let peer = &mut self.peers[facts.peer.0 as usize];
        peer.link = Link::Up;
        peer.round_trip = round_trip;
        (peer.unanswered, peer.silent_until) = (0, None);
        self.turns.rest(facts.peer, Time::ZERO);
        peer.strikes = 0;
        self.connections += 1;
        self.recompute_slots();
        self.meet(now);
    }

    pub(super) fn on_disconnected(&mut self, now: Time, peer: PeerSlot) {
        if self.drop_link(now, peer) {
            self.meet(now);
        }
    }

    pub(super) fn on_rate_hint(&mut self, slot: PeerSlot, bits_per_second: u64) {
        if let Some(peer) = self.peers.get_mut(slot.0 as usize) {
            peer.rate = Some(bits_per_second);
            self.recompute_slots();
        }
    }

    pub(super) fn on_have(&mut self, now: Time, peer: PeerSlot, slot: BlobSlot, have: &Have) {
        self.spoke(peer);
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        let index = match blob.member(peer) {
            Some(index) => index,
            None if !self.peers.get(peer.0 as usize).is_some_and(Peer::is_up) => return,
            None => {
                let has_room = blob.who.len() < self.config.max_neighbours as usize;
                if !has_room || !blob.is_of_use() || (!blob.is_wanted() && *have == Have::Complete)
                {
                    return;
                }
                self.peers[peer.0 as usize].blobs.push(slot);
                blob.add_member(peer)
            }
        };
        let was_unseen = blob.unseen;
        let is_first = !blob.members[index].is_heard;
        let News {
            any_wanted,
            is_correction,
        } = blob.learn(index, have);
        // A greeting of ours that is older than an answer takes met a peer that did not know the
        // blob yet.
        let stale = |greeted_at: Time| is_first && greeted_at + UNANSWERED <= now;
        // And whoever lost a chunk was perhaps not told that we have it.
        if blob.members[index].greeted_at.is_none_or(stale)
            || (is_correction && blob.held_count > 0)
        {
            blob.members[index].greeted_at = Some(now);
            self.outputs.push_back(Output::Greet { peer, blob: slot });
        }
        if any_wanted && blob.is_wanted() {
            self.wants_fill |= self.turns.of(peer).is_free(now);
        }
        self.wants_leases |= (blob.unseen == 0) != (was_unseen == 0);
    }

    /// A neighbour evicted a blob, or ended our exchange of it.
    pub(super) fn on_forgot(&mut self, peer: PeerSlot, slot: BlobSlot) {
        if let (Some(blob), Some(known)) = (
            self.blobs.get_mut(slot),
            self.peers.get_mut(peer.0 as usize),
        ) {
            blob.remove_member(peer);
            known.blobs.retain(|other| *other != slot);
            self.wants_leases = true;
        }
    }

    /// Dials and greets whoever wanted blobs call for.
    pub(super) fn meet(&mut self, now: Time) {
        for at in 0..self.wanted.len() {
            let slot = self.wanted[at];
            self.meet_over(now, slot);
            self.refill(now, slot);
        }
    }

    fn meet_over(&mut self, now: Time, slot: BlobSlot) {
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        let mut room = (self.config.max_neighbours as usize).saturating_sub(blob.who.len());
        let may_answer = |peer: &PeerSlot| self.peers[peer.0 as usize].link.may_answer();
        room = room.saturating_sub(blob.handout.iter().filter(|peer| may_answer(peer)).count());
        for at in 0..blob.handout.len() {
            let peer_slot = blob.handout[at];
            let peer = &mut self.peers[peer_slot.0 as usize];
            match peer.link {
                Link::Dialling { .. } => {}
                Link::Up => {
                    let index = match blob.member(peer_slot) {
                        Some(index) => index,
                        None if room == 0 => continue,
                        None => {
                            room -= 1;
                            peer.blobs.push(slot);
                            blob.add_member(peer_slot)
                        }
                    };
                    if blob.members[index].greeted_at.is_none() {
                        blob.members[index].greeted_at = Some(now);
                        self.outputs.push_back(Output::Greet {
                            peer: peer_slot,
                            blob: slot,
                        });
                    }
                }
                Link::Down {
                    not_before,
                    failures,
                } => {
                    let not_before = not_before.max(peer.quarantined_until);
                    let sockets = self.connections + self.dialling;
                    if room == 0
                        || sockets >= self.config.max_connections
                        || self.dialling >= self.config.max_dialling
                    {
                        continue;
                    }
                    if not_before > now {
                        self.timers.by(Timer::Dial, not_before);
                        continue;
                    }
                    room -= 1;
                    self.dialling += 1;
                    let late_at = now
                        + self
                            .config
                            .answer_to_dial(self.turns.of(peer_slot).nearness);
                    peer.link = Link::Dialling {
                        failures,
                        late_at,
                        is_late: false,
                    };
                    self.timers.by(Timer::Dial, late_at);
                    self.outputs.push_back(Output::Dial { peer: peer_slot });
                }
            }
        }
    }

    /// Announces for more neighbours when there are too few, less and less often while that brings
    /// none.
    fn refill(&mut self, now: Time, slot: BlobSlot) {
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        if blob.who.len() >= self.config.min_neighbours as usize {
            blob.refill_wait = self.config.refill_interval;
        } else if blob.refill_at <= now {
            blob.refill_at = now + self.rng.jitter(blob.refill_wait);
            blob.refill_wait =
                (blob.refill_wait * 2).min(self.config.refill_interval * MAX_REFILL_WAIT);
            self.timers.by(Timer::Dial, blob.refill_at);
            self.outputs.push_back(Output::Announce);
        } else {
            self.timers.by(Timer::Dial, blob.refill_at);
        }
    }

    /// A neighbour sent bytes that fail their check.
    pub(super) fn quarantine(&mut self, now: Time, slot: PeerSlot) {
        let until = now + self.config.quarantine;
        self.peers[slot.0 as usize].quarantined_until = until;
        self.outputs
            .push_back(Output::Quarantine { peer: slot, until });
        self.hang_up(now, slot);
        self.meet(now);
    }

    /// The peer leaves the handout of a blob.
    pub(super) fn forget_handout(&mut self, slot: BlobSlot) {
        if let Some(blob) = self.blobs.get_mut(slot) {
            for peer in blob.handout.drain(..) {
                self.peers[peer.0 as usize].handouts -= 1;
            }
        }
    }

    /// Ends the exchange of a blob with everybody.
    pub(super) fn forget_members(&mut self, slot: BlobSlot) {
        if let Some(blob) = self.blobs.get_mut(slot) {
            for peer in core::mem::take(&mut blob.who) {
                self.peers[peer.0 as usize]
                    .blobs
                    .retain(|other| *other != slot);
            }
            blob.members.clear();
        }
    }

    /// Takes note of who a peer is. The table grows to the highest slot named.
    pub(super) fn introduce(&mut self, facts: &PeerFacts) {
        let index = facts.peer.0 as usize;
        if index >= self.peers.len() {
            self.peers.resize_with(index + 1, Peer::default);
        }
        let peer = &mut self.peers[index];
        self.turns.place(facts.peer, facts.nearness);
        peer.key = facts.key;
    }

    fn hang_up(&mut self, now: Time, slot: PeerSlot) {
        if self.drop_link(now, slot) {
            self.outputs.push_back(Output::HangUp { peer: slot });
        }
    }

    /// Forgets a connection and everything that hung on it; false if there was none.
    fn drop_link(&mut self, now: Time, slot: PeerSlot) -> bool {
        let Some(peer) = self
            .peers
            .get_mut(slot.0 as usize)
            .filter(|peer| peer.is_up())
        else {
            return false;
        };
        peer.link = Link::Down {
            not_before: now + self.config.redial,
            failures: 0,
        };
        for blob in core::mem::take(&mut peer.blobs) {
            if let Some(blob) = self.blobs.get_mut(blob) {
                blob.remove_member(slot);
            }
        }
        self.connections -= 1;
        self.drop_transfers_of(slot);
        self.uploads.drop_peer(slot);
        self.recompute_slots();
        self.wants_fill = true;
        self.wants_leases = true;
        true
    }

    /// Hangs up on a neighbour with which nothing is left to exchange; false if there is none.
    fn make_room(&mut self, now: Time) -> bool {
        let is_useless = |slot: PeerSlot, peer: &Peer| {
            peer.is_up()
                && self.turns.of(slot).open() == 0
                && !self.uploads.serves(slot)
                && peer.blobs.iter().all(|blob| {
                    self.blobs.get(*blob).is_none_or(|blob| {
                        let is_done = blob
                            .member(slot)
                            .is_some_and(|index| blob.members[index].is_complete);
                        blob.interest != Interest::Wanted && is_done
                    })
                })
        };
        let useless = (0_u32..)
            .map(PeerSlot)
            .zip(&self.peers)
            .find(|(slot, peer)| is_useless(*slot, peer));
        let Some(slot) = useless.map(|(slot, _)| slot) else {
            return false;
        };
        self.hang_up(now, slot);
        true
    }
}

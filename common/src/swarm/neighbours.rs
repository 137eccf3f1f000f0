//! The peers: which to dial, which to send the chunk map of which blob, and which not to use.
//!
//! A chunk map may be empty. Neighbours that have our chunk map of a blob receive Have messages for
//! newly held chunks from then on.

use core::time::Duration;

use super::candidates::{Candidates, Refill};
use super::context::{Context, Work};
use super::dialer::{ConnectionState, DialCheck, dial_timeout};
use super::io::{BlobSlot, HeldChunks, Output, PeerFacts, PeerSlot};
use super::known_peer::KnownPeer;
use super::per_blob::PerBlob;
use super::timers::Timer;
use super::unresponsive::Responsiveness;
use crate::time::Time;

/// A neighbour that has not answered a chunk map for this long did not know the blob then.
const CHUNK_MAP_TIMEOUT: Duration = Duration::from_secs(1);

/// All peers, their connections, and the candidates of each blob.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    peers: Vec<KnownPeer>,
    candidates: PerBlob<Candidates>,
    connections: u32,
    /// Dials under way.
    dialing: u32,
    /// Peers whose last request timed out, or that are unresponsive: usually none, and then a
    /// message need not look at its sender.
    suspected: u32,
}

// Events.
impl Neighbours {
    pub(super) fn add_blob(&mut self, slot: BlobSlot) {
        self.candidates.insert(slot, Candidates::new());
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.candidates.remove(slot);
    }

    /// The blob is wanted from now on.
    pub(super) fn restart_refill(&mut self, ctx: &Context, slot: BlobSlot) {
        if let Some(candidates) = self.candidates.get_mut(slot) {
            candidates.restart_refill(ctx.now, &ctx.config);
        }
    }

    pub(super) fn on_handout(&mut self, ctx: &mut Context, slot: BlobSlot, peers: &[PeerFacts]) {
        for facts in peers {
            self.register_peer(facts);
            if let Some(candidates) = self.candidates.get_mut(slot)
                && candidates.add(ctx.now, facts.peer)
            {
                self.peers[facts.peer.0 as usize].candidacies += 1;
            }
        }
        self.connect_candidates(ctx);
    }

    /// Dials a peer that the driver asked for, within the same limits as candidates.
    pub(super) fn on_dial(&mut self, ctx: &mut Context, facts: &PeerFacts) {
        self.register_peer(facts);
        let peer = &self.peers[facts.peer.0 as usize];
        if let ConnectionState::Disconnected {
            redial_at,
            failures,
        } = peer.connection
            && peer.quarantined_until <= ctx.now
            // The delay is for dials that failed, not for a connection that was closed.
            && (failures == 0 || redial_at <= ctx.now)
            && self.may_dial(ctx)
        {
            self.start_dial(ctx, facts.peer, failures);
        }
    }

    /// Accepts a connection or hangs up; true if it is new and accepted. `has_transfers` says
    /// whether a neighbour serves us or is served.
    pub(super) fn on_connected(
        &mut self,
        ctx: &mut Context,
        facts: &PeerFacts,
        round_trip: Duration,
        has_transfers: impl Fn(PeerSlot) -> bool,
    ) -> bool {
        self.register_peer(facts);
        let peer = &mut self.peers[facts.peer.0 as usize];
        if peer.is_connected() {
            peer.round_trip = round_trip;
            return false;
        }
        self.dialing -= u32::from(peer.connection.is_dialing());
        let has_room = self.connections < ctx.config.max_connections;
        if peer.is_quarantined(ctx.now) || (!has_room && !self.make_room(ctx, has_transfers)) {
            let closed = ConnectionState::closed(ctx.now, &ctx.config);
            self.peers[facts.peer.0 as usize].connection = closed;
            ctx.output(Output::HangUp { peer: facts.peer });
            return false;
        }
        let peer = &mut self.peers[facts.peer.0 as usize];
        peer.connection = ConnectionState::Connected;
        peer.round_trip = round_trip;
        self.suspected -= u32::from(peer.responsiveness.is_suspected());
        peer.responsiveness = Responsiveness::default();
        self.connections += 1;
        self.connect_candidates(ctx);
        true
    }

    /// The connection is gone; false if there was none.
    pub(super) fn on_disconnected(&mut self, ctx: &mut Context, peer: PeerSlot) -> bool {
        let was_connected = self.close(ctx, peer);
        if was_connected {
            self.connect_candidates(ctx);
        }
        was_connected
    }

    pub(super) fn on_dial_failed(&mut self, ctx: &mut Context, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot.0 as usize) else {
            return;
        };
        let ConnectionState::Dialing { failures, .. } = peer.connection else {
            return;
        };
        self.dialing -= 1;
        ctx.due.add(Work::SeekLeases);
        peer.connection = ConnectionState::dial_failed(ctx.now, failures + 1, &ctx.config);
        if peer.connection.is_given_up() {
            self.give_up(ctx, slot);
        }
        self.connect_candidates(ctx);
    }

    /// Records the rate of a neighbour's uplink; false for an unknown peer.
    pub(super) fn on_rate_hint(&mut self, slot: PeerSlot, bits_per_second: u64) -> bool {
        let Some(peer) = self.peers.get_mut(slot.0 as usize) else {
            return false;
        };
        peer.rate = Some(bits_per_second);
        true
    }

    /// Applies a neighbour's report of held chunks; true if it holds something new that we want.
    pub(super) fn on_have(
        &mut self,
        ctx: &mut Context,
        peer: PeerSlot,
        slot: BlobSlot,
        have: &HeldChunks,
    ) -> bool {
        self.mark_responsive(ctx, peer);
        let Some(blob) = ctx.blobs.get_mut(slot) else {
            return false;
        };
        let index = match blob.index_of(peer) {
            Some(index) => index,
            None if !self.is_connected(peer) => return false,
            None => {
                let has_room = blob.neighbours().len() < ctx.config.max_neighbours as usize;
                let is_seeder = *have == HeldChunks::Complete;
                if !has_room || !blob.is_useful() || (!blob.is_wanted() && is_seeder) {
                    return false;
                }
                self.peers[peer.0 as usize].blobs.push(slot);
                blob.add_neighbour(peer)
            }
        };
        let unavailable_before = blob.unavailable();
        let is_first = !blob.has_announced(index);
        let effect = blob.apply_have(index, have);
        // A first message long after our chunk map means that the peer did not know the blob then.
        let is_stale = |map_sent_at: Time| is_first && map_sent_at + CHUNK_MAP_TIMEOUT <= ctx.now;
        // A peer that lost a chunk may have received no Have message for it, because it held it.
        if blob.map_sent_at(index).is_none_or(is_stale)
            || (effect.is_correction && blob.held_count() > 0)
        {
            blob.mark_map_sent(index, ctx.now);
            ctx.outputs.push(Output::SendChunkMap { peer, blob: slot });
        }
        let has_changed = (blob.unavailable() == 0) != (unavailable_before == 0);
        ctx.due.add_if(has_changed, Work::SeekLeases);
        effect.has_new_chunks && blob.is_wanted()
    }

    /// A neighbour evicted a blob, or ended its exchange.
    pub(super) fn on_forgot(&mut self, ctx: &mut Context, peer: PeerSlot, slot: BlobSlot) {
        if let (Some(blob), Some(known)) =
            (ctx.blobs.get_mut(slot), self.peers.get_mut(peer.0 as usize))
        {
            blob.remove_neighbour(peer);
            known.blobs.retain(|other| *other != slot);
            ctx.due.add(Work::SeekLeases);
        }
    }

    /// Quarantines a neighbour that sent bytes which failed their verification; false if it was not
    /// connected.
    pub(super) fn quarantine(&mut self, ctx: &mut Context, slot: PeerSlot) -> bool {
        let until = ctx.now + ctx.config.quarantine_time;
        self.peers[slot.0 as usize].quarantined_until = until;
        ctx.output(Output::Quarantine { peer: slot, until });
        let was_connected = self.hang_up(ctx, slot);
        self.connect_candidates(ctx);
        was_connected
    }

    /// Counts a request that the neighbour did not answer in time; true if the neighbour becomes
    /// unresponsive by it.
    pub(super) fn on_request_timeout(&mut self, ctx: &mut Context, slot: PeerSlot) -> bool {
        let Some(peer) = self
            .peers
            .get_mut(slot.0 as usize)
            .filter(|peer| peer.is_connected())
        else {
            return false;
        };
        self.suspected += u32::from(!peer.responsiveness.is_suspected());
        let Some(retry_at) = peer.responsiveness.count_timeout(ctx.now) else {
            return false;
        };
        ctx.timers.wake_by(Timer::Stall, retry_at);
        for blob in &peer.blobs {
            if let Some(blob) = ctx.blobs.get_mut(*blob) {
                blob.set_aside(slot);
            }
        }
        ctx.due.add(Work::SeekLeases);
        true
    }

    /// Records that a neighbour sent something.
    pub(super) fn mark_responsive(&mut self, ctx: &mut Context, slot: PeerSlot) {
        if self.suspected == 0 {
            return;
        }
        let Some(peer) = self.peers.get_mut(slot.0 as usize) else {
            return;
        };
        self.suspected -= u32::from(peer.responsiveness.is_suspected());
        if !peer.responsiveness.mark_responsive() {
            return;
        }
        for blob in &peer.blobs {
            if let Some(blob) = ctx.blobs.get_mut(*blob) {
                blob.restore(slot);
            }
        }
        ctx.due.add(Work::FillSlots);
        ctx.due.add(Work::SeekLeases);
    }

    /// Uses neighbours again that were unresponsive for long enough.
    pub(super) fn retry_unresponsive(&mut self, ctx: &mut Context) {
        for slot in (0..self.peers.len() as u32).map(PeerSlot) {
            match self.peers[slot.0 as usize].responsiveness.retry_at() {
                Some(retry_at) if retry_at <= ctx.now => {
                    self.mark_responsive(ctx, slot);
                    self.peers[slot.0 as usize]
                        .responsiveness
                        .mark_on_probation();
                    self.suspected += 1;
                }
                Some(retry_at) => ctx.timers.wake_by(Timer::Stall, retry_at),
                None => {}
            }
        }
    }

    /// Marks dials that were not answered in time as late, which makes room for others.
    pub(super) fn check_dials(&mut self, ctx: &mut Context) {
        for peer in &mut self.peers {
            match peer.connection.check_dial(ctx.now) {
                DialCheck::Nothing => {}
                DialCheck::BecameLate => ctx.due.add(Work::SeekLeases),
                DialCheck::LateAt(late_at) => ctx.timers.wake_by(Timer::Dial, late_at),
            }
        }
    }

    /// Removes all candidates of a blob.
    pub(super) fn clear_candidates(&mut self, slot: BlobSlot) {
        if let Some(candidates) = self.candidates.get_mut(slot) {
            for peer in candidates.take() {
                self.peers[peer.0 as usize].candidacies -= 1;
            }
        }
    }

    /// Ends the exchange of a blob with all neighbours.
    pub(super) fn end_exchange(&mut self, ctx: &mut Context, slot: BlobSlot) {
        if let Some(blob) = ctx.blobs.get_mut(slot) {
            for peer in blob.take_neighbours() {
                self.peers[peer.0 as usize]
                    .blobs
                    .retain(|other| *other != slot);
            }
        }
    }

    /// Dials the candidates of all wanted blobs, sends chunk maps to the connected ones, and asks
    /// for more candidates where there are few.
    pub(super) fn connect_candidates(&mut self, ctx: &mut Context) {
        for at in 0..ctx.blobs.wanted().len() {
            let slot = ctx.blobs.wanted()[at];
            self.connect_candidates_of(ctx, slot);
            self.refill(ctx, slot);
        }
    }
}

// Queries.
impl Neighbours {
    pub(super) fn is_connected(&self, peer: PeerSlot) -> bool {
        let peer = self.peers.get(peer.0 as usize);
        peer.is_some_and(KnownPeer::is_connected)
    }

    /// Whether nothing refers to the peer.
    pub(super) fn is_idle(&self, peer: PeerSlot) -> bool {
        self.peers.get(peer.0 as usize).is_none_or(|peer| {
            matches!(peer.connection, ConnectionState::Disconnected { .. })
                && peer.candidacies == 0
                && peer.blobs.is_empty()
        })
    }

    /// The round trip on an idle connection; zero for an unknown peer.
    pub(super) fn round_trip(&self, peer: PeerSlot) -> Duration {
        let peer = self.peers.get(peer.0 as usize);
        peer.map_or(Duration::ZERO, |peer| peer.round_trip)
    }

    /// Dials under way.
    pub(super) fn dialing(&self) -> u32 {
        self.dialing
    }

    /// Adapts the number of slots to the rates of the connected peers.
    pub(super) fn update_slots(&self, ctx: &mut Context) {
        if let Some(slots) = ctx.config.slots_at(self.median_rate()) {
            ctx.slots = slots;
        }
    }

    /// The median of the rates that connected peers reported, in bits per second.
    fn median_rate(&self) -> Option<u64> {
        let connected = self.peers.iter().filter(|peer| peer.is_connected());
        let mut rates: Vec<u64> = connected.filter_map(|peer| peer.rate).collect();
        rates.sort_unstable();
        rates.get(rates.len() / 2).copied()
    }

    /// Peers that do not answer dials or requests, or sent corrupt bytes. The candidates of `blob`
    /// come first.
    pub(super) fn unreachable(
        &self,
        now: Time,
        blob: Option<BlobSlot>,
    ) -> impl Iterator<Item = PeerSlot> + '_ {
        let candidates = self.candidates_of(blob);
        let others = (0_u32..)
            .map(PeerSlot)
            .take(self.peers.len())
            .filter(|slot| !candidates.contains(slot));
        candidates
            .iter()
            .copied()
            .chain(others)
            .filter(move |slot| self.peers[slot.0 as usize].is_unreachable(now))
    }

    /// Whether the blob has no neighbour, and a candidate that was dialed did not answer.
    pub(super) fn is_abandoned(&self, ctx: &Context, slot: BlobSlot) -> bool {
        let blob = ctx.blobs.get(slot);
        let has_no_neighbours = blob.is_some_and(|blob| blob.neighbours().is_empty());
        let is_unanswered =
            |peer: &PeerSlot| self.peers[peer.0 as usize].connection.is_unanswered();
        has_no_neighbours && self.candidates_of(Some(slot)).iter().any(is_unanswered)
    }

    /// How many further neighbours are looked for to exchange the blob.
    pub(super) fn wanted(&self, ctx: &Context, now: Time, slot: BlobSlot) -> Option<u8> {
        let candidates = self.candidates.get(slot)?;
        Some(candidates.wanted(now, ctx.blobs.get(slot)?, &ctx.config))
    }

    /// Whether a candidate is being dialed, and its answer is not late.
    pub(super) fn awaits_candidate(&self, slot: BlobSlot) -> bool {
        let mut candidates = self.candidates_of(Some(slot)).iter();
        candidates.any(|peer| self.peers[peer.0 as usize].connection.is_dialing_in_time())
    }

    /// Whether the blob has candidates, and all of them are in quarantine.
    pub(super) fn are_candidates_quarantined(&self, now: Time, slot: BlobSlot) -> bool {
        let candidates = self.candidates_of(Some(slot));
        let is_quarantined = |peer: &PeerSlot| self.peers[peer.0 as usize].is_quarantined(now);
        !candidates.is_empty() && candidates.iter().all(is_quarantined)
    }

    /// Whether every peer that is known to exchange the blob holds all of it. Candidates count as
    /// leechers until they had time to become neighbours, but not for as long as a dial to a dead
    /// one takes.
    pub(super) fn has_only_seeders(&self, ctx: &Context, slot: BlobSlot) -> bool {
        let blob = ctx.blobs.get(slot);
        let (Some(blob), Some(candidates)) = (blob, self.candidates.get(slot)) else {
            return false;
        };
        blob.has_only_seeders() && candidates.are_settled(ctx.now, blob)
    }

    /// Number of peers named so far, for invariants.
    #[cfg(test)]
    pub(super) fn count(&self) -> u32 {
        self.peers.len() as u32
    }

    fn candidates_of(&self, slot: Option<BlobSlot>) -> &[PeerSlot] {
        slot.and_then(|slot| self.candidates.get(slot))
            .map_or(&[], Candidates::peers)
    }
}

// Steps of the events.
impl Neighbours {
    /// Records the location of a peer. The table grows to the highest slot named.
    fn register_peer(&mut self, facts: &PeerFacts) {
        let index = facts.peer.0 as usize;
        if index >= self.peers.len() {
            self.peers.resize_with(index + 1, KnownPeer::default);
        }
        self.peers[index].nearness = facts.nearness;
    }

    fn connect_candidates_of(&mut self, ctx: &mut Context, slot: BlobSlot) {
        let blob = ctx.blobs.get(slot);
        let (Some(blob), Some(candidates)) = (blob, self.candidates.get(slot)) else {
            return;
        };
        let is_dialing =
            |peer: &&PeerSlot| self.peers[peer.0 as usize].connection.is_dialing_in_time();
        let dialing = candidates.peers().iter().filter(is_dialing).count();
        let mut room = (ctx.config.max_neighbours as usize)
            .saturating_sub(blob.neighbours().len())
            .saturating_sub(dialing);
        for at in 0..candidates.peers().len() {
            let peer = self.candidates_of(Some(slot))[at];
            match self.peers[peer.0 as usize].connection {
                ConnectionState::Dialing { .. } => {}
                ConnectionState::Connected => self.send_chunk_map(ctx, slot, peer, &mut room),
                ConnectionState::Disconnected {
                    redial_at,
                    failures,
                } => {
                    self.dial(ctx, peer, redial_at, failures, &mut room);
                }
            }
        }
    }

    /// Sends a connected candidate the chunk map, unless it has it already.
    fn send_chunk_map(
        &mut self,
        ctx: &mut Context,
        slot: BlobSlot,
        peer: PeerSlot,
        room: &mut usize,
    ) {
        let Some(blob) = ctx.blobs.get_mut(slot) else {
            return;
        };
        let index = match blob.index_of(peer) {
            Some(index) => index,
            None if *room == 0 => return,
            None => {
                *room -= 1;
                self.peers[peer.0 as usize].blobs.push(slot);
                blob.add_neighbour(peer)
            }
        };
        if blob.map_sent_at(index).is_none() {
            blob.mark_map_sent(index, ctx.now);
            ctx.output(Output::SendChunkMap { peer, blob: slot });
        }
    }

    /// Dials a candidate if there is room and its time has come.
    fn dial(
        &mut self,
        ctx: &mut Context,
        slot: PeerSlot,
        redial_at: Time,
        failures: u32,
        room: &mut usize,
    ) {
        if *room == 0 || !self.may_dial(ctx) {
            return;
        }
        let redial_at = redial_at.max(self.peers[slot.0 as usize].quarantined_until);
        if redial_at > ctx.now {
            ctx.timers.wake_by(Timer::Dial, redial_at);
            return;
        }
        *room -= 1;
        self.start_dial(ctx, slot, failures);
    }

    /// Whether the limits allow another dial.
    fn may_dial(&self, ctx: &Context) -> bool {
        self.connections + self.dialing < ctx.config.max_connections
            && self.dialing < ctx.config.max_dials
    }

    fn start_dial(&mut self, ctx: &mut Context, slot: PeerSlot, failures: u32) {
        let peer = &mut self.peers[slot.0 as usize];
        self.dialing += 1;
        let late_at = ctx.now + dial_timeout(peer.nearness, &ctx.config);
        peer.connection = ConnectionState::dial(failures, late_at);
        ctx.timers.wake_by(Timer::Dial, late_at);
        ctx.output(Output::Dial { peer: slot });
    }

    /// Announces for more neighbours when the blob has too few.
    fn refill(&mut self, ctx: &mut Context, slot: BlobSlot) {
        let blob = ctx.blobs.get(slot);
        let (Some(blob), Some(candidates)) = (blob, self.candidates.get_mut(slot)) else {
            return;
        };
        let neighbours = blob.neighbours().len();
        match candidates.refill(ctx.now, neighbours, &ctx.config, &mut ctx.rng) {
            Refill::NotNeeded => {}
            Refill::Announce { next_at } => {
                ctx.timers.wake_by(Timer::Dial, next_at);
                ctx.output(Output::AnnounceSoon);
            }
            Refill::Wait { until } => ctx.timers.wake_by(Timer::Dial, until),
        }
    }

    /// Removes a peer that cannot be reached from the candidates of all wanted blobs.
    fn give_up(&mut self, ctx: &Context, peer: PeerSlot) {
        for slot in ctx.blobs.wanted() {
            if let Some(candidates) = self.candidates.get_mut(*slot) {
                let was_candidate = candidates.remove(peer);
                self.peers[peer.0 as usize].candidacies -= u32::from(was_candidate);
            }
        }
    }

    fn hang_up(&mut self, ctx: &mut Context, slot: PeerSlot) -> bool {
        let was_connected = self.close(ctx, slot);
        if was_connected {
            ctx.output(Output::HangUp { peer: slot });
        }
        was_connected
    }

    /// Forgets a connection and all exchanges over it; false if there was none.
    fn close(&mut self, ctx: &mut Context, slot: PeerSlot) -> bool {
        let Some(peer) = self
            .peers
            .get_mut(slot.0 as usize)
            .filter(|peer| peer.is_connected())
        else {
            return false;
        };
        peer.connection = ConnectionState::closed(ctx.now, &ctx.config);
        for blob in core::mem::take(&mut peer.blobs) {
            if let Some(blob) = ctx.blobs.get_mut(blob) {
                blob.remove_neighbour(slot);
            }
        }
        self.connections -= 1;
        ctx.due.add(Work::FillSlots);
        ctx.due.add(Work::SeekLeases);
        true
    }

    /// Hangs up on a neighbour with which nothing is left to exchange; false if there is none.
    fn make_room(&mut self, ctx: &mut Context, has_transfers: impl Fn(PeerSlot) -> bool) -> bool {
        let is_done = |slot: PeerSlot, blob: &BlobSlot| {
            ctx.blobs
                .get(*blob)
                .is_none_or(|blob| !blob.is_wanted() && blob.is_seeder(slot))
        };
        let useless = (0_u32..)
            .map(PeerSlot)
            .zip(&self.peers)
            .find(|(slot, peer)| {
                peer.is_connected()
                    && !has_transfers(*slot)
                    && peer.blobs.iter().all(|blob| is_done(*slot, blob))
            })
            .map(|(slot, _)| slot);
        useless.is_some_and(|slot| self.hang_up(ctx, slot))
    }
}

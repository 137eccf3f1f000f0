//! Download slots: keeping them filled, and what happens to a transfer.

use core::time::Duration;

use super::machine::PeerMachine;
use super::pace::Pace;
use super::timers::Timer;
use super::turns::Turns;
use super::{BlobSlot, Failure, OriginSlot, Output, PeerSlot, Refusal, Source, TransferId};
use crate::time::Time;

/// How long a neighbour that did not deliver is left alone, doubling.
const FIRST_STRIKE: Duration = Duration::from_millis(100);
/// How often that doubles at most.
const STRIKES: u32 = 6;
/// So many chunk times are added to the wait for a neighbour's first byte: on a slow link it comes
/// behind others' chunks.
const FIRST_BYTE_CHUNK_TIMES: u32 = 4;
/// How long nothing of a blob is fetched after our own store failed.
const STORE_REST: Duration = Duration::from_secs(1);
/// An origin may take this many times longer than a neighbour before its first byte counts as late:
/// it has storage to ask.
const ORIGIN_PATIENCE: u32 = 2;

/// Whether a fetch from an origin was permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// Neighbours need none.
    NotNeeded,
    /// The tracker gave a lease.
    Leased,
    /// Nobody did: we waited too long.
    Escalated,
}

/// One download of one chunk.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) id: TransferId,
    pub(super) blob: BlobSlot,
    pub(super) chunk: u32,
    pub(super) source: Source,
    pub(super) permission: Permission,
    /// Bytes received.
    pub(super) received: u64,
    /// When it last moved.
    moved_at: Time,
    /// From when on it is late: an idle neighbour next door would have answered.
    late_at: Time,
    /// Its first byte is here.
    pub(super) has_begun: bool,
    pace: Pace,
}

impl Transfer {
    /// Whether a neighbour has not answered yet, as an idle one next door would have.
    fn is_late(&self, now: Time) -> bool {
        !self.has_begun && matches!(self.source, Source::Peer(_)) && self.late_at <= now
    }
}

/// The downloads under way: a handful.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    running: Vec<Transfer>,
    next: u64,
}

impl Transfers {
    /// Transfers that count against the slots: those not nearly done. Questions whose answer is
    /// late have a limit of their own, as many again: a refusal that comes behind others' chunks
    /// must not keep a slot from bringing something.
    fn busy(&self, now: Time, slots: u32) -> u32 {
        let (mut busy, mut late) = (0, 0);
        for transfer in &self.running {
            late += u32::from(transfer.is_late(now));
            busy += u32::from(!transfer.is_late(now) && !transfer.pace.is_free(now));
        }
        busy + late.saturating_sub(slots)
    }

    /// Transfers from other zones.
    pub(super) fn crossing(&self, turns: &Turns) -> u32 {
        let crosses = |transfer: &&Transfer| match transfer.source {
            Source::Peer(peer) => !turns.of(peer).is_near(),
            Source::Origin(_) => false,
        };
        self.running.iter().filter(crosses).count() as u32
    }

    pub(super) fn of_blob(&self, blob: BlobSlot) -> impl Iterator<Item = &Transfer> {
        self.running
            .iter()
            .filter(move |transfer| transfer.blob == blob)
    }

    pub(super) fn of_chunk(&mut self, blob: BlobSlot, chunk: u32) -> Option<&mut Transfer> {
        self.running
            .iter_mut()
            .find(|transfer| (transfer.blob, transfer.chunk) == (blob, chunk))
    }

    fn first_of(&self, is_one: impl Fn(&Transfer) -> bool) -> Option<TransferId> {
        self.running
            .iter()
            .find(|transfer| is_one(transfer))
            .map(|transfer| transfer.id)
    }

    pub(super) fn escalated(&self) -> usize {
        self.running
            .iter()
            .filter(|transfer| transfer.permission == Permission::Escalated)
            .count()
    }

    pub(super) fn find(&mut self, id: TransferId) -> Option<&mut Transfer> {
        self.running.iter_mut().find(|transfer| transfer.id == id)
    }

    fn take(&mut self, id: TransferId) -> Option<Transfer> {
        let at = self.running.iter().position(|transfer| transfer.id == id)?;
        Some(self.running.swap_remove(at))
    }
}

impl PeerMachine {
    /// Fills the download slots as far as neighbours have something for us.
    pub(super) fn fill(&mut self, now: Time) {
        self.wants_fill = false;
        if self.wanted.is_empty() {
            return;
        }
        while self.transfers.busy(now, self.slots) < self.slots
            && self.transfers.running.len() < 2 * self.slots as usize + 2
        {
            let Some(pick) = self.pick(now) else {
                self.wait_for_neighbours(now);
                return;
            };
            self.turns.ask(pick.peer);
            self.start(
                now,
                pick.blob,
                pick.chunk,
                Source::Peer(pick.peer),
                Permission::NotNeeded,
            );
        }
        for transfer in &self.transfers.running {
            if transfer.pace.free_at() > now && transfer.pace.free_at() != Time::MAX {
                self.timers.by(Timer::Fill, transfer.pace.free_at());
            }
            if !transfer.has_begun && transfer.late_at > now {
                self.timers.by(Timer::Fill, transfer.late_at);
            }
        }
    }

    /// Slots are free, but whoever has something is busy: look again when the first is not.
    fn wait_for_neighbours(&mut self, now: Time) {
        for slot in &self.wanted {
            let Some(blob) = self.blobs.get(*slot) else {
                continue;
            };
            for peer in &blob.who {
                let until = self.turns.of(*peer).rests_until();
                if until > now {
                    self.timers.by(Timer::Fill, until);
                }
            }
            if blob.rests_until > now {
                self.timers.by(Timer::Fill, blob.rests_until);
            }
        }
    }

    pub(super) fn start(
        &mut self,
        now: Time,
        slot: BlobSlot,
        chunk: u32,
        source: Source,
        permission: Permission,
    ) -> TransferId {
        let id = TransferId(self.transfers.next);
        self.transfers.next += 1;
        let length = self.blobs.get_mut(slot).map_or(0, |blob| {
            blob.pending.insert(chunk);
            blob.geometry.chunk_len(chunk)
        });
        let pace = Pace::new(now, length);
        let transfer = Transfer {
            id,
            blob: slot,
            chunk,
            source,
            permission,
            received: 0,
            moved_at: now,
            late_at: now + self.config.nearly_done,
            has_begun: false,
            pace,
        };
        self.timers
            .by(Timer::Stall, now + self.patience_with(&transfer));
        self.transfers.running.push(transfer);
        self.outputs.push_back(Output::Fetch {
            transfer: id,
            blob: slot,
            chunk,
            source,
        });
        id
    }

    /// The round trip to a source when the link is idle.
    fn round_trip(&self, source: Source) -> Duration {
        match source {
            Source::Peer(peer) => self.peers[peer.0 as usize].round_trip,
            Source::Origin(_) => Duration::ZERO,
        }
    }

    pub(super) fn on_first_byte(&mut self, now: Time, id: TransferId) {
        if let Some(transfer) = self.transfers.find(id) {
            transfer.moved_at = now;
            transfer.has_begun = true;
            transfer.pace.begin(now);
            let (blob, source) = (transfer.blob, transfer.source);
            self.moved(now, blob);
            self.heard_from(source);
        }
    }

    fn heard_from(&mut self, source: Source) {
        if let Source::Peer(peer) = source {
            self.spoke(peer);
        }
    }

    pub(super) fn on_progress(&mut self, now: Time, id: TransferId, received: u64) {
        let Some(transfer) = self.transfers.find(id) else {
            return;
        };
        if received <= transfer.received {
            return;
        }
        transfer.received = received;
        transfer.moved_at = now;
        transfer.has_begun = true;
        let (blob, source) = (transfer.blob, transfer.source);
        let nearly_done = self.config.nearly_done.max(self.round_trip(source));
        let Some(transfer) = self.transfers.find(id) else {
            return;
        };
        transfer.pace.progress(now, received, nearly_done);
        self.timers.by(Timer::Fill, transfer.pace.free_at());
        let free_at = transfer.pace.free_at();
        if let Source::Peer(peer) = source {
            self.turns.moves(peer, free_at);
        }
        self.moved(now, blob);
        self.heard_from(source);
    }

    pub(super) fn on_received(&mut self, now: Time, id: TransferId) {
        let Some(transfer) = self.end(id) else { return };
        match (transfer.source, transfer.permission) {
            (Source::Peer(peer), _) => {
                self.spoke(peer);
                self.peers[peer.0 as usize].strikes = 0;
                self.stats.from_peers += 1;
                if let Some(blob) = self.blobs.get_mut(transfer.blob) {
                    blob.starved_log2 = 0;
                }
            }
            (Source::Origin(origin), permission) => {
                self.health.succeeded(origin);
                match permission {
                    Permission::Leased => self.stats.from_origin_leased += 1,
                    _ => self.stats.from_origin_unleased += 1,
                }
            }
        }
        let Some(blob) = self.blobs.get_mut(transfer.blob) else {
            return;
        };
        if transfer.permission == Permission::Escalated {
            blob.patience_log2 -= 1;
            if !self.is_tracker_reachable {
                // Nobody else decides who fetches next: a pull that is on its own must not wait for
                // a timer.
                self.timers.by(Timer::Escalate, now);
            }
        }
        if blob.hold(transfer.chunk) {
            self.tell(now, transfer.blob, transfer.chunk);
        }
        self.moved(now, transfer.blob);
        self.lease_done(transfer.blob, transfer.chunk);
        self.complete_if_held(now, transfer.blob);
    }

    pub(super) fn on_refused(&mut self, now: Time, id: TransferId, reason: Refusal) {
        let Some(transfer) = self.end(id) else { return };
        self.stats.refusals_met += 1;
        let Source::Peer(peer) = transfer.source else {
            return self.origin_failed(now, &transfer);
        };
        self.spoke(peer);
        let half_chunk = self.chunk_time(transfer.blob) / 2;
        match reason {
            Refusal::Busy => self.turns.rest(peer, now + half_chunk),
            Refusal::Gone => {
                if let Some(blob) = self.blobs.get_mut(transfer.blob) {
                    blob.member_lacks(peer, transfer.chunk);
                    self.wants_leases = true;
                }
            }
        }
    }

    pub(super) fn on_failed(&mut self, now: Time, id: TransferId, why: Failure) {
        if let Some(transfer) = self.end(id) {
            self.failed(now, &transfer, why);
        }
    }

    /// Gives up transfers that have not moved for too long.
    pub(super) fn check_stalls(&mut self, now: Time) {
        while let Some(id) = self.next_stalled(now) {
            self.outputs.push_back(Output::Cancel { transfer: id });
            self.on_failed(now, id, Failure::Timeout);
        }
    }

    fn next_stalled(&mut self, now: Time) -> Option<TransferId> {
        for transfer in &self.transfers.running {
            let deadline = transfer.moved_at + self.patience_with(transfer);
            if deadline <= now {
                return Some(transfer.id);
            }
            self.timers.by(Timer::Stall, deadline);
        }
        None
    }

    /// How long a transfer may stand still.
    fn patience_with(&self, transfer: &Transfer) -> Duration {
        let stalled = self.config.stalled;
        match transfer.source {
            Source::Origin(_) if transfer.received == 0 => stalled * ORIGIN_PATIENCE,
            Source::Peer(peer) if !transfer.has_begun => {
                let strikes = self.peers[peer.0 as usize].strikes.min(STRIKES);
                let patience = self.config.first_byte
                    + self.chunk_time(transfer.blob) * FIRST_BYTE_CHUNK_TIMES;
                (patience * (1 << strikes)).min(stalled)
            }
            _ => stalled,
        }
    }

    fn failed(&mut self, now: Time, transfer: &Transfer, why: Failure) {
        self.stats.failures += 1;
        self.stats.corrupt += u64::from(why == Failure::Corrupt);
        if why == Failure::Store {
            if let Some(blob) = self.blobs.get_mut(transfer.blob) {
                blob.rests_until = now + STORE_REST;
            }
            // On its own, a pull whose last chunk failed here would have nothing else to wake it.
            self.timers.by(Timer::Escalate, now + STORE_REST);
            if transfer.permission == Permission::Leased {
                self.lease_failed(now, transfer.blob, transfer.chunk);
            }
            return;
        }
        match transfer.source {
            Source::Peer(peer) if why == Failure::Corrupt => self.quarantine(now, peer),
            Source::Peer(slot) => {
                let peer = &mut self.peers[slot.0 as usize];
                self.turns
                    .rest(slot, now + FIRST_STRIKE * (1 << peer.strikes.min(STRIKES)));
                peer.strikes += 1;
                if why == Failure::Timeout {
                    self.unanswered(now, slot);
                }
            }
            Source::Origin(_) => self.origin_failed(now, transfer),
        }
    }

    /// An origin did not deliver: the next one is asked, under the same permission.
    fn origin_failed(&mut self, now: Time, transfer: &Transfer) {
        if let Source::Origin(origin) = transfer.source {
            self.health.failed(now, origin);
        }
        if let Some(origin) = self.health.choose(now) {
            self.start(
                now,
                transfer.blob,
                transfer.chunk,
                Source::Origin(origin),
                transfer.permission,
            );
            return;
        }
        match transfer.permission {
            Permission::Leased => self.lease_failed(now, transfer.blob, transfer.chunk),
            _ => {
                if let Some(blob) = self.blobs.get_mut(transfer.blob) {
                    blob.patience_log2 += 1;
                }
                self.timers.by(Timer::Escalate, now);
            }
        }
    }

    /// Forgets a transfer and whatever was marked for it.
    fn end(&mut self, id: TransferId) -> Option<Transfer> {
        let transfer = self.transfers.take(id)?;
        if let Source::Peer(peer) = transfer.source {
            self.turns.end(peer);
        }
        if let Some(blob) = self.blobs.get_mut(transfer.blob) {
            blob.pending.remove(transfer.chunk);
        }
        self.wants_fill = true;
        Some(transfer)
    }

    /// The transfers of a connection that is gone.
    pub(super) fn drop_transfers_of(&mut self, peer: PeerSlot) {
        while let Some(id) = self
            .transfers
            .first_of(|transfer| transfer.source == Source::Peer(peer))
        {
            self.stats.failures += 1;
            self.end(id);
        }
    }

    /// Cancels all downloads of a blob.
    pub(super) fn cancel_transfers(&mut self, slot: BlobSlot) {
        while let Some(id) = self.transfers.first_of(|transfer| transfer.blob == slot) {
            self.cancel_transfer(id);
        }
    }

    pub(super) fn cancel_transfer(&mut self, id: TransferId) {
        self.outputs.push_back(Output::Cancel { transfer: id });
        self.end(id);
    }

    /// An origin failed outside of a fetch, or a fetch from it should not be waited for.
    pub(super) fn on_origin_down(&mut self, now: Time, origin: OriginSlot) {
        self.health.failed(now, origin);
    }

    /// Bytes of a blob came.
    fn moved(&mut self, now: Time, slot: BlobSlot) {
        if let Some(blob) = self.blobs.get_mut(slot) {
            blob.moved_at = now;
            blob.waiting.note(now, None);
        }
        self.stands_still.note(now, None);
    }

    /// Whether a download slot is free.
    pub(super) fn has_free_slot(&self, now: Time) -> bool {
        self.transfers.busy(now, self.slots) < self.slots
    }

    /// Every transfer, for invariants.
    #[cfg(test)]
    pub(super) fn running(&self) -> &[Transfer] {
        &self.transfers.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::fixture::{PEER, fetches, meet, meet_far, ms, outputs, wanting};
    use crate::swarm::{Have, Input};

    #[test]
    fn a_question_holds_its_slot_for_a_moment_however_far_its_neighbour_is() {
        let mut machine = wanting(16);
        let slots = machine.slots() as usize;
        for peer in (0..16).map(PeerSlot) {
            meet_far(
                &mut machine,
                ms(0),
                peer,
                Have::Complete,
                Duration::from_millis(100),
            );
        }
        assert_eq!(fetches(&mut machine).len(), slots);
        machine.handle_timeout(ms(2));
        assert_eq!(fetches(&mut machine).len(), 0);
        machine.handle_timeout(ms(3));
        assert_eq!(fetches(&mut machine).len(), slots, "others are asked");
        machine.handle_timeout(ms(99));
        assert_eq!(fetches(&mut machine).len(), 0, "but not for ever");
    }

    #[test]
    fn a_neighbour_that_does_not_begin_is_not_waited_for_as_long_as_one_that_began() {
        let mut machine = wanting(2);
        for peer in [PEER, PeerSlot(1)] {
            meet(&mut machine, ms(0), peer, Have::Complete);
        }
        let ids: Vec<TransferId> = machine
            .running()
            .iter()
            .map(|transfer| transfer.id)
            .collect();
        assert_eq!(ids.len(), 2);
        machine.handle(ms(1), Input::FirstByte { transfer: ids[0] });
        machine.handle_timeout(ms(250));
        assert!(cancelled(&mut machine).is_empty());
        machine.handle_timeout(ms(260));
        assert_eq!(cancelled(&mut machine), [ids[1]]);
        machine.handle_timeout(ms(2001));
        assert!(cancelled(&mut machine).contains(&ids[0]));
    }

    fn cancelled(machine: &mut PeerMachine) -> Vec<TransferId> {
        let cancelled = |output| match output {
            Output::Cancel { transfer } => Some(transfer),
            _ => None,
        };
        outputs(machine).into_iter().filter_map(cancelled).collect()
    }
}

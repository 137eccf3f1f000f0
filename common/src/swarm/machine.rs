//! The machine itself: its one door for inputs and its one stream of outputs.

use core::time::Duration;
use std::collections::VecDeque;

use super::blob::{Blob, Interest, MAX_MEMBERS};
use super::choose::Scratch;
use super::dial::Link;
use super::download::Transfers;
use super::health::Health;
use super::lease::Lease;
use super::neighbours::Peer;
use super::rng::Rng;
use super::timers::{Timer, Timers};
use super::turns::Turns;
use super::upload::Uploads;
use super::waits::Waiting;
use super::{Batch, BlobSlot, Config, Input, Output, PeerSlot};
use crate::chunk::Geometry;
use crate::map::ChunkMap;
use crate::time::Time;

/// What the machine has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks received from neighbours.
    pub from_peers: u64,
    /// Chunks received from origins under a lease.
    pub from_origin_leased: u64,
    /// Chunks received from origins without a lease.
    pub from_origin_unleased: u64,
    /// Chunks served to neighbours.
    pub served: u64,
    /// Requests refused because all slots were taken.
    pub refused_busy: u64,
    /// Requests of ours that were refused.
    pub refusals_met: u64,
    /// Downloads that failed or stalled.
    pub failures: u64,
    /// Chunks that failed their check.
    pub corrupt: u64,
}

/// The blobs, by slot.
#[derive(Debug, Default)]
pub(super) struct Blobs(Vec<Option<Box<Blob>>>);

impl Blobs {
    pub(super) fn get(&self, slot: BlobSlot) -> Option<&Blob> {
        self.0.get(slot.0 as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, slot: BlobSlot) -> Option<&mut Blob> {
        self.0.get_mut(slot.0 as usize)?.as_deref_mut()
    }

    fn insert(&mut self, slot: BlobSlot, blob: Blob) {
        let index = slot.0 as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(Box::new(blob));
    }

    fn remove(&mut self, slot: BlobSlot) {
        if let Some(place) = self.0.get_mut(slot.0 as usize) {
            *place = None;
        }
    }
}

/// The deciding half of one peer process. See the module's documentation.
#[derive(Debug)]
pub struct PeerMachine {
    pub(super) config: Config,
    pub(super) rng: Rng,
    pub(super) outputs: VecDeque<Output>,
    pub(super) timers: Timers,
    pub(super) stats: Stats,
    pub(super) blobs: Blobs,
    /// Blobs wanted and not complete, in the order they were wanted.
    pub(super) wanted: Vec<BlobSlot>,
    pub(super) peers: Vec<Peer>,
    pub(super) turns: Turns,
    pub(super) connections: u32,
    pub(super) dialling: u32,
    /// Transfers each way.
    pub(super) slots: u32,
    pub(super) transfers: Transfers,
    pub(super) uploads: Uploads,
    pub(super) leases: Vec<Lease>,
    pub(super) is_tracker_reachable: bool,
    pub(super) health: Health,
    pub(super) scratch: Scratch,
    /// While something is wanted and nothing moves.
    pub(super) stands_still: Waiting,
    /// Blobs whose newly held chunks wait to be told; each at most once.
    untold: Vec<BlobSlot>,
    /// A slot may have become fillable: looked at once per input.
    pub(super) wants_fill: bool,
    /// A lease may be needed, or needed no more: looked at once per input.
    pub(super) wants_leases: bool,
}

impl PeerMachine {
    /// A machine that knows no blob and no peer.
    pub fn new(mut config: Config, rng_seed: u64) -> Self {
        config.max_neighbours = config.max_neighbours.min(MAX_MEMBERS);
        Self {
            rng: Rng::new(rng_seed),
            outputs: VecDeque::new(),
            timers: Timers::new(),
            stats: Stats::default(),
            blobs: Blobs::default(),
            wanted: Vec::new(),
            peers: Vec::new(),
            turns: Turns::default(),
            connections: 0,
            dialling: 0,
            slots: config.slots.max(1),
            transfers: Transfers::default(),
            uploads: Uploads::default(),
            leases: Vec::new(),
            is_tracker_reachable: true,
            health: Health::new(config.origins, config.origin_rest),
            scratch: Scratch::default(),
            stands_still: Waiting::default(),
            untold: Vec::new(),
            wants_fill: false,
            wants_leases: false,
            config,
        }
    }

    /// Something happened at `now`. Time must not go backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::AddBlob {
                blob,
                geometry,
                held,
            } => self.on_add(blob, geometry, held),
            Input::Want { blob } => self.on_want(now, blob),
            Input::Unwant { blob } => self.on_unwant(now, blob),
            Input::Reader { blob, cursor } => self.on_reader(blob, cursor),
            Input::Lost { blob, chunk } => self.on_lost(now, blob, chunk),
            Input::Forget { blob } => self.on_forget(now, blob),
            Input::Handout { blob, peers } => self.on_handout(now, blob, &peers),
            Input::Dial { facts } => self.on_dial(now, &facts),
            Input::Connected { facts, round_trip } => self.on_connected(now, &facts, round_trip),
            Input::Disconnected { peer } => self.on_disconnected(now, peer),
            Input::DialFailed { peer } => self.on_dial_failed(now, peer),
            Input::RateHint {
                peer,
                bits_per_second,
            } => self.on_rate_hint(peer, bits_per_second),
            Input::Have { peer, blob, have } => self.on_have(now, peer, blob, &have),
            Input::Forgot { peer, blob } => self.on_forgot(peer, blob),
            Input::UploadRequest {
                peer,
                blob,
                chunk,
                upload,
            } => {
                self.on_upload_request(now, peer, blob, chunk, upload);
            }
            Input::UploadProgress { upload, sent } => self.on_upload_progress(now, upload, sent),
            Input::UploadEnded { upload } => self.uploads.ended(upload),
            Input::FirstByte { transfer } => self.on_first_byte(now, transfer),
            Input::Progress { transfer, received } => self.on_progress(now, transfer, received),
            Input::Received { transfer } => self.on_received(now, transfer),
            Input::Refused { transfer, reason } => self.on_refused(now, transfer, reason),
            Input::Failed { transfer, why } => self.on_failed(now, transfer, why),
            Input::LeaseGranted { blob, chunk, term } => {
                self.on_lease_granted(now, blob, chunk, term)
            }
            Input::LeaseWait { blob, retry_after } => self.on_lease_wait(now, blob, retry_after),
            Input::LeaseLost { blob, chunk } => self.on_lease_lost(blob, chunk),
            Input::TrackerUnreachable => self.on_tracker(now, false),
            Input::TrackerReachable => self.on_tracker(now, true),
            Input::OriginUp { origin } => {
                self.health.succeeded(origin);
                self.wants_leases = true;
            }
            Input::OriginDown { origin } => self.on_origin_down(now, origin),
        }
        self.settle(now);
    }

    /// The next thing to do, in order; `None` when all is said.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called; may be earlier than needed, and changes
    /// with every input.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// The deadline of [`Self::poll_timeout`] has come. Too early or too often does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(timer) = self.timers.take_due(now) {
            match timer {
                Timer::Have => self.tell_due(now),
                Timer::Fill => self.wants_fill = true,
                Timer::Stall => {
                    self.check_stalls(now);
                    self.end_silences(now);
                }
                Timer::Escalate => {
                    self.escalate(now);
                    self.account_waits(now);
                }
                Timer::Lease => {
                    self.renew_leases(now);
                    self.seek_leases(now);
                    self.account_waits(now);
                }
                Timer::Dial => {
                    self.note_late_dials(now);
                    self.meet(now);
                }
            }
        }
        self.settle(now);
    }

    /// The chunks held of a blob; `None` if no such blob was added.
    pub fn held(&self, blob: BlobSlot) -> Option<&ChunkMap> {
        self.blobs.get(blob).map(|blob| &blob.held)
    }

    /// Who is to be told about newly held chunks of a blob: its neighbours that were greeted and
    /// are not known to hold all of these chunks. Who holds them learns that we do from the
    /// greeting when we are complete, or lack one again.
    pub fn audience(&self, blob: BlobSlot, batch: &Batch) -> impl Iterator<Item = PeerSlot> + '_ {
        let blob = self.blobs.get(blob);
        let holders = blob.map_or(0, |blob| blob.holders_of_all(batch.chunks()));
        let members = blob
            .into_iter()
            .flat_map(|blob| blob.who.iter().zip(&blob.members))
            .zip(0_u32..);
        members
            .filter(move |((_, member), bit)| {
                member.greeted_at.is_some() && holders >> bit & 1 == 0
            })
            .map(|((peer, _), _)| *peer)
    }

    /// Everybody with whom a blob is exchanged.
    pub fn neighbours(&self, blob: BlobSlot) -> impl Iterator<Item = PeerSlot> + '_ {
        self.blobs
            .get(blob)
            .into_iter()
            .flat_map(|blob| blob.who.iter().copied())
    }

    /// Whether nobody can bring a chunk now: no neighbour has it, nothing of the blob is on its
    /// way, and every origin rests after a failure. It may be otherwise a moment later.
    pub fn is_out_of_reach(&self, now: Time, slot: BlobSlot, chunk: u32) -> bool {
        let Some(blob) = self.blobs.get(slot) else {
            return true;
        };
        let is_around = blob.held.contains(chunk)
            || blob
                .availability
                .get(chunk as usize)
                .is_some_and(|holders| *holders > 0);
        !is_around
            && self.transfers.of_blob(slot).next().is_none()
            && self.health.choose(now).is_none()
    }

    /// The blobs wanted and not complete.
    pub fn wanted(&self) -> impl Iterator<Item = BlobSlot> + '_ {
        self.wanted.iter().copied()
    }

    /// The leases held, for the tracker's announce.
    pub fn leases(&self) -> impl Iterator<Item = (BlobSlot, u32)> + '_ {
        self.leases.iter().map(|lease| (lease.blob, lease.chunk))
    }

    /// Whether nothing refers to the peer, so that its slot may be given to another one.
    pub fn is_idle(&self, peer: PeerSlot) -> bool {
        self.peers.get(peer.0 as usize).is_none_or(|peer| {
            matches!(peer.link, Link::Down { .. }) && peer.handouts == 0 && peer.blobs.is_empty()
        })
    }

    /// Transfers each way at present, by the neighbours' rates.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The settings it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn on_add(&mut self, slot: BlobSlot, geometry: Geometry, held: ChunkMap) {
        let rate = self
            .own_rate()
            .unwrap_or(self.config.assumed_bits_per_second)
            .max(1);
        let chunk_time = Duration::from_secs_f64((geometry.chunk_len(0) * 8) as f64 / rate as f64);
        self.blobs
            .insert(slot, Blob::new(geometry, held, chunk_time));
    }

    fn on_want(&mut self, now: Time, slot: BlobSlot) {
        let jitter = self.rng.jitter(Duration::from_secs(1)).as_secs_f64();
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        if blob.interest != Interest::Idle {
            return;
        }
        blob.interest = Interest::Wanted;
        blob.waiting = Waiting::default();
        blob.moved_at = now;
        blob.jitter = jitter;
        blob.patience_log2 = 0;
        blob.starved_log2 = 0;
        blob.refill_wait = self.config.refill_interval;
        blob.refill_at = now + blob.refill_wait;
        self.wanted.push(slot);
        self.outputs.push_back(Output::Announce);
        self.timers.by(Timer::Escalate, now);
        self.wants_fill = true;
        self.wants_leases = true;
        self.complete_if_held(now, slot);
        self.meet(now);
    }

    fn on_unwant(&mut self, now: Time, slot: BlobSlot) {
        self.wanted.retain(|wanted| *wanted != slot);
        self.cancel_transfers(slot);
        self.drop_leases(slot);
        if let Some(blob) = self.blobs.get_mut(slot) {
            blob.interest = Interest::Idle;
            blob.reader = None;
            blob.waiting.note(now, None);
        }
        self.forget_handout(slot);
        self.wants_leases = true;
    }

    fn on_reader(&mut self, slot: BlobSlot, cursor: Option<u32>) {
        if let Some(blob) = self.blobs.get_mut(slot) {
            blob.reader = cursor;
        }
    }

    fn on_lost(&mut self, now: Time, slot: BlobSlot, chunk: u32) {
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        if !blob.lose(chunk) {
            return;
        }
        if blob.interest == Interest::Complete {
            blob.interest = Interest::Wanted;
            blob.moved_at = now;
            self.wanted.push(slot);
            self.timers.by(Timer::Escalate, now);
            self.outputs.push_back(Output::Announce);
            self.meet(now);
        }
        self.greet_again(slot);
        self.wants_fill = true;
        self.wants_leases = true;
    }

    fn on_forget(&mut self, now: Time, slot: BlobSlot) {
        self.on_unwant(now, slot);
        self.forget_members(slot);
        self.blobs.remove(slot);
    }

    fn on_tracker(&mut self, now: Time, is_reachable: bool) {
        if !is_reachable {
            self.void_requests(now);
        }
        self.is_tracker_reachable = is_reachable;
        self.wants_leases = true;
        self.timers.by(Timer::Escalate, now);
    }

    /// Ends the want of a blob that is all here.
    pub(super) fn complete_if_held(&mut self, now: Time, slot: BlobSlot) {
        let Some(blob) = self
            .blobs
            .get_mut(slot)
            .filter(|blob| blob.is_wanted() && blob.is_complete())
        else {
            return;
        };
        blob.interest = Interest::Complete;
        blob.reader = None;
        blob.waiting.note(now, None);
        self.wanted.retain(|wanted| *wanted != slot);
        self.drop_leases(slot);
        self.forget_handout(slot);
        self.greet_again(slot);
        self.outputs.push_back(Output::Complete { blob: slot });
        self.outputs.push_back(Output::Announce);
        self.wants_leases = true;
    }

    /// Tells the neighbours that were greeted and still lack something exactly what we hold: all of
    /// it at last, or less than we said.
    fn greet_again(&mut self, slot: BlobSlot) {
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        blob.outbox.clear();
        for (peer, member) in blob.who.iter().zip(&blob.members) {
            if member.greeted_at.is_some() && !member.is_complete {
                self.outputs.push_back(Output::Greet {
                    peer: *peer,
                    blob: slot,
                });
            }
        }
    }

    /// Tells neighbours about a chunk, now or soon.
    pub(super) fn tell(&mut self, now: Time, slot: BlobSlot, chunk: u32) {
        let interval = self.have_interval(slot);
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        if let Some(batch) = blob.outbox.add(now, chunk, interval) {
            self.outputs.push_back(Output::Have { blob: slot, batch });
        } else if let Some(due_at) = blob.outbox.due_at() {
            self.timers.by(Timer::Have, due_at);
            if !self.untold.contains(&slot) {
                self.untold.push(slot);
            }
        }
    }

    fn tell_due(&mut self, now: Time) {
        let mut untold = core::mem::take(&mut self.untold);
        untold.retain(|slot| {
            let interval = self.have_interval(*slot);
            let Some(blob) = self.blobs.get_mut(*slot) else {
                return false;
            };
            if let Some(batch) = blob.outbox.take_due(now, interval) {
                self.outputs.push_back(Output::Have { blob: *slot, batch });
            }
            let due_at = blob.outbox.due_at();
            if let Some(due_at) = due_at {
                self.timers.by(Timer::Have, due_at);
            }
            due_at.is_some()
        });
        self.untold = untold;
    }

    fn have_interval(&self, slot: BlobSlot) -> Duration {
        self.config.have_interval.min(self.chunk_time(slot) / 2)
    }

    /// What every input may have made possible.
    fn settle(&mut self, now: Time) {
        let is_news = self.wants_fill || self.wants_leases;
        if self.wants_fill {
            self.fill(now);
        }
        if self.wants_leases {
            self.seek_leases(now);
        }
        if is_news {
            self.account_waits(now);
        }
    }

    /// How long one chunk of the blob takes at the own rate.
    pub(super) fn chunk_time(&self, slot: BlobSlot) -> Duration {
        self.blobs
            .get(slot)
            .map_or(Duration::ZERO, |blob| blob.chunk_time)
    }

    /// The own rate, the slower of both directions, in bits per second.
    fn own_rate(&self) -> Option<u64> {
        let Config {
            up_bits_per_second: up,
            down_bits_per_second: down,
            ..
        } = self.config;
        up.into_iter().chain(down).min()
    }

    /// Slots follow the own rate in relation to the neighbours': `max(1, round(slots x own /
    /// median))`.
    pub(super) fn recompute_slots(&mut self) {
        let Some(own) = self.own_rate() else { return };
        let mut rates: Vec<u64> = self
            .peers
            .iter()
            .filter(|peer| peer.is_up())
            .filter_map(|peer| peer.rate)
            .collect();
        rates.sort_unstable();
        let median = rates.get(rates.len() / 2).copied().unwrap_or(own).max(1);
        let slots = (u64::from(self.config.slots) * own + median / 2) / median;
        self.slots = u32::try_from(slots)
            .unwrap_or(u32::MAX)
            .clamp(1, self.config.max_slots.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Failure, Have, Nearness, PeerFacts, Source};
    use super::*;
    use crate::chunk::Geometry;

    const BLOB: BlobSlot = BlobSlot(0);
    const NEIGHBOUR: PeerFacts = PeerFacts {
        peer: PeerSlot(0),
        nearness: Nearness::SameZone,
        key: 1,
    };

    fn wanting_one_chunk(now: Time) -> PeerMachine {
        let mut machine = PeerMachine::new(Config::default(), 1);
        let held = ChunkMap::empty(1);
        machine.handle(now, Input::TrackerUnreachable);
        machine.handle(
            now,
            Input::AddBlob {
                blob: BLOB,
                geometry: Geometry::for_size(10),
                held,
            },
        );
        machine.handle(now, Input::Want { blob: BLOB });
        machine.handle_timeout(now);
        machine
    }

    #[test]
    fn a_chunk_is_out_of_reach_when_no_neighbour_has_it_and_the_origin_rests() {
        let now = Time::ZERO;
        let mut machine = wanting_one_chunk(now);
        let outputs: Vec<_> = core::iter::from_fn(|| machine.poll_output()).collect();
        let asked = outputs.iter().find_map(|output| match output {
            Output::Fetch {
                transfer,
                source: Source::Origin(_),
                ..
            } => Some(*transfer),
            _ => None,
        });
        let transfer = asked.expect("alone, it asks the origin at once");
        assert!(!machine.is_out_of_reach(now, BLOB, 0), "it is on its way");
        machine.handle(
            now,
            Input::Failed {
                transfer,
                why: Failure::Link,
            },
        );
        assert!(machine.is_out_of_reach(now, BLOB, 0));
        machine.handle(
            now,
            Input::Connected {
                facts: NEIGHBOUR,
                round_trip: Duration::ZERO,
            },
        );
        machine.handle(
            now,
            Input::Have {
                peer: NEIGHBOUR.peer,
                blob: BLOB,
                have: Have::Complete,
            },
        );
        assert!(!machine.is_out_of_reach(now, BLOB, 0), "a neighbour has it");
    }
}

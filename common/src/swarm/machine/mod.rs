//! The machine: one entrance for inputs, one stream of outputs.
//!
//! It owns the sub-machines, passes each input to the one in charge, and passes on results that
//! concern others. The sub-machines do not know the machine, nor the fields of each other.

mod transfers;
mod upstream;

use core::time::Duration;

use super::blob_exchange::{BlobExchange, MAX_NEIGHBOURS};
use super::claims::Claims;
use super::config::SwarmConfig;
use super::context::{Context, Work};
use super::counters::TransferCounters;
use super::downloads::Downloads;
use super::far_peers::FarPeers;
use super::have_batches::HaveBatches;
use super::io::{
    BlobSlot, DownloadFailure, HaveBatch, HeldChunks, Input, Nearness, Output, PeerFacts, PeerSlot,
};
use super::leases::Leases;
use super::neighbours::Neighbours;
use super::origin_fallback::OriginFallback;
use super::stall_reasons::{StallReason, StallReasons, StallTimes};
use super::timers::Timer;
use super::uploads::Uploads;
use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::time::Time;

/// Everything that decides in one peer process. See the module's documentation.
#[derive(Debug)]
pub struct PeerMachine {
    ctx: Context,
    neighbours: Neighbours,
    far_peers: FarPeers,
    downloads: Downloads,
    uploads: Uploads,
    leases: Leases,
    fallback: OriginFallback,
    claims: Claims,
    have_batches: HaveBatches,
    stalls: StallReasons,
}

impl PeerMachine {
    /// A machine that knows no blob and no peer.
    pub fn new(mut config: SwarmConfig, rng_seed: u64) -> Self {
        config.max_neighbours = config.max_neighbours.min(MAX_NEIGHBOURS);
        Self {
            ctx: Context::new(config, rng_seed),
            neighbours: Neighbours::default(),
            far_peers: FarPeers::default(),
            downloads: Downloads::default(),
            uploads: Uploads::default(),
            leases: Leases::default(),
            fallback: OriginFallback::default(),
            claims: Claims::default(),
            have_batches: HaveBatches::default(),
            stalls: StallReasons::default(),
        }
    }

    /// Handles something that happened at `now`. Time must not go backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.ctx.now = now;
        match input {
            Input::AddBlob {
                blob,
                geometry,
                held,
            } => self.on_add(blob, geometry, held),
            Input::Want { blob } => self.on_want(blob),
            Input::Unwant { blob } => self.on_unwant(blob),
            Input::Reader { blob, cursor } => self.downloads.set_cursor(blob, cursor),
            Input::Lost { blob, chunk } => self.on_lost(blob, chunk),
            Input::Forget { blob } => self.on_forget(blob),
            Input::Handout { blob, peers } => self.on_handout(blob, peers),
            Input::Dial { facts } => {
                self.downloads.register_peer(&facts);
                self.neighbours.on_dial(&mut self.ctx, &facts);
            }
            Input::Connected { facts, round_trip } => self.on_connected(&facts, round_trip),
            Input::Disconnected { peer } => self.on_disconnected(peer),
            Input::DialFailed { peer } => self.neighbours.on_dial_failed(&mut self.ctx, peer),
            Input::RateHint {
                peer,
                bits_per_second,
            } => self.on_rate_hint(peer, bits_per_second),
            Input::Have { peer, blob, have } => self.on_have(peer, blob, &have),
            Input::Forgot { peer, blob } => self.neighbours.on_forgot(&mut self.ctx, peer, blob),
            Input::Claims { peer, blob, claims } => {
                self.claims.on_heard(&mut self.ctx, peer, blob, &claims);
            }
            Input::UploadRequest {
                peer,
                blob,
                chunk,
                upload,
            } => {
                let neighbours = &self.neighbours;
                self.uploads
                    .on_request(&mut self.ctx, neighbours, peer, blob, chunk, upload);
            }
            Input::UploadProgress { upload, sent } => {
                self.uploads
                    .on_progress(&self.ctx, &self.neighbours, upload, sent);
            }
            Input::UploadEnded { upload } => {
                self.uploads
                    .on_ended(&mut self.ctx, &self.neighbours, upload);
            }
            Input::FirstByte { transfer } => {
                let progress = self.downloads.on_first_byte(&self.ctx, transfer);
                self.on_moved(progress);
            }
            Input::OriginAnswered { transfer, region } => {
                self.downloads.on_origin_answered(transfer, region);
            }
            Input::Progress { transfer, received } => {
                let neighbours = &self.neighbours;
                let progress =
                    self.downloads
                        .on_progress(&mut self.ctx, neighbours, transfer, received);
                self.on_moved(progress);
            }
            Input::Received { transfer } => self.on_received(transfer),
            Input::SlotFree { peer } => self.on_slot_free(peer),
            Input::Refused { transfer, reason } => self.on_refused(transfer, reason),
            Input::Failed { transfer, why } => {
                if let Some(transfer) = self.downloads.end(&mut self.ctx, transfer) {
                    self.on_failed(&transfer, why);
                }
            }
            Input::LeaseGranted {
                blob,
                chunk,
                term,
                from,
                is_out,
            } => self.on_lease_granted((blob, chunk), term, from, is_out),
            Input::LeaseMoved { blob, chunk, to } => {
                self.downloads
                    .on_lease_moved(&mut self.ctx, blob, chunk, to);
            }
            Input::LeaseWait { blob, retry_after } => {
                self.leases.on_wait(&mut self.ctx, blob, retry_after);
            }
            Input::LeaseLost { blob, chunk } => {
                self.leases.on_lost(blob, chunk);
                self.downloads.on_lease_lost(&mut self.ctx, blob, chunk);
            }
            Input::TrackerUnreachable => {
                self.leases.on_tracker_lost(&self.ctx);
                self.set_has_tracker(false);
            }
            Input::TrackerReachable => self.set_has_tracker(true),
            Input::OriginUsable => self.on_origin_usable(),
            Input::OriginUnusable => self.on_origin_unusable(),
        }
        self.do_due_work();
    }

    /// The next thing to do, in order; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.ctx.outputs.pop()
    }

    /// When [`Self::handle_timeout`] is to be called; may be earlier than needed, and changes with
    /// every input.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.ctx.timers.next()
    }

    /// Handles the deadline of [`Self::poll_timeout`]. A call too early or too often does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.ctx.now = now;
        for timer in self.ctx.timers.take_due(now) {
            match timer {
                Timer::Have => self.have_batches.send_due(&mut self.ctx),
                Timer::Claim => self.claims.send_due(&mut self.ctx),
                Timer::Fill => self.ctx.due.add(Work::FillSlots),
                Timer::Stall => {
                    while let Some(transfer) = self.downloads.cancel_stalled(&mut self.ctx) {
                        self.on_failed(&transfer, DownloadFailure::Timeout);
                    }
                    self.neighbours.retry_unresponsive(&mut self.ctx);
                }
                Timer::Fallback => {
                    self.fallback.run(
                        &mut self.ctx,
                        &self.neighbours,
                        &mut self.downloads,
                        &mut self.claims,
                    );
                    self.update_stall_reasons();
                }
                Timer::Lease => {
                    self.leases.renew(&mut self.ctx, &self.downloads);
                    self.seek_leases();
                    self.update_stall_reasons();
                }
                Timer::Dial => {
                    self.neighbours.check_dials(&mut self.ctx);
                    self.neighbours.connect_candidates(&mut self.ctx);
                }
            }
        }
        self.do_due_work();
    }
}

// Queries.
impl PeerMachine {
    /// The chunks held of a blob; `None` for an unknown blob.
    pub fn held(&self, blob: BlobSlot) -> Option<&ChunkMap> {
        self.ctx.blobs.get(blob).map(BlobExchange::held)
    }

    /// The recipients of a Have message for these chunks of a blob: neighbours that have our chunk
    /// map and are not known to hold all of the chunks. Neighbours that hold them learn that we do
    /// from the chunk map that is sent when we are complete, or when we lack one again.
    pub fn have_recipients<'a>(
        &'a self,
        blob: BlobSlot,
        batch: &'a HaveBatch,
    ) -> impl Iterator<Item = PeerSlot> + 'a {
        let blob = self.ctx.blobs.get(blob);
        let recipients = blob.map(|blob| blob.have_recipients(batch));
        recipients.into_iter().flatten()
    }

    /// The recipients of claims of a blob: neighbours that have our chunk map and lack chunks.
    pub fn claim_recipients(&self, blob: BlobSlot) -> impl Iterator<Item = PeerSlot> + '_ {
        let blob = self.ctx.blobs.get(blob);
        let recipients = blob.map(BlobExchange::leechers_with_map);
        recipients.into_iter().flatten()
    }

    /// The neighbours with which a blob is exchanged.
    pub fn neighbours(&self, blob: BlobSlot) -> impl Iterator<Item = PeerSlot> + '_ {
        let blob = self.ctx.blobs.get(blob);
        blob.map_or(&[][..], BlobExchange::neighbours)
            .iter()
            .copied()
    }

    /// Whether no source can deliver a chunk now: no neighbour holds it, nothing of the blob is
    /// being fetched, and no origin is usable, or none delivered a moment ago. That may change at
    /// any time.
    pub fn is_out_of_reach(&self, now: Time, slot: BlobSlot, chunk: u32) -> bool {
        let Some(blob) = self.ctx.blobs.get(slot) else {
            return true;
        };
        let is_available = blob.held().contains(chunk) || blob.availability(chunk) > 0;
        let pull = self.downloads.pull(slot);
        let is_delayed = pull.is_none_or(|pull| pull.origin_retry_at() > now);
        let has_origin = self.ctx.has_origin && !is_delayed;
        !is_available && self.downloads.count(slot) == 0 && !has_origin
    }

    /// The blobs that are wanted and not complete, in the order in which they were wanted.
    pub fn wanted(&self) -> impl Iterator<Item = BlobSlot> + '_ {
        self.ctx.blobs.wanted().iter().copied()
    }

    /// How many further neighbours the peer looks for to exchange the blob; none while it has
    /// enough of them, or those that a tracker has just named may still become some.
    pub fn neighbours_wanted(&self, now: Time, blob: BlobSlot) -> u8 {
        self.neighbours.wanted(&self.ctx, now, blob).unwrap_or(0)
    }

    /// The leases held, for the announce to the tracker.
    pub fn leases(&self) -> impl Iterator<Item = (BlobSlot, u32)> + '_ {
        self.leases.held()
    }

    /// Peers that the tracker should not count on, as far as this peer knows: they do not answer
    /// dials or requests, or sent corrupt bytes. The candidates of `blob` come first.
    pub fn unreachable(
        &self,
        now: Time,
        blob: Option<BlobSlot>,
    ) -> impl Iterator<Item = PeerSlot> + '_ {
        self.neighbours.unreachable(now, blob)
    }

    /// Whether nothing refers to the peer, so that its slot may be given to another one.
    pub fn is_idle(&self, peer: PeerSlot) -> bool {
        self.neighbours.is_idle(peer) && !self.far_peers.contains(peer)
    }

    /// Why nothing of a blob moves at present; `None` if something does, if no slot is free, or if
    /// the blob is not wanted.
    pub fn stall_reason(&self, blob: BlobSlot) -> Option<StallReason> {
        self.stalls.reason(blob)
    }

    /// How long a blob has stalled since it was first wanted, by reason.
    pub fn stall_times(&self, now: Time, blob: BlobSlot) -> StallTimes {
        self.stalls.of_blob(now, blob)
    }

    /// How long something was wanted and nothing moved at all since the machine was made, by the
    /// reason of the blob that was wanted first.
    pub fn total_stall_times(&self, now: Time) -> StallTimes {
        self.stalls.of_peer(now)
    }

    /// Transfers in each direction at present, by the neighbours' rates.
    pub fn slots(&self) -> u32 {
        self.ctx.slots
    }

    /// The counters since the machine was made.
    pub fn counters(&self) -> TransferCounters {
        self.ctx.counters
    }

    /// The settings it was made with.
    pub fn config(&self) -> &SwarmConfig {
        &self.ctx.config
    }

    /// The state that invariants are about.
    #[cfg(test)]
    pub(super) fn parts(&self) -> (&Context, &Neighbours, &Downloads) {
        (&self.ctx, &self.neighbours, &self.downloads)
    }
}

// Blobs.
impl PeerMachine {
    fn on_add(&mut self, slot: BlobSlot, geometry: Geometry, held: ChunkMap) {
        let chunk_time = self.ctx.config.time_of(geometry.chunk_len(0));
        let blob = BlobExchange::new(geometry, held, chunk_time);
        self.ctx.blobs.add(slot, blob);
        self.neighbours.add_blob(slot);
        self.far_peers.add_blob(slot);
        self.downloads.add_blob(slot);
        self.leases.add_blob(slot);
        self.fallback.reset(slot);
        self.have_batches.add_blob(slot);
        self.stalls.reset(slot);
    }

    fn on_want(&mut self, slot: BlobSlot) {
        let jitter = self.ctx.rng.jitter(Duration::from_secs(1)).as_secs_f64();
        if !self.ctx.blobs.want(slot) {
            return;
        }
        self.stalls.reset(slot);
        self.downloads.start_pull(self.ctx.now, slot, jitter);
        self.fallback.reset(slot);
        self.claims.restart(&mut self.ctx, slot);
        self.leases.reset_starving(slot);
        self.neighbours.restart_refill(&self.ctx, slot);
        self.ctx.output(Output::Announce);
        self.ctx.timers.wake_by(Timer::Fallback, self.ctx.now);
        self.ctx.due.add(Work::FillSlots);
        self.ctx.due.add(Work::SeekLeases);
        self.complete_if_held(slot);
        self.neighbours.connect_candidates(&mut self.ctx);
    }

    fn on_unwant(&mut self, slot: BlobSlot) {
        self.ctx.blobs.unwant(slot);
        self.downloads.cancel_blob(&mut self.ctx, slot);
        self.downloads.set_cursor(slot, None);
        self.leases.release_blob(&mut self.ctx, slot);
        self.stalls.stop(self.ctx.now, slot);
        self.neighbours.clear_candidates(slot);
        self.ctx.due.add(Work::SeekLeases);
    }

    fn on_lost(&mut self, slot: BlobSlot, chunk: u32) {
        let blob = self.ctx.blobs.get_mut(slot);
        if !blob.is_some_and(|blob| blob.lose(chunk)) {
            return;
        }
        if self.ctx.blobs.want_again(slot) {
            self.claims.restart(&mut self.ctx, slot);
            self.downloads.mark_moved(self.ctx.now, slot);
            self.ctx.timers.wake_by(Timer::Fallback, self.ctx.now);
            self.ctx.output(Output::Announce);
            self.neighbours.connect_candidates(&mut self.ctx);
        }
        self.resend_chunk_map(slot);
        self.ctx.due.add(Work::FillSlots);
        self.ctx.due.add(Work::SeekLeases);
    }

    fn on_forget(&mut self, slot: BlobSlot) {
        self.on_unwant(slot);
        self.neighbours.end_exchange(&mut self.ctx, slot);
        self.ctx.blobs.remove(slot);
        self.neighbours.remove_blob(slot);
        self.far_peers.remove_blob(slot);
        self.downloads.remove_blob(slot);
        self.leases.remove_blob(slot);
        self.fallback.remove_blob(slot);
        self.claims.remove_blob(slot);
        self.have_batches.remove_blob(slot);
        self.stalls.remove_blob(slot);
    }

    /// Ends the want of a blob whose chunks are all held.
    fn complete_if_held(&mut self, slot: BlobSlot) {
        if !self.ctx.blobs.complete(slot) {
            return;
        }
        self.downloads.set_cursor(slot, None);
        self.stalls.stop(self.ctx.now, slot);
        self.leases.release_blob(&mut self.ctx, slot);
        self.neighbours.clear_candidates(slot);
        self.resend_chunk_map(slot);
        self.ctx.output(Output::Complete { blob: slot });
        self.ctx.output(Output::AnnounceSoon);
        self.ctx.due.add(Work::SeekLeases);
    }

    /// Sends the neighbours that have our chunk map and still lack chunks a new one: the complete
    /// chunk map, when the blob is complete, or the smaller one, when a chunk was lost.
    fn resend_chunk_map(&mut self, slot: BlobSlot) {
        self.have_batches.clear(slot);
        if let Some(blob) = self.ctx.blobs.get(slot) {
            let send_map = |peer| Output::SendChunkMap { peer, blob: slot };
            for output in blob.leechers_with_map().map(send_map) {
                self.ctx.outputs.push(output);
            }
        }
    }
}

// Peers.
impl PeerMachine {
    fn on_handout(&mut self, slot: BlobSlot, peers: Vec<PeerFacts>) {
        let peers = self.far_peers.admit(&self.ctx, slot, peers);
        for facts in &peers {
            self.downloads.register_peer(facts);
        }
        self.neighbours.on_handout(&mut self.ctx, slot, &peers);
    }

    fn on_connected(&mut self, facts: &PeerFacts, round_trip: Duration) {
        self.downloads.register_peer(facts);
        let has_transfers = |peer| self.downloads.has_request_at(peer) || self.uploads.serves(peer);
        let ctx = &mut self.ctx;
        if self
            .neighbours
            .on_connected(ctx, facts, round_trip, has_transfers)
        {
            self.downloads.on_connected(facts.peer);
            self.neighbours.update_slots(&mut self.ctx);
        }
    }

    fn on_disconnected(&mut self, peer: PeerSlot) {
        if self.neighbours.on_disconnected(&mut self.ctx, peer) {
            self.failures().on_disconnected(peer);
        }
    }

    fn on_rate_hint(&mut self, peer: PeerSlot, bits_per_second: u64) {
        if self.neighbours.on_rate_hint(peer, bits_per_second) {
            self.neighbours.update_slots(&mut self.ctx);
        }
    }

    fn on_have(&mut self, peer: PeerSlot, slot: BlobSlot, have: &HeldChunks) {
        let is_far = self.downloads.nearness(peer) == Some(Nearness::Elsewhere);
        if is_far && !self.far_peers.is_used(&self.ctx, slot) {
            return;
        }
        let is_new = self.claims.is_news_for(&self.ctx, peer, slot);
        let is_wanted = self.neighbours.on_have(&mut self.ctx, peer, slot, have);
        self.claims.on_have(&mut self.ctx, peer, slot, is_new);
        if is_wanted && self.downloads.is_free(self.ctx.now, peer) {
            self.ctx.due.add(Work::FillSlots);
        }
    }
}

// Deferred work.
impl PeerMachine {
    fn seek_leases(&mut self) {
        self.leases
            .seek(&mut self.ctx, &self.neighbours, &self.downloads);
    }

    fn update_stall_reasons(&mut self) {
        self.stalls
            .update(&self.ctx, &self.neighbours, &self.downloads, &self.leases);
    }

    /// Does the work that inputs and deadlines have made possible.
    fn do_due_work(&mut self) {
        let due = self.ctx.due;
        if due.contains(Work::FillSlots) {
            self.downloads.fill(&mut self.ctx, &self.neighbours);
        }
        if due.contains(Work::SeekLeases) {
            self.seek_leases();
        }
        if !due.is_empty() {
            self.update_stall_reasons();
        }
    }
}

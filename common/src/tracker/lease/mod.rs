//! The lease authority of one blob in one region: which peer may fetch which chunk from the
//! region's origin.
//!
//! A lease is one chunk, the lowest that the peer lacks and that was not granted. A few leases are
//! open at once, one per peer unless no other peer has a request. Requests are parked, one per
//! peer. The authority trusts the state of the peer and its neighbours in a request: a chunk that
//! was not granted, and that the peer does not miss, is in the swarm already, so a restarted
//! tracker learns the state of the swarm from requests.
//!
//! The authority never grants a chunk that is open, never more than the limit, and never again a
//! chunk whose holder lives: it names that holder to a starving peer instead.

mod chunks;
mod context;
mod far_window;
mod granting;
mod open_lease;
mod parked;

use core::time::Duration;

use rand::RngExt;

use self::chunks::{ChunkState, ChunkStates};
pub(super) use self::context::AuthorityContext;
use self::far_window::FarWindow;
use self::open_lease::OpenLease;
use self::parked::{ParkedRequest, ParkedRequests};
use super::config::UNCONFIRMED_FACTOR;
use super::messages::{LeaseOutcome, Take};
use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use super::timers::{Ticket, Timer};
use crate::origin_region::OriginRegion;
use crate::time::Time;

/// The leases of one blob in one region.
#[derive(Debug)]
pub(super) struct Authority {
    blob: BlobSlot,
    region: RegionSlot,
    chunks: ChunkStates,
    open: Vec<OpenLease>,
    parked: ParkedRequests,
    /// A peer had a part of the blob before this authority granted any of it.
    is_resumed: bool,
    /// When a lease was last renewed with more bytes, or done.
    moved_at: Time,
    /// How many leases may be open while they are served by origins of other regions.
    far_window: FarWindow,
}

impl Authority {
    pub(super) fn new(blob: BlobSlot, region: RegionSlot, chunks: u32) -> Self {
        Self {
            blob,
            region,
            chunks: ChunkStates::new(chunks),
            open: Vec::new(),
            parked: ParkedRequests::default(),
            is_resumed: false,
            moved_at: Time::ZERO,
            far_window: FarWindow::default(),
        }
    }

    pub(super) fn region(&self) -> RegionSlot {
        self.region
    }

    /// Chunks of the blob.
    pub(super) fn chunks(&self) -> u32 {
        self.chunks.count()
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    pub(super) fn parked_count(&self) -> usize {
        self.parked.len()
    }

    /// Chunks that were not granted, and that no peer was seen to have.
    pub(super) fn free_count(&self) -> u32 {
        self.chunks.free_count()
    }

    /// The open leases: chunk and holder.
    pub(super) fn open_leases(&self) -> impl Iterator<Item = (u32, PeerSlot)> + '_ {
        self.open.iter().map(|lease| (lease.chunk, lease.holder))
    }

    /// A peer requests a lease. The request is answered now or parked.
    pub(super) fn take(&mut self, take: Take, ctx: &mut AuthorityContext<'_>) {
        let park = ctx.config.park;
        if self
            .parked
            .of(take.peer)
            .is_some_and(|parked| take.number < parked.number)
        {
            return ctx.answer(take.request, wait(Duration::ZERO));
        }
        if self.chunks.is_untouched() {
            self.is_resumed |= !take.missing.is_full() || ctx.roster.has_started(self.blob);
        }
        self.chunks
            .learn(take.peer, &take.missing, &take.unreachable);
        if take.missing.is_empty() {
            self.unpark(take.peer, wait(park), ctx);
            ctx.answer(take.request, wait(park));
        } else if self.parked.len() >= ctx.config.parked_limit
            && self.parked.of(take.peer).is_none()
        {
            let retry_after = ctx.config.term.mul_f64(ctx.rng.random_range(0.5..1.5));
            ctx.answer(take.request, wait(retry_after));
        } else {
            let ticket = self.park(take, ctx);
            self.grant_parked(ctx);
            self.name_holder(ticket, ctx);
        }
    }

    /// The holder of a lease has `received` bytes by now.
    pub(super) fn renew(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        (received, from): (u64, Option<OriginRegion>),
        ctx: &mut AuthorityContext<'_>,
    ) -> LeaseOutcome {
        if let Some(at) = self.index_of(peer, chunk) {
            let lease = &mut self.open[at];
            let is_extended = !lease.is_confirmed || received > lease.received;
            if is_extended {
                if received > lease.received {
                    lease.moved_at = ctx.now;
                    self.moved_at = ctx.now;
                    if let Some(origin) = lease.known_origin(from) {
                        self.far_window.on_served(origin);
                        ctx.on_served(self.region, origin, lease.asked_at);
                    }
                }
                lease.is_confirmed = true;
                lease.received = received;
                lease.deadline = (ctx.now + ctx.config.term).min(lease.last_deadline);
            }
            let deadline = lease.deadline;
            if is_extended {
                self.set_timer(chunk, deadline, ctx);
            }
            return LeaseOutcome::Renewed {
                term: deadline.saturating_since(ctx.now),
            };
        }
        if self.adopt(peer, chunk, received, ctx) {
            LeaseOutcome::Renewed {
                term: ctx.config.term,
            }
        } else {
            LeaseOutcome::NotHeld
        }
    }

    /// The transfer of a lease makes no progress, and its holder waits for the origin.
    pub(super) fn waiting(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        from: Option<OriginRegion>,
        ctx: &mut AuthorityContext<'_>,
    ) -> LeaseOutcome {
        let Some(at) = self.index_of(peer, chunk) else {
            return LeaseOutcome::NotHeld;
        };
        let lease = &mut self.open[at];
        lease.waiting_at = Some(ctx.now);
        let Some(origin) = lease.known_origin(from.or(lease.from)) else {
            return LeaseOutcome::Noted;
        };
        ctx.on_waiting(self.region, origin, (peer, lease.moved_at));
        let elsewhere = ctx.origins.elsewhere(self.region, origin, lease.origins);
        let Some(to) = elsewhere else {
            return LeaseOutcome::Noted;
        };
        ctx.counts.moved += 1;
        lease.from = Some(to);
        lease.asked_at = ctx.now;
        lease.moved_at = ctx.now;
        lease.deadline = (ctx.now + ctx.config.term).min(lease.last_deadline);
        let deadline = lease.deadline;
        self.set_timer(chunk, deadline, ctx);
        LeaseOutcome::Moved { to }
    }

    /// Adopts a lease that its holder reports: after a restart of the tracker, or when the lease
    /// expired here and no other peer got the chunk. Above the limit, or when the peer has another
    /// open lease, the chunk only counts as held. False if another peer has the lease.
    pub(super) fn adopt(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        received: u64,
        ctx: &mut AuthorityContext<'_>,
    ) -> bool {
        match self.chunks.get(chunk) {
            None => false,
            Some(ChunkState::Open) => self.index_of(peer, chunk).is_some(),
            Some(ChunkState::Held(_)) => true,
            Some(ChunkState::Free | ChunkState::Orphaned) => {
                if self.counted(ctx.now) < ctx.config.open_limit && !self.has_open(peer) {
                    self.open(peer, chunk, Some(received), (None, 0), ctx);
                    ctx.counts.adopted += 1;
                } else {
                    self.chunks.set(chunk, ChunkState::Held(peer));
                }
                true
            }
        }
    }

    /// The peer has verified the chunk.
    pub(super) fn done(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        from: Option<OriginRegion>,
        ctx: &mut AuthorityContext<'_>,
    ) -> LeaseOutcome {
        self.moved_at = ctx.now;
        match self.open.iter().position(|lease| lease.chunk == chunk) {
            Some(at) if self.open[at].holder == peer => {
                let lease = self.open.swap_remove(at);
                if let Some(origin) = lease.known_origin(from) {
                    self.far_window.on_done(origin);
                    ctx.on_served(self.region, origin, lease.asked_at);
                }
                self.chunks.set(chunk, ChunkState::Held(peer));
                ctx.counts.done += 1;
            }
            Some(at) => self.open[at].fallback = ChunkState::Held(peer),
            None => self.chunks.set(chunk, ChunkState::Held(peer)),
        }
        self.grant_parked(ctx);
        LeaseOutcome::Noted
    }

    /// The peer gives the chunk up.
    pub(super) fn failed(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        ctx: &mut AuthorityContext<'_>,
    ) -> LeaseOutcome {
        match self.index_of(peer, chunk) {
            Some(at) => {
                self.close(at);
                ctx.counts.failed += 1;
            }
            None if self.chunks.get(chunk) == Some(ChunkState::Held(peer)) => {
                self.chunks.set(chunk, ChunkState::Orphaned);
            }
            None => {}
        }
        self.grant_parked(ctx);
        LeaseOutcome::Noted
    }

    /// The peer left the swarm: its request is answered, its leases end, and the chunks that it
    /// held are orphaned.
    pub(super) fn peer_left(&mut self, peer: PeerSlot, ctx: &mut AuthorityContext<'_>) {
        self.unpark(peer, LeaseOutcome::Unknown, ctx);
        for lease in self
            .open
            .iter_mut()
            .filter(|lease| lease.fallback == ChunkState::Held(peer))
        {
            lease.fallback = ChunkState::Orphaned;
        }
        while let Some(at) = self.open.iter().position(|lease| lease.holder == peer) {
            self.close(at);
        }
        self.chunks.orphan(peer);
        self.parked.forget(peer);
        self.grant_parked(ctx);
    }

    /// The peer holds nothing, so it must not be named as a holder.
    pub(super) fn orphan_chunks(&mut self, peer: PeerSlot) {
        self.chunks.orphan(peer);
    }

    /// The peer does not need its request any more.
    pub(super) fn drop_request(&mut self, peer: PeerSlot, ctx: &mut AuthorityContext<'_>) {
        self.unpark(peer, wait(Duration::ZERO), ctx);
    }

    /// A term may have expired, or a holder may be late to confirm.
    pub(super) fn on_lease_timeout(&mut self, chunk: u32, ctx: &mut AuthorityContext<'_>) {
        let Some(at) = self.open.iter().position(|lease| lease.chunk == chunk) else {
            return;
        };
        let is_stalled = self.is_stalled(ctx);
        let lease = &mut self.open[at];
        if lease.deadline <= ctx.now {
            if is_stalled && lease.extend_stalled(ctx.now, ctx.config) {
                return self.set_timer(chunk, self.open[at].deadline, ctx);
            }
            self.close(at);
            ctx.counts.expired += 1;
            self.grant_parked(ctx);
        } else if !lease.is_counted(ctx.now) {
            self.grant_parked(ctx);
        }
    }

    /// A request may have been parked for the longest time.
    pub(super) fn on_parked_timeout(&mut self, ticket: Ticket, ctx: &mut AuthorityContext<'_>) {
        let parked = self.parked.get(ticket);
        let is_due = |parked: &&ParkedRequest| parked.deadline <= ctx.now;
        if let Some(peer) = parked.filter(is_due).map(|parked| parked.peer) {
            self.unpark(peer, wait(Duration::ZERO), ctx);
        }
    }

    /// Open leases that count against the limit: those whose holders are not late to confirm.
    fn counted(&self, now: Time) -> usize {
        let open = self.open.iter();
        open.filter(|lease| lease.is_counted(now)).count()
    }

    /// Whether the origin serves none of the holders: no lease has moved for half a term, and
    /// several holders wait. Other holders would wait too, and the chunks would be sent twice once
    /// the origin, or another in its place, serves again.
    fn is_stalled(&self, ctx: &AuthorityContext<'_>) -> bool {
        let term = ctx.config.term;
        let waiting = |lease: &&OpenLease| lease.is_waiting(ctx.now, term);
        let mut holders = self.open.iter().filter(waiting).map(|lease| lease.holder);
        let first = holders.next();
        self.moved_at + term / 2 <= ctx.now && holders.any(|holder| Some(holder) != first)
    }

    /// The index of the open lease of a peer on a chunk.
    fn index_of(&self, peer: PeerSlot, chunk: u32) -> Option<usize> {
        let mut open = self.open.iter();
        open.position(|lease| lease.chunk == chunk && lease.holder == peer)
    }

    fn has_open(&self, peer: PeerSlot) -> bool {
        self.open_count_of(peer) > 0
    }

    fn open_count_of(&self, peer: PeerSlot) -> usize {
        let open = self.open.iter();
        open.filter(|lease| lease.holder == peer).count()
    }

    /// Opens a lease. `received` are the bytes of a holder that has reported the lease already;
    /// `from` is the origin that it asks first, and `origins` the number of those that it may ask.
    fn open(
        &mut self,
        holder: PeerSlot,
        chunk: u32,
        received: Option<u64>,
        (from, origins): (Option<OriginRegion>, u8),
        ctx: &mut AuthorityContext<'_>,
    ) {
        let is_confirmed = received.is_some();
        let unconfirmed_term = ctx.config.confirm * UNCONFIRMED_FACTOR;
        let term = if is_confirmed {
            ctx.config.term
        } else {
            ctx.config.term.min(unconfirmed_term)
        };
        let longest = if self.chunks() == 1 {
            ctx.config.longest_whole
        } else {
            ctx.config.longest
        };
        let deadline = ctx.now + term;
        let late_at = ctx.now + ctx.config.confirm;
        let fallback = self.chunks.open(ctx.now, chunk);
        self.open.push(OpenLease {
            chunk,
            holder,
            deadline,
            last_deadline: ctx.now + longest,
            from,
            asked_at: ctx.now,
            origins,
            received: received.unwrap_or(0),
            moved_at: ctx.now,
            waiting_at: None,
            is_confirmed,
            late_at,
            fallback,
        });
        for at in [late_at, deadline] {
            self.set_timer(chunk, at, ctx);
        }
    }

    /// Looks at the lease on a chunk again at `at`.
    fn set_timer(&self, chunk: u32, at: Time, ctx: &mut AuthorityContext<'_>) {
        let timer = Timer::Lease {
            blob: self.blob,
            region: self.region,
            chunk,
        };
        ctx.timers.set(at, timer);
    }

    /// Ends the open lease at index `at` without the chunk.
    fn close(&mut self, at: usize) {
        let lease = self.open.swap_remove(at);
        self.chunks.set(lease.chunk, lease.fallback);
    }

    /// Parks a request. It replaces an older one of the same peer, which is answered.
    fn park(&mut self, take: Take, ctx: &mut AuthorityContext<'_>) -> Ticket {
        self.unpark(take.peer, wait(ctx.config.park), ctx);
        let park = if take.starving {
            ctx.config.park_starving
        } else {
            ctx.config.park
        };
        let deadline = ctx.now + park;
        let request = ParkedRequest {
            request: take.request,
            peer: take.peer,
            number: take.number,
            missing: take.missing,
            starving: take.starving,
            unreachable: take.unreachable,
            origins: take.origins,
            deadline,
        };
        let ticket = self.parked.insert(request, ctx.rng, ctx.next_ticket);
        ctx.timers.set(
            deadline,
            Timer::Parked {
                blob: self.blob,
                region: self.region,
                ticket,
            },
        );
        ticket
    }

    fn unpark(&mut self, peer: PeerSlot, answer: LeaseOutcome, ctx: &mut AuthorityContext<'_>) {
        if let Some(parked) = self.parked.remove(peer) {
            ctx.answer(parked.request, answer);
        }
    }
}

fn wait(retry_after: Duration) -> LeaseOutcome {
    LeaseOutcome::Wait { retry_after }
}

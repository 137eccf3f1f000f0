//! The lease authority of one blob in one region: who may fetch which chunk from the region's
//! origin.
//!
//! ```text
//!            granted              done
//!   Free ──────────────> Open ──────────────> Held(by a live peer)
//!    ^                    │                      │  its holder is gone, or lacks it now
//!    └────────────────────┘                      v
//!      failed, holder gone,                   Orphaned ──> Open, for a starving peer, once per term;
//!      term ran out                              ^          │ back when it comes to nothing
//!                                                └──────────┘
//! ```
//!
//! A lease is one chunk, the lowest that the asker lacks and nobody was granted. A few are open at
//! once, one per peer unless nobody else asks. Requests are parked, one per peer, and served in
//! rounds, each peer once per round, in random order: who comes first to a burst knows those who
//! came first, and chunks that all begin in one corner of the swarm are slow to leave it. What a
//! requester and its neighbours have is believed: a chunk that nobody was granted and that the
//! requester does not miss is in the swarm already, and the requester is its witness; so a tracker
//! that was restarted learns.
//!
//! The authority never grants a chunk that is open, never more than the limit, and never again a
//! chunk whose holder lives: a starving peer is told to dial that holder instead.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use core::time::Duration;
use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::config::LeaseConfig;
use super::messages::{Counts, LeaseAnswer, Output, RequestId, Take};
use super::roster::Roster;
use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use super::timers::{Timer, Timers};
use crate::map::ChunkMap;
use crate::time::Time;

/// Place in the queue of parked requests; unique in the life of a machine.
pub(super) type Ticket = u64;

/// What is known of one chunk in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nobody has it: never granted, or a grant came to nothing.
    Free,
    /// Somebody is fetching it.
    Open,
    /// This peer has it, or a neighbour of it.
    Held(PeerSlot),
    /// It was in the swarm once, but who had it is gone.
    Orphaned,
}

/// A lease that is open.
#[derive(Debug)]
struct Open {
    chunk: u32,
    holder: PeerSlot,
    /// Over then, unless renewed with progress.
    deadline: Time,
    /// Over then, whatever was renewed.
    last_deadline: Time,
    /// Bytes that the holder had at its last renewal.
    received: u64,
    /// Whether the holder has said anything since the grant. Until then it may be dead.
    is_confirmed: bool,
    /// From when on it does not count against the limit unless it is confirmed.
    late_at: Time,
    /// What the chunk is if this lease comes to nothing: what it was, or held by a peer that came
    /// with it late.
    fallback: Standing,
}

impl Open {
    fn counts(&self, now: Time) -> bool {
        self.is_confirmed || now < self.late_at
    }
}

/// How many leases a peer may have in a round of grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    One,
    More,
}

/// A request that waits.
#[derive(Debug)]
struct Parked {
    request: RequestId,
    peer: PeerSlot,
    number: u64,
    missing: ChunkMap,
    starving: bool,
    unreachable: Vec<PeerSlot>,
    deadline: Time,
}

/// What the authority works with besides itself.
pub(super) struct Context<'a> {
    pub(super) now: Time,
    pub(super) config: &'a LeaseConfig,
    pub(super) roster: &'a Roster,
    pub(super) rng: &'a mut Pcg64Mcg,
    pub(super) timers: &'a mut Timers,
    pub(super) outputs: &'a mut VecDeque<Output>,
    pub(super) counts: &'a mut Counts,
    pub(super) next_ticket: &'a mut Ticket,
    /// The tracker started a moment ago and may not know yet what is in the swarm.
    pub(super) is_settling: bool,
}

impl Context<'_> {
    fn answer(&mut self, request: RequestId, answer: LeaseAnswer) {
        self.outputs.push_back(Output::Lease { request, answer });
    }
}

/// The leases of one blob in one region.
#[derive(Debug)]
pub(super) struct Authority {
    blob: BlobSlot,
    region: RegionSlot,
    standings: Vec<Standing>,
    /// When each chunk was granted last; zero for never.
    granted_at: Vec<Time>,
    free: ChunkMap,
    orphaned: ChunkMap,
    open: Vec<Open>,
    parked: BTreeMap<Ticket, Parked>,
    tickets: BTreeMap<PeerSlot, Ticket>,
    /// Leases that each peer was granted: the round that its next request is in.
    rounds: BTreeMap<PeerSlot, u16>,
    /// Somebody had a part of the blob before this authority granted any of it.
    is_resumed: bool,
}

impl Authority {
    pub(super) fn new(blob: BlobSlot, region: RegionSlot, chunks: u32) -> Self {
        Self {
            blob,
            region,
            standings: vec![Standing::Free; chunks as usize],
            granted_at: vec![Time::ZERO; chunks as usize],
            free: ChunkMap::full(chunks),
            orphaned: ChunkMap::empty(chunks),
            open: Vec::new(),
            parked: BTreeMap::new(),
            tickets: BTreeMap::new(),
            rounds: BTreeMap::new(),
            is_resumed: false,
        }
    }

    pub(super) fn region(&self) -> RegionSlot {
        self.region
    }

    pub(super) fn chunks(&self) -> u32 {
        self.standings.len() as u32
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    pub(super) fn parked_count(&self) -> usize {
        self.parked.len()
    }

    /// Chunks that nobody was granted or was seen to have.
    pub(super) fn free_count(&self) -> u32 {
        self.free.count()
    }

    /// The open leases: chunk and holder.
    pub(super) fn open_leases(&self) -> impl Iterator<Item = (u32, PeerSlot)> + '_ {
        self.open.iter().map(|lease| (lease.chunk, lease.holder))
    }

    /// A peer asks for a lease. It is answered now or parked.
    pub(super) fn take(&mut self, take: Take, ctx: &mut Context<'_>) {
        if self
            .parked_of(take.peer)
            .is_some_and(|parked| take.number < parked.number)
        {
            return ctx.answer(
                take.request,
                LeaseAnswer::Wait {
                    retry_after: Duration::ZERO,
                },
            );
        }
        if self
            .standings
            .iter()
            .all(|standing| *standing == Standing::Free)
        {
            self.is_resumed |= !take.missing.is_full() || ctx.roster.has_started(self.blob);
        }
        self.learn(take.peer, &take.missing, &take.unreachable);
        if take.missing.is_empty() {
            self.unpark(
                take.peer,
                LeaseAnswer::Wait {
                    retry_after: ctx.config.park,
                },
                ctx,
            );
            ctx.answer(
                take.request,
                LeaseAnswer::Wait {
                    retry_after: ctx.config.park,
                },
            );
        } else if self.parked.len() >= ctx.config.parked_limit
            && !self.tickets.contains_key(&take.peer)
        {
            let retry_after = ctx.config.term.mul_f64(ctx.rng.random_range(0.5..1.5));
            ctx.answer(take.request, LeaseAnswer::Wait { retry_after });
        } else {
            let ticket = self.park(take, ctx);
            self.pump(ctx);
            self.introduce(ticket, ctx);
        }
    }

    /// The holder of a lease has `received` bytes by now.
    pub(super) fn renew(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        received: u64,
        ctx: &mut Context<'_>,
    ) -> LeaseAnswer {
        if let Some(lease) = self
            .open
            .iter_mut()
            .find(|lease| lease.chunk == chunk && lease.holder == peer)
        {
            if !lease.is_confirmed || received > lease.received {
                lease.is_confirmed = true;
                lease.received = received;
                lease.deadline = (ctx.now + ctx.config.term).min(lease.last_deadline);
                ctx.timers.set(
                    lease.deadline,
                    Timer::Lease {
                        blob: self.blob,
                        region: self.region,
                        chunk,
                    },
                );
            }
            return LeaseAnswer::Renewed {
                term: lease.deadline.saturating_since(ctx.now),
            };
        }
        if self.adopt(peer, chunk, received, ctx) {
            LeaseAnswer::Renewed {
                term: ctx.config.term,
            }
        } else {
            LeaseAnswer::NotHeld
        }
    }

    /// Takes up a lease that its holder says it has: after a restart, or when its term ran out here
    /// and nobody else got the chunk. Above the limit, or when the peer has another one open, the
    /// chunk only counts as held. False if another peer has the lease.
    pub(super) fn adopt(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        received: u64,
        ctx: &mut Context<'_>,
    ) -> bool {
        match self.standing(chunk) {
            None => false,
            Some(Standing::Open) => self
                .open
                .iter()
                .any(|lease| lease.chunk == chunk && lease.holder == peer),
            Some(Standing::Held(_)) => true,
            Some(Standing::Free | Standing::Orphaned) => {
                if self.counted(ctx.now) < ctx.config.open_limit && !self.has_open(peer) {
                    self.open(peer, chunk, Some(received), ctx);
                    ctx.counts.adopted += 1;
                } else {
                    self.set(chunk, Standing::Held(peer));
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
        ctx: &mut Context<'_>,
    ) -> LeaseAnswer {
        match self.open.iter().position(|lease| lease.chunk == chunk) {
            Some(at) if self.open[at].holder == peer => {
                self.open.swap_remove(at);
                self.set(chunk, Standing::Held(peer));
                ctx.counts.done += 1;
            }
            Some(at) => self.open[at].fallback = Standing::Held(peer),
            None => self.set(chunk, Standing::Held(peer)),
        }
        self.pump(ctx);
        LeaseAnswer::Noted
    }

    /// The peer gives the chunk up.
    pub(super) fn failed(
        &mut self,
        peer: PeerSlot,
        chunk: u32,
        ctx: &mut Context<'_>,
    ) -> LeaseAnswer {
        match self
            .open
            .iter()
            .position(|lease| lease.chunk == chunk && lease.holder == peer)
        {
            Some(at) => {
                self.close(at);
                ctx.counts.failed += 1;
            }
            None if self.standing(chunk) == Some(Standing::Held(peer)) => {
                self.set(chunk, Standing::Orphaned)
            }
            None => {}
        }
        self.pump(ctx);
        LeaseAnswer::Noted
    }

    /// The peer is no longer in the swarm: its request is answered, its leases end, what it held is
    /// orphaned.
    pub(super) fn peer_left(&mut self, peer: PeerSlot, ctx: &mut Context<'_>) {
        self.unpark(peer, LeaseAnswer::Unknown, ctx);
        for lease in self
            .open
            .iter_mut()
            .filter(|lease| lease.fallback == Standing::Held(peer))
        {
            lease.fallback = Standing::Orphaned;
        }
        while let Some(at) = self.open.iter().position(|lease| lease.holder == peer) {
            self.close(at);
        }
        self.orphan_chunks(peer);
        self.rounds.remove(&peer);
        self.pump(ctx);
    }

    /// The peer holds nothing, so it is nobody to dial.
    pub(super) fn orphan_chunks(&mut self, peer: PeerSlot) {
        for chunk in 0..self.chunks() {
            if self.standings[chunk as usize] == Standing::Held(peer) {
                self.set(chunk, Standing::Orphaned);
            }
        }
    }

    /// The peer's request is not needed any more.
    pub(super) fn drop_request(&mut self, peer: PeerSlot, ctx: &mut Context<'_>) {
        self.unpark(
            peer,
            LeaseAnswer::Wait {
                retry_after: Duration::ZERO,
            },
            ctx,
        );
    }

    /// A term may have run out, or a holder may be late to confirm.
    pub(super) fn lease_timeout(&mut self, chunk: u32, ctx: &mut Context<'_>) {
        let Some(at) = self.open.iter().position(|lease| lease.chunk == chunk) else {
            return;
        };
        let lease = &self.open[at];
        if lease.deadline <= ctx.now {
            self.close(at);
            ctx.counts.expired += 1;
            self.pump(ctx);
        } else if !lease.counts(ctx.now) {
            self.pump(ctx);
        }
    }

    /// Open leases that count against the limit: those whose holders are not known to be silent.
    fn counted(&self, now: Time) -> usize {
        self.open.iter().filter(|lease| lease.counts(now)).count()
    }

    /// A request may have waited long enough.
    pub(super) fn park_timeout(&mut self, ticket: Ticket, ctx: &mut Context<'_>) {
        if let Some(parked) = self
            .parked
            .get(&ticket)
            .filter(|parked| parked.deadline <= ctx.now)
        {
            let peer = parked.peer;
            self.unpark(
                peer,
                LeaseAnswer::Wait {
                    retry_after: Duration::ZERO,
                },
                ctx,
            );
        }
    }

    /// Grants what can be granted to those who wait: one lease each, and more only where that
    /// leaves the origin idle.
    pub(super) fn pump(&mut self, ctx: &mut Context<'_>) {
        let seeders: Vec<PeerSlot> = if self.parked.is_empty() {
            Vec::new()
        } else {
            ctx.roster
                .seeders_in(self.blob, self.region)
                .take(MANY_SEEDERS)
                .collect()
        };
        self.pump_round(Share::One, &seeders, ctx);
        self.pump_round(Share::More, &seeders, ctx);
    }

    fn pump_round(&mut self, share: Share, seeders: &[PeerSlot], ctx: &mut Context<'_>) {
        let mut after = Bound::Unbounded;
        while self.counted(ctx.now) < ctx.config.open_limit
            && !(self.free.is_empty() && self.orphaned.is_empty())
        {
            let Some((ticket, parked)) = self.parked.range((after, Bound::Unbounded)).next() else {
                return;
            };
            let (ticket, peer, request) = (*ticket, parked.peer, parked.request);
            after = Bound::Excluded(ticket);
            let Some(chunk) = self.choose(parked, share, seeders, ctx) else {
                continue;
            };
            self.parked.remove(&ticket);
            self.tickets.remove(&peer);
            let round = self.rounds.entry(peer).or_default();
            *round = round.saturating_add(1);
            if self.standings[chunk as usize] == Standing::Orphaned {
                ctx.counts.granted_again += 1;
            }
            ctx.counts.granted += 1;
            self.open(peer, chunk, None, ctx);
            ctx.answer(
                request,
                LeaseAnswer::Granted {
                    chunk,
                    term: ctx.config.term,
                },
            );
        }
    }

    /// The chunk to grant to a parked request, if any may be.
    fn choose(
        &self,
        parked: &Parked,
        share: Share,
        seeders: &[PeerSlot],
        ctx: &Context<'_>,
    ) -> Option<u32> {
        if (share == Share::One && self.has_open(parked.peer))
            || (ctx.is_settling && self.is_resumed)
        {
            return None;
        }
        // A seeder has every chunk: dial it, and ask the origin only when none of them can be
        // reached, or none of so many that the others will be no better.
        let out_of_reach = seeders
            .iter()
            .filter(|seeder| parked.unreachable.contains(seeder))
            .count();
        let are_seeders_out_of_reach =
            parked.starving && (out_of_reach == seeders.len() || out_of_reach >= MANY_UNREACHABLE);
        if (seeders.is_empty() || are_seeders_out_of_reach)
            && let Some(chunk) = common_chunks(&self.free, &parked.missing).next()
        {
            return Some(chunk);
        }
        let may_again = |chunk: &u32| {
            let granted_at = self.granted_at[*chunk as usize];
            granted_at == Time::ZERO || granted_at + ctx.config.term <= ctx.now
        };
        let mut orphans = common_chunks(&self.orphaned, &parked.missing).filter(may_again);
        if parked.starving {
            orphans.next()
        } else {
            None
        }
    }

    /// Names a live holder to a starving peer that waits for nothing that could be granted.
    fn introduce(&mut self, ticket: Ticket, ctx: &mut Context<'_>) {
        let Some(parked) = self.parked.get(&ticket).filter(|parked| parked.starving) else {
            return;
        };
        let is_candidate =
            |holder: PeerSlot| holder != parked.peer && !parked.unreachable.contains(&holder);
        let seeders: Vec<PeerSlot> = ctx
            .roster
            .seeders_in(self.blob, self.region)
            .filter(|seeder| is_candidate(*seeder))
            .take(MANY_SEEDERS)
            .collect();
        let holder = if let (Some(chunk), false) =
            (parked.missing.iter().next(), seeders.is_empty())
        {
            Some((
                chunk,
                seeders[ctx.rng.random_range(0..seeders.len() as u64) as usize],
            ))
        } else if common_chunks(&self.free, &parked.missing).next().is_some() {
            None
        } else {
            let held: Vec<(u32, PeerSlot)> = parked
                .missing
                .iter()
                .filter_map(|chunk| match self.standings[chunk as usize] {
                    Standing::Held(holder) if is_candidate(holder) => Some((chunk, holder)),
                    _ => None,
                })
                .collect();
            (!held.is_empty()).then(|| held[ctx.rng.random_range(0..held.len() as u64) as usize])
        };
        if let Some((chunk, holder)) = holder {
            let peer = parked.peer;
            ctx.counts.introduced += 1;
            self.unpark(peer, LeaseAnswer::Dial { holder, chunk }, ctx);
        }
    }

    /// Draws what a request says about who has what.
    fn learn(&mut self, peer: PeerSlot, missing: &ChunkMap, unreachable: &[PeerSlot]) {
        for chunk in 0..self.chunks() {
            let is_missing = missing.contains(chunk);
            match self.standings[chunk as usize] {
                Standing::Free | Standing::Orphaned if !is_missing => {
                    self.set(chunk, Standing::Held(peer))
                }
                Standing::Held(holder)
                    if is_missing && (holder == peer || unreachable.contains(&holder)) =>
                {
                    self.set(chunk, Standing::Orphaned);
                }
                _ => {}
            }
        }
    }

    fn standing(&self, chunk: u32) -> Option<Standing> {
        self.standings.get(chunk as usize).copied()
    }

    fn set(&mut self, chunk: u32, standing: Standing) {
        if let Some(place) = self.standings.get_mut(chunk as usize) {
            *place = standing;
            self.free.remove(chunk);
            self.orphaned.remove(chunk);
            match standing {
                Standing::Free => _ = self.free.insert(chunk),
                Standing::Orphaned => _ = self.orphaned.insert(chunk),
                Standing::Open | Standing::Held(_) => {}
            }
        }
    }

    fn has_open(&self, peer: PeerSlot) -> bool {
        self.open.iter().any(|lease| lease.holder == peer)
    }

    /// Opens a lease; `heard` are the bytes of a holder that has spoken of it already.
    fn open(&mut self, holder: PeerSlot, chunk: u32, heard: Option<u64>, ctx: &mut Context<'_>) {
        let silence = ctx.config.confirm * SILENCE;
        let term = if heard.is_some() {
            ctx.config.term
        } else {
            ctx.config.term.min(silence)
        };
        let deadline = ctx.now + term;
        let longest = if self.chunks() == 1 {
            ctx.config.longest_whole
        } else {
            ctx.config.longest
        };
        let last_deadline = ctx.now + longest;
        let fallback = self.standings[chunk as usize];
        self.set(chunk, Standing::Open);
        self.granted_at[chunk as usize] = ctx.now;
        let late_at = ctx.now + ctx.config.confirm;
        self.open.push(Open {
            chunk,
            holder,
            deadline,
            last_deadline,
            received: heard.unwrap_or(0),
            is_confirmed: heard.is_some(),
            late_at,
            fallback,
        });
        for at in [late_at, deadline] {
            ctx.timers.set(
                at,
                Timer::Lease {
                    blob: self.blob,
                    region: self.region,
                    chunk,
                },
            );
        }
    }

    /// Ends the open lease at `at` without the chunk.
    fn close(&mut self, at: usize) {
        let lease = self.open.swap_remove(at);
        self.set(lease.chunk, lease.fallback);
    }

    /// Parks a request; a newer one of the same peer takes the place of the older.
    fn park(&mut self, take: Take, ctx: &mut Context<'_>) -> Ticket {
        let ticket = self.draw_ticket(take.peer, take.starving, ctx);
        let deadline = ctx.now
            + if take.starving {
                ctx.config.park_starving
            } else {
                ctx.config.park
            };
        let Take {
            request,
            peer,
            number,
            missing,
            starving,
            unreachable,
            ..
        } = take;
        let parked = Parked {
            request,
            peer,
            number,
            missing,
            starving,
            unreachable,
            deadline,
        };
        self.parked.insert(ticket, parked);
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

    /// A place in the queue: who starves first, for it has spoken just now and lives; then by
    /// rounds, within a round at random. An older request of the peer is answered.
    fn draw_ticket(&mut self, peer: PeerSlot, starving: bool, ctx: &mut Context<'_>) -> Ticket {
        self.unpark(
            peer,
            LeaseAnswer::Wait {
                retry_after: ctx.config.park,
            },
            ctx,
        );
        let round = u64::from(self.rounds.get(&peer).copied().unwrap_or(0));
        let place = ctx.rng.random_range(0..1_u64 << 16);
        *ctx.next_ticket += 1;
        let ticket = u64::from(!starving) << 63
            | round.min(0x7fff) << 48
            | place << 32
            | (*ctx.next_ticket & 0xffff_ffff);
        self.tickets.insert(peer, ticket);
        ticket
    }

    fn parked_of(&self, peer: PeerSlot) -> Option<&Parked> {
        self.tickets
            .get(&peer)
            .and_then(|ticket| self.parked.get(ticket))
    }

    fn unpark(&mut self, peer: PeerSlot, answer: LeaseAnswer, ctx: &mut Context<'_>) {
        if let Some(parked) = self
            .tickets
            .remove(&peer)
            .and_then(|ticket| self.parked.remove(&ticket))
        {
            ctx.answer(parked.request, answer);
        }
    }
}

/// A lease whose holder stays silent ends after so many times the time it has to confirm.
const SILENCE: u32 = 5;
/// How many seeders are looked at; beyond these, one is as good as another.
const MANY_SEEDERS: usize = 64;
/// Whoever could not reach so many seeders need not try the rest: about a handout.
const MANY_UNREACHABLE: usize = 12;

/// The chunks in both maps, ascending.
fn common_chunks<'a>(one: &'a ChunkMap, other: &'a ChunkMap) -> impl Iterator<Item = u32> + 'a {
    one.words()
        .iter()
        .zip(other.words())
        .zip(0_u32..)
        .flat_map(|((one, other), index)| {
            let mut word = one & other;
            core::iter::from_fn(move || {
                (word != 0).then(|| {
                    let bit = word.trailing_zeros();
                    word &= word - 1;
                    index * 64 + bit
                })
            })
        })
}

//! Claims: how peers share the work of fetching from origins when no tracker grants leases.
//!
//! A peer that begins to fetch a chunk from an origin without a lease tells its neighbours, which
//! hand the claim on once. A claimed chunk is left alone until the chunk is seen, here or at a
//! neighbour, or until the claim expires. While bytes arrive, the claim is renewed.
//!
//! ```text
//! claimant                        its neighbour                    others
//!    ── Claims {chunk, term} ────────▶ ── Claims {chunk, term} ───────▶   handed on once
//!    (fetches the chunk)               (leaves it alone)                  (leave it alone)
//!    ── Have {chunk} ────────────────▶ the claim has ended
//! ```
//!
//! A chunk is claimed by a peer at a random time ([`ClaimRate`]) and chosen at random among those
//! that are neither available nor claimed, so two peers rarely choose the same before they hear of
//! each other. What a neighbour may claim is limited ([`ClaimHearing`]).

use core::time::Duration;

use super::blob_exchange::BlobExchange;
use super::claim_hearing::ClaimHearing;
use super::claim_rate::ClaimRate;
use super::context::Context;
use super::downloads::Downloads;
use super::io::{BlobSlot, Claim, Output, PeerSlot};
use super::neighbours::Neighbours;
use super::per_blob::PerBlob;
use super::timers::Timer;
use crate::time::Time;

/// Chunks of a blob are claimed while fewer claims than this are open.
const TARGET_OPEN: usize = 24;
/// Maximum number of open claims of a blob that are remembered.
const MAX_OPEN: usize = 128;
/// With fewer chunks to claim than this, claims are made more slowly.
const FEW_CHUNKS: f64 = 2.0;

/// Shortest term of an own claim.
const MIN_TERM: Duration = Duration::from_secs(2);
/// Chunk times of the term, if that is longer.
const TERM_CHUNK_TIMES: u32 = 8;
/// A claim is believed for so long, however often it is renewed.
const MAX_AGE: Duration = Duration::from_secs(10);
/// Chunk times of the same, if that is longer.
const AGE_CHUNK_TIMES: u32 = 32;
/// After a claim of a chunk expired, the next one is believed for [`MIN_TERM`], and for half as
/// long each time after that, so many times.
const MAX_HALVINGS: u8 = 8;
/// A renewal that adds less than this is not handed on.
const MIN_EXTENSION: Duration = Duration::from_millis(500);

/// Bounds of the time that a claim is assumed to take to reach the swarm.
const MIN_CLAIM_TIME: Duration = Duration::from_millis(5);
const MAX_CLAIM_TIME: Duration = Duration::from_millis(250);

/// A chunk that is being fetched from an origin without a lease.
#[derive(Clone, Copy, Debug)]
struct OpenClaim {
    chunk: u32,
    claimant: Claimant,
    since: Time,
    expires_at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claimant {
    /// This peer; the bytes that it had received when it last told.
    Own { received: u64 },
    /// Another peer; the neighbour from which the claim was heard first.
    HeardFrom(PeerSlot),
}

/// The claims of one blob.
#[derive(Debug)]
struct BlobClaims {
    open: Vec<OpenClaim>,
    rate: ClaimRate,
    /// To be told to the neighbours.
    outgoing: Vec<Claim>,
    /// When neighbours were last told.
    sent_at: Time,
    /// How many claims of each chunk have expired; 0 for chunks that are not in the list.
    expired: Vec<u8>,
}

impl BlobClaims {
    fn is_claimed(&self, chunk: u32) -> bool {
        self.open.iter().any(|open| open.chunk == chunk)
    }

    /// How long the next claim of a chunk is believed, or the one that is open, however often it is
    /// renewed: less and less after others expired.
    fn max_age(&self, blob: &BlobExchange, chunk: u32) -> Duration {
        match self.expired.get(chunk as usize).copied().unwrap_or(0) {
            0 => MAX_AGE.max(blob.chunk_time() * AGE_CHUNK_TIMES),
            expired => MIN_TERM / (1 << (expired - 1).min(MAX_HALVINGS)),
        }
    }

    fn count_expired(&mut self, chunk: u32) {
        let index = chunk as usize;
        if index >= self.expired.len() {
            self.expired.resize(index + 1, 0);
        }
        self.expired[index] = self.expired[index].saturating_add(1);
    }

    fn count_from(&self, peer: PeerSlot) -> usize {
        let claimant = Claimant::HeardFrom(peer);
        let open = self.open.iter();
        open.filter(|open| open.claimant == claimant).count()
    }
}

/// The claims of all blobs that were ever claimed without a lease.
#[derive(Debug, Default)]
pub(super) struct Claims {
    blobs: PerBlob<BlobClaims>,
    hearing: ClaimHearing,
    /// Blobs with outgoing claims that wait, each at most once.
    waiting: Vec<BlobSlot>,
}

// Events.
impl Claims {
    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.blobs.remove(slot);
    }

    /// The blob is wanted from now on, or leases are not granted any more: as many peers may begin at
    /// the same time, the first claims are made slowly.
    pub(super) fn restart(&mut self, ctx: &mut Context, slot: BlobSlot) {
        if let Some(claims) = self.blobs.get_mut(slot) {
            claims.rate = ClaimRate::new(ctx.now, &mut ctx.rng);
        }
    }

    /// Leases are not granted any more.
    pub(super) fn restart_wanted(&mut self, ctx: &mut Context) {
        for at in 0..ctx.blobs.wanted().len() {
            self.restart(ctx, ctx.blobs.wanted()[at]);
        }
    }

    /// A neighbour tells its own claims, or hands on those of others.
    pub(super) fn on_heard(
        &mut self,
        ctx: &mut Context,
        peer: PeerSlot,
        slot: BlobSlot,
        heard: &[Claim],
    ) {
        if ctx
            .blobs
            .get(slot)
            .is_none_or(|blob| blob.index_of(peer).is_none())
        {
            return;
        }
        self.end_claims(ctx, slot);
        for claim in heard {
            self.hear(ctx, peer, slot, claim);
        }
        self.send(ctx, slot);
    }

    /// Whether claims of a blob are open, and the peer has heard none of them, because it has sent no
    /// message about the blob yet.
    pub(super) fn is_news_for(&self, ctx: &Context, peer: PeerSlot, slot: BlobSlot) -> bool {
        let claims = self.blobs.get(slot);
        claims.is_some_and(|claims| !claims.open.is_empty())
            && ctx.blobs.get(slot).is_some_and(|blob| !blob.knows(peer))
    }

    /// A neighbour announced chunks of a blob. `is_new` is what [`Self::is_news_for`] said before.
    pub(super) fn on_have(
        &mut self,
        ctx: &mut Context,
        peer: PeerSlot,
        slot: BlobSlot,
        is_new: bool,
    ) {
        if self.end_claims(ctx, slot) {
            ctx.timers.wake_by(Timer::Fallback, ctx.now);
        }
        if is_new {
            self.tell_all(ctx, peer, slot);
        }
    }

    /// Tells the claims that have waited for long enough.
    pub(super) fn send_due(&mut self, ctx: &mut Context) {
        for slot in core::mem::take(&mut self.waiting) {
            self.send(ctx, slot);
        }
    }

    /// Claims the chunks of a blob that are being fetched from an origin; and returns a chunk to
    /// fetch now, if it is time for one. `may_fetch` says whether another fetch is possible.
    pub(super) fn next_chunk(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        downloads: &Downloads,
        slot: BlobSlot,
        may_fetch: bool,
    ) -> Option<u32> {
        self.end_claims(ctx, slot);
        self.claim_fetches(ctx, downloads, slot);
        self.send(ctx, slot);
        let (blob, claims) = (ctx.blobs.get(slot)?, self.blobs.get_mut(slot)?);
        let ends = claims.open.iter().map(|open| open.expires_at);
        if let Some(first) = ends.min() {
            ctx.timers.wake_by(Timer::Fallback, first);
        }
        // Claims of chunks that were seen have ended, so all open ones are of unavailable chunks.
        let unclaimed = (blob.unavailable() as usize).saturating_sub(claims.open.len());
        let speed = if may_fetch {
            clock_speed(claims.open.len(), unclaimed)
        } else {
            0.0
        };
        let claim_time = claim_time(ctx, neighbours, blob);
        claims.rate.advance(ctx.now, claim_time, speed);
        let next_at = claims.rate.next_at()?;
        if !claims.rate.is_due() {
            ctx.timers.wake_by(Timer::Fallback, next_at);
            return None;
        }
        claims.rate.on_claimed(&mut ctx.rng);
        let chunks = blob.unavailable_chunks();
        let mut chunks = chunks.filter(|chunk| !claims.is_claimed(*chunk));
        chunks.nth(ctx.rng.below(unclaimed))
    }
}

// Steps of the events.
impl Claims {
    /// The claims of a blob that is known.
    fn entry(&mut self, ctx: &mut Context, slot: BlobSlot) -> Option<&mut BlobClaims> {
        if self.blobs.get(slot).is_none() {
            let claims = BlobClaims {
                open: Vec::new(),
                rate: ClaimRate::new(ctx.now, &mut ctx.rng),
                outgoing: Vec::new(),
                sent_at: Time::ZERO,
                expired: Vec::new(),
            };
            self.blobs.insert(slot, claims);
        }
        self.blobs.get_mut(slot)
    }

    /// Ends the claims of chunks that were seen, and those that have expired; false if none ended.
    fn end_claims(&mut self, ctx: &Context, slot: BlobSlot) -> bool {
        let claims = self.blobs.get_mut(slot);
        let Some(claims) = claims.filter(|claims| !claims.open.is_empty()) else {
            return false;
        };
        let Some(blob) = ctx.blobs.get(slot) else {
            return false;
        };
        let before = claims.open.len();
        let mut at = 0;
        while let Some(open) = claims.open.get(at).copied() {
            let is_seen = is_seen(blob, open.chunk);
            if !is_seen && open.expires_at > ctx.now {
                at += 1;
                continue;
            }
            claims.open.remove(at);
            if !is_seen {
                claims.count_expired(open.chunk);
            }
            match open.claimant {
                Claimant::HeardFrom(peer) if is_seen => self.hearing.on_seen(peer),
                Claimant::HeardFrom(peer) => self.hearing.on_expired(ctx.now, peer),
                Claimant::Own { .. } => {}
            }
        }
        claims.open.len() < before
    }

    /// Records a claim and hands it on, unless it is known, unbelievable or of no use.
    fn hear(&mut self, ctx: &mut Context, peer: PeerSlot, slot: BlobSlot, claim: &Claim) {
        let limit = self.hearing.limit(ctx.now, peer);
        let Some(blob) = ctx.blobs.get(slot) else {
            return;
        };
        if claim.chunk >= blob.chunks() || is_seen(blob, claim.chunk) {
            return;
        }
        let now = ctx.now;
        if self.entry(ctx, slot).is_none() {
            return;
        }
        let (Some(blob), Some(claims)) = (ctx.blobs.get(slot), self.blobs.get_mut(slot)) else {
            return;
        };
        let max_age = claims.max_age(blob, claim.chunk);
        let expires_at = now + claim.term.min(max_age);
        let mut known = claims.open.iter_mut();
        if let Some(known) = known.find(|known| known.chunk == claim.chunk) {
            let expires_at = expires_at.min(known.since + max_age);
            let is_own = matches!(known.claimant, Claimant::Own { .. });
            if is_own || expires_at < known.expires_at + MIN_EXTENSION {
                return;
            }
            known.expires_at = expires_at;
        } else {
            if claims.open.len() >= MAX_OPEN || claims.count_from(peer) >= limit {
                return;
            }
            claims.open.push(OpenClaim {
                chunk: claim.chunk,
                claimant: Claimant::HeardFrom(peer),
                since: now,
                expires_at,
            });
            claims.rate.on_heard();
        }
        claims.outgoing.push(*claim);
    }

    /// Claims the chunks that are being fetched from an origin, and renews the claims of those that
    /// moved.
    fn claim_fetches(&mut self, ctx: &mut Context, downloads: &Downloads, slot: BlobSlot) {
        let now = ctx.now;
        let term = ctx.blobs.chunk_time(slot) * TERM_CHUNK_TIMES;
        let term = term.max(MIN_TERM);
        let Some(claims) = self.entry(ctx, slot) else {
            return;
        };
        for (chunk, received) in downloads.origin_fetches(slot) {
            let mut known = claims.open.iter_mut();
            match known.find(|known| known.chunk == chunk) {
                None => claims.open.push(OpenClaim {
                    chunk,
                    claimant: Claimant::Own { received },
                    since: now,
                    expires_at: now + term,
                }),
                // Another peer fetches it, too.
                Some(OpenClaim {
                    claimant: Claimant::HeardFrom(_),
                    ..
                }) => continue,
                Some(own) if own.expires_at > now + term / 2 => {
                    ctx.timers
                        .wake_by(Timer::Fallback, own.expires_at - term / 2);
                    continue;
                }
                Some(own) if own.claimant == (Claimant::Own { received }) => {
                    ctx.timers.wake_by(Timer::Fallback, now + term / 8);
                    continue;
                }
                Some(own) => {
                    own.claimant = Claimant::Own { received };
                    own.expires_at = now + term;
                }
            }
            ctx.timers.wake_by(Timer::Fallback, now + term / 2);
            claims.outgoing.push(Claim { chunk, term });
        }
    }

    /// Tells a new neighbour all open claims.
    fn tell_all(&self, ctx: &mut Context, peer: PeerSlot, slot: BlobSlot) {
        let (Some(blob), Some(claims)) = (ctx.blobs.get(slot), self.blobs.get(slot)) else {
            return;
        };
        if !blob.knows(peer) {
            return; // It did not become a neighbour.
        }
        let told = claims.open.iter().map(|open| Claim {
            chunk: open.chunk,
            term: open.expires_at.saturating_since(ctx.now),
        });
        let claims: Vec<Claim> = told.take(Claim::MAX_PER_MESSAGE).collect();
        if !claims.is_empty() {
            let blob = slot;
            ctx.output(Output::TellClaims { peer, blob, claims });
        }
    }

    /// Tells the neighbours the outgoing claims, at once or soon after those before.
    fn send(&mut self, ctx: &mut Context, slot: BlobSlot) {
        let (Some(blob), Some(claims)) = (ctx.blobs.get(slot), self.blobs.get_mut(slot)) else {
            return;
        };
        if claims.outgoing.is_empty() {
            return;
        }
        let due_at = claims.sent_at + batch_interval(ctx, blob);
        if due_at > ctx.now {
            ctx.timers.wake_by(Timer::Claim, due_at);
            if !self.waiting.contains(&slot) {
                self.waiting.push(slot);
            }
            return;
        }
        claims.sent_at = ctx.now;
        for batch in core::mem::take(&mut claims.outgoing).chunks(Claim::MAX_PER_MESSAGE) {
            ctx.outputs.push(Output::Claims {
                blob: slot,
                claims: batch.to_vec(),
            });
        }
    }
}

/// Whether the chunk is held, here or by a neighbour.
fn is_seen(blob: &BlobExchange, chunk: u32) -> bool {
    blob.held().contains(chunk) || blob.availability(chunk) > 0
}

/// The speed of the clock of claims: less while many are open, and for the last chunks, of which
/// two peers easily choose the same. Zero if there is no chunk to claim.
fn clock_speed(open: usize, unclaimed: usize) -> f64 {
    let room = TARGET_OPEN.saturating_sub(open) as f64 / TARGET_OPEN as f64;
    room * (unclaimed as f64 / FEW_CHUNKS).min(1.0)
}

/// Minimum time between two batches of claims: shorter than for chunks, because others may choose
/// the same chunk meanwhile.
fn batch_interval(ctx: &Context, blob: &BlobExchange) -> Duration {
    ctx.config.batch_interval(blob.chunk_time()) / 2
}

/// How long a claim takes to reach the swarm, as far as is known: two steps, each of half a round
/// trip and the wait for a batch.
fn claim_time(ctx: &Context, neighbours: &Neighbours, blob: &BlobExchange) -> Duration {
    let peers = blob.neighbours().iter();
    let mut round_trips: Vec<Duration> = peers.map(|peer| neighbours.round_trip(*peer)).collect();
    round_trips.sort_unstable();
    let median = round_trips.get(round_trips.len() / 2).copied();
    let batches = batch_interval(ctx, blob) * 2;
    (median.unwrap_or_default() + batches).clamp(MIN_CLAIM_TIME, MAX_CLAIM_TIME)
}

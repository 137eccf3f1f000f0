//! Which parked request gets which chunk.

use rand::RngExt as _;
use rand_pcg::Pcg64Mcg;

use super::Authority;
use super::chunks::ChunkState;
use super::context::AuthorityContext;
use super::parked::ParkedRequest;
use crate::tracker::messages::LeaseOutcome;
use crate::tracker::origins::MAX_ORIGINS;
use crate::tracker::slots::PeerSlot;
use crate::tracker::timers::Ticket;

/// Seeders that are looked at; beyond these, any of them is as good as another.
const MAX_SEEDERS_CONSIDERED: usize = 64;
/// A peer that could not reach so many seeders, about a handout of them, need not try the others.
const UNREACHABLE_SEEDERS_LIMIT: usize = 12;

/// Requests in a row for which nothing can be granted; those behind them are not looked at. A lease
/// that ends must not cost time in proportion to the swarm.
const MAX_PASSED_OVER: u32 = 256;

/// How many leases a peer may have in a round of grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    One,
    More,
}

impl Authority {
    /// Grants leases to parked requests: one per peer, and more only where the origin would be idle
    /// otherwise.
    pub(in crate::tracker) fn grant_parked(&mut self, ctx: &mut AuthorityContext<'_>) {
        let seeders: Vec<PeerSlot> = if self.parked.is_empty() {
            Vec::new()
        } else {
            ctx.roster
                .seeders_in(self.blob, self.region)
                .take(MAX_SEEDERS_CONSIDERED)
                .collect()
        };
        self.grant_round(Share::One, &seeders, ctx);
        self.grant_round(Share::More, &seeders, ctx);
    }

    fn grant_round(&mut self, share: Share, seeders: &[PeerSlot], ctx: &mut AuthorityContext<'_>) {
        if ctx.is_settling && self.is_resumed {
            return;
        }
        let mut last = None;
        let mut passed_over = 0;
        let is_own_usable = ctx.origins.is_own_usable(self.region);
        let open_limit = self.far_window.open_limit(is_own_usable, ctx.config);
        while self.counted(ctx.now) < open_limit
            && self.chunks.has_grantable()
            && passed_over < MAX_PASSED_OVER
        {
            let Some((ticket, parked)) = self.parked.after(last) else {
                return;
            };
            // Starving requests come first, and there is nothing for the others.
            let has_any = parked.starving || (seeders.is_empty() && self.chunks.has_free());
            if !has_any {
                return;
            }
            last = Some(ticket);
            let Some(chunk) = self.choose(parked, share, seeders, ctx) else {
                passed_over += 1;
                continue;
            };
            passed_over = 0;
            let peer = parked.peer;
            let Some(granted) = self.parked.grant(peer) else {
                continue;
            };
            if self.chunks.get(chunk) == Some(ChunkState::Orphaned) {
                ctx.counts.granted_again += 1;
            }
            ctx.counts.granted += 1;
            let origins = granted.origins.min(MAX_ORIGINS);
            let from = ctx.origins.choose(ctx.now, self.region, origins, ctx.rng);
            self.open(peer, chunk, None, (from, origins), ctx);
            let term = ctx.config.term;
            let answer = LeaseOutcome::Granted { chunk, term, from };
            ctx.answer(granted.request, answer);
        }
    }

    /// The chunk to grant to a parked request, if there is one.
    fn choose(
        &self,
        parked: &ParkedRequest,
        share: Share,
        seeders: &[PeerSlot],
        ctx: &AuthorityContext<'_>,
    ) -> Option<u32> {
        let most_of_peer = match share {
            Share::One => 1,
            Share::More => ctx.config.open_limit,
        };
        if self.open_count_of(parked.peer) >= most_of_peer {
            return None;
        }
        // A seeder has every chunk, so the peer should dial it. The origin is asked only when the
        // peer can reach none of the seeders, or so few that the others will be no better.
        let out_of_reach = seeders
            .iter()
            .filter(|seeder| parked.unreachable.contains(seeder))
            .count();
        let are_seeders_out_of_reach = parked.starving
            && (out_of_reach == seeders.len() || out_of_reach >= UNREACHABLE_SEEDERS_LIMIT);
        if (seeders.is_empty() || are_seeders_out_of_reach)
            && let Some(chunk) = self.chunks.first_free(&parked.missing)
        {
            return Some(chunk);
        }
        if parked.starving {
            self.chunks
                .first_orphaned(&parked.missing, ctx.now, ctx.config.term)
        } else {
            None
        }
    }

    /// Names a live holder to a starving peer for which no chunk can be granted.
    pub(super) fn name_holder(&mut self, ticket: Ticket, ctx: &mut AuthorityContext<'_>) {
        let Some(parked) = self.parked.get(ticket).filter(|parked| parked.starving) else {
            return;
        };
        let is_candidate =
            |holder: PeerSlot| holder != parked.peer && !parked.unreachable.contains(&holder);
        let seeders: Vec<PeerSlot> = ctx
            .roster
            .seeders_in(self.blob, self.region)
            .filter(|seeder| is_candidate(*seeder))
            .take(MAX_SEEDERS_CONSIDERED)
            .collect();
        let first_missing = parked.missing.iter().next();
        let holder = if let (Some(chunk), false) = (first_missing, seeders.is_empty()) {
            Some((chunk, seeders[random_index(ctx.rng, seeders.len())]))
        } else if self.chunks.first_free(&parked.missing).is_some() {
            None
        } else {
            let held: Vec<(u32, PeerSlot)> = self
                .chunks
                .holders(&parked.missing)
                .filter(|(_, holder)| is_candidate(*holder))
                .collect();
            (!held.is_empty()).then(|| held[random_index(ctx.rng, held.len())])
        };
        if let Some((chunk, holder)) = holder {
            let peer = parked.peer;
            ctx.counts.introduced += 1;
            self.unpark(peer, LeaseOutcome::Dial { holder, chunk }, ctx);
        }
    }
}

fn random_index(rng: &mut Pcg64Mcg, len: usize) -> usize {
    rng.random_range(0..len as u64) as usize
}

//! The machine itself: dispatches inputs and timers to the roster, the handout and the lease
//! authorities.

use std::collections::VecDeque;

use core::time::Duration;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::authorities::{Authorities, Prepared};
use super::config::TrackerConfig;
use super::handout::{self, Asker};
use super::lease::{Authority, AuthorityContext};
use super::messages::{
    Announce, AnnounceOutcome, Handout, Lease, LeaseEvent, LeaseOutcome, SwarmRole, Take,
    TrackerCounts, TrackerInput, TrackerOutput,
};
use super::origins::OriginOpinions;
use super::roster::{Progress, Roster};
use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use super::timers::{Ticket, Timer, Timers};
use crate::time::Time;

/// When a peer may ask again for a lease on a blob for which there is no room.
const NO_ROOM_RETRY: Duration = Duration::from_secs(5);

/// Leechers of a blob that ask for leases at once.
const UNDELAYED_LEECHERS: usize = 1_000;
/// First requests of further leechers in a second.
const LEASE_REQUESTS_PER_S: u32 = 1_000;
/// The longest time over which they are spread.
const MAX_LEASE_DELAY: Duration = Duration::from_secs(10);

/// One swarm, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwarmSummary {
    /// The blob.
    pub blob: BlobSlot,
    /// Peers in the swarm.
    pub peers: usize,
    /// Of these, peers that hold all of it.
    pub seeders: usize,
    /// Open leases, in all regions.
    pub leases_open: usize,
    /// Parked requests, in all regions.
    pub parked: usize,
}

/// The tracker's state machine.
#[derive(Debug)]
pub struct TrackerMachine {
    config: TrackerConfig,
    rng: Pcg64Mcg,
    epoch: u64,
    roster: Roster,
    origins: OriginOpinions,
    authorities: Authorities,
    timers: Timers,
    outputs: VecDeque<TrackerOutput>,
    counts: TrackerCounts,
    next_ticket: Ticket,
    /// When settling ends; `None` before the first input.
    settled_at: Option<Time>,
}

impl TrackerMachine {
    /// A tracker with an empty roster. Its epoch comes from `rng_seed`, so each start needs another
    /// seed.
    pub fn new(config: TrackerConfig, rng_seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(rng_seed);
        // Peers that know no epoch send zero.
        let epoch = rng.next_u64().max(1);
        Self {
            config,
            rng,
            epoch,
            roster: Roster::default(),
            origins: OriginOpinions::default(),
            authorities: Authorities::default(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            counts: TrackerCounts::default(),
            next_ticket: 0,
            settled_at: None,
        }
    }

    /// Identifies this start of the tracker; never zero.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Counts of events so far.
    pub fn counts(&self) -> TrackerCounts {
        self.counts
    }

    /// Number of peers in the roster.
    pub fn peer_count(&self) -> u32 {
        self.roster.peer_count()
    }

    /// The number of origins that are out, counted for the peers of each region.
    pub fn origins_out(&self) -> usize {
        self.origins.out_count()
    }

    /// All swarms, in order of slots.
    pub fn swarms(&self) -> impl Iterator<Item = SwarmSummary> + '_ {
        self.roster.swarms().map(|(blob, swarm)| {
            let authorities = self.authorities.of(blob);
            SwarmSummary {
                blob,
                peers: swarm.peers(),
                seeders: swarm.seeders(),
                leases_open: authorities.clone().map(Authority::open_count).sum(),
                parked: authorities.map(Authority::parked_count).sum(),
            }
        })
    }

    /// The open leases of a blob in a region: chunk and holder.
    pub fn open_leases(&self, blob: BlobSlot, region: RegionSlot) -> Vec<(u32, PeerSlot)> {
        let authority = self.authorities.get(blob, region);
        authority
            .map(|authority| authority.open_leases().collect())
            .unwrap_or_default()
    }

    /// All open leases, in order of blobs: blob, chunk and holder.
    pub fn leases(&self) -> impl Iterator<Item = (BlobSlot, u32, PeerSlot)> + '_ {
        self.authorities.iter().flat_map(|(blob, authority)| {
            let open = authority.open_leases();
            open.map(move |(chunk, holder)| (blob, chunk, holder))
        })
    }

    /// The number of a blob's chunks that were not granted and that no peer of the region was seen
    /// to have; `None` before the first request.
    pub fn free_chunks(&self, blob: BlobSlot, region: RegionSlot) -> Option<u32> {
        let authority = self.authorities.get(blob, region);
        authority.map(Authority::free_count)
    }

    /// Handles an event. Drain [`Self::poll_output`] afterwards.
    pub fn handle(&mut self, now: Time, input: TrackerInput) {
        self.start(now);
        match input {
            TrackerInput::Announce(announce) => self.announce(now, announce),
            TrackerInput::Take(take) => self.take(now, take),
            TrackerInput::Lease(lease) => self.lease(now, lease),
            TrackerInput::Drop { peer, blob } => {
                if let Some(region) = self.roster.peer(peer).map(|record| record.region) {
                    self.with_authority(now, blob, region, |authority, ctx| {
                        authority.drop_request(peer, ctx)
                    });
                }
            }
            TrackerInput::Gone { peer } => {
                if self.roster.peer(peer).is_some() {
                    self.forget_peer(now, peer);
                }
            }
        }
    }

    /// The next action, oldest first.
    pub fn poll_output(&mut self) -> Option<TrackerOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called. It may find that nothing is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// Handles everything that is due at `now`. Drain [`Self::poll_output`] afterwards.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Peer(peer) => {
                    if self
                        .roster
                        .peer(peer)
                        .is_some_and(|record| record.expires <= now)
                    {
                        self.counts.peers_expired += 1;
                        self.forget_peer(now, peer);
                    }
                }
                Timer::Lease {
                    blob,
                    region,
                    chunk,
                } => {
                    self.with_authority(now, blob, region, |authority, ctx| {
                        authority.on_lease_timeout(chunk, ctx)
                    });
                }
                Timer::Parked {
                    blob,
                    region,
                    ticket,
                } => {
                    self.with_authority(now, blob, region, |authority, ctx| {
                        authority.on_parked_timeout(ticket, ctx)
                    });
                }
                Timer::Settled => self.settle(now),
            }
        }
    }

    fn start(&mut self, now: Time) {
        if self.settled_at.is_none() {
            let at = now + self.config.settle;
            self.settled_at = Some(at);
            self.timers.set(at, Timer::Settled);
        }
    }

    fn settle(&mut self, now: Time) {
        let authorities = self.authorities.iter();
        let keys: Vec<(BlobSlot, RegionSlot)> = authorities
            .map(|(blob, authority)| (blob, authority.region()))
            .collect();
        for (blob, region) in keys {
            self.with_authority(now, blob, region, Authority::grant_parked);
        }
    }

    fn announce(&mut self, now: Time, announce: Announce) {
        let peer = announce.peer;
        let touched: Vec<BlobSlot> = announce.changes.iter().map(|change| change.blob).collect();
        let answer = self.accept(now, &announce);
        self.outputs.push_back(TrackerOutput::Announced {
            request: announce.request,
            answer,
        });
        if announce.leaving && self.roster.peer(peer).is_some() {
            self.forget_peer(now, peer);
        } else if self.roster.peer(peer).is_none() {
            self.outputs.push_back(TrackerOutput::PeerForgotten(peer));
        }
        self.forget_blobs(touched);
    }

    fn accept(&mut self, now: Time, announce: &Announce) -> AnnounceOutcome {
        if !self.is_in_sequence(announce) {
            self.counts.resyncs += 1;
            return AnnounceOutcome::Resync;
        }
        let peer = announce.peer;
        if self.roster.peer(peer).is_none() {
            if self.roster.peer_count() >= self.config.peers_limit.min(Roster::MAX_PEERS) {
                return AnnounceOutcome::Full;
            }
            self.roster
                .insert_peer(peer, announce.zone, announce.region);
            self.origins.peer_joined(announce.region);
        }
        self.counts.announces += 1;
        let next = self.next_interval();
        let expires = now + next * self.config.intervals_to_expiry;
        self.timers.set(expires, Timer::Peer(peer));
        if let Some(record) = self.roster.peer_mut(peer) {
            record.sequence = announce.sequence;
            record.expires = expires;
            record.handed /= 2;
        }
        self.apply(now, announce);
        if announce.leaving {
            return AnnounceOutcome::Accepted {
                next,
                lease_delay: Duration::ZERO,
                handouts: Vec::new(),
            };
        }
        self.adopt(now, announce);
        AnnounceOutcome::Accepted {
            next,
            lease_delay: self.lease_delay(announce),
            handouts: self.handouts(announce),
        }
    }

    /// Whether the announce follows the last accepted one, or repeats it.
    fn is_in_sequence(&self, announce: &Announce) -> bool {
        announce.full
            || self.roster.peer(announce.peer).is_some_and(|record| {
                announce.epoch == self.epoch
                    && (announce.sequence == record.sequence
                        || announce.sequence == record.sequence.wrapping_add(1))
                    && (announce.zone, announce.region) == (record.zone, record.region)
            })
    }

    fn apply(&mut self, now: Time, announce: &Announce) {
        let peer = announce.peer;
        if announce.full {
            self.leave_all_but(now, announce);
        }
        for change in &announce.changes {
            let (SwarmRole::Wanted(progress) | SwarmRole::Held(progress)) = change.state else {
                self.leave_swarm(now, peer, change.blob);
                continue;
            };
            let is_new = self.roster.progress(peer, change.blob).is_none();
            if is_new && self.roster.swarms_of(peer).count() >= self.config.swarms_per_peer_limit {
                self.counts.changes_left_out += 1;
                continue;
            }
            self.roster.set_progress(peer, change.blob, progress);
            if progress.is_complete() {
                self.with_authority(now, change.blob, announce.region, |authority, ctx| {
                    authority.drop_request(peer, ctx);
                });
            }
            if announce.full {
                self.with_authority(now, change.blob, announce.region, |authority, ctx| {
                    // A peer that announces in full may have restarted, and then numbers its
                    // requests from the beginning.
                    authority.drop_request(peer, ctx);
                    if progress == Progress::NONE {
                        authority.orphan_chunks(peer);
                    }
                });
            }
        }
    }

    /// Removes the peer from the swarms that its full announce does not name; from all swarms if it
    /// moved to another zone.
    fn leave_all_but(&mut self, now: Time, announce: &Announce) {
        let peer = announce.peer;
        let Some(record) = self.roster.peer_mut(peer) else {
            return;
        };
        let has_moved = (record.zone, record.region) != (announce.zone, announce.region);
        let mut named: Vec<BlobSlot> = announce.changes.iter().map(|change| change.blob).collect();
        named.sort_unstable();
        let former: Vec<BlobSlot> = self.roster.swarms_of(peer).collect();
        let mut left = Vec::new();
        for blob in former {
            if has_moved || named.binary_search(&blob).is_err() {
                self.leave_swarm(now, peer, blob);
                left.push(blob);
            }
        }
        if has_moved && let Some(record) = self.roster.peer_mut(peer) {
            self.origins.peer_left(record.region);
            self.origins.peer_joined(announce.region);
            record.zone = announce.zone;
            record.region = announce.region;
        }
        left.retain(|blob| named.binary_search(blob).is_err());
        self.forget_blobs(left);
    }

    fn adopt(&mut self, now: Time, announce: &Announce) {
        let peer = announce.peer;
        for lease in &announce.leases {
            let is_ready = self.roster.progress(peer, lease.blob).is_some()
                && self.prepare(peer, lease.blob, announce.region, lease.chunks) == Prepared::Ready;
            if is_ready {
                self.with_authority(now, lease.blob, announce.region, |authority, ctx| {
                    authority.adopt(peer, lease.chunk, 0, ctx);
                });
            }
        }
    }

    fn handouts(&mut self, announce: &Announce) -> Vec<Handout> {
        let asker = Asker {
            peer: announce.peer,
            connected: &announce.connected,
            unreachable: &announce.unreachable,
        };
        let mut handouts = Vec::new();
        for (blob, wanted) in &announce.neighbours {
            let count = self.config.handout.min(usize::from(*wanted));
            let peers = handout::choose(
                &mut self.roster,
                &mut self.rng,
                &asker,
                *blob,
                (count, self.config.near_of_16),
            );
            let progress = |peer| {
                let progress = self.roster.progress(peer, *blob);
                (peer, progress.unwrap_or_default())
            };
            handouts.push(Handout {
                blob: *blob,
                peers: peers.into_iter().map(progress).collect(),
            });
        }
        handouts
    }

    /// Over how long the first lease requests of a large swarm's peers are spread. Leases end one
    /// after the other, so the requests of a thousand peers a second keep the origin busy, and by
    /// the time of theirs most of the others find every chunk in the swarm.
    fn lease_delay(&self, announce: &Announce) -> Duration {
        let swarms = announce.neighbours.iter();
        let swarms = swarms.filter_map(|(blob, _)| self.roster.swarm(*blob));
        let leechers = swarms.map(|swarm| swarm.peers() - swarm.seeders()).max();
        let late = leechers.unwrap_or(0).saturating_sub(UNDELAYED_LEECHERS) as u32;
        (Duration::from_secs(1) * late / LEASE_REQUESTS_PER_S).min(MAX_LEASE_DELAY)
    }

    /// The time until the peer's next announce, with a jitter of a quarter. It keeps all peers
    /// together below the configured rate of announces.
    fn next_interval(&mut self) -> Duration {
        let needed = Duration::from_secs(1) * self.roster.peer_count()
            / self.config.announces_per_second.max(1);
        let interval = needed.clamp(
            self.config.min_interval,
            self.config.max_interval.max(self.config.min_interval),
        );
        let quarter = interval.as_nanos() as u64 / 4;
        interval - Duration::from_nanos(quarter)
            + Duration::from_nanos(self.rng.random_range(0..=2 * quarter))
    }

    fn take(&mut self, now: Time, take: Take) {
        let request = take.request;
        let region = self.roster.peer(take.peer).map(|record| record.region);
        let answer = match region {
            Some(region) if self.roster.progress(take.peer, take.blob).is_some() => {
                match self.prepare(take.peer, take.blob, region, take.missing.len()) {
                    Prepared::Ready => {
                        let blob = take.blob;
                        self.with_authority(now, blob, region, |authority, ctx| {
                            authority.take(take, ctx)
                        });
                        return;
                    }
                    Prepared::Mismatch => LeaseOutcome::Mismatch,
                    Prepared::NoRoom => LeaseOutcome::Wait {
                        retry_after: NO_ROOM_RETRY,
                    },
                }
            }
            _ => LeaseOutcome::Unknown,
        };
        self.outputs
            .push_back(TrackerOutput::Lease { request, answer });
    }

    fn lease(&mut self, now: Time, lease: Lease) {
        let Lease {
            request,
            peer,
            blob,
            chunk,
            event,
        } = lease;
        let region = self.roster.peer(peer).map(|record| record.region);
        let answer = match region {
            Some(region) if self.roster.progress(peer, blob).is_some() => {
                let mut answer = LeaseOutcome::NotHeld;
                self.with_authority(now, blob, region, |authority, ctx| {
                    answer = match event {
                        LeaseEvent::Renew { received, from } => {
                            authority.renew(peer, chunk, (received, from), ctx)
                        }
                        LeaseEvent::Waiting { from } => authority.waiting(peer, chunk, from, ctx),
                        LeaseEvent::Done { from } => authority.done(peer, chunk, from, ctx),
                        LeaseEvent::Failed => authority.failed(peer, chunk, ctx),
                    };
                });
                answer
            }
            _ => LeaseOutcome::Unknown,
        };
        self.outputs
            .push_back(TrackerOutput::Lease { request, answer });
    }

    fn forget_peer(&mut self, now: Time, peer: PeerSlot) {
        let swarms: Vec<BlobSlot> = self.roster.swarms_of(peer).collect();
        for blob in &swarms {
            self.leave_swarm(now, peer, *blob);
        }
        if let Some(record) = self.roster.peer(peer) {
            self.origins.peer_left(record.region);
        }
        self.roster.remove_peer(peer);
        self.authorities.forget_peer(peer);
        self.outputs.push_back(TrackerOutput::PeerForgotten(peer));
        self.forget_blobs(swarms);
    }

    fn leave_swarm(&mut self, now: Time, peer: PeerSlot, blob: BlobSlot) {
        let Some(region) = self.roster.peer(peer).map(|record| record.region) else {
            return;
        };
        if !self.roster.leave(peer, blob) {
            return;
        }
        self.with_authority(now, blob, region, |authority, ctx| {
            authority.peer_left(peer, ctx)
        });
        if !self.roster.is_in_region(blob, region) {
            self.authorities.remove(blob, region);
        }
    }

    /// Reports those of these blobs that have no member any more.
    fn forget_blobs(&mut self, mut blobs: Vec<BlobSlot>) {
        blobs.sort_unstable();
        blobs.dedup();
        blobs.retain(|blob| self.roster.swarm(*blob).is_none());
        self.outputs
            .extend(blobs.into_iter().map(TrackerOutput::BlobForgotten));
    }

    /// Creates the authority of a blob for a request of a peer, if there is none.
    fn prepare(
        &mut self,
        peer: PeerSlot,
        blob: BlobSlot,
        region: RegionSlot,
        chunks: u32,
    ) -> Prepared {
        let settings = &self.config.lease;
        self.authorities
            .prepare(settings, peer, (blob, region), chunks)
    }

    fn with_authority(
        &mut self,
        now: Time,
        blob: BlobSlot,
        region: RegionSlot,
        act: impl FnOnce(&mut Authority, &mut AuthorityContext<'_>),
    ) {
        if let Some(authority) = self.authorities.get_mut(blob, region) {
            let mut ctx = AuthorityContext {
                now,
                config: &self.config.lease,
                roster: &self.roster,
                origins: &mut self.origins,
                rng: &mut self.rng,
                timers: &mut self.timers,
                outputs: &mut self.outputs,
                counts: &mut self.counts,
                next_ticket: &mut self.next_ticket,
                is_settling: self.settled_at.is_some_and(|at| now < at),
            };
            act(authority, &mut ctx);
        }
    }
}

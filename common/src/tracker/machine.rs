//! The machine itself: dispatches inputs and timers to the roster, the handout and the lease
//! authorities.

use std::collections::VecDeque;

use core::time::Duration;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::config::Config;
use super::handout::{self, Asker};
use super::lease::{Authority, Context};
use super::messages::{
    Announce, AnnounceAnswer, BlobState, Counts, Input, Lease, LeaseAnswer, LeaseEvent, Output,
    Take,
};
use super::roster::{Progress, Roster};
use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use super::timers::{Ticket, Timer, Timers};
use crate::interner::Slot;
use crate::time::Time;

/// One swarm, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwarmSummary {
    /// The blob.
    pub blob: BlobSlot,
    /// Members.
    pub peers: usize,
    /// Of these, peers that hold all of it.
    pub seeders: usize,
    /// Leases open, in all regions.
    pub leases_open: usize,
    /// Requests parked, in all regions.
    pub parked: usize,
}

/// The tracker without its input and output.
#[derive(Debug)]
pub struct TrackerMachine {
    config: Config,
    rng: Pcg64Mcg,
    epoch: u64,
    roster: Roster,
    /// By blob slot: the authorities of the regions, few.
    authorities: Vec<Vec<Authority>>,
    timers: Timers,
    outputs: VecDeque<Output>,
    counts: Counts,
    next_ticket: Ticket,
    /// When settling ends; nothing before the first input.
    settled_at: Option<Time>,
}

impl TrackerMachine {
    /// A tracker that knows nobody. Its epoch comes from `rng_seed`, so each start needs another
    /// one.
    pub fn new(config: Config, rng_seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(rng_seed);
        // Zero is what a peer says that knows no epoch.
        let epoch = rng.next_u64().max(1);
        Self {
            config,
            rng,
            epoch,
            roster: Roster::default(),
            authorities: Vec::new(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            counts: Counts::default(),
            next_ticket: 0,
            settled_at: None,
        }
    }

    /// This life of the tracker; never zero.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Peers known.
    pub fn peer_count(&self) -> u32 {
        self.roster.peer_count()
    }

    /// All swarms, by slot.
    pub fn swarms(&self) -> impl Iterator<Item = SwarmSummary> + '_ {
        self.roster.swarms().map(|(blob, swarm)| {
            let authorities = self
                .authorities
                .get(blob.index() as usize)
                .map_or(&[][..], Vec::as_slice);
            SwarmSummary {
                blob,
                peers: swarm.peers(),
                seeders: swarm.seeders(),
                leases_open: authorities.iter().map(Authority::open_count).sum(),
                parked: authorities.iter().map(Authority::parked_count).sum(),
            }
        })
    }

    /// The leases open for a blob in a region: chunk and holder.
    pub fn open_leases(&self, blob: BlobSlot, region: RegionSlot) -> Vec<(u32, PeerSlot)> {
        self.authority(blob, region)
            .map(|authority| authority.open_leases().collect())
            .unwrap_or_default()
    }

    /// The chunks of a blob that nobody in the region was granted or was seen to have; nothing
    /// before the first request.
    pub fn free_chunks(&self, blob: BlobSlot, region: RegionSlot) -> Option<u32> {
        self.authority(blob, region).map(Authority::free_count)
    }

    /// Takes an input; then drain [`Self::poll_output`].
    pub fn handle(&mut self, now: Time, input: Input) {
        self.start(now);
        match input {
            Input::Announce(announce) => self.announce(now, announce),
            Input::Take(take) => self.take(now, take),
            Input::Lease(lease) => self.lease(now, lease),
            Input::Drop { peer, blob } => {
                if let Some(region) = self.roster.peer(peer).map(|record| record.region) {
                    self.with_authority(now, blob, region, |authority, ctx| {
                        authority.drop_request(peer, ctx)
                    });
                }
            }
            Input::Gone { peer } => {
                if self.roster.peer(peer).is_some() {
                    self.forget_peer(now, peer);
                }
            }
        }
    }

    /// What to do next, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle_timeout`]; nothing if never. It may find that nothing is due
    /// after all.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// Does all that is due at `now`; then drain [`Self::poll_output`].
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
        let keys: Vec<(BlobSlot, RegionSlot)> = (0_u32..)
            .zip(&self.authorities)
            .flat_map(|(blob, regions)| {
                regions
                    .iter()
                    .map(move |authority| (BlobSlot::at(blob), authority.region()))
            })
            .collect();
        for (blob, region) in keys {
            self.with_authority(now, blob, region, Authority::grant_parked);
        }
    }

    fn announce(&mut self, now: Time, announce: Announce) {
        let peer = announce.peer;
        let touched: Vec<BlobSlot> = announce.changes.iter().map(|change| change.blob).collect();
        let answer = self.accept(now, &announce);
        self.outputs.push_back(Output::Announced {
            request: announce.request,
            answer,
        });
        if announce.leaving && self.roster.peer(peer).is_some() {
            self.forget_peer(now, peer);
        } else if self.roster.peer(peer).is_none() {
            self.outputs.push_back(Output::PeerForgotten(peer));
        }
        self.forget_blobs(touched);
    }

    fn accept(&mut self, now: Time, announce: &Announce) -> AnnounceAnswer {
        if !self.is_in_sequence(announce) {
            self.counts.resyncs += 1;
            return AnnounceAnswer::Resync;
        }
        let peer = announce.peer;
        if self.roster.peer(peer).is_none() {
            if self.roster.peer_count() >= self.config.peers_limit.min(Roster::MAX_PEERS) {
                return AnnounceAnswer::Full;
            }
            self.roster
                .insert_peer(peer, announce.zone, announce.region);
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
            return AnnounceAnswer::Accepted {
                next,
                handouts: Vec::new(),
            };
        }
        self.adopt(now, announce);
        AnnounceAnswer::Accepted {
            next,
            handouts: self.handouts(announce),
        }
    }

    /// Whether the announce follows on what is known. A repetition does; it says the same again.
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
            let (BlobState::Wanted(progress) | BlobState::Held(progress)) = change.state else {
                self.leave_swarm(now, peer, change.blob);
                continue;
            };
            let is_new = self.roster.progress(peer, change.blob).is_none();
            if is_new && self.roster.swarms_of(peer).count() >= self.config.swarms_per_peer_limit {
                self.counts.changes_left_out += 1;
                continue;
            }
            self.roster.set_progress(peer, change.blob, progress);
            if announce.full {
                self.with_authority(now, change.blob, announce.region, |authority, ctx| {
                    // Who says everything anew may have started again, and counts its requests from
                    // the beginning.
                    authority.drop_request(peer, ctx);
                    if progress == Progress::NONE {
                        authority.orphan_chunks(peer);
                    }
                });
            }
        }
    }

    /// Takes the peer out of the swarms that its full announce does not name; out of all, if it
    /// moved.
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
            record.zone = announce.zone;
            record.region = announce.region;
        }
        left.retain(|blob| named.binary_search(blob).is_err());
        self.forget_blobs(left);
    }

    fn adopt(&mut self, now: Time, announce: &Announce) {
        let peer = announce.peer;
        for lease in &announce.leases {
            if self.roster.progress(peer, lease.blob).is_some()
                && self.prepare_authority(lease.blob, announce.region, lease.chunks)
            {
                self.with_authority(now, lease.blob, announce.region, |authority, ctx| {
                    authority.adopt(peer, lease.chunk, 0, ctx);
                });
            }
        }
    }

    fn handouts(&mut self, announce: &Announce) -> Vec<(BlobSlot, Vec<PeerSlot>)> {
        let wanted = announce
            .changes
            .iter()
            .filter(|change| matches!(change.state, BlobState::Wanted(_)));
        let mut handouts = Vec::new();
        for change in wanted {
            let asker = Asker {
                peer: announce.peer,
                connected: &announce.connected,
                unreachable: &announce.unreachable,
            };
            let peers = handout::choose(
                &mut self.roster,
                &mut self.rng,
                &asker,
                change.blob,
                self.config.handout,
            );
            handouts.push((change.blob, peers));
        }
        handouts
    }

    /// The next announce, jittered by a quarter: such that all peers together stay below the load
    /// that was set.
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
                if self.prepare_authority(take.blob, region, take.missing.len()) {
                    let blob = take.blob;
                    self.with_authority(now, blob, region, |authority, ctx| {
                        authority.take(take, ctx)
                    });
                    return;
                }
                LeaseAnswer::Mismatch
            }
            _ => LeaseAnswer::Unknown,
        };
        self.outputs.push_back(Output::Lease { request, answer });
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
                let mut answer = LeaseAnswer::NotHeld;
                self.with_authority(now, blob, region, |authority, ctx| {
                    answer = match event {
                        LeaseEvent::Renew { received } => {
                            authority.renew(peer, chunk, received, ctx)
                        }
                        LeaseEvent::Done => authority.done(peer, chunk, ctx),
                        LeaseEvent::Failed => authority.failed(peer, chunk, ctx),
                    };
                });
                answer
            }
            _ => LeaseAnswer::Unknown,
        };
        self.outputs.push_back(Output::Lease { request, answer });
    }

    fn forget_peer(&mut self, now: Time, peer: PeerSlot) {
        let swarms: Vec<BlobSlot> = self.roster.swarms_of(peer).collect();
        for blob in &swarms {
            self.leave_swarm(now, peer, *blob);
        }
        self.roster.remove_peer(peer);
        self.outputs.push_back(Output::PeerForgotten(peer));
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
        if !self.roster.is_in_region(blob, region)
            && let Some(regions) = self.authorities.get_mut(blob.index() as usize)
        {
            regions.retain(|authority| authority.region() != region);
        }
    }

    /// Tells the driver which of these blobs have no member.
    fn forget_blobs(&mut self, mut blobs: Vec<BlobSlot>) {
        blobs.sort_unstable();
        blobs.dedup();
        blobs.retain(|blob| self.roster.swarm(*blob).is_none());
        self.outputs
            .extend(blobs.into_iter().map(Output::BlobForgotten));
    }

    fn authority(&self, blob: BlobSlot, region: RegionSlot) -> Option<&Authority> {
        self.authorities
            .get(blob.index() as usize)?
            .iter()
            .find(|authority| authority.region() == region)
    }

    /// Makes sure that there is an authority for a blob of so many chunks; false if there is one
    /// for another number.
    fn prepare_authority(&mut self, blob: BlobSlot, region: RegionSlot, chunks: u32) -> bool {
        if let Some(authority) = self.authority(blob, region) {
            return authority.chunks() == chunks;
        }
        let is_possible = (1..=self.config.lease.chunks_limit).contains(&chunks);
        if is_possible {
            let index = blob.index() as usize;
            if self.authorities.len() <= index {
                self.authorities.resize_with(index + 1, Vec::new);
            }
            self.authorities[index].push(Authority::new(blob, region, chunks));
        }
        is_possible
    }

    fn with_authority(
        &mut self,
        now: Time,
        blob: BlobSlot,
        region: RegionSlot,
        act: impl FnOnce(&mut Authority, &mut Context<'_>),
    ) {
        let authority = self
            .authorities
            .get_mut(blob.index() as usize)
            .and_then(|regions| {
                regions
                    .iter_mut()
                    .find(|authority| authority.region() == region)
            });
        if let Some(authority) = authority {
            let mut ctx = Context {
                now,
                config: &self.config.lease,
                roster: &self.roster,
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

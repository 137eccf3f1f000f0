//! The session: forwards events to the announcers, the lease requests and the health of each
//! tracker, which own their state.

use core::time::Duration;
use std::collections::VecDeque;

use super::announcer::{Announcer, RETRY};
use super::exchanges::{ExchangeId, Exchanges, Purpose, REQUEST_TIMEOUT, TrackerExchange};
use super::groups::{Groups, TrackerUrl};
use super::health::{HealthChange, TrackerHealth};
use super::io::{CancelReason, PeerSnapshot, SessionInput, SessionOutput, TrackerRequest};
use super::leases::{LeaseContext, LeaseRequests, PARKED_TIMEOUT, Withdrawal};
use super::limits;
use crate::digest::Digest;
use crate::name::{PeerId, RegionName};
use crate::time::Time;
use crate::wire::tracker::{AnnounceAnswer, AnnounceRequest, LeaseAnswer, LeaseAsk, PeerInfo};

/// A tracker that does not answer an announce within this time counts as unresponsive. The last
/// one of its group that answers gets twice as long.
const ANNOUNCE_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Unreachable peers in one message.
const MAX_UNREACHABLE: usize = 32;

/// A peer's session with all its trackers. Trackers are named by their place in the list that the
/// session was given.
#[derive(Debug)]
pub struct TrackerSession {
    peer: PeerInfo,
    trackers: Vec<TrackerUrl>,
    groups: Groups,
    health: TrackerHealth,
    announcers: Vec<Announcer>,
    leases: LeaseRequests,
    exchanges: Exchanges,
    is_leaving: bool,
    outputs: VecDeque<SessionOutput>,
}

impl TrackerSession {
    /// The longest time that an exchange takes: a lease request may be parked for most of it.
    pub const LONGEST_EXCHANGE: Duration = PARKED_TIMEOUT;

    /// A session of `peer` with `trackers`; the first announces are due `now`. Trackers in the
    /// peer's region are used first. Those of each other region are a group that is used while all
    /// groups before it are lost; groups are in the order in which `trackers` names them.
    pub fn new(now: Time, peer: PeerInfo, trackers: Vec<TrackerUrl>) -> Self {
        let groups = Groups::new(&peer.region, &trackers);
        let announcer = |tracker| {
            if groups.is_used(tracker) {
                Announcer::new(now)
            } else {
                Announcer::unused()
            }
        };
        Self {
            peer,
            health: TrackerHealth::new(groups.of_each(), ANNOUNCE_ANSWER_TIMEOUT),
            announcers: (0..trackers.len()).map(announcer).collect(),
            trackers,
            groups,
            leases: LeaseRequests::default(),
            exchanges: Exchanges::default(),
            is_leaving: false,
            outputs: VecDeque::new(),
        }
    }

    /// The trackers, as the session was given them.
    pub fn trackers(&self) -> &[TrackerUrl] {
        &self.trackers
    }

    /// The region of a tracker; `None` if there is no such tracker.
    pub fn region(&self, tracker: usize) -> Option<&RegionName> {
        self.groups.region(tracker)
    }

    /// The number of groups of trackers: regions that have any.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Whether the peer announces to the tracker: it is in the peer's region, or in a group whose
    /// predecessors are lost.
    pub fn is_used(&self, tracker: usize) -> bool {
        self.groups.is_used(tracker)
    }

    /// Whether the tracker does not answer.
    pub fn is_unresponsive(&self, tracker: usize) -> bool {
        self.health.is_unresponsive(tracker)
    }

    /// Announces that the tracker has accepted.
    pub fn accepted_announces(&self, tracker: usize) -> u64 {
        self.announcers
            .get(tracker)
            .map_or(0, Announcer::accepted_count)
    }

    /// Whether [`SessionInput::Leave`] was handled and all its announces have ended.
    pub fn has_left(&self) -> bool {
        self.is_leaving && !self.exchanges.contains(Purpose::Leave)
    }

    /// The next action, if there is one.
    pub fn poll_output(&mut self) -> Option<SessionOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let exchanges = self.exchanges.poll_timeout();
        if self.is_leaving {
            return exchanges;
        }
        let announcers = self.announcers.iter().filter_map(Announcer::poll_timeout);
        announcers
            .chain(exchanges)
            .chain(self.health.poll_timeout())
            .chain(self.leases.poll_timeout())
            .min()
    }

    /// Handles everything that is due.
    pub fn handle_timeout(&mut self, now: Time) {
        for exchange in self.exchanges.expired(now) {
            if let Some(exchange) = self.exchanges.expire(&mut self.outputs, exchange) {
                self.on_failure(now, exchange);
            }
        }
        if self.is_leaving {
            return;
        }
        let unresponsive_before = self.unresponsive_trackers();
        let change = self.health.handle_timeout(now);
        self.on_health_change(now, &unresponsive_before, change);
        let (leases, mut ctx) = self.lease_context(now);
        leases.handle_timeout(&mut ctx);
        for (tracker, announcer) in self.announcers.iter_mut().enumerate() {
            if announcer.begin(now) {
                self.outputs
                    .push_back(SessionOutput::NeedSnapshot { tracker });
            }
        }
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Time, input: SessionInput) {
        match input {
            SessionInput::AnnounceAnswered { exchange, answer } => {
                self.on_announce_answer(now, exchange, answer);
            }
            SessionInput::LeaseAnswered { exchange, answer } => {
                self.on_lease_answer(now, exchange, answer);
            }
            SessionInput::Failed { exchange } => {
                if let Some(exchange) = self.exchanges.end(exchange) {
                    self.on_failure(now, exchange);
                }
            }
            _ if self.is_leaving => {}
            SessionInput::StateChanged(urgency) => {
                for announcer in &mut self.announcers {
                    announcer.mark_changed(now, urgency);
                }
            }
            SessionInput::Snapshot { tracker, snapshot } => self.announce(now, tracker, snapshot),
            SessionInput::RequestLease {
                digest,
                missing,
                starving,
                mut unreachable,
                origins,
            } => {
                unreachable.truncate(MAX_UNREACHABLE);
                let take = LeaseAsk::Take {
                    number: self.leases.next_number(),
                    missing,
                    starving,
                    unreachable,
                    origins,
                };
                self.ask(now, digest, take);
            }
            SessionInput::WithdrawRequest { digest } => {
                if self.leases.withdraw(&digest) == Withdrawal::Posted {
                    self.ask(now, digest, LeaseAsk::Drop);
                }
            }
            SessionInput::UpdateLease { digest, update } => self.ask(now, digest, update.into()),
            SessionInput::Leave => self.leave(now),
        }
    }

    fn announce(&mut self, now: Time, tracker: usize, snapshot: PeerSnapshot) {
        let is_responsible = |digest: &Digest| self.groups.is_responsible(tracker, digest);
        let mut blobs = snapshot.blobs;
        self.leases.forget_delays(&blobs);
        blobs.retain(|change| is_responsible(&change.digest));
        let mut neighbours = snapshot.neighbours;
        neighbours.retain(|wanted| wanted.count > 0 && is_responsible(&wanted.digest));
        let announcer = self.announcers.get_mut(tracker);
        let announcement = announcer.and_then(|it| it.announce(blobs, &neighbours));
        let Some(announcement) = announcement else {
            return;
        };
        // They only matter for the choice of neighbours.
        let connected = match neighbours.is_empty() {
            true => Vec::new(),
            false => snapshot.connected,
        };
        let mut unreachable = snapshot.unreachable;
        unreachable.truncate(MAX_UNREACHABLE);
        let request = AnnounceRequest {
            peer: self.peer.clone(),
            epoch: announcement.epoch,
            sequence: announcement.sequence,
            full: announcement.full,
            changes: announcement.changes,
            leases: snapshot.leases,
            neighbours,
            connected,
            unreachable,
            leaving: false,
        };
        self.health.asked(now, tracker);
        self.exchanges.post(
            &mut self.outputs,
            now + REQUEST_TIMEOUT,
            tracker,
            Purpose::Announce,
            TrackerRequest::Announce(request),
        );
    }

    fn on_announce_answer(&mut self, now: Time, exchange: ExchangeId, answer: AnnounceAnswer) {
        let Some(TrackerExchange {
            tracker,
            purpose: Purpose::Announce,
            ..
        }) = self.exchanges.end(exchange)
        else {
            return;
        };
        match answer {
            AnnounceAnswer::Accepted {
                epoch,
                next_ms,
                lease_delay_ms,
                peers,
                handouts,
            } => {
                let next = limits::interval(next_ms);
                self.announcers[tracker].accept(now, epoch, next);
                let (leases, mut ctx) = self.lease_context(now);
                if !handouts.is_empty() {
                    leases.set_delay(limits::lease_delay(lease_delay_ms));
                }
                leases.on_announced(tracker, &handouts, &mut ctx);
                self.on_answered(now, tracker);
                if !handouts.is_empty() {
                    let handouts = limits::handouts(&peers, &handouts);
                    self.outputs.push_back(SessionOutput::Handouts(handouts));
                }
            }
            // An unresponsive tracker stays so until it accepts the full announce: before that it
            // grants no lease.
            AnnounceAnswer::Resync { epoch } => self.announcers[tracker].resync(now, epoch),
        }
    }

    fn on_lease_answer(&mut self, now: Time, exchange: ExchangeId, answer: LeaseAnswer) {
        let Some(TrackerExchange {
            tracker,
            purpose: Purpose::Lease(ask),
            ..
        }) = self.exchanges.end(exchange)
        else {
            return;
        };
        self.on_answered(now, tracker);
        let (leases, mut ctx) = self.lease_context(now);
        let not_needed = leases.on_answer(ask, answer, &mut ctx);
        if let Some((digest, chunk)) = not_needed {
            self.ask(now, digest, LeaseAsk::Failed { chunk });
        }
    }

    fn on_failure(&mut self, now: Time, exchange: TrackerExchange) {
        match exchange.purpose {
            Purpose::Announce => {
                self.announcers[exchange.tracker].fail(now);
                let unresponsive_before = self.unresponsive_trackers();
                let change = self.health.failed(exchange.tracker);
                self.on_health_change(now, &unresponsive_before, change);
            }
            Purpose::Lease(ask) => {
                let (leases, mut ctx) = self.lease_context(now);
                leases.on_failure(ask, &mut ctx);
            }
            Purpose::Leave => {}
        }
    }

    fn on_answered(&mut self, now: Time, tracker: usize) {
        if self.health.answered(now, tracker) == Some(HealthChange::Reachable) {
            self.outputs.push_back(SessionOutput::Reachable);
            self.update_groups(now);
        }
    }

    fn unresponsive_trackers(&self) -> Vec<bool> {
        (0..self.trackers.len())
            .map(|tracker| self.health.is_unresponsive(tracker))
            .collect()
    }

    /// Reports a change, begins to use the next group if one was lost, and moves the requests of
    /// trackers that became unresponsive.
    fn on_health_change(
        &mut self,
        now: Time,
        unresponsive_before: &[bool],
        change: Option<HealthChange>,
    ) {
        match change {
            Some(HealthChange::Reachable) => self.outputs.push_back(SessionOutput::Reachable),
            Some(HealthChange::Unreachable) => self.outputs.push_back(SessionOutput::Unreachable),
            None => {}
        }
        self.update_groups(now);
        for (tracker, was_unresponsive) in unresponsive_before.iter().enumerate() {
            if !was_unresponsive && self.health.is_unresponsive(tracker) {
                let (leases, mut ctx) = self.lease_context(now);
                leases.on_unresponsive(tracker, &mut ctx);
            }
        }
    }

    /// Begins to announce to the groups that are used from now on. The trackers of groups that are
    /// not used any more are told that the peer leaves, and their requests move to nearer ones.
    fn update_groups(&mut self, now: Time) {
        let (begun, ended) = self.groups.update(&self.health);
        for tracker in self.groups.trackers_of(begun) {
            self.announcers[tracker].start(now);
        }
        for tracker in self.groups.trackers_of(ended) {
            self.exchanges
                .cancel_all(&mut self.outputs, CancelReason::GroupUnused, |exchange| {
                    exchange.tracker == tracker && exchange.purpose != Purpose::Leave
                });
            self.health.forget(tracker);
            self.announcers[tracker].stop();
            self.post_leave(now, tracker);
            for (digest, ask) in self.leases.take_from(tracker) {
                self.ask(now, digest, ask);
            }
        }
    }

    fn ask(&mut self, now: Time, digest: Digest, ask: LeaseAsk) {
        let trackers = self.groups.ranked(&digest);
        let (leases, mut ctx) = self.lease_context(now);
        leases.ask(digest, ask, trackers, &mut ctx);
    }

    fn leave(&mut self, now: Time) {
        self.is_leaving = true;
        // An announce that is sent beside the last one could arrive after it.
        self.outputs.clear();
        self.leases = LeaseRequests::default();
        for tracker in 0..self.trackers.len() {
            if self.groups.is_used(tracker) {
                self.post_leave(now, tracker);
            }
        }
    }

    /// Tells a tracker that the peer leaves.
    fn post_leave(&mut self, now: Time, tracker: usize) {
        let request = AnnounceRequest {
            peer: self.peer.clone(),
            epoch: 0,
            sequence: 0,
            full: true,
            changes: Vec::new(),
            leases: Vec::new(),
            neighbours: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: true,
        };
        self.exchanges.post(
            &mut self.outputs,
            now + RETRY,
            tracker,
            Purpose::Leave,
            TrackerRequest::Announce(request),
        );
    }

    fn lease_context(&mut self, now: Time) -> (&mut LeaseRequests, LeaseContext<'_>) {
        let peer: &PeerId = &self.peer.id;
        let ctx = LeaseContext {
            now,
            peer,
            health: &self.health,
            groups: &self.groups,
            announcers: &mut self.announcers,
            exchanges: &mut self.exchanges,
            outputs: &mut self.outputs,
        };
        (&mut self.leases, ctx)
    }
}

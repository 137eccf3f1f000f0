//! Lease requests and updates: which tracker each one goes to, and its outcome.
//!
//! ```text
//! Announcing ──the blob is announced, or 2 s──▶ Posted ──answered──▶ outcome
//!     │                                          │  failed, unresponsive, NotFirst: the next tracker
//!     └────── unresponsive: the next tracker ────┘  no tracker left: wait a second
//! ```
//!
//! The next tracker is one of the same group, then of the next group, if that one is used. When a
//! group is not used any more, its requests begin again with the nearest one.
//!
//! Only a lease request waits in `Announcing`: a tracker grants nothing to a peer that it does not
//! know in the blob's swarm. Updates are posted at once. If the answer to the announce names peers
//! that hold chunks of the blob, the request waits until these have had time to say which: most
//! peers that join a swarm find everything there and need no lease.
//!
//! A request that is not needed any more stays parked, because it does no harm: a tracker grants
//! chunks that the swarm has not got, which the peer needs again if it is granted one, and answers
//! it once the peer announces the whole blob. Only a starving request is withdrawn, because chunks
//! that the swarm has lost are granted to it.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::announcer::{Announcer, RETRY};
use super::exchanges::{ExchangeId, Exchanges, Purpose, REQUEST_TIMEOUT};
use super::groups::Groups;
use super::health::TrackerHealth;
use super::io::{CancelReason, NamedPeers, SessionOutput, TrackerRequest, Urgency};
use super::limits;
use crate::digest::Digest;
use crate::name::PeerId;
use crate::time::Time;
use crate::wire::tracker::{BlobState, Change, Handout, LeaseAnswer, LeaseAsk, LeaseRequest};

/// How long a lease request waits for its blob to be announced.
const ANNOUNCED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a lease request waits for the holdings of peers that the tracker has just named: a
/// dial, a handshake and a greeting.
const GREETING_TIMEOUT: Duration = Duration::from_millis(250);
/// Requests that are parked at trackers although they are not needed any more.
const MAX_IDLE_REQUESTS: usize = 8;
/// For a lease request: the longest time that a tracker parks it, and some more.
pub(super) const PARKED_TIMEOUT: Duration = Duration::from_secs(30);
/// A tracker that sent nothing for this long while a request waits for it gets an announce, because
/// it answers announces at once.
const PROBE_AFTER: Duration = Duration::from_secs(3);

/// A lease request or update, whichever tracker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AskId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Announcing {
        until: Time,
    },
    Posted {
        exchange: ExchangeId,
        probe_at: Time,
    },
}

/// How a request ended that is not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Withdrawal {
    /// The tracker need not know.
    Silent,
    /// The tracker must be told.
    Posted,
}

/// A lease request or update under way.
#[derive(Debug)]
struct PendingAsk {
    digest: Digest,
    ask: LeaseAsk,
    asked_at: Time,
    /// Whether it is the first request for the blob, which may be delayed.
    is_first: bool,
    /// Whether it stays parked although the peer does not need it any more.
    is_idle: bool,
    tracker: usize,
    /// Trackers to ask after this one, the last of them first.
    next: Vec<usize>,
    /// Whether a better tracker of the same group was unreachable.
    first_unreachable: bool,
    stage: Stage,
}

/// The parts of the session that lease requests work with.
pub(super) struct LeaseContext<'a> {
    pub(super) now: Time,
    pub(super) peer: &'a PeerId,
    pub(super) health: &'a TrackerHealth,
    pub(super) groups: &'a Groups,
    pub(super) announcers: &'a mut [Announcer],
    pub(super) exchanges: &'a mut Exchanges,
    pub(super) outputs: &'a mut VecDeque<SessionOutput>,
}

/// All lease requests and updates under way.
#[derive(Debug, Default)]
pub(super) struct LeaseRequests {
    asks: BTreeMap<AskId, PendingAsk>,
    /// The request of each blob whose outcome counts.
    current: BTreeMap<Digest, AskId>,
    /// Blobs that a lease was asked for: their next requests are not delayed.
    asked: BTreeSet<Digest>,
    /// Over how long first requests are spread, as a tracker said last.
    delay: Duration,
    last_ask: u64,
    /// Number of the last lease request, as [`LeaseAsk::Take`] carries it.
    last_take: u64,
}

impl LeaseRequests {
    /// The number of a new lease request.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last_take += 1;
        self.last_take
    }

    /// Asks the first of `trackers` that answers.
    pub(super) fn ask(
        &mut self,
        digest: Digest,
        ask: LeaseAsk,
        mut trackers: Vec<usize>,
        ctx: &mut LeaseContext<'_>,
    ) {
        self.last_ask += 1;
        let id = AskId(self.last_ask);
        let mut asked_at = ctx.now;
        let mut is_first = false;
        if let LeaseAsk::Take { starving, .. } = &ask {
            is_first = self.asked.insert(digest) && !starving;
            if let Some(former) = self.current.insert(digest, id)
                && let Some(former) = self.take_unposted(former)
            {
                is_first = former.is_first && !starving;
                asked_at = former.asked_at;
            }
        }
        trackers.reverse();
        let pending = PendingAsk {
            digest,
            ask,
            asked_at,
            is_first,
            is_idle: false,
            tracker: trackers.last().copied().unwrap_or_default(),
            next: trackers,
            first_unreachable: false,
            stage: Stage::Announcing { until: ctx.now },
        };
        self.asks.insert(id, pending);
        self.try_next(id, ctx);
    }

    /// First requests are spread over this time from now on.
    pub(super) fn set_delay(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// Only these blobs were asked for before: a blob that the peer wants again later is new.
    pub(super) fn forget_delays(&mut self, blobs: &[Change]) {
        if !self.asked.is_empty() {
            let is_wanted = |change: &&Change| matches!(change.state, BlobState::Wanted { .. });
            let wanted = blobs.iter().filter(is_wanted).map(|change| change.digest);
            let wanted: BTreeSet<Digest> = wanted.collect();
            self.asked.retain(|digest| wanted.contains(digest));
        }
    }

    /// Removes a request that no tracker has.
    fn take_unposted(&mut self, id: AskId) -> Option<PendingAsk> {
        match self.asks.get(&id)?.stage {
            Stage::Announcing { .. } => self.asks.remove(&id),
            Stage::Posted { .. } => None,
        }
    }

    /// Until when a request is delayed.
    fn delayed_until(&self, ask: &PendingAsk, peer: &PeerId) -> Time {
        if ask.is_first {
            ask.asked_at + self.delay.mul_f64(fraction(peer, &ask.digest))
        } else {
            ask.asked_at
        }
    }

    /// The outcome of the blob's request does not count any more.
    pub(super) fn withdraw(&mut self, digest: &Digest) -> Withdrawal {
        let Some(id) = self.current.remove(digest) else {
            return Withdrawal::Silent;
        };
        if self.take_unposted(id).is_some() {
            return Withdrawal::Silent;
        }
        let idle = self.asks.values().filter(|ask| ask.is_idle).count();
        let Some(ask) = self.asks.get_mut(&id) else {
            return Withdrawal::Silent;
        };
        let is_starving = matches!(ask.ask, LeaseAsk::Take { starving: true, .. });
        if is_starving || idle >= MAX_IDLE_REQUESTS {
            return Withdrawal::Posted;
        }
        ask.is_idle = true;
        Withdrawal::Silent
    }

    /// A tracker answered. Returns the lease to give back, if it granted one that is not needed.
    #[must_use]
    pub(super) fn on_answer(
        &mut self,
        id: AskId,
        answer: LeaseAnswer,
        ctx: &mut LeaseContext<'_>,
    ) -> Option<(Digest, u32)> {
        if answer == LeaseAnswer::NotFirst {
            self.try_next(id, ctx);
            return None;
        }
        let ask = self.asks.remove(&id)?;
        if answer == LeaseAnswer::Unknown {
            ctx.announcers[ask.tracker].mark_changed(ctx.now, Urgency::Now);
        }
        self.finish(id, &ask, Some(answer), ctx)
    }

    /// A tracker did not answer.
    pub(super) fn on_failure(&mut self, id: AskId, ctx: &mut LeaseContext<'_>) {
        if let Some(ask) = self.asks.get_mut(&id) {
            ask.first_unreachable = true;
            self.try_next(id, ctx);
        }
    }

    /// A tracker became unresponsive: its requests go to the next one.
    pub(super) fn on_unresponsive(&mut self, tracker: usize, ctx: &mut LeaseContext<'_>) {
        for id in self.asks_of(|ask| ask.tracker == tracker) {
            if let Some(Stage::Posted { exchange, .. }) = self.asks.get(&id).map(|ask| ask.stage) {
                let reason = CancelReason::Unresponsive;
                ctx.exchanges.cancel(ctx.outputs, exchange, reason);
            }
            self.on_failure(id, ctx);
        }
    }

    /// Removes the requests and updates that a tracker has; their exchanges must have ended.
    /// Requests whose outcome does not count any more are left out.
    pub(super) fn take_from(&mut self, tracker: usize) -> Vec<(Digest, LeaseAsk)> {
        let mut taken = Vec::new();
        for id in self.asks_of(|ask| ask.tracker == tracker) {
            let Some(ask) = self.asks.remove(&id) else {
                continue;
            };
            let is_request = matches!(ask.ask, LeaseAsk::Take { .. });
            if !is_request || self.current.get(&ask.digest) == Some(&id) {
                taken.push((ask.digest, ask.ask));
            }
        }
        taken
    }

    /// A tracker accepted an announce: requests that waited for it are posted, or wait for the
    /// peers in its handouts.
    pub(super) fn on_announced(
        &mut self,
        tracker: usize,
        handouts: &[Handout],
        ctx: &mut LeaseContext<'_>,
    ) {
        let announcer = &ctx.announcers[tracker];
        let is_ready = |ask: &PendingAsk| {
            ask.tracker == tracker
                && matches!(ask.stage, Stage::Announcing { .. })
                && announcer.has_announced(&ask.digest)
        };
        for id in self.asks_of(is_ready) {
            let Some(ask) = self.asks.get(&id) else {
                continue;
            };
            let mut handouts = handouts.iter();
            let handout = handouts.find(|handout| handout.digest == ask.digest);
            let has_holder =
                handout.is_some_and(|handout| handout.peers.iter().any(|peer| peer.progress > 0));
            let greeted_at = if has_holder {
                ctx.now + GREETING_TIMEOUT
            } else {
                ctx.now
            };
            let until = greeted_at.max(self.delayed_until(ask, ctx.peer));
            self.post_at(id, until, ctx);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.asks.values().map(PendingAsk::timeout).min()
    }

    pub(super) fn handle_timeout(&mut self, ctx: &mut LeaseContext<'_>) {
        let now = ctx.now;
        for id in self.asks_of(|ask| ask.timeout() <= now) {
            let Some(ask) = self.asks.get_mut(&id) else {
                continue;
            };
            match &mut ask.stage {
                // The tracker answers that it does not know the peer, which counts as an answer.
                Stage::Announcing { .. } => self.post(id, ctx),
                Stage::Posted { probe_at, .. } => {
                    *probe_at = now + PROBE_AFTER;
                    if ctx
                        .health
                        .last_answer_older_than(now, ask.tracker, PROBE_AFTER)
                    {
                        ctx.announcers[ask.tracker].mark_changed(now, Urgency::Now);
                    }
                }
            }
        }
    }

    fn asks_of(&self, matches: impl Fn(&PendingAsk) -> bool) -> Vec<AskId> {
        self.asks
            .iter()
            .filter(|(_, ask)| matches(ask))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Turns to the next tracker that answers.
    fn try_next(&mut self, id: AskId, ctx: &mut LeaseContext<'_>) {
        let Some(ask) = self.asks.get_mut(&id) else {
            return;
        };
        while let Some(tracker) = ask.next.pop() {
            if !ctx.groups.is_used(tracker) {
                continue;
            }
            if ctx.groups.of(tracker) != ctx.groups.of(ask.tracker) {
                ask.first_unreachable = false;
            }
            ask.tracker = tracker;
            if ctx.health.is_unresponsive(tracker) {
                ask.first_unreachable = true;
                continue;
            }
            let must_wait = matches!(ask.ask, LeaseAsk::Take { .. })
                && !ctx.announcers[tracker].has_announced(&ask.digest);
            let until = match self.asks.get(&id) {
                _ if must_wait => ctx.now + ANNOUNCED_TIMEOUT,
                Some(ask) => self.delayed_until(ask, ctx.peer),
                None => ctx.now,
            };
            self.post_at(id, until, ctx);
            return;
        }
        if let Some(ask) = self.asks.remove(&id) {
            // Without an answer there is no lease to give back.
            let _ = self.finish(id, &ask, None, ctx);
        }
    }

    /// Posts now or at this time.
    fn post_at(&mut self, id: AskId, until: Time, ctx: &mut LeaseContext<'_>) {
        if until <= ctx.now {
            self.post(id, ctx);
        } else if let Some(ask) = self.asks.get_mut(&id) {
            ask.stage = Stage::Announcing { until };
        }
    }

    fn post(&mut self, id: AskId, ctx: &mut LeaseContext<'_>) {
        let Some(ask) = self.asks.get_mut(&id) else {
            return;
        };
        let request = LeaseRequest {
            peer: ctx.peer.clone(),
            digest: ask.digest,
            first_unreachable: ask.first_unreachable,
            ask: ask.ask.clone(),
        };
        let timeout = match ask.ask {
            LeaseAsk::Take { .. } => PARKED_TIMEOUT,
            _ => REQUEST_TIMEOUT,
        };
        let exchange = ctx.exchanges.post(
            ctx.outputs,
            ctx.now + timeout,
            ask.tracker,
            Purpose::Lease(id),
            TrackerRequest::Lease(request),
        );
        let probe_at = ctx.now + PROBE_AFTER;
        ask.stage = Stage::Posted { exchange, probe_at };
    }

    /// Reports the outcome: `answer`, or `None` if no tracker answered.
    fn finish(
        &mut self,
        id: AskId,
        ask: &PendingAsk,
        answer: Option<LeaseAnswer>,
        ctx: &mut LeaseContext<'_>,
    ) -> Option<(Digest, u32)> {
        let digest = ask.digest;
        match (&ask.ask, answer) {
            (LeaseAsk::Take { .. }, answer) => {
                let current = self.current.get(&digest);
                let is_granted = matches!(answer, Some(LeaseAnswer::Granted { .. }));
                if current == Some(&id) {
                    self.current.remove(&digest);
                    report(digest, answer, ctx.outputs);
                } else if ask.is_idle && current.is_none() && is_granted {
                    report(digest, answer, ctx.outputs);
                } else if let Some(LeaseAnswer::Granted { chunk, .. }) = answer {
                    return Some((digest, chunk));
                }
            }
            (
                LeaseAsk::Renew { chunk, .. } | LeaseAsk::Waiting { chunk, .. },
                Some(LeaseAnswer::NotHeld),
            ) => {
                let chunk = *chunk;
                ctx.outputs
                    .push_back(SessionOutput::LeaseLost { digest, chunk });
            }
            (LeaseAsk::Waiting { chunk, .. }, Some(LeaseAnswer::Moved { to })) => {
                let chunk = *chunk;
                let moved = SessionOutput::LeaseMoved { digest, chunk, to };
                ctx.outputs.push_back(moved);
            }
            _ => {}
        }
        None
    }
}

impl PendingAsk {
    fn timeout(&self) -> Time {
        match self.stage {
            Stage::Announcing { until } => until,
            Stage::Posted { probe_at, .. } => probe_at,
        }
    }
}

/// A number from 0 to 1 that is another one for each peer and blob (FNV-1a).
fn fraction(peer: &PeerId, digest: &Digest) -> f64 {
    let bytes = peer.as_str().bytes().chain(digest.hash().iter().copied());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

fn report(digest: Digest, answer: Option<LeaseAnswer>, outputs: &mut VecDeque<SessionOutput>) {
    let retry_after = match answer {
        Some(LeaseAnswer::Granted {
            chunk,
            term_ms,
            from,
        }) => {
            return outputs.push_back(SessionOutput::LeaseGranted {
                digest,
                chunk,
                term: limits::term(term_ms),
                from,
            });
        }
        Some(LeaseAnswer::Wait { retry_ms }) => limits::wait(retry_ms),
        Some(LeaseAnswer::Dial { peer }) => {
            let named = NamedPeers {
                digest,
                peers: vec![peer],
            };
            outputs.push_back(SessionOutput::Handouts(vec![named]));
            Duration::ZERO
        }
        // The peer's machine has a pause of its own between two requests.
        Some(
            LeaseAnswer::Unknown
            | LeaseAnswer::NotFirst
            | LeaseAnswer::Noted
            | LeaseAnswer::Moved { .. }
            | LeaseAnswer::NotHeld,
        ) => Duration::ZERO,
        None => RETRY,
    };
    outputs.push_back(SessionOutput::LeaseWait {
        digest,
        retry_after,
    });
}

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
//! know in the blob's swarm. Updates are posted at once.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use super::announcer::{Announcer, RETRY};
use super::exchanges::{ExchangeId, Exchanges, Purpose, REQUEST_TIMEOUT};
use super::groups::Groups;
use super::health::TrackerHealth;
use super::io::{CancelReason, SessionOutput, TrackerRequest};
use super::limits;
use crate::digest::Digest;
use crate::name::PeerId;
use crate::time::Time;
use crate::wire::tracker::{Handout, LeaseAnswer, LeaseAsk, LeaseRequest};

/// How long a lease request waits for its blob to be announced.
const ANNOUNCED_TIMEOUT: Duration = Duration::from_secs(2);
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

/// A lease request or update under way.
#[derive(Debug)]
struct PendingAsk {
    digest: Digest,
    ask: LeaseAsk,
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
        if matches!(ask, LeaseAsk::Take { .. }) {
            self.current.insert(digest, id);
        }
        trackers.reverse();
        let pending = PendingAsk {
            digest,
            ask,
            tracker: trackers.last().copied().unwrap_or_default(),
            next: trackers,
            first_unreachable: false,
            stage: Stage::Announcing { until: ctx.now },
        };
        self.asks.insert(id, pending);
        self.try_next(id, ctx);
    }

    /// The outcome of the blob's request does not count any more.
    pub(super) fn withdraw(&mut self, digest: &Digest) {
        self.current.remove(digest);
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
            ctx.announcers[ask.tracker].mark_changed(ctx.now);
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

    /// A tracker accepted an announce: requests that waited for it are posted.
    pub(super) fn on_announced(&mut self, tracker: usize, ctx: &mut LeaseContext<'_>) {
        let announcer = &ctx.announcers[tracker];
        let is_ready = |ask: &PendingAsk| {
            ask.tracker == tracker
                && matches!(ask.stage, Stage::Announcing { .. })
                && announcer.has_announced(&ask.digest)
        };
        for id in self.asks_of(is_ready) {
            self.post(id, ctx);
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
                        ctx.announcers[ask.tracker].mark_changed(now);
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
            if must_wait {
                ask.stage = Stage::Announcing {
                    until: ctx.now + ANNOUNCED_TIMEOUT,
                };
            } else {
                self.post(id, ctx);
            }
            return;
        }
        if let Some(ask) = self.asks.remove(&id) {
            // Without an answer there is no lease to give back.
            let _ = self.finish(id, &ask, None, ctx);
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
                if self.current.get(&digest) == Some(&id) {
                    self.current.remove(&digest);
                    report(digest, answer, ctx.outputs);
                } else if let Some(LeaseAnswer::Granted { chunk, .. }) = answer {
                    return Some((digest, chunk));
                }
            }
            (
                LeaseAsk::Renew { chunk, .. } | LeaseAsk::Waiting { chunk },
                Some(LeaseAnswer::NotHeld),
            ) => {
                let chunk = *chunk;
                ctx.outputs
                    .push_back(SessionOutput::LeaseLost { digest, chunk });
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

fn report(digest: Digest, answer: Option<LeaseAnswer>, outputs: &mut VecDeque<SessionOutput>) {
    let retry_after = match answer {
        Some(LeaseAnswer::Granted { chunk, term_ms }) => {
            return outputs.push_back(SessionOutput::LeaseGranted {
                digest,
                chunk,
                term: limits::term(term_ms),
            });
        }
        Some(LeaseAnswer::Wait { retry_ms }) => limits::wait(retry_ms),
        Some(LeaseAnswer::Dial { peer }) => {
            let peers = vec![peer];
            outputs.push_back(SessionOutput::Handouts(vec![Handout { digest, peers }]));
            Duration::ZERO
        }
        // The peer's machine has a pause of its own between two requests.
        Some(
            LeaseAnswer::Unknown
            | LeaseAnswer::NotFirst
            | LeaseAnswer::Noted
            | LeaseAnswer::NotHeld,
        ) => Duration::ZERO,
        None => RETRY,
    };
    outputs.push_back(SessionOutput::LeaseWait {
        digest,
        retry_after,
    });
}

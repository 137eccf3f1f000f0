//! One request: the run through its attempts, with deadlines and hedges.

use core::time::Duration;

use super::config::FailoverConfig;
use super::health::Standing;
use super::machine::{Failover, Input, Need, Outcome, SourceId};
use crate::time::Time;

/// A source that a request may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) source: SourceId,
    pub(super) region: u32,
    /// False for a source that is Out and asked because nothing else is left.
    pub(super) is_usable: bool,
    /// Whether it is the own region's source, in good standing, and asked first.
    pub(super) is_preferred: bool,
    /// How long it may take to the head of its answer.
    pub(super) timeout: Duration,
    /// When the next source is asked too; `None` if that waits for this one's end.
    pub(super) hedge_delay: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    Asked {
        at: Time,
        is_slow: bool,
        is_hung: bool,
    },
    Ended,
}

/// What a request does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call this source, and poll again at once. Its end is to be passed to [`Request::ended`].
    Ask(SourceId),
    /// Poll again after an outcome or a change of a standing, at this time at the latest.
    Wait(Time),
    /// No source is left to wait for.
    Exhausted,
}

/// One request on its way through the sources. Made by [`Failover::request`].
#[derive(Debug)]
pub struct Request {
    need: Need,
    attempts: Vec<(Attempt, Progress)>,
    /// Whether each region answered that it does not have what is asked for.
    absent: Vec<bool>,
    deadline: Option<Time>,
    slow_after: Duration,
    hung_after: Duration,
    request_timeout: Duration,
}

impl Request {
    pub(super) fn new(
        now: Time,
        need: Need,
        attempts: Vec<Attempt>,
        regions: u32,
        config: &FailoverConfig,
    ) -> Self {
        let is_preferred = attempts.first().is_some_and(|first| first.is_preferred);
        let attempts = attempts.into_iter();
        Self {
            need,
            attempts: attempts.map(|it| (it, Progress::Waiting)).collect(),
            absent: vec![false; regions as usize],
            deadline: (!is_preferred).then(|| now + config.request_timeout),
            slow_after: config.slow_after,
            hung_after: config.hung_after,
            request_timeout: config.request_timeout,
        }
    }

    /// The next step. Reports calls that take long to `failover`, and ends those that took too
    /// long.
    pub fn poll(&mut self, now: Time, failover: &mut Failover) -> Step {
        self.check_calls(now, failover);
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            for at in 0..self.attempts.len() {
                self.end_unanswered(now, failover, at);
            }
        }
        if let Some(at) = self.next_due(now) {
            let (attempt, progress) = &mut self.attempts[at];
            *progress = Progress::Asked {
                at: now,
                is_slow: false,
                is_hung: false,
            };
            return Step::Ask(attempt.source);
        }
        self.next_time().map_or(Step::Exhausted, Step::Wait)
    }

    /// A call ended. False if the request did not wait for it any longer; the outcome is ignored
    /// then.
    pub fn ended(
        &mut self,
        now: Time,
        failover: &mut Failover,
        source: SourceId,
        outcome: Outcome,
    ) -> bool {
        let mut attempts = self.attempts.iter_mut();
        let Some((attempt, progress)) = attempts.find(|(it, _)| it.source == source) else {
            return false;
        };
        if !matches!(progress, Progress::Asked { .. }) {
            return false;
        }
        *progress = Progress::Ended;
        let region = attempt.region;
        if outcome == Outcome::Missing {
            // Replicas of one region know the same, so the others need not be asked.
            if let Some(absent) = self.absent.get_mut(region as usize) {
                *absent = true;
            }
            for (attempt, progress) in &mut self.attempts {
                if attempt.region == region && *progress == Progress::Waiting {
                    *progress = Progress::Ended;
                }
            }
        }
        self.report(now, failover, source, outcome);
        true
    }

    /// Whether the request waits for a call's end.
    pub fn waits_for(&self, source: SourceId) -> bool {
        let mut attempts = self.attempts.iter();
        attempts
            .any(|(it, progress)| it.source == source && matches!(progress, Progress::Asked { .. }))
    }

    /// Whether the request waits for any call's end: without one, [`Self::abandon`] does nothing.
    pub fn has_calls(&self) -> bool {
        let mut attempts = self.attempts.iter();
        attempts.any(|(_, progress)| matches!(progress, Progress::Asked { .. }))
    }

    /// Whether every region answered that it does not have what is asked for. Regions that were
    /// not asked, or did not answer, may have it.
    pub fn is_absent(&self) -> bool {
        !self.absent.is_empty() && self.absent.iter().all(|absent| *absent)
    }

    /// The caller is not interested any longer, or another source was faster. Callers that give up
    /// early must not hide a hung source: a call that counts as hung has timed out, and one that
    /// has waited for half of the time after which it would be slow makes its source suspect.
    pub fn abandon(&mut self, now: Time, failover: &mut Failover) {
        for at in 0..self.attempts.len() {
            let (attempt, progress) = &mut self.attempts[at];
            let source = attempt.source;
            let before = core::mem::replace(progress, Progress::Ended);
            let Progress::Asked {
                at: asked_at,
                is_slow,
                is_hung,
            } = before
            else {
                continue;
            };
            if is_hung {
                self.report(now, failover, source, Outcome::TimedOut);
            } else if !is_slow && now.saturating_since(asked_at) >= self.slow_after / 2 {
                failover.handle(now, Input::Slow { source });
            }
        }
    }

    fn report(&self, now: Time, failover: &mut Failover, source: SourceId, outcome: Outcome) {
        let need = self.need;
        failover.handle(
            now,
            Input::Ended {
                source,
                need,
                outcome,
            },
        );
    }

    /// Reports what has taken long by now, and ends the calls of sources that went Out.
    fn check_calls(&mut self, now: Time, failover: &mut Failover) {
        for at in 0..self.attempts.len() {
            let (attempt, progress) = &mut self.attempts[at];
            let source = attempt.source;
            let went_out = attempt.is_usable && failover.standing(source) == Standing::Out;
            if went_out && *progress == Progress::Waiting {
                *progress = Progress::Ended;
            }
            let Progress::Asked {
                at: asked_at,
                is_slow,
                is_hung,
            } = progress
            else {
                continue;
            };
            let waited = now.saturating_since(*asked_at);
            if !*is_slow && waited >= self.slow_after {
                *is_slow = true;
                failover.handle(now, Input::Slow { source });
            }
            if !*is_hung && waited >= self.hung_after {
                *is_hung = true;
                failover.handle(now, Input::Hung { source });
            }
            let went_out = attempt.is_usable && failover.standing(source) == Standing::Out;
            if went_out && at == 0 {
                let deadline = now + self.request_timeout;
                self.deadline = Some(self.deadline.map_or(deadline, |it| it.min(deadline)));
            }
            if went_out {
                *progress = Progress::Ended;
            } else if waited >= attempt.timeout {
                self.end_unanswered(now, failover, at);
            }
        }
    }

    /// Ends an attempt. A call without an answer has timed out, unless it has only just begun.
    fn end_unanswered(&mut self, now: Time, failover: &mut Failover, at: usize) {
        let (attempt, progress) = &mut self.attempts[at];
        let source = attempt.source;
        let least = attempt.timeout.min(self.hung_after);
        let before = core::mem::replace(progress, Progress::Ended);
        if let Progress::Asked { at: asked_at, .. } = before
            && now.saturating_since(asked_at) >= least
        {
            self.report(now, failover, source, Outcome::TimedOut);
        }
    }

    /// The first attempt that is to be made now.
    fn next_due(&self, now: Time) -> Option<usize> {
        let waiting = |(_, progress): &(Attempt, Progress)| *progress == Progress::Waiting;
        let next = self.attempts.iter().position(waiting)?;
        self.hedge_at().is_none_or(|at| at <= now).then_some(next)
    }

    /// When the next waiting attempt is made although calls are under way; `None` if none is.
    fn hedge_at(&self) -> Option<Time> {
        let asked = self.attempts.iter().filter_map(|(attempt, progress)| {
            let Progress::Asked { at, .. } = progress else {
                return None;
            };
            Some(attempt.hedge_delay.map_or(Time::MAX, |delay| *at + delay))
        });
        asked.max()
    }

    /// When to poll again; `None` if no call is under way.
    fn next_time(&self) -> Option<Time> {
        let calls = self.attempts.iter().filter_map(|(attempt, progress)| {
            let Progress::Asked {
                at,
                is_slow,
                is_hung,
            } = *progress
            else {
                return None;
            };
            let slow_at = (!is_slow).then(|| at + self.slow_after);
            let hung_at = (!is_hung).then(|| at + self.hung_after);
            let next = slow_at.into_iter().chain(hung_at).min();
            Some(next.unwrap_or(Time::MAX).min(at + attempt.timeout))
        });
        let next_call = calls.min()?;
        let waiting = |(_, progress): &(Attempt, Progress)| *progress == Progress::Waiting;
        let hedge_at = self
            .hedge_at()
            .filter(|_| self.attempts.iter().any(waiting));
        Some(
            [Some(next_call), hedge_at, self.deadline]
                .into_iter()
                .flatten()
                .fold(Time::MAX, Time::min),
        )
    }
}

//! One deadline for each thing that the machine waits for.
//!
//! A deadline is a lower bound: when it comes, the room it belongs to looks at all its items, does
//! what is due and sets the earliest of the rest. So there is no timer to cancel and no queue that
//! could grow.

use crate::time::Time;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// A Have batch may leave.
    Have,
    /// A slot may be filled: a busy neighbour may be asked again, a transfer is nearly done, an
    /// origin has rested.
    Fill,
    /// A transfer may have stalled.
    Stall,
    /// A blob may have waited too long.
    Escalate,
    /// A lease wants renewal, or may be asked for again.
    Lease,
    /// A peer may be dialled again, or more peers asked for.
    Dial,
}

const ALL: [Timer; 6] = [
    Timer::Have,
    Timer::Fill,
    Timer::Stall,
    Timer::Escalate,
    Timer::Lease,
    Timer::Dial,
];

#[derive(Debug)]
pub(super) struct Timers {
    at: [Time; ALL.len()],
}

impl Timers {
    pub(super) fn new() -> Self {
        Self {
            at: [Time::MAX; ALL.len()],
        }
    }

    /// Wakes at `at`, or before if that is planned already.
    pub(super) fn by(&mut self, timer: Timer, at: Time) {
        let slot = &mut self.at[timer as usize];
        *slot = at.min(*slot);
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Time> {
        let next = self.at.iter().copied().fold(Time::MAX, Time::min);
        (next != Time::MAX).then_some(next)
    }

    /// A timer that is due, which is thereby cleared.
    pub(super) fn take_due(&mut self, now: Time) -> Option<Timer> {
        let timer = ALL
            .into_iter()
            .find(|timer| self.at[*timer as usize] <= now)?;
        self.at[timer as usize] = Time::MAX;
        Some(timer)
    }
}

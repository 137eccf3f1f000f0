//! One deadline for each kind of thing that the machine waits for.
//!
//! A deadline is a lower bound: when it comes, its owner looks at all its items, does what is due
//! and sets the earliest deadline of the rest. So there is no timer to cancel and no queue that
//! could grow.

use crate::time::Time;

/// The purpose of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// A batch of Have messages may be sent.
    Have,
    /// Claims may be told to neighbours.
    Claim,
    /// A slot may be filled: a pause has ended, or a transfer is nearly done or late.
    Fill,
    /// A transfer may have stalled, or an unresponsive neighbour is asked again.
    Stall,
    /// A blob may have to fall back to the origin.
    Fallback,
    /// A lease is to be renewed, or may be asked for again.
    Lease,
    /// A peer may be dialed, a dial may be late, or the tracker may be asked for more peers.
    Dial,
}

const ALL: [Timer; 7] = [
    Timer::Have,
    Timer::Claim,
    Timer::Fill,
    Timer::Stall,
    Timer::Fallback,
    Timer::Lease,
    Timer::Dial,
];

/// The deadlines by [`Timer`].
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

    /// Sets a deadline, unless an earlier one is set.
    pub(super) fn wake_by(&mut self, timer: Timer, at: Time) {
        let deadline = &mut self.at[timer as usize];
        *deadline = at.min(*deadline);
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Time> {
        let next = self.at.iter().copied().fold(Time::MAX, Time::min);
        (next != Time::MAX).then_some(next)
    }

    /// Clears the deadlines that have come, and returns their timers. A deadline that is set again
    /// while they are handled is not among them, even if it is in the past.
    pub(super) fn take_due(&mut self, now: Time) -> impl Iterator<Item = Timer> + use<> {
        let is_due = self.at.map(|at| at <= now);
        for (at, _) in self.at.iter_mut().zip(is_due).filter(|(_, is_due)| *is_due) {
            *at = Time::MAX;
        }
        ALL.into_iter().filter(move |timer| is_due[*timer as usize])
    }
}

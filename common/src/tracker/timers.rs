//! The tracker's deadlines. A deadline that moves leaves its old entry in the heap, so the handler
//! of a timer checks whether it is really due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use crate::time::Time;

/// Place in a queue of parked requests; unique in the life of a machine.
pub(super) type Ticket = u64;

/// A deadline's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A peer may have expired.
    Peer(PeerSlot),
    /// A lease may have expired, or be late to be confirmed.
    Lease {
        blob: BlobSlot,
        region: RegionSlot,
        chunk: u32,
    },
    /// A request may have been parked for the longest time.
    Parked {
        blob: BlobSlot,
        region: RegionSlot,
        ticket: Ticket,
    },
    /// The time after a start is over in which peers report their chunks.
    Settled,
}

/// Timers by time, then by subject: the same order on every computer.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Time, Timer)>>);

impl Timers {
    pub(super) fn set(&mut self, at: Time, timer: Timer) {
        self.0.push(Reverse((at, timer)));
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// Removes the next timer that is due at `now`.
    pub(super) fn pop(&mut self, now: Time) -> Option<Timer> {
        if self.next()? <= now {
            self.0.pop().map(|Reverse((_, timer))| timer)
        } else {
            None
        }
    }
}

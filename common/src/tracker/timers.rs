//! The tracker's deadlines. A deadline that was moved leaves its old entry behind; who set it looks
//! again when it fires.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use crate::time::Time;

/// Place in a queue of parked requests; unique in the life of a machine.
pub(super) type Ticket = u64;

/// What may be due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A peer may have been silent for too long.
    Peer(PeerSlot),
    /// A lease's term may have run out.
    Lease {
        blob: BlobSlot,
        region: RegionSlot,
        chunk: u32,
    },
    /// A request may have been parked for long enough.
    Parked {
        blob: BlobSlot,
        region: RegionSlot,
        ticket: Ticket,
    },
    /// After a start, what is in the swarms is known.
    Settled,
}

/// Timers by time, then by what they are: the same order on every machine.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Time, Timer)>>);

impl Timers {
    pub(super) fn set(&mut self, at: Time, timer: Timer) {
        self.0.push(Reverse((at, timer)));
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// The next timer due at `now`, each once.
    pub(super) fn pop(&mut self, now: Time) -> Option<Timer> {
        if self.next()? <= now {
            self.0.pop().map(|Reverse((_, timer))| timer)
        } else {
            None
        }
    }
}

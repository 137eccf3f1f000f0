//! The event queue: earliest first; simultaneous events in the order in which they were pushed.
//!
//! Most events come a fixed delay after they are pushed, for example a message between two zones.
//! Each such delay has a lane, a FIFO in which events are in order because time does not go back.
//! Other events are in a heap.

use core::time::Duration;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use flotilla_common::time::Time;

/// Delays that have lanes of their own.
const MAX_LANES: usize = 8;

/// Events by time, in an order that depends on nothing else.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<QueueEntry<E>>>,
    lanes: Vec<Lane<E>>,
    sequence: u64,
}

/// The events that come after the same delay.
#[derive(Debug)]
struct Lane<E> {
    delay: Duration,
    /// Time and sequence of the first event; [`NEVER`] if there is none.
    next: (Time, u64),
    events: VecDeque<QueueEntry<E>>,
}

#[derive(Debug)]
struct QueueEntry<E> {
    at: Time,
    sequence: u64,
    event: E,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            lanes: Vec::new(),
            sequence: 0,
        }
    }

    /// Pushes an event for the time `at`.
    pub(crate) fn push(&mut self, at: Time, event: E) {
        self.sequence += 1;
        self.heap.push(Reverse(QueueEntry {
            at,
            sequence: self.sequence,
            event,
        }));
    }

    /// Pushes an event for `delay` after `now`, which must never decrease.
    pub(crate) fn push_after(&mut self, now: Time, delay: Duration, event: E) {
        let at = now + delay;
        let lane = match self.lanes.iter_mut().position(|lane| lane.delay == delay) {
            Some(lane) => lane,
            None if self.lanes.len() < MAX_LANES => {
                self.lanes.push(Lane {
                    delay,
                    next: NEVER,
                    events: VecDeque::new(),
                });
                self.lanes.len() - 1
            }
            None => return self.push(at, event),
        };
        self.sequence += 1;
        let lane = &mut self.lanes[lane];
        if lane.events.is_empty() {
            lane.next = (at, self.sequence);
        }
        lane.events.push_back(QueueEntry {
            at,
            sequence: self.sequence,
            event,
        });
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        let in_lanes = self.lanes.iter().map(|lane| lane.next.0);
        let in_heap = self.heap.peek().map(|Reverse(entry)| entry.at);
        in_lanes.chain(in_heap).min().filter(|at| *at != Time::MAX)
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, E)> {
        let in_heap = self
            .heap
            .peek()
            .map_or(NEVER, |Reverse(entry)| (entry.at, entry.sequence));
        let lane = self
            .lanes
            .iter_mut()
            .filter(|lane| lane.next < in_heap)
            .min_by_key(|lane| lane.next);
        let Some(lane) = lane else {
            return self
                .heap
                .pop()
                .map(|Reverse(entry)| (entry.at, entry.event));
        };
        let entry = lane.events.pop_front()?;
        lane.next = lane
            .events
            .front()
            .map_or(NEVER, |entry| (entry.at, entry.sequence));
        Some((entry.at, entry.event))
    }
}

const NEVER: (Time, u64) = (Time::MAX, u64::MAX);

impl<E> PartialEq for QueueEntry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<E> Eq for QueueEntry<E> {}

impl<E> PartialOrd for QueueEntry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for QueueEntry<E> {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_ordered_by_time_then_by_push() {
        let mut queue = Queue::new();
        for (at, event) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            queue.push(Time::from_nanos(at), event);
        }
        assert_eq!(queue.next_at(), Some(Time::from_nanos(1)));
        let order: String = core::iter::from_fn(|| queue.pop().map(|(_, event)| event)).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn lanes_and_heap_share_one_order() {
        let mut queue = Queue::new();
        let long = Duration::from_nanos(9);
        let short = Duration::from_nanos(1);
        let at = Time::from_nanos;
        queue.push_after(at(0), long, 'e');
        queue.push(at(9), 'f');
        queue.push_after(at(0), short, 'a');
        queue.push(at(1), 'b');
        queue.push_after(at(1), short, 'c');
        queue.push_after(at(8), short, 'g');
        queue.push(at(3), 'd');
        assert_eq!(queue.next_at(), Some(at(1)));
        let order: String = core::iter::from_fn(|| queue.pop().map(|(_, event)| event)).collect();
        assert_eq!(order, "abcdefg");
        assert_eq!(queue.next_at(), None);
    }

    #[test]
    fn more_delays_than_lanes_stay_in_order() {
        let mut queue = Queue::new();
        for delay in (0..20).rev() {
            queue.push_after(Time::ZERO, Duration::from_nanos(delay), delay);
        }
        let order: Vec<u64> = core::iter::from_fn(|| queue.pop().map(|(_, event)| event)).collect();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    }
}

//! The event queue: earliest first; simultaneous events in the order in which they were pushed.
//!
//! It is a calendar queue. Time is cut into buckets of 16 us, and an event goes into its bucket
//! unsorted. When the time of a bucket comes, its events are sorted. Events beyond the last bucket
//! are in a heap until their bucket is near. So an event costs about the same however many there
//! are and however their delays vary.

use core::time::Duration;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use flotilla_common::time::Time;

/// Binary logarithm of a bucket's nanoseconds.
const BUCKET_LOG2: u32 = 14;
/// Number of buckets, a power of two: 134 ms.
const BUCKETS: usize = 1 << 13;

/// Events by time, in an order that depends on nothing else.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    /// The events up to the end of the current bucket, in order.
    current: VecDeque<QueueEntry<E>>,
    /// Number of the current bucket.
    bucket: u64,
    /// The events of the next buckets, in no order. Bucket `n` is at the index `n % BUCKETS`.
    buckets: Vec<Vec<QueueEntry<E>>>,
    /// Which of `buckets` have events, one bit each.
    occupied: Vec<u64>,
    /// The events of later buckets.
    later: BinaryHeap<Reverse<QueueEntry<E>>>,
    /// Empty vectors with capacity, for buckets.
    spare: Vec<Vec<QueueEntry<E>>>,
    sequence: u64,
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
            current: VecDeque::new(),
            bucket: 0,
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            occupied: vec![0; BUCKETS / 64],
            later: BinaryHeap::new(),
            spare: Vec::new(),
            sequence: 0,
        }
    }

    /// Pushes an event for the time `at`.
    pub(crate) fn push(&mut self, at: Time, event: E) {
        self.sequence += 1;
        let entry = QueueEntry {
            at,
            sequence: self.sequence,
            event,
        };
        let bucket = bucket_of(at);
        if bucket <= self.bucket {
            let place = self.current.partition_point(|other| *other < entry);
            self.current.insert(place, entry);
        } else if bucket - self.bucket < BUCKETS as u64 {
            self.push_into_bucket(bucket, entry);
        } else {
            self.later.push(Reverse(entry));
        }
    }

    /// Pushes an event for `delay` after `now`.
    pub(crate) fn push_after(&mut self, now: Time, delay: Duration, event: E) {
        self.push(now + delay, event);
    }

    /// The time of the next event.
    pub(crate) fn next_at(&mut self) -> Option<Time> {
        self.advance();
        self.current.front().map(|entry| entry.at)
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, E)> {
        self.advance();
        let entry = self.current.pop_front()?;
        Some((entry.at, entry.event))
    }

    fn push_into_bucket(&mut self, bucket: u64, entry: QueueEntry<E>) {
        let index = bucket as usize % BUCKETS;
        let events = &mut self.buckets[index];
        if events.capacity() == 0 {
            *events = self.spare.pop().unwrap_or_default();
        }
        events.push(entry);
        self.occupied[index / 64] |= 1 << (index % 64);
    }

    /// Proceeds to the next bucket with events if there are none left in the current one.
    fn advance(&mut self) {
        if !self.current.is_empty() {
            return;
        }
        let Some(bucket) = self.next_occupied().or_else(|| {
            let Reverse(first) = self.later.peek()?;
            Some(bucket_of(first.at))
        }) else {
            return;
        };
        self.bucket = bucket;
        while let Some(Reverse(first)) = self.later.peek()
            && bucket_of(first.at) - bucket < BUCKETS as u64
            && let Some(Reverse(entry)) = self.later.pop()
        {
            self.push_into_bucket(bucket_of(entry.at), entry);
        }
        let index = bucket as usize % BUCKETS;
        self.occupied[index / 64] &= !(1 << (index % 64));
        let mut events = core::mem::take(&mut self.buckets[index]);
        events.sort_unstable();
        let emptied = core::mem::replace(&mut self.current, events.into());
        self.spare.push(emptied.into());
    }

    /// The number of the first bucket with events.
    fn next_occupied(&self) -> Option<u64> {
        let words = self.occupied.len();
        let first = (self.bucket as usize + 1) % BUCKETS;
        // The word of the first bucket is looked at twice: its upper bits first, its lower last.
        (0..=words).find_map(|step| {
            let at = (first / 64 + step) % words;
            let mut word = self.occupied[at];
            if step == 0 {
                word &= u64::MAX << (first % 64);
            } else if step == words {
                word &= (1 << (first % 64)) - 1;
            }
            let index = at * 64 + word.trailing_zeros() as usize;
            let distance = (index + BUCKETS - first) % BUCKETS;
            (word != 0).then_some(self.bucket + 1 + distance as u64)
        })
    }
}

fn bucket_of(at: Time) -> u64 {
    at.as_nanos() >> BUCKET_LOG2
}

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
    use proptest::prelude::*;

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
        assert_eq!(queue.next_at(), None);
    }

    proptest! {
        /// Delays of nanoseconds to minutes, pushed while others are popped.
        #[test]
        fn order_is_that_of_a_sorted_list(steps in prop::collection::vec((0_u32..38, 0_u64..1000, 0_usize..3), 1..200)) {
            let mut queue = Queue::new();
            let mut list: Vec<(Time, usize)> = Vec::new();
            let mut now = Time::ZERO;
            for (event, (log2, factor, pops)) in steps.into_iter().enumerate() {
                let at = Time::from_nanos(now.as_nanos() + ((factor << log2) >> 10));
                queue.push(at, event);
                list.push((at, event));
                for _ in 0..pops {
                    list.sort_unstable();
                    let first = (!list.is_empty()).then(|| list.remove(0));
                    prop_assert_eq!(queue.next_at(), first.map(|(at, _)| at));
                    prop_assert_eq!(queue.pop(), first);
                    now = first.map_or(now, |(at, _)| at);
                }
            }
            list.sort_unstable();
            let rest: Vec<_> = core::iter::from_fn(|| queue.pop()).collect();
            prop_assert_eq!(rest, list);
        }
    }
}

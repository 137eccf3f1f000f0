//! Fluid links: concurrent transfers share both ends.
//!
//! Each side of an end (its uplink, its downlink) has a *level*: the largest rate that a transfer
//! may have there. Transfers that are limited at their other end leave the rest of their share to
//! the others. A transfer's rate is the smaller of its two levels. When a transfer starts or ends,
//! the levels at its two ends are computed again, and those of the ends that are affected, in
//! bounded number. The result is close to max-min fairness, which congestion control aims at. Each
//! transfer has one event in the queue at a time, at its expected end or earlier; an event that
//! comes too early schedules the next one.

use core::time::Duration;
use std::collections::VecDeque;

use flotilla_common::time::Time;

use crate::queue::Queue;
use crate::slab::{Key, Slab};

/// One end of links: a peer or an origin, by number.
pub(crate) type End = u32;

/// A transfer reports progress once when this share of it has arrived, so that machines can count
/// it as nearly done.
const REPORT_AT: f64 = 0.75;
/// A transfer reports progress at least this often.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// A change of a level by less than this share is not passed on.
const NOTABLE: f64 = 0.02;
/// Levels computed after one change at most.
const MAX_STEPS: usize = 48;

/// An uplink or a downlink.
#[derive(Debug)]
struct Side {
    /// In bytes per nanosecond.
    capacity: f64,
    flows: Vec<SideFlow>,
    is_due: bool,
}

/// A transfer, as one of its sides lists it.
#[derive(Clone, Copy, Debug)]
struct SideFlow {
    flow: Key,
    /// The side at its other end.
    other: u32,
}

#[derive(Debug)]
struct Flow {
    from: End,
    to: End,
    length: f64,
    left: f64,
    /// In bytes per nanosecond.
    rate: f64,
    as_of: Time,
    /// When its event in the queue fires.
    planned: Time,
    reported_at: Time,
    has_reported_share: bool,
    tag: u64,
}

/// Progress of a transfer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FlowEvent {
    /// `moved` bytes have arrived.
    Progress { tag: u64, from: End, moved: u64 },
    /// All bytes have arrived.
    Done { tag: u64, from: End, to: End },
}

/// All links and the transfers on them.
#[derive(Debug)]
pub(crate) struct Network {
    /// Two of each end: first its uplink, then its downlink.
    sides: Vec<Side>,
    /// The level of each side, in bytes per nanosecond; apart from the sides, because they are read
    /// most often.
    levels: Vec<f64>,
    flows: Slab<Flow>,
    queue: Queue<Key>,
    /// Sides whose level must be computed again.
    due: VecDeque<u32>,
    /// The levels of a side's transfers at their other ends, ascending.
    offers: Vec<f64>,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self {
            sides: Vec::new(),
            levels: Vec::new(),
            flows: Slab::new(),
            queue: Queue::new(),
            due: VecDeque::new(),
            offers: Vec::new(),
        }
    }

    /// Adds an end with these rates, in bytes per second.
    pub(crate) fn add_end(&mut self, up: f64, down: f64) -> End {
        for bytes_per_second in [up, down] {
            let capacity = bytes_per_second / 1e9;
            self.sides.push(Side {
                capacity,
                flows: Vec::new(),
                is_due: false,
            });
            self.levels.push(capacity);
        }
        self.sides.len() as End / 2 - 1
    }

    /// Changes the rates of an end, in bytes per second; they must not be zero.
    pub(crate) fn set_rates(&mut self, now: Time, end: End, up: f64, down: f64) {
        for (side, bytes_per_second) in [(uplink(end), up), (downlink(end), down)] {
            self.sides[side as usize].capacity = bytes_per_second / 1e9;
            self.mark_due(side);
        }
        self.settle(now);
    }

    /// Starts a transfer. Its events carry `tag`.
    pub(crate) fn start(&mut self, now: Time, from: End, to: End, bytes: u64, tag: u64) -> Key {
        let length = bytes.max(1) as f64;
        let key = self.flows.insert(Flow {
            from,
            to,
            length,
            left: length,
            rate: 0.0,
            as_of: now,
            planned: Time::MAX,
            reported_at: now,
            has_reported_share: false,
            tag,
        });
        let (up, down) = (uplink(from), downlink(to));
        for (side, other) in [(up, down), (down, up)] {
            self.sides[side as usize]
                .flows
                .push(SideFlow { flow: key, other });
            self.mark_due(side);
        }
        self.settle(now);
        self.rate(now, key);
        key
    }

    /// Aborts a transfer. Returns the bytes that had arrived, if it was still running.
    pub(crate) fn abort(&mut self, now: Time, key: Key) -> Option<u64> {
        let flow = self.flows.remove(key)?;
        self.detach(now, key, flow.from, flow.to);
        let left =
            (flow.left - flow.rate * now.saturating_since(flow.as_of).as_nanos() as f64).max(0.0);
        Some((flow.length - left) as u64)
    }

    /// When [`Self::pop`] may have something.
    pub(crate) fn next_at(&mut self) -> Option<Time> {
        self.queue.next_at()
    }

    /// Takes the next event off the queue; `None` inside if nothing is to be reported.
    pub(crate) fn pop(&mut self) -> Option<(Time, Option<FlowEvent>)> {
        let (now, key) = self.queue.pop()?;
        let Some(flow) = self.flows.get_mut(key).filter(|flow| flow.planned == now) else {
            return Some((now, None));
        };
        flow.advance(now);
        if flow.left < 0.5 {
            let (tag, from, to) = (flow.tag, flow.from, flow.to);
            self.flows.remove(key);
            self.detach(now, key, from, to);
            return Some((now, Some(FlowEvent::Done { tag, from, to })));
        }
        let reports_share =
            !flow.has_reported_share && flow.left <= flow.length * (1.0 - REPORT_AT) + 0.5;
        let reports_time = flow.reported_at + REPORT_EVERY <= now;
        let progress = (reports_share || reports_time).then(|| {
            flow.has_reported_share |= reports_share;
            flow.reported_at = now;
            FlowEvent::Progress {
                tag: flow.tag,
                from: flow.from,
                moved: (flow.length - flow.left) as u64,
            }
        });
        flow.planned = flow.next_event();
        self.queue.push(flow.planned, key);
        Some((now, progress))
    }

    fn detach(&mut self, now: Time, key: Key, from: End, to: End) {
        for side in [uplink(from), downlink(to)] {
            self.sides[side as usize]
                .flows
                .retain(|flow| flow.flow != key);
            self.mark_due(side);
        }
        self.settle(now);
    }

    fn mark_due(&mut self, side: u32) {
        let entry = &mut self.sides[side as usize];
        if !entry.is_due {
            entry.is_due = true;
            self.due.push_back(side);
        }
    }

    /// Computes due levels until none changes notably, or [`MAX_STEPS`] were computed.
    fn settle(&mut self, now: Time) {
        let mut steps = 0;
        while let Some(side) = self.due.pop_front() {
            self.sides[side as usize].is_due = false;
            let before = self.levels[side as usize];
            let level = self.find_level(side);
            self.levels[side as usize] = level;
            let is_notable = (level - before).abs() > NOTABLE * before;
            steps += 1;
            if level == before {
                continue;
            }
            for at in 0..self.sides[side as usize].flows.len() {
                let SideFlow { flow, other } = self.sides[side as usize].flows[at];
                // The transfer is limited at its other end, as before.
                if level.min(before) >= self.levels[other as usize] {
                    continue;
                }
                if is_notable && steps < MAX_STEPS {
                    self.mark_due(other);
                }
                self.rate(now, flow);
            }
        }
    }

    /// The level at which the transfers of a side, each limited by its other end, fill the side.
    fn find_level(&mut self, side: u32) -> f64 {
        let Side {
            capacity, flows, ..
        } = &self.sides[side as usize];
        self.offers.clear();
        self.offers
            .extend(flows.iter().map(|lane| self.levels[lane.other as usize]));
        self.offers.sort_unstable_by(f64::total_cmp);
        let mut left = *capacity;
        let mut sharers = self.offers.len() as f64;
        for offer in &self.offers {
            if *offer * sharers >= left {
                break;
            }
            left -= offer;
            sharers -= 1.0;
        }
        if sharers > 0.0 {
            left / sharers
        } else {
            *capacity
        }
    }

    fn rate(&mut self, now: Time, key: Key) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let [up, down] =
            [uplink(flow.from), downlink(flow.to)].map(|side| self.levels[side as usize]);
        let rate = up.min(down);
        if rate == flow.rate {
            return;
        }
        flow.advance(now);
        flow.rate = rate;
        let next = flow.next_event();
        if next < flow.planned {
            flow.planned = next;
            self.queue.push(next, key);
        }
    }
}

const fn uplink(end: End) -> u32 {
    2 * end
}

const fn downlink(end: End) -> u32 {
    2 * end + 1
}

impl Flow {
    fn advance(&mut self, now: Time) {
        self.left =
            (self.left - self.rate * now.saturating_since(self.as_of).as_nanos() as f64).max(0.0);
        self.as_of = now;
    }

    /// When the next event is due at the current rate, at least a nanosecond after `as_of`.
    fn next_event(&self) -> Time {
        let target = if self.has_reported_share {
            0.0
        } else {
            self.length * (1.0 - REPORT_AT)
        };
        let nanos = ((self.left - target).max(0.0) / self.rate).ceil().max(1.0);
        (self.as_of + Duration::from_nanos(nanos as u64))
            .min(self.reported_at + REPORT_EVERY)
            .max(self.as_of + Duration::from_nanos(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(network: &mut Network) -> Vec<(u64, u64)> {
        let mut done = Vec::new();
        while let Some((now, moved)) = network.pop() {
            if let Some(FlowEvent::Done { tag, .. }) = moved {
                done.push((tag, now.as_nanos() / 1_000_000));
            }
        }
        done
    }

    #[test]
    fn transfers_share_an_uplink() {
        let mut network = Network::new();
        let hub = network.add_end(1000.0, 1000.0);
        let (a, b) = (
            network.add_end(1000.0, 1000.0),
            network.add_end(1000.0, 1000.0),
        );
        network.start(Time::ZERO, hub, a, 1000, 1);
        network.start(Time::ZERO, hub, b, 500, 2);
        // Both run at half the rate until the short one ends after a second.
        assert_eq!(run(&mut network), vec![(2, 1000), (1, 1500)]);
    }

    #[test]
    fn slower_end_limits_a_transfer() {
        let mut network = Network::new();
        let fast = network.add_end(1e6, 1e6);
        let slow = network.add_end(100.0, 100.0);
        network.start(Time::ZERO, fast, slow, 100, 1);
        network.start(Time::ZERO, fast, slow, 100, 2);
        assert_eq!(run(&mut network), vec![(1, 2000), (2, 2000)]);
    }

    #[test]
    fn aborted_transfer_frees_its_share() {
        let mut network = Network::new();
        let (a, b) = (
            network.add_end(1000.0, 1000.0),
            network.add_end(1000.0, 1000.0),
        );
        let first = network.start(Time::ZERO, a, b, 1000, 1);
        network.start(Time::ZERO, a, b, 1000, 2);
        let second = Time::from_nanos(1_000_000_000);
        while network.next_at().is_some_and(|at| at <= second) {
            network.pop();
        }
        assert_eq!(network.abort(second, first), Some(500));
        assert_eq!(network.abort(second, first), None);
        assert_eq!(run(&mut network), vec![(2, 1500)]);
    }
}

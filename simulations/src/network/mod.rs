//! Fluid links: concurrent transfers share both ends, and what is between them.
//!
//! Each side of an end (its uplink, its downlink) has a *level*: the largest rate that a transfer
//! may have there. Transfers that are limited at their other end leave the rest of their share to
//! the others. A transfer's rate is the smaller of its two levels. When a transfer starts or ends,
//! the levels at its two ends are computed again, and those of the ends that are affected, in
//! bounded number. The result is close to max-min fairness, which congestion control aims at. Each
//! transfer has one event in the queue at a time, at its expected end or earlier; an event that
//! comes too early schedules the next one.
//!
//! A transfer may pass further sides between its ends (`middle.rs`): a pipe, whose capacity all
//! transfers through it share, and a connection, whose congestion window limits it. Their levels
//! are computed in the same way.

mod connection;
mod middle;

use core::time::Duration;
use std::collections::VecDeque;

use flotilla_common::time::Time;

use crate::queue::Queue;
use crate::slab::{Key, Slab};

pub(crate) use connection::{ConnectionId, Growth, Window};
use middle::MiddleSide;
pub(crate) use middle::{Middle, PipeId};

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

/// An uplink, a downlink, or a side between two ends.
#[derive(Debug)]
struct Side {
    /// In bytes per nanosecond.
    capacity: f64,
    /// The transfers that have two sides.
    flows: Vec<SideFlow>,
    /// The transfers that have more than two sides.
    long_flows: Vec<Key>,
    is_due: bool,
}

/// A transfer with two sides, as one of them lists it.
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
    middle: Middle,
    length: f64,
    left: f64,
    /// The bytes that are left when its connection's first window is sent; 0 if that is the end or
    /// was before.
    left_after_burst: f64,
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
    /// Two of each end, first its uplink, then its downlink; then those between the ends.
    sides: Vec<Side>,
    /// The level of each side, in bytes per nanosecond; apart from the sides, because they are read
    /// most often.
    levels: Vec<f64>,
    /// What else is known of each side between the ends.
    middle_sides: Vec<MiddleSide>,
    /// Sides of connections that are closed.
    free_sides: Vec<u32>,
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
            middle_sides: Vec::new(),
            free_sides: Vec::new(),
            flows: Slab::new(),
            queue: Queue::new(),
            due: VecDeque::new(),
            offers: Vec::new(),
        }
    }

    /// Adds an end with these rates, in bytes per second. All ends are added before the first pipe.
    pub(crate) fn add_end(&mut self, up: f64, down: f64) -> End {
        debug_assert!(self.middle_sides.is_empty(), "ends come before pipes");
        self.add_side(up);
        self.add_side(down) / 2
    }

    fn add_side(&mut self, bytes_per_second: f64) -> u32 {
        let capacity = bytes_per_second / 1e9;
        self.sides.push(Side {
            capacity,
            flows: Vec::new(),
            long_flows: Vec::new(),
            is_due: false,
        });
        self.levels.push(capacity);
        self.sides.len() as u32 - 1
    }

    /// Number of transfers under way from an end.
    pub(crate) fn sends(&self, end: End) -> usize {
        let side = &self.sides[uplink(end) as usize];
        side.flows.len() + side.long_flows.len()
    }

    /// The ends that receive the transfers under way from an end.
    pub(crate) fn receivers(&self, end: End) -> impl Iterator<Item = End> + '_ {
        let side = &self.sides[uplink(end) as usize];
        let keys = side.flows.iter().map(|lane| lane.flow);
        let keys = keys.chain(side.long_flows.iter().copied());
        keys.filter_map(|key| self.flows.get(key).map(|flow| flow.to))
    }

    /// Changes the rates of an end, in bytes per second; they must not be zero.
    pub(crate) fn set_rates(&mut self, now: Time, end: End, up: f64, down: f64) {
        for (side, bytes_per_second) in [(uplink(end), up), (downlink(end), down)] {
            self.set_capacity(side, bytes_per_second / 1e9);
        }
        self.settle(now);
    }

    /// Starts a transfer through `middle`. Its events carry `tag`.
    pub(crate) fn start(
        &mut self,
        now: Time,
        (from, to): (End, End),
        middle: Middle,
        bytes: u64,
        tag: u64,
    ) -> Key {
        let length = bytes.max(1) as f64;
        let key = self.flows.insert(Flow {
            from,
            to,
            middle,
            length,
            left: length,
            left_after_burst: 0.0,
            rate: 0.0,
            as_of: now,
            planned: Time::MAX,
            reported_at: now,
            has_reported_share: false,
            tag,
        });
        let (up, down) = (uplink(from), downlink(to));
        if middle.is_empty() {
            for (side, other) in [(up, down), (down, up)] {
                self.sides[side as usize]
                    .flows
                    .push(SideFlow { flow: key, other });
                self.mark_due(side);
            }
        } else {
            self.begin_on_connection(now, key);
            self.attach_long(key);
        }
        self.settle(now);
        self.rate(now, key);
        if !middle.is_empty() {
            self.plan_growth(key);
        }
        key
    }

    /// Aborts a transfer. Returns the bytes that had arrived, if it was still running.
    pub(crate) fn abort(&mut self, now: Time, key: Key) -> Option<u64> {
        let flow = self.flows.remove(key)?;
        self.detach(now, key, &flow);
        Some(flow.arrived(now))
    }

    /// The bytes of a transfer that have arrived; 0 if it has ended.
    pub(crate) fn arrived(&self, now: Time, key: Key) -> u64 {
        self.flows.get(key).map_or(0, |flow| flow.arrived(now))
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
            if let Some(flow) = self.flows.remove(key) {
                self.detach(now, key, &flow);
            }
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
        let has_connection = flow.middle.has_connection();
        let ends_burst = has_connection && flow.ends_burst();
        flow.planned = flow.next_event();
        self.queue.push(flow.planned, key);
        if has_connection {
            self.continue_on_connection(now, key, ends_burst);
        }
        Some((now, progress))
    }

    fn detach(&mut self, now: Time, key: Key, flow: &Flow) {
        if flow.middle.is_empty() {
            for side in [uplink(flow.from), downlink(flow.to)] {
                self.sides[side as usize]
                    .flows
                    .retain(|flow| flow.flow != key);
                self.mark_due(side);
            }
        } else {
            self.detach_long(key, flow);
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
            steps += 1;
            if level == before {
                continue;
            }
            let is_notable = (level - before).abs() > NOTABLE * before;
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
            if !self.sides[side as usize].long_flows.is_empty() {
                self.pass_on_to_long(now, side, before, steps < MAX_STEPS);
            }
        }
    }

    /// The level at which the transfers of a side, each limited by its other end, fill the side.
    fn find_level(&mut self, side: u32) -> f64 {
        let Side {
            capacity,
            flows,
            long_flows,
            ..
        } = &self.sides[side as usize];
        self.offers.clear();
        self.offers
            .extend(flows.iter().map(|lane| self.levels[lane.other as usize]));
        for key in long_flows {
            let flow = self.flows.get(*key);
            let offer = flow.map(|flow| flow.offer_to(side, &self.levels));
            self.offers.extend(offer);
        }
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
        let mut rate = up.min(down);
        if !flow.middle.is_empty() {
            rate = flow.middle.limit(rate, &self.levels);
        }
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
    /// The bytes that are left.
    fn left_at(&self, now: Time) -> f64 {
        let since = now.saturating_since(self.as_of).as_nanos() as f64;
        (self.left - self.rate * since).max(0.0)
    }

    /// The bytes that have arrived.
    fn arrived(&self, now: Time) -> u64 {
        (self.length - self.left_at(now)) as u64
    }

    fn advance(&mut self, now: Time) {
        self.left = self.left_at(now);
        self.as_of = now;
    }

    /// When the next event is due at the current rate, at least a nanosecond after `as_of`.
    fn next_event(&self) -> Time {
        let target = if self.has_reported_share {
            0.0
        } else {
            self.length * (1.0 - REPORT_AT)
        };
        let target = target.max(self.left_after_burst);
        let nanos = ((self.left - target).max(0.0) / self.rate).ceil().max(1.0);
        (self.as_of + Duration::from_nanos(nanos as u64))
            .min(self.reported_at + REPORT_EVERY)
            .max(self.as_of + Duration::from_nanos(1))
    }
}

#[cfg(test)]
mod tests;

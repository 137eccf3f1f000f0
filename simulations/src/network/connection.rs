//! Connections over long links: a congestion window limits the bytes per round trip.
//!
//! A window is acknowledged after a round trip, so a connection sends one window per round trip. It
//! sends the first one as fast as the other sides allow, and from then on one per round trip,
//! evenly; real senders are a little burstier. After each round trip in which the window was the
//! limit, it grows. Transfers that run at the same time share it. It stays as it is while no
//! transfer runs.

use core::time::Duration;

use flotilla_common::time::Time;

use super::{Flow, Network};
use crate::slab::Key;

/// Stands for no limit, in bytes per second.
const UNLIMITED: f64 = 1e15;
/// A connection that is used up to this share is limited by its window.
const FULL: f64 = 0.99;

/// One direction of an open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId(pub(super) u32);

/// A congestion window, and how it grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    /// Of the first window, in bytes.
    pub(crate) bytes: f64,
    /// It does not grow beyond this, in bytes.
    pub(crate) max_bytes: f64,
    pub(crate) round_trip: Duration,
    pub(crate) growth: Growth,
}

/// The growth of a window after each round trip in which it was the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Growth {
    /// A share of the window.
    pub(crate) share: f64,
    /// And a number of bytes.
    pub(crate) bytes: f64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    window: Window,
    /// When the present round trip ends.
    grows_at: Time,
}

impl Connection {
    /// One window per round trip, in bytes per nanosecond.
    fn pace(&self) -> f64 {
        self.window.bytes / self.window.round_trip.as_nanos() as f64
    }
}

impl Flow {
    /// Whether its connection's first window has been sent just now.
    pub(super) fn ends_burst(&mut self) -> bool {
        let ends_burst = self.left_after_burst > 0.0 && self.left <= self.left_after_burst + 0.5;
        if ends_burst {
            self.left_after_burst = 0.0;
        }
        ends_burst
    }
}

impl Network {
    /// Opens a connection in one direction. Its round trip must not be zero.
    pub(crate) fn open_connection(&mut self, window: Window) -> ConnectionId {
        let connection = Some(Connection {
            window,
            grows_at: Time::ZERO,
        });
        let Some(side) = self.free_sides.pop() else {
            return ConnectionId(self.add_middle_side(UNLIMITED, connection));
        };
        self.set_capacity(side, UNLIMITED / 1e9);
        if let Some(middle) = self.middle_side(side) {
            middle.connection = connection;
        }
        ConnectionId(side)
    }

    /// Closes a connection without transfers.
    pub(crate) fn close_connection(&mut self, ConnectionId(side): ConnectionId) {
        debug_assert!(self.sides[side as usize].long_flows.is_empty());
        self.free_sides.push(side);
    }

    /// Before a transfer is attached to its connection: it is sent in a burst up to a window, if it
    /// is the only one.
    pub(super) fn begin_on_connection(&mut self, now: Time, key: Key) {
        let Some(flow) = self.flows.get(key) else {
            return;
        };
        let (middle, length) = (flow.middle, flow.length);
        let Some(side) = middle.connection_side() else {
            return;
        };
        let is_idle = self.sides[side as usize].long_flows.is_empty();
        let Some(connection) = self.connection_mut(side) else {
            return;
        };
        if !is_idle {
            let pace = connection.pace();
            return self.set_capacity(side, pace);
        }
        connection.grows_at = now + connection.window.round_trip;
        let window = connection.window.bytes;
        self.set_capacity(side, UNLIMITED / 1e9);
        if let Some(flow) = self.flows.get_mut(key) {
            flow.left_after_burst = (length - window).max(0.0);
        }
    }

    /// A transfer's event has fired: the connection sends evenly if the burst has ended, and its
    /// window may grow.
    pub(super) fn continue_on_connection(&mut self, now: Time, key: Key, ends_burst: bool) {
        let flow = self.flows.get(key);
        let Some(side) = flow.and_then(|flow| flow.middle.connection_side()) else {
            return;
        };
        let grows = self.grow(now, side);
        if (ends_burst || grows)
            && !self.is_burst(side)
            && let Some(connection) = self.connection_mut(side)
        {
            let pace = connection.pace();
            self.set_capacity(side, pace);
            self.settle(now);
        }
        self.plan_growth(key);
    }

    /// Plans an event of a transfer for the end of its connection's present round trip.
    pub(super) fn plan_growth(&mut self, key: Key) {
        let side = self
            .flows
            .get(key)
            .map(|flow| flow.middle.connection_side());
        let Some(connection) = side.flatten().and_then(|side| self.connection_mut(side)) else {
            return;
        };
        let (at, window) = (connection.grows_at, connection.window);
        if window.bytes >= window.max_bytes {
            return;
        }
        if let Some(flow) = self.flows.get_mut(key)
            && at < flow.planned
        {
            flow.planned = at;
            self.queue.push(at, key);
        }
    }

    /// Whether a connection's first window is being sent.
    fn is_burst(&self, side: u32) -> bool {
        let mut flows = self.sides[side as usize].long_flows.iter();
        flows.any(|key| {
            let flow = self.flows.get(*key);
            flow.is_some_and(|flow| flow.left_after_burst > 0.0)
        })
    }

    /// After a round trip: whether the window has grown, because it was the limit.
    fn grow(&mut self, now: Time, side: u32) -> bool {
        let flows = self.sides[side as usize].long_flows.iter();
        let rates = flows.filter_map(|key| self.flows.get(*key).map(|flow| flow.rate));
        let used: f64 = rates.sum();
        let Some(connection) = self.connection_mut(side) else {
            return false;
        };
        if now < connection.grows_at {
            return false;
        }
        connection.grows_at = now + connection.window.round_trip;
        let is_full = used >= FULL * connection.pace();
        let window = &mut connection.window;
        if is_full {
            let added = window.bytes * window.growth.share + window.growth.bytes;
            window.bytes = (window.bytes + added).min(window.max_bytes);
        }
        is_full
    }

    pub(super) fn set_capacity(&mut self, side: u32, capacity: f64) {
        self.sides[side as usize].capacity = capacity;
        self.mark_due(side);
    }

    fn connection_mut(&mut self, side: u32) -> Option<&mut Connection> {
        self.middle_side(side)?.connection.as_mut()
    }
}

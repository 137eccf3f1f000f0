//! What transfers pass between their two ends: a pipe, and a connection.
//!
//! A pipe is one direction of a link that many transfers share, such as the one between two
//! regions. A connection (`connection.rs`) is limited by its congestion window. A transfer through
//! them has more than two sides, and each of them leaves to the others what limits it elsewhere.

use flotilla_common::time::Time;

use super::connection::{Connection, ConnectionId};
use super::{End, Flow, NOTABLE, Network, downlink, uplink};
use crate::slab::Key;

/// Stands for no side.
const NONE: u32 = u32::MAX;

/// One direction of a shared link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PipeId(u32);

/// The sides of a transfer between its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Middle {
    pipe: u32,
    connection: u32,
    /// Of a transfer through a third end: the uplink there, and the pipe that follows.
    relay: [u32; 2],
}

/// The state of a side between the ends: a pipe, or a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct MiddleSide {
    /// The connection, if it is one.
    pub(super) connection: Option<Connection>,
    /// The level that the other sides of its transfers were computed with last. Among hundreds of
    /// transfers, one more changes the level by too little to be notable, but many do not.
    passed_on: f64,
}

impl Middle {
    /// A pipe and a connection, as far as there are any.
    pub(crate) const fn new(pipe: Option<PipeId>, connection: Option<ConnectionId>) -> Self {
        Self {
            pipe: match pipe {
                Some(PipeId(side)) => side,
                None => NONE,
            },
            connection: match connection {
                Some(ConnectionId(side)) => side,
                None => NONE,
            },
            relay: [NONE; 2],
        }
    }

    /// The same, through the end `by`, and from there through a further pipe.
    pub(crate) fn relayed(self, by: End, pipe: Option<PipeId>) -> Self {
        Self {
            relay: [uplink(by), pipe.map_or(NONE, |pipe| pipe.0)],
            ..self
        }
    }

    pub(super) const fn is_empty(self) -> bool {
        self.pipe == NONE && self.connection == NONE && self.relay[0] == NONE
    }

    pub(super) const fn has_connection(self) -> bool {
        self.connection != NONE
    }

    /// The side of the connection, if there is one.
    pub(super) fn connection_side(self) -> Option<u32> {
        Some(self.connection).filter(|side| *side != NONE)
    }

    /// The smallest of `rate` and the levels of these sides.
    pub(super) fn limit(self, rate: f64, levels: &[f64]) -> f64 {
        self.sides()
            .fold(rate, |rate, side| rate.min(levels[side as usize]))
    }

    fn sides(self) -> impl Iterator<Item = u32> {
        let [relay, second_pipe] = self.relay;
        [self.pipe, self.connection, relay, second_pipe]
            .into_iter()
            .filter(|side| *side != NONE)
    }
}

impl Flow {
    /// All sides of a transfer.
    fn sides(&self) -> impl Iterator<Item = u32> + use<> {
        [uplink(self.from), downlink(self.to)]
            .into_iter()
            .chain(self.middle.sides())
    }

    /// The rate that the other sides of a transfer leave to one of its sides.
    pub(super) fn offer_to(&self, side: u32, levels: &[f64]) -> f64 {
        self.sides()
            .filter(|other| *other != side)
            .fold(f64::INFINITY, |offer, other| {
                offer.min(levels[other as usize])
            })
    }
}

impl Network {
    /// Adds one direction of a shared link with this capacity, in bytes per second.
    pub(crate) fn add_pipe(&mut self, bytes_per_second: f64) -> PipeId {
        PipeId(self.add_middle_side(bytes_per_second, None))
    }

    pub(super) fn add_middle_side(
        &mut self,
        bytes_per_second: f64,
        connection: Option<Connection>,
    ) -> u32 {
        let side = self.add_side(bytes_per_second);
        self.middle_sides.push(MiddleSide {
            connection,
            passed_on: self.levels[side as usize],
        });
        side
    }

    pub(super) fn middle_side(&mut self, side: u32) -> Option<&mut MiddleSide> {
        let ends = self.sides.len() - self.middle_sides.len();
        self.middle_sides
            .get_mut((side as usize).checked_sub(ends)?)
    }

    pub(super) fn attach_long(&mut self, key: Key) {
        let sides = self.flows.get(key).map(Flow::sides);
        for side in sides.into_iter().flatten() {
            self.sides[side as usize].long_flows.push(key);
            self.mark_due(side);
        }
    }

    pub(super) fn detach_long(&mut self, key: Key, flow: &Flow) {
        for side in flow.sides() {
            self.sides[side as usize]
                .long_flows
                .retain(|other| *other != key);
            self.mark_due(side);
        }
    }

    /// A side's level has changed from `before`: its long transfers get their new rates, and
    /// unless enough levels were computed already, their other sides are computed again.
    pub(super) fn pass_on_to_long(&mut self, now: Time, side: u32, before: f64, may_pass_on: bool) {
        let level = self.levels[side as usize];
        let mut passed_on = before;
        let mut is_notable = (level - before).abs() > NOTABLE * before;
        if let Some(middle) = self.middle_side(side) {
            passed_on = middle.passed_on;
            is_notable = (level - passed_on).abs() > NOTABLE * passed_on;
            if is_notable && may_pass_on {
                middle.passed_on = level;
            }
        }
        let least = level.min(before).min(passed_on);
        for at in 0..self.sides[side as usize].long_flows.len() {
            let key = self.sides[side as usize].long_flows[at];
            let Some(flow) = self.flows.get(key) else {
                continue;
            };
            // The transfer is limited elsewhere, as before.
            if least >= flow.offer_to(side, &self.levels) {
                continue;
            }
            if is_notable && may_pass_on {
                for other in flow.sides().filter(|other| *other != side) {
                    self.mark_due(other);
                }
            }
            self.rate(now, key);
        }
    }
}

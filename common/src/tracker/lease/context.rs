//! The parts of the tracker that an authority works with.

use std::collections::VecDeque;

use rand_pcg::Pcg64Mcg;

use crate::origin_region::OriginRegion;
use crate::time::Time;
use crate::tracker::config::LeaseSettings;
use crate::tracker::messages::{LeaseOutcome, RequestId, TrackerCounts, TrackerOutput};
use crate::tracker::origins::OriginOpinions;
use crate::tracker::roster::Roster;
use crate::tracker::slots::{PeerSlot, RegionSlot};
use crate::tracker::timers::{Ticket, Timers};

/// The parts of the tracker that the authority works with.
pub(in crate::tracker) struct AuthorityContext<'a> {
    pub(in crate::tracker) now: Time,
    pub(in crate::tracker) config: &'a LeaseSettings,
    pub(in crate::tracker) roster: &'a Roster,
    pub(in crate::tracker) origins: &'a mut OriginOpinions,
    pub(in crate::tracker) rng: &'a mut Pcg64Mcg,
    pub(in crate::tracker) timers: &'a mut Timers,
    pub(in crate::tracker) outputs: &'a mut VecDeque<TrackerOutput>,
    pub(in crate::tracker) counts: &'a mut TrackerCounts,
    pub(in crate::tracker) next_ticket: &'a mut Ticket,
    /// The tracker has just started and may not know yet which chunks are in the swarm.
    pub(in crate::tracker) is_settling: bool,
}

impl AuthorityContext<'_> {
    pub(super) fn answer(&mut self, request: RequestId, answer: LeaseOutcome) {
        self.outputs
            .push_back(TrackerOutput::Lease { request, answer });
    }

    /// A holder received bytes of a chunk for which it asked an origin at `asked_at`.
    pub(super) fn on_served(&mut self, region: RegionSlot, origin: OriginRegion, asked_at: Time) {
        if self.origins.on_served(self.now, region, origin, asked_at) {
            self.outputs.push_back(TrackerOutput::OriginChanged {
                region,
                origin,
                is_out: false,
            });
        }
    }

    /// A holder waits for an origin, and received nothing since `since`.
    pub(super) fn on_waiting(
        &mut self,
        region: RegionSlot,
        origin: OriginRegion,
        (peer, since): (PeerSlot, Time),
    ) {
        let waits = (peer, since);
        if self.origins.on_waiting(self.now, region, origin, waits) {
            self.counts.origins_out += 1;
            self.outputs.push_back(TrackerOutput::OriginChanged {
                region,
                origin,
                is_out: true,
            });
        }
    }
}

//! Origins that fail for good in the middle of a burst, and the bound of what remains then.

use flotilla_common::bounds::pipelined_s;

use crate::burst::Burst;
use crate::scenario::{Failure, FailureKind, Links};
use crate::world::World;

/// An origin that does not serve its region from a time on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    region: u32,
    /// When it begins, in seconds.
    at_s: f64,
    /// Bytes of the images that the origin had not sent by then.
    unsent_bytes: u64,
}

impl World<'_> {
    /// Takes note of what a region's origin has not sent, if it fails for good.
    pub(crate) fn note_outage(&mut self, failure: &Failure, region: u32) {
        let is_for_good = failure.region.is_some() && failure.for_s.is_none();
        let sends_nothing = matches!(
            failure.kind,
            FailureKind::StopOrigin
                | FailureKind::HangOrigin
                | FailureKind::HangStorage
                | FailureKind::RefuseStorage
        );
        if is_for_good && sends_nothing {
            let unsent = self.burst().bytes.saturating_sub(self.sent_bytes(region));
            self.outages.push(Outage {
                region,
                at_s: failure.at_s,
                unsent_bytes: (unsent as f64 * (1.0 - failure.cached)) as u64,
            });
        }
    }

    /// The greatest bound of the run's outages, in seconds; 0 without one.
    pub(crate) fn outage_bound_s(&self) -> f64 {
        let (burst, links) = (self.burst(), &self.scenario.links);
        let bounds = self.outages.iter();
        bounds
            .map(|outage| outage.bound_s(burst, links))
            .fold(0.0, f64::max)
    }
}

impl Outage {
    /// What the origin had not sent comes over the links from other regions, pipelined.
    fn bound_s(&self, burst: Burst, links: &Links) -> f64 {
        let others = (0..burst.regions).filter(|other| *other != self.region);
        let rates = others.map(|other| {
            let rate = links.between(other, self.region).rate;
            rate.map_or(f64::INFINITY, |rate| rate.bytes_per_second())
        });
        let rate = rates.sum::<f64>().min(burst.peer_rate);
        if rate == 0.0 {
            return 0.0; // There is no other region, so the bytes never come.
        }
        let share = self.unsent_bytes as f64 / burst.bytes as f64;
        let chunks = libm::ceil(share * burst.chunks as f64) as u64;
        let peers = u64::from(burst.peers / burst.regions);
        self.at_s + pipelined_s(self.unsent_bytes, peers, chunks, rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_of_an_image_crosses_once_and_goes_through_a_tree() {
        let outage = Outage {
            region: 1,
            at_s: 0.5,
            unsent_bytes: 50_000_000,
        };
        let burst = Burst {
            regions: 2,
            peers: 16,
            bytes: 100_000_000,
            chunks: 95,
            peer_rate: 1e8,
        };
        // Peers carry 100 MB per second, and the limited link a tenth of it. Half of the chunks are
        // left, and a tree of eight peers has a depth of 3.
        for (links, across_s) in [("", 0.5), ("wan_rate = '80Mbit'", 5.0)] {
            let links: Links = toml::from_str(links).expect("valid links");
            let expected = 0.5 + across_s * (1.0 + 3.0 / 48.0);
            let bound_s = outage.bound_s(burst, &links);
            assert!(
                (bound_s - expected).abs() < 1e-9,
                "{bound_s} and {expected}"
            );
        }
        let alone = Burst {
            regions: 1,
            ..burst
        };
        let outage = Outage {
            region: 0,
            ..outage
        };
        assert_eq!(outage.bound_s(alone, &Links::default()), 0.0);
    }
}

//! The links between regions, and between the zones of a region: delay, loss and capacity.

use core::time::Duration;

use crate::network::{Middle, Network, PipeId};
use crate::peer::Location;
use crate::scenario::{Links, Peers, millis};
use crate::world::World;

/// One direction of the link between two regions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionLink {
    pub(crate) one_way: Duration,
    /// Share of the packets that are lost.
    pub(crate) loss: f64,
    /// Its capacity, if it is limited.
    pub(crate) pipe: Option<PipeId>,
}

/// All links between regions and zones.
#[derive(Debug, Default)]
pub(crate) struct RegionLinks {
    regions: u32,
    /// From each region to each region, the first region's first.
    links: Vec<RegionLink>,
    zones: u32,
    /// From each zone to each zone of its region, the first zone's first; empty if their
    /// capacities are not limited.
    zone_pipes: Vec<Option<PipeId>>,
}

impl RegionLinks {
    /// The links of a scenario; limited capacities are pipes of the network.
    pub(crate) fn new(links: &Links, peers: &Peers, network: &mut Network) -> Self {
        let (regions, zones) = (peers.regions.get(), peers.zones.get());
        let mut between = Vec::new();
        for from in 0..regions {
            for to in 0..regions {
                let own = links.between(from, to);
                let rate = own.rate.filter(|_| from != to);
                let pipe = rate.map(|rate| network.add_pipe(rate.bytes_per_second()));
                between.push(RegionLink {
                    one_way: millis(own.one_way_ms),
                    loss: own.loss,
                    pipe,
                });
            }
        }
        let mut zone_pipes = Vec::new();
        if let Some(rate) = links.region_rate {
            for zone in 0..regions * zones {
                for local in 0..zones {
                    let is_same = zone % zones == local;
                    let pipe = (!is_same).then(|| network.add_pipe(rate.bytes_per_second()));
                    zone_pipes.push(pipe);
                }
            }
        }
        Self {
            regions,
            links: between,
            zones,
            zone_pipes,
        }
    }

    /// The link from one region to another one, or within a region that to its origin.
    pub(crate) fn between(&self, from: u32, to: u32) -> &RegionLink {
        &self.links[(from * self.regions + to) as usize]
    }

    /// The pipe from one zone to another one of the same region.
    fn between_zones(&self, from: u32, to: u32) -> Option<PipeId> {
        let at = from * self.zones + to % self.zones;
        self.zone_pipes.get(at as usize).copied().flatten()
    }
}

impl World<'_> {
    /// What bytes from one peer to another pass between their ends.
    pub(crate) fn middle(&self, from: u32, to: u32) -> Middle {
        let [from, to] = [from, to].map(|peer| self.locations[peer as usize]);
        Middle::of(match () {
            () if from.zone == to.zone => None,
            () if from.region == to.region => self.region_links.between_zones(from.zone, to.zone),
            () => self.region_links.between(from.region, to.region).pipe,
        })
    }

    /// What bytes from a region's origin to a peer pass between their ends. An origin is in no
    /// zone: the zones of its region reach it by links of their own.
    pub(crate) fn middle_from_origin(&self, region: u32, to: u32) -> Middle {
        let Location { region: own, .. } = self.locations[to as usize];
        Middle::of(self.region_links.between(region, own).pipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_a_pair_of_regions_replace_those_of_all_pairs() {
        let links: Links = toml::from_str(
            "wan_rate = '1Gbit'\nloss = 0.01\nwan_loss = 0.02\nregion_rate = '10Gbit'\n\
             [[between]]\nregions = [2, 0]\none_way_ms = 100\nloss = 0.03\n",
        )
        .expect("valid links");
        let peers: Peers =
            toml::from_str("count = 9\nup = '1Gbit'\ndown = '1Gbit'\nregions = 3\nzones = 2")
                .expect("valid peers");
        let links = RegionLinks::new(&links, &peers, &mut Network::new());
        let facts = |from, to| {
            let link = links.between(from, to);
            (link.one_way.as_micros(), link.loss, link.pipe.is_some())
        };
        assert_eq!(facts(0, 1), (40_000, 0.02, true));
        assert_eq!(facts(0, 2), (100_000, 0.03, true));
        assert_eq!(facts(2, 0), (100_000, 0.03, true));
        assert_eq!(facts(1, 1), (500, 0.01, false));
        assert_ne!(links.between(0, 2).pipe, links.between(2, 0).pipe);
        // Zones 2 and 3 are those of the second region.
        assert!(links.between_zones(2, 3).is_some());
        assert_ne!(links.between_zones(2, 3), links.between_zones(3, 2));
        assert_eq!(links.between_zones(3, 3), None);
    }
}

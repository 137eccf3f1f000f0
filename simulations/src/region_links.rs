//! The links between regions, and between the zones of a region: delay, loss and capacity.

use std::collections::BTreeMap;

use crate::congestion;
use crate::delays::{Route, Transport};
use crate::network::{ConnectionId, Middle, Network, PipeId, Window};
use crate::peer::Location;
use crate::scenario::{Links, Peers, millis};
use crate::storage_reads::Relay;
use crate::world::World;

/// One direction of the link between two regions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionLink {
    pub(crate) route: Route,
    /// Its capacity, if it is limited.
    pub(crate) pipe: Option<PipeId>,
    /// The congestion windows of new connections, if they are simulated.
    pub(crate) quic_window: Option<Window>,
    pub(crate) http_window: Option<Window>,
}

/// For each sender and receiver in different regions, the epoch of their connection, and its
/// direction from the one to the other.
pub(crate) type WideConnections = BTreeMap<(u32, u32), (u32, ConnectionId)>;

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
                let route = Route {
                    one_way: millis(own.one_way_ms),
                    loss: own.loss,
                };
                let window = |transport| {
                    let window = congestion::window(transport, route, links.slow_start);
                    window.filter(|_| from != to)
                };
                between.push(RegionLink {
                    route,
                    pipe,
                    quic_window: window(Transport::Quic),
                    http_window: window(Transport::Http),
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
    /// What bytes from one peer to another pass between their ends, on their connection of this
    /// epoch.
    pub(crate) fn middle(&mut self, from: u32, to: u32, epoch: u32) -> Middle {
        let [one, other] = [from, to].map(|peer| self.locations[peer as usize]);
        if one.zone == other.zone {
            return Middle::new(None, None);
        }
        if one.region == other.region {
            let pipe = self.region_links.between_zones(one.zone, other.zone);
            return Middle::new(pipe, None);
        }
        let link = self.region_links.between(one.region, other.region);
        let (pipe, window) = (link.pipe, link.quic_window);
        let connection = window.map(|window| self.wide_connection((from, to), epoch, window));
        Middle::new(pipe, connection)
    }

    /// One direction of the connection between two peers of different regions. A connection of an
    /// earlier epoch is closed, and has no transfers.
    fn wide_connection(&mut self, ends: (u32, u32), epoch: u32, window: Window) -> ConnectionId {
        if let Some((known, connection)) = self.wide_connections.get(&ends) {
            if *known == epoch {
                return *connection;
            }
            self.network.close_connection(*connection);
        }
        let connection = self.network.open_connection(window);
        self.wide_connections.insert(ends, (epoch, connection));
        connection
    }

    /// What bytes from a region's origin to a peer pass between their ends. An origin is in no
    /// zone: the zones of its region reach it by links of their own.
    pub(crate) fn middle_from_origin(
        &self,
        region: u32,
        to: u32,
        connection: Option<ConnectionId>,
    ) -> Middle {
        let Location { region: own, .. } = self.locations[to as usize];
        Middle::new(self.region_links.between(region, own).pipe, connection)
    }

    /// What bytes from the origin of another region to a peer pass, through the origin of the
    /// region `by`.
    pub(crate) fn middle_of_relay(&self, relay: Relay, by: u32, to: u32) -> Middle {
        let Location { region: own, .. } = self.locations[to as usize];
        let window = relay.connection.and_then(|connection| connection.window);
        let first = self.region_links.between(relay.region, by).pipe;
        let second = self.region_links.between(by, own).pipe;
        Middle::new(first, window).relayed(self.origin_end(by), second)
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
            (
                link.route.one_way.as_micros(),
                link.route.loss,
                link.pipe.is_some(),
            )
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

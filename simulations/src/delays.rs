//! How long messages take: the one-way delay, jitter, and the retransmission of lost packets.
//!
//! | Message | Transport | Keeps its order with |
//! |---|---|---|
//! | Have, chunk map | control stream of a connection between neighbours | the others of that stream |
//! | chunk request, refusal, chunk | a QUIC stream of its own | the bytes of its own stream |
//! | announce, lease, origin request, probe, and their answers | an HTTP exchange of its own | nothing |
//!
//! The delays come from a generator of their own: a failure chooses the same peers however many
//! messages there were before it.

use core::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use crate::rng::mix;
use crate::scenario::{Links, millis};
use crate::world::World;

/// Delays in excess of the one-way delay, as multiples of the mean jitter: the middles of the
/// eighths of an exponential distribution, scaled to a mean of one. A draw needs no logarithm.
const JITTER: [f64; 8] = [
    0.0675, 0.2170, 0.3916, 0.6015, 0.8641, 1.2159, 1.7498, 2.8926,
];
/// A packet is sent again at most so often; the delays double.
const MAX_RETRANSMISSIONS: u32 = 6;

/// What carries a message, which decides when a lost packet is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// QUIC: after a round trip and the peer's longest acknowledgement delay.
    Quic,
    /// HTTP over TCP: after two round trips and the shortest retransmission timeout.
    Http,
}

/// How packets get from one place to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) one_way: Duration,
    /// Share of the packets that are lost.
    pub(crate) loss: f64,
}

/// Draws the delay of each message.
#[derive(Debug)]
pub(crate) struct Delays {
    rng: Pcg64Mcg,
    /// The excess delays of the scenario, as shares of the one-way delay.
    jitter: [f64; JITTER.len()],
    /// The routes within a zone, and between zones of a region.
    within_zone: Route,
    within_region: Route,
}

impl Transport {
    fn retransmission_delay(self, one_way: Duration) -> Duration {
        match self {
            Self::Quic => 2 * one_way + Duration::from_millis(25),
            Self::Http => 4 * one_way + Duration::from_millis(200),
        }
    }
}

impl Delays {
    pub(crate) fn new(links: &Links, rng_seed: u64) -> Self {
        Self {
            rng: Pcg64Mcg::seed_from_u64(mix(rng_seed)),
            jitter: JITTER.map(|quantile| quantile * links.jitter),
            within_zone: Route {
                one_way: millis(links.zone_ms),
                loss: links.loss,
            },
            within_region: Route {
                one_way: millis(links.region_ms),
                loss: links.loss,
            },
        }
    }

    /// The delay of one message.
    pub(crate) fn draw(&mut self, transport: Transport, route: Route) -> Duration {
        self.jittered(route.one_way) + self.retransmissions(transport, route)
    }

    /// The delay of one message if no packet is lost.
    pub(crate) fn jittered(&mut self, one_way: Duration) -> Duration {
        let number = self.rng.random_range(0..self.jitter.len() as u64) as usize;
        let nanos = one_way.as_nanos() as u64 as f64;
        one_way + Duration::from_nanos((nanos * self.jitter[number]) as u64)
    }

    /// What retransmissions add to one message's delay.
    pub(crate) fn retransmissions(&mut self, transport: Transport, route: Route) -> Duration {
        let mut added = Duration::ZERO;
        if route.loss > 0.0 {
            let mut delay = transport.retransmission_delay(route.one_way);
            for _ in 0..MAX_RETRANSMISSIONS {
                if !self.rng.random_bool(route.loss) {
                    break;
                }
                added += delay;
                delay *= 2;
            }
        }
        added
    }
}

impl World<'_> {
    /// How packets get from one peer to another.
    pub(crate) fn route(&self, one: u32, other: u32) -> Route {
        let one = self.locations[one as usize];
        let other = self.locations[other as usize];
        if one.zone == other.zone {
            self.delays.within_zone
        } else if one.region == other.region {
            self.delays.within_region
        } else {
            self.region_links.between(one.region, other.region).route
        }
    }

    /// How packets get from a peer to the origin and tracker of a region, and back.
    pub(crate) fn route_to_region(&self, peer: u32, region: u32) -> Route {
        let own = self.locations[peer as usize].region;
        self.region_links.between(own, region).route
    }

    /// The delay of one QUIC message between two peers.
    pub(crate) fn quic_delay(&mut self, one: u32, other: u32) -> Duration {
        let route = self.route(one, other);
        self.delays.draw(Transport::Quic, route)
    }

    /// The delay of one HTTP message between a peer and the origin or tracker of a region.
    pub(crate) fn http_delay(&mut self, peer: u32, region: u32) -> Duration {
        let route = self.route_to_region(peer, region);
        self.delays.draw(Transport::Http, route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(jitter: f64, rng_seed: u64) -> Delays {
        let links = Links {
            jitter,
            ..Links::default()
        };
        Delays::new(&links, rng_seed)
    }

    const ONE_WAY: Duration = Duration::from_millis(10);

    fn route(loss: f64) -> Route {
        Route {
            one_way: ONE_WAY,
            loss,
        }
    }

    #[test]
    fn jitter_has_the_mean_of_the_scenario_and_follows_the_seed() {
        let draw = |rng_seed| {
            let mut delays = delays(0.5, rng_seed);
            (0..4000)
                .map(|_| delays.draw(Transport::Quic, route(0.0)))
                .collect::<Vec<Duration>>()
        };
        let delays = draw(1);
        assert!(delays.iter().all(|delay| *delay > ONE_WAY));
        let mean = delays.iter().sum::<Duration>() / 4000;
        assert!((mean.as_secs_f64() - 0.015).abs() < 0.0003, "{mean:?}");
        assert!(!delays.is_sorted(), "messages overtake each other");
        assert_eq!(delays, draw(1));
        assert_ne!(delays, draw(2));
    }

    #[test]
    fn lost_packets_are_sent_again_later_over_http_than_over_quic() {
        let mut delays = delays(0.0, 1);
        for (transport, retransmitted_ms) in [(Transport::Quic, 45), (Transport::Http, 240)] {
            let drawn: Vec<_> = (0..4000)
                .map(|_| delays.draw(transport, route(0.1)))
                .collect();
            let late = drawn.iter().filter(|delay| **delay > ONE_WAY).count();
            assert!((320..480).contains(&late), "{late} of 4000");
            let first = ONE_WAY + Duration::from_millis(retransmitted_ms);
            assert_eq!(
                drawn.iter().filter(|delay| **delay > ONE_WAY).min(),
                Some(&first)
            );
        }
    }
}

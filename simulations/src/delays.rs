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

/// Draws the delay of each message.
#[derive(Debug)]
pub(crate) struct Delays {
    rng: Pcg64Mcg,
    /// The excess delays of the scenario, as shares of the one-way delay.
    jitter: [f64; JITTER.len()],
    loss: f64,
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
            loss: links.loss,
        }
    }

    /// The delay of one message.
    pub(crate) fn draw(&mut self, transport: Transport, one_way: Duration) -> Duration {
        self.jittered(one_way) + self.retransmissions(transport, one_way)
    }

    /// The delay of one message if no packet is lost.
    pub(crate) fn jittered(&mut self, one_way: Duration) -> Duration {
        let number = self.rng.random_range(0..self.jitter.len() as u64) as usize;
        let nanos = one_way.as_nanos() as f64;
        one_way + Duration::from_nanos((nanos * self.jitter[number]) as u64)
    }

    /// What retransmissions add to one message's delay.
    pub(crate) fn retransmissions(&mut self, transport: Transport, one_way: Duration) -> Duration {
        let mut added = Duration::ZERO;
        if self.loss > 0.0 {
            let mut delay = transport.retransmission_delay(one_way);
            for _ in 0..MAX_RETRANSMISSIONS {
                if !self.rng.random_bool(self.loss) {
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
    /// One-way delay between two peers.
    pub(crate) fn delay(&self, one: u32, other: u32) -> Duration {
        let one = self.locations[one as usize];
        let other = self.locations[other as usize];
        let links = &self.scenario.links;
        if one.zone == other.zone {
            millis(links.zone_ms)
        } else if one.region == other.region {
            millis(links.region_ms)
        } else {
            millis(links.wan_ms)
        }
    }

    /// One-way delay between a peer and the origin and tracker of a region.
    pub(crate) fn delay_to_region(&self, peer: u32, region: u32) -> Duration {
        let links = &self.scenario.links;
        millis(if self.locations[peer as usize].region == region {
            links.region_ms
        } else {
            links.wan_ms
        })
    }

    /// The delay of one QUIC message between two peers.
    pub(crate) fn quic_delay(&mut self, one: u32, other: u32) -> Duration {
        let one_way = self.delay(one, other);
        self.delays.draw(Transport::Quic, one_way)
    }

    /// The delay of one HTTP message between a peer and the origin or tracker of a region.
    pub(crate) fn http_delay(&mut self, peer: u32, region: u32) -> Duration {
        let one_way = self.delay_to_region(peer, region);
        self.delays.draw(Transport::Http, one_way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(jitter: f64, loss: f64) -> Links {
        Links {
            jitter,
            loss,
            ..Links::default()
        }
    }

    #[test]
    fn jitter_has_the_mean_of_the_scenario_and_follows_the_seed() {
        let one_way = Duration::from_millis(10);
        let draw = |rng_seed| {
            let mut delays = Delays::new(&links(0.5, 0.0), rng_seed);
            (0..4000)
                .map(|_| delays.draw(Transport::Quic, one_way))
                .collect::<Vec<Duration>>()
        };
        let delays = draw(1);
        assert!(delays.iter().all(|delay| *delay > one_way));
        let mean = delays.iter().sum::<Duration>() / 4000;
        assert!((mean.as_secs_f64() - 0.015).abs() < 0.0003, "{mean:?}");
        assert!(!delays.is_sorted(), "messages overtake each other");
        assert_eq!(delays, draw(1));
        assert_ne!(delays, draw(2));
    }

    #[test]
    fn lost_packets_are_sent_again_later_over_http_than_over_quic() {
        let one_way = Duration::from_millis(10);
        let mut delays = Delays::new(&links(0.0, 0.1), 1);
        for (transport, retransmitted_ms) in [(Transport::Quic, 45), (Transport::Http, 240)] {
            let drawn: Vec<_> = (0..4000).map(|_| delays.draw(transport, one_way)).collect();
            let late = drawn.iter().filter(|delay| **delay > one_way).count();
            assert!((320..480).contains(&late), "{late} of 4000");
            let first = one_way + Duration::from_millis(retransmitted_ms);
            assert_eq!(
                drawn.iter().filter(|delay| **delay > one_way).min(),
                Some(&first)
            );
        }
    }
}

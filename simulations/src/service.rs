//! Servers: one request after the other, and times to the first byte from a distribution.

use core::time::Duration;

use flotilla_common::time::Time;
use rand::{Rng, RngExt as _};

use crate::scenario::Failure;

/// The standard normal distribution's 99th percentile.
const Z99: f64 = 2.326_347_874_040_841;

/// How far an origin, or its storage, works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Up,
    /// It refuses each request at once: an origin's process is stopped, or each call of a storage
    /// fails.
    Refuses,
    /// It takes requests, and answers none.
    Hangs,
}

impl Condition {
    /// Whether it serves a request; `None` if no answer comes.
    pub(crate) fn answers(self) -> Option<bool> {
        match self {
            Self::Up => Some(true),
            Self::Refuses => Some(false),
            Self::Hangs => None,
        }
    }
}

/// A server that serves one request after the other, in order of arrival.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Server {
    busy_until: Time,
}

impl Server {
    /// When a request that arrives now is served, if it takes `service` by itself.
    pub(crate) fn serve(&mut self, now: Time, service: Duration) -> Time {
        self.busy_until = self.busy_until.max(now) + service;
        self.busy_until
    }
}

/// A lognormal distribution of times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    p50_ms: f64,
    sigma: f64,
}

impl Latency {
    /// The distribution with this median and this 99th percentile, in milliseconds. Without a
    /// percentile all times are equal.
    pub(crate) fn new(p50_ms: f64, p99_ms: Option<f64>) -> Self {
        let spread = p99_ms.map_or(1.0, |p99_ms| p99_ms / p50_ms);
        Self {
            p50_ms,
            sigma: libm::log(spread) / Z99,
        }
    }

    /// The distribution of a failure that makes something slow.
    pub(crate) fn of_failure(failure: &Failure) -> Self {
        Self::new(failure.p50_ms.unwrap_or_default(), failure.p99_ms)
    }

    pub(crate) fn draw(&self, rng: &mut impl Rng) -> Duration {
        let millis = if self.sigma > 0.0 {
            self.p50_ms * libm::exp(self.sigma * standard_normal(rng))
        } else {
            self.p50_ms
        };
        crate::scenario::millis(millis)
    }
}

/// A number of the standard normal distribution, by the method of Box and Muller. `libm` gives the
/// same number on every computer.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let radius = 1.0 - rng.random::<f64>();
    let angle = rng.random::<f64>();
    libm::sqrt(-2.0 * libm::log(radius)) * libm::cos(core::f64::consts::TAU * angle)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_pcg::Pcg64Mcg;

    use super::*;

    #[test]
    fn requests_queue_for_the_server() {
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        let mut server = Server::default();
        let service = Duration::from_millis(10);
        assert_eq!(server.serve(at(5), service), at(15));
        assert_eq!(server.serve(at(6), service), at(25));
        assert_eq!(server.serve(at(100), service), at(110));
    }

    #[test]
    fn latency_has_the_percentiles_of_the_scenario() {
        let latency = Latency::new(20.0, Some(400.0));
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut drawn: Vec<_> = (0..10_000).map(|_| latency.draw(&mut rng)).collect();
        drawn.sort();
        let near = |at: usize, millis: f64| {
            let ratio = drawn[at].as_secs_f64() * 1000.0 / millis;
            assert!(
                (0.9..1.1).contains(&ratio),
                "{:?} is not {millis} ms",
                drawn[at]
            );
        };
        near(5_000, 20.0);
        near(9_900, 400.0);
        let constant = Latency::new(3.0, None);
        assert_eq!(constant.draw(&mut rng), Duration::from_millis(3));
    }
}

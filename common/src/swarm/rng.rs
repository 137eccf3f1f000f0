//! The machine's random numbers: seeded once, the same sequence on every computer.

use core::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg32;

#[derive(Debug)]
pub(super) struct Rng(Pcg32);

impl Rng {
    pub(super) fn new(rng_seed: u64) -> Self {
        Self(Pcg32::seed_from_u64(rng_seed))
    }

    /// A number below `bound`, which must not be 0; the bias is below `bound / 2^32`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u64::from(self.0.next_u32()) * bound as u64) >> 32) as usize
    }

    /// True once in `times` on average; never for 0.
    pub(super) fn one_in(&mut self, times: u32) -> bool {
        times > 0 && self.below(times as usize) == 0
    }

    /// An exponentially distributed number with mean 1.
    pub(super) fn exponential(&mut self) -> f64 {
        let below_one = f64::from(self.0.next_u32()) / 4_294_967_296.0;
        -libm::log(1.0 - below_one)
    }

    /// A random duration from `duration` to twice that.
    pub(super) fn jitter(&mut self, duration: Duration) -> Duration {
        duration + duration.mul_f64(f64::from(self.0.next_u32()) / 4_294_967_296.0)
    }
}

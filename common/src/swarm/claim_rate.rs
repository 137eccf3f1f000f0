//! How often one peer claims a chunk of one blob, so that all peers together claim as many as the
//! origin can use, although no peer knows how many peers there are.
//!
//! The rate starts so low that even a hundred thousand peers begin with few claims. It doubles in
//! [`DOUBLING_TIME`], and each claim, heard or made, lowers it by [`LOG2_PER_CLAIM`]. So the claims
//! of all peers settle at one rate, whatever their number: at that rate, the claims between two
//! doublings undo one doubling. The time of each claim is drawn at random.
//!
//! Time is counted in *claim times*: how long a claim takes to reach the swarm. Two peers that
//! choose the same chunk do so within one of them. The clock goes slower while many claims are
//! open, and stops while there are enough.

use core::f64::consts::LN_2;
use core::time::Duration;

use super::rng::Rng;
use crate::time::Time;

/// The rate at the start, and the least: claims per claim time, as a power of two. A hundred
/// thousand peers make one or two together.
const MIN_LOG2: f64 = -16.0;
/// The greatest rate.
const MAX_LOG2: f64 = -1.0;
/// Claim times in which the rate doubles.
const DOUBLING_TIME: f64 = 3.0;
/// The same before the first claim is heard.
const FIRST_DOUBLING_TIME: f64 = 0.75;
/// By how much a claim lowers the rate, as a power of two.
const LOG2_PER_CLAIM: f64 = 1.0 / 32.0;
/// The rate is looked at after so many doublings at the latest. More time at once was not waited
/// for, as after a pause of the whole machine, and does not count.
const MAX_DOUBLINGS: f64 = 2.0;

/// The rate of claims, and the wait for the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimRate {
    /// Claims per claim time, as a power of two.
    log2: f64,
    /// The rest of the wait for the next claim, in expected claims: the wait is drawn from the
    /// exponential distribution with mean 1.
    left: f64,
    /// Up to when time has passed.
    at: Time,
    /// The claim time from then on.
    claim_time: Duration,
    /// The speed of the clock from then on, at most 1.
    speed: f64,
    /// Whether a claim was heard or made.
    has_heard: bool,
}

impl ClaimRate {
    /// A rate whose clock does not run yet.
    pub(super) fn new(now: Time, rng: &mut Rng) -> Self {
        Self {
            log2: MIN_LOG2,
            left: rng.exponential(),
            at: now,
            claim_time: Duration::from_secs(1),
            speed: 0.0,
            has_heard: false,
        }
    }

    /// Lets the time up to `now` pass, and sets the claim time and the speed of the clock from then
    /// on.
    pub(super) fn advance(&mut self, now: Time, claim_time: Duration, speed: f64) {
        let seconds = now.saturating_since(self.at).as_secs_f64();
        let spent = seconds / self.claim_time.as_secs_f64() * self.speed;
        let spent = spent.min(MAX_DOUBLINGS * self.doubling_time());
        self.left -= self.claims_in(spent);
        self.log2 = (self.log2 + spent / self.doubling_time()).min(MAX_LOG2);
        self.at = now;
        self.claim_time = claim_time.max(Duration::from_micros(1));
        self.speed = speed;
    }

    /// A new claim was heard.
    pub(super) fn on_heard(&mut self) {
        self.has_heard = true;
        self.log2 = (self.log2 - LOG2_PER_CLAIM).max(MIN_LOG2);
    }

    /// A claim was made: draws the wait for the next one.
    pub(super) fn on_claimed(&mut self, rng: &mut Rng) {
        self.on_heard();
        self.left = rng.exponential();
    }

    /// Whether a claim is to be made now.
    pub(super) fn is_due(&self) -> bool {
        self.left <= 0.0
    }

    /// When to advance next: when a claim is due, or before; `None` while the clock stands.
    pub(super) fn next_at(&self) -> Option<Time> {
        if self.speed <= 0.0 {
            return None;
        }
        // The inverse of `claims_in`, which is less where the rate has reached its maximum.
        let wait = self.left.max(0.0) * LN_2 / (libm::exp2(self.log2) * self.doubling_time());
        let doublings = libm::log2(1.0 + wait).clamp(0.01, MAX_DOUBLINGS);
        let spent = doublings * self.doubling_time();
        Some(self.at + self.claim_time.mul_f64(spent / self.speed.max(0.01)))
    }

    /// The expected number of claims in the next `spent` claim times.
    fn claims_in(&self, spent: f64) -> f64 {
        let growing = spent.min((MAX_LOG2 - self.log2) * self.doubling_time());
        let growth = libm::exp2(growing / self.doubling_time()) - 1.0;
        let while_growing = libm::exp2(self.log2) * growth * self.doubling_time() / LN_2;
        while_growing + (spent - growing) * libm::exp2(MAX_LOG2)
    }

    fn doubling_time(&self) -> f64 {
        if self.has_heard {
            DOUBLING_TIME
        } else {
            FIRST_DOUBLING_TIME
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM_TIME: Duration = Duration::from_millis(10);

    /// When `peers` peers that hear each other's claims after a claim time have made `claims` of
    /// them, at full speed.
    fn times_of_claims(peers: u64, claims: usize) -> Vec<Time> {
        let mut rngs: Vec<Rng> = (0..peers).map(Rng::new).collect();
        let mut rates: Vec<ClaimRate> = rngs
            .iter_mut()
            .map(|rng| ClaimRate::new(Time::ZERO, rng))
            .collect();
        let mut made = Vec::new();
        let mut heard = 0;
        let mut now = Time::ZERO;
        while made.len() < claims {
            now += CLAIM_TIME / 10;
            while made.get(heard).is_some_and(|at| *at + CLAIM_TIME <= now) {
                heard += 1;
                rates.iter_mut().for_each(ClaimRate::on_heard);
            }
            for (rate, rng) in rates.iter_mut().zip(&mut rngs) {
                rate.advance(now, CLAIM_TIME, 1.0);
                while rate.is_due() {
                    rate.on_claimed(rng);
                    made.push(now);
                }
            }
        }
        made
    }

    #[test]
    fn peers_claim_at_one_rate_whatever_their_number() {
        for peers in [10, 300, 10_000] {
            let made = times_of_claims(peers, 600);
            let first = made[0].saturating_since(Time::ZERO);
            assert!(first < CLAIM_TIME * 20, "{peers} peers: {first:?}");
            let spent = made[599].saturating_since(made[100]).as_secs_f64();
            let per_claim_time = 500.0 * CLAIM_TIME.as_secs_f64() / spent;
            // Each claim undoes a 32nd of a doubling, which takes three claim times.
            assert!(
                (3.0..20.0).contains(&per_claim_time),
                "{peers} peers: {per_claim_time}"
            );
        }
    }

    #[test]
    fn overdue_claim_has_a_time() {
        let mut rate = ClaimRate::new(Time::ZERO, &mut Rng::new(1));
        rate.advance(Time::ZERO, CLAIM_TIME, 1.0);
        // Many claims are due at once, as after a pause of the process.
        for second in 1..60 {
            rate.advance(Time::ZERO + Duration::from_secs(second), CLAIM_TIME, 1.0);
        }
        assert!(rate.is_due());
        assert!(rate.next_at().is_some());
    }

    #[test]
    fn clock_stands_while_its_speed_is_zero() {
        let mut rate = ClaimRate::new(Time::ZERO, &mut Rng::new(1));
        assert_eq!(rate.next_at(), None);
        let later = Time::ZERO + Duration::from_secs(60);
        rate.advance(later, CLAIM_TIME, 1.0);
        assert!(!rate.is_due());
        assert!(rate.next_at().is_some_and(|at| at > later));
    }

    #[test]
    fn pause_of_the_machine_does_not_count() {
        let mut rate = ClaimRate::new(Time::ZERO, &mut Rng::new(1));
        rate.advance(Time::ZERO, CLAIM_TIME, 1.0);
        rate.advance(Time::ZERO + Duration::from_secs(3600), CLAIM_TIME, 1.0);
        assert!(!rate.is_due());
    }

    #[test]
    fn deadlines_reach_the_claim() {
        let mut rate = ClaimRate::new(Time::ZERO, &mut Rng::new(1));
        rate.advance(Time::ZERO, CLAIM_TIME, 0.5);
        let mut steps = 0;
        while !rate.is_due() {
            let at = rate.next_at().expect("the clock runs");
            rate.advance(at, CLAIM_TIME, 0.5);
            steps += 1;
        }
        assert!(steps < 100, "{steps} deadlines before one claim");
    }
}

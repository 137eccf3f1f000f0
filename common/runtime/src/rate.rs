//! Bandwidth limits: an asynchronous token bucket over payload bytes.
//!
//! All clones of a [`Limiter`] share one bucket, so an origin's uplink is one limiter for all
//! responses. Requests for bytes are granted in order of arrival, each at the time at which a link
//! of that rate would have sent its last byte. A caller that is dropped while it waits takes
//! nothing.
//!
//! Bytes that are to give way to others ask by [`Limiter::take_background`]: they get what the
//! others leave, and a twentieth of the rate if those leave nothing.
//!
//! The arithmetic is in [`Bucket`], which has no clock and computes in exact integers, so no rate
//! drifts however small the requests.
//!
//! A limiter never queues bytes itself, and never grants more than `rate * time + burst` over any
//! period in which the process could run.

use std::sync::Arc;
use std::time::Duration;

use flotilla_common::units::BitRate;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The smallest burst: the bytes that an idle bucket grants at once.
const BURST_BYTES: u64 = 64 * 1024;
/// At high rates the burst covers this much time, several ticks of the timer.
const BURST_TIME: Duration = Duration::from_millis(5);
/// How much delay of a late timer a waiting caller may catch up on.
const LATENESS: Duration = Duration::from_millis(50);

/// The part of the rate that background callers get however much the others want: one in so many.
const BACKGROUND_SHARE: u64 = 20;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A bandwidth limit shared by its clones. Counts payload bytes only.
#[derive(Clone, Debug)]
pub struct Limiter {
    shared: Option<Arc<SharedBucket>>,
}

#[derive(Debug)]
struct SharedBucket {
    rate: BitRate,
    started: Instant,
    /// A fair lock: waiters get it in order of arrival. The holder keeps it while it sleeps.
    bucket: Mutex<Bucket>,
    /// What background callers get at least. The holder of this fair lock is the one that waits
    /// for unused bytes.
    background: Mutex<Bucket>,
}

impl Limiter {
    /// A limit of `rate`. A rate of zero counts as one bit per second.
    pub fn new(rate: BitRate) -> Self {
        let shared = SharedBucket {
            rate,
            started: Instant::now(),
            bucket: Mutex::new(Bucket::new(rate.0)),
            background: Mutex::new(Bucket::new(rate.0 / BACKGROUND_SHARE)),
        };
        Self {
            shared: Some(Arc::new(shared)),
        }
    }

    /// No limit: `take` returns at once and touches no shared memory.
    pub const fn unlimited() -> Self {
        Self { shared: None }
    }

    /// The rate; `None` without a limit.
    pub fn rate(&self) -> Option<BitRate> {
        self.shared.as_ref().map(|shared| shared.rate)
    }

    /// Waits until `bytes` may be sent.
    ///
    /// Later callers wait for all of them, so take tens of KiB at a time, not whole chunks.
    /// Dropping the future before it is ready takes nothing.
    pub async fn take(&self, bytes: usize) {
        let Some(shared) = &self.shared else {
            return;
        };
        let arrived = shared.started.elapsed();
        let mut bucket = shared.bucket.lock().await;
        let now = shared.started.elapsed();
        let quote = bucket.quote(arrived, now, bytes);
        if quote.at > now {
            tokio::time::sleep_until(shared.started + quote.at).await;
        }
        bucket.settle(quote);
    }

    /// Waits until `bytes` may be sent that other callers do not want: until they would have half
    /// a burst left. While the others want everything, background callers together get a
    /// twentieth of the rate.
    ///
    /// As with [`Self::take`], dropping the future before it is ready takes nothing.
    pub async fn take_background(&self, bytes: usize) {
        let Some(shared) = &self.shared else {
            return;
        };
        let arrived = shared.started.elapsed();
        let mut background = shared.background.lock().await;
        loop {
            let mut bucket = shared.bucket.lock().await;
            let now = shared.started.elapsed();
            let unused = bucket.quote_unused(arrived, now, bytes);
            if unused.at <= now {
                bucket.settle(unused);
                return;
            }
            // The others take first what becomes free meanwhile.
            drop(bucket);
            let least = background.quote(arrived, now, bytes);
            if least.at <= now {
                self.take(bytes).await;
                background.settle(least);
                return;
            }
            tokio::time::sleep_until(shared.started + unused.at.min(least.at)).await;
        }
    }
}

impl From<Option<BitRate>> for Limiter {
    fn from(rate: Option<BitRate>) -> Self {
        rate.map_or_else(Self::unlimited, Self::new)
    }
}

/// A token bucket as a position in time: at `free` the link has sent all granted bytes.
///
/// Times count from the bucket's start. Positions are in units of one nanosecond divided by the
/// rate, in which a byte costs exactly 8e9 units, so only the conversion to an instant rounds.
#[derive(Debug)]
struct Bucket {
    bits_per_second: u128,
    burst: u128,
    free: u128,
}

/// The cost of a request, not yet charged.
#[derive(Debug)]
struct Quote {
    at: Duration,
    free: u128,
}

impl Bucket {
    fn new(bits_per_second: u64) -> Self {
        let bits_per_second = u128::from(bits_per_second.max(1));
        let burst = cost(BURST_BYTES).max(BURST_TIME.as_nanos() * bits_per_second);
        Self {
            bits_per_second,
            burst,
            free: 0,
        }
    }

    /// Computes when `bytes` requested at `arrived` may be sent, for the head of the queue at
    /// `now`.
    fn quote(&self, arrived: Duration, now: Duration, bytes: usize) -> Quote {
        self.quote_within(self.burst, arrived, now, bytes)
    }

    /// The same for a caller that leaves half of the burst to others.
    fn quote_unused(&self, arrived: Duration, now: Duration, bytes: usize) -> Quote {
        self.quote_within(self.burst / 2, arrived, now, bytes)
    }

    fn quote_within(&self, burst: u128, arrived: Duration, now: Duration, bytes: usize) -> Quote {
        // Unused capacity of an idle link is lost but for one burst. While a caller waits the link
        // is not idle, so the delay of a late timer is made up, up to LATENESS.
        let idle_since =
            arrived.max(now.saturating_sub(LATENESS)).as_nanos() * self.bits_per_second;
        let free = self.free.max(idle_since) + cost(bytes as u64);
        let nanos = free.saturating_sub(burst).div_ceil(self.bits_per_second);
        Quote {
            at: Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)),
            free,
        }
    }

    fn settle(&mut self, quote: Quote) {
        self.free = quote.free;
    }
}

const fn cost(bytes: u64) -> u128 {
    bytes as u128 * 8 * NANOS_PER_SECOND
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const MEGABIT: u64 = 1_000_000;

    fn bytes_in(bits_per_second: u64, time: Duration) -> f64 {
        bits_per_second as f64 / 8.0 * time.as_secs_f64()
    }

    #[test]
    fn idle_bucket_grants_one_burst_then_the_rate() {
        let mut bucket = Bucket::new(8 * MEGABIT); // one byte per microsecond
        let now = Duration::from_secs(10);
        let first = bucket.quote(now, now, 65_536);
        assert!(first.at <= now);
        bucket.settle(first);
        let second = bucket.quote(now, now, 1_000);
        assert_eq!(second.at, now + Duration::from_micros(1_000));
        bucket.settle(second);
        let third = bucket.quote(now, now, 500);
        assert_eq!(third.at, now + Duration::from_micros(1_500));
    }

    #[test]
    fn unsettled_quote_costs_nothing() {
        let bucket = Bucket::new(MEGABIT);
        let now = Duration::from_secs(1);
        let abandoned = bucket.quote(now, now, 10_000_000);
        assert!(abandoned.at > now);
        assert!(bucket.quote(now, now, 1_000).at <= now);
    }

    #[test]
    fn small_requests_have_no_rounding_drift() {
        let rate = 99_999 * MEGABIT;
        let mut bucket = Bucket::new(rate);
        let mut now = Duration::ZERO;
        let takes = 10_000_000_u64;
        for _ in 0..takes {
            let quote = bucket.quote(now, now, 1);
            now = now.max(quote.at);
            bucket.settle(quote);
        }
        let burst = bytes_in(rate, BURST_TIME) as u64;
        assert!(takes < burst, "all of it fits the burst");
        assert_eq!(now, Duration::ZERO);
        assert_eq!(bucket.free, cost(takes));
    }

    #[test]
    fn late_timer_catches_up_to_a_bound() {
        let mut bucket = Bucket::new(8 * MEGABIT);
        bucket.settle(bucket.quote(Duration::ZERO, Duration::ZERO, 65_536));
        // Waiting since the start, seen 20 ms late: as if it had been on time.
        let late = Duration::from_millis(20);
        assert_eq!(
            bucket.quote(Duration::ZERO, late, 10_000).at,
            Duration::from_millis(10)
        );
        // Seen ten seconds late: at most LATENESS and a burst are made good.
        let very_late = Duration::from_secs(10);
        let most = bytes_in(8 * MEGABIT, LATENESS) as usize + 65_536;
        assert_eq!(bucket.quote(Duration::ZERO, very_late, most).at, very_late);
        assert!(bucket.quote(Duration::ZERO, very_late, most + 1).at > very_late);
    }

    #[tokio::test(start_paused = true)]
    async fn sixteen_callers_share_one_limit_fairly() {
        let rate = BitRate(50 * MEGABIT);
        let limiter = Limiter::new(rate);
        let started = Instant::now();
        let finish = started + Duration::from_secs(20);
        let takers: Vec<_> = (0..16)
            .map(|_| {
                let limiter = limiter.clone();
                tokio::spawn(async move {
                    let mut taken = 0_u64;
                    loop {
                        limiter.take(16_384).await;
                        if Instant::now() > finish {
                            return taken;
                        }
                        taken += 16_384;
                    }
                })
            })
            .collect();
        let mut shares = Vec::new();
        for taker in takers {
            shares.push(taker.await.unwrap());
        }
        let sum: u64 = shares.iter().sum();
        let ideal = bytes_in(rate.0, Duration::from_secs(20));
        assert!((sum as f64 / ideal - 1.0).abs() < 0.01, "{sum} of {ideal}");
        let most = shares.iter().max().unwrap();
        let least = shares.iter().min().unwrap();
        // The first caller gets the burst at the start.
        assert!(most - least <= BURST_BYTES + 16_384, "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_caller_takes_nothing() {
        let limiter = Limiter::new(BitRate(8 * MEGABIT));
        limiter.take(65_536).await;
        let started = Instant::now();
        let greedy = limiter.take(100_000_000);
        assert!(
            tokio::time::timeout(Duration::from_millis(1), greedy)
                .await
                .is_err()
        );
        limiter.take(10_000).await;
        assert!(started.elapsed() <= Duration::from_millis(12));
    }

    /// Takes pieces until `finish`; returns the bytes.
    async fn takes_until(limiter: Limiter, finish: Instant, is_background: bool) -> u64 {
        let mut taken = 0;
        loop {
            if is_background {
                limiter.take_background(32_768).await;
            } else {
                limiter.take(32_768).await;
            }
            if Instant::now() > finish {
                return taken;
            }
            taken += 32_768;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn background_gets_all_of_an_idle_limit() {
        let rate = BitRate(400 * MEGABIT);
        let limiter = Limiter::new(rate);
        let finish = Instant::now() + Duration::from_secs(10);
        let takers: Vec<_> = (0..8)
            .map(|_| tokio::spawn(takes_until(limiter.clone(), finish, true)))
            .collect();
        let mut sum = 0;
        for taker in takers {
            sum += taker.await.unwrap();
        }
        let ideal = bytes_in(rate.0, Duration::from_secs(10));
        assert!((sum as f64 / ideal - 1.0).abs() < 0.01, "{sum} of {ideal}");
    }

    #[tokio::test(start_paused = true)]
    async fn background_gives_way_but_for_a_small_share() {
        let rate = BitRate(400 * MEGABIT);
        let limiter = Limiter::new(rate);
        let finish = Instant::now() + Duration::from_secs(10);
        let background: Vec<_> = (0..64)
            .map(|_| tokio::spawn(takes_until(limiter.clone(), finish, true)))
            .collect();
        let wanted = takes_until(limiter.clone(), finish, false).await as f64;
        let mut left = 0;
        for taker in background {
            left += taker.await.unwrap();
        }
        let ideal = bytes_in(rate.0, Duration::from_secs(10));
        let (wanted, left) = (wanted / ideal, left as f64 / ideal);
        assert!(wanted > 0.94, "{wanted}");
        assert!((0.045..0.06).contains(&left), "{left}");
    }

    #[tokio::test(start_paused = true)]
    async fn caller_finds_half_a_burst_beside_background() {
        let limiter = Limiter::new(BitRate(400 * MEGABIT));
        let finish = Instant::now() + Duration::from_secs(2);
        let background = tokio::spawn(takes_until(limiter.clone(), finish, true));
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let started = Instant::now();
            limiter.take(16_384).await;
            assert!(started.elapsed() <= Duration::from_millis(1));
        }
        background.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_never_waits() {
        let started = Instant::now();
        Limiter::unlimited().take(usize::MAX).await;
        Limiter::from(None).take(usize::MAX).await;
        Limiter::unlimited().take_background(usize::MAX).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}

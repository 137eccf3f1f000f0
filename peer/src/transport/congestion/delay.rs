//! A delay-based congestion controller: it fills the link and keeps the queue before it short.
//!
//! A loss-based controller such as CUBIC fills the queue at the slowest link until packets are
//! lost. Requests and refusals between peers wait behind that queue, so a request would take as
//! long as a transfer. This controller measures queueing delay, which is the round-trip time beyond
//! the shortest one seen, and steers it towards a target of some milliseconds.
//!
//! In each round trip the window changes by
//! ```text
//! window x GAIN x (TARGET - queueing) / round trip     at most doubled, at least halved
//! + ADDITIVE_PACKETS                                   so that flows sharing a link converge
//! ```
//! This doubles the window while the link is idle, holds it while the queueing delay is on target,
//! and empties a long queue within a few round trips. FAST and LEDBAT++ use the same law (RFC 6817
//! describes its traps). After a packet loss the window shrinks as CUBIC's does.
//!
//! The first term multiplies, so alone it would preserve the flows' unequal shares. A chunk lasts
//! about a dozen round trips, and a transfer that starts with a small window must reach its share
//! well before the end: hence several packets per round trip. They lengthen the queue by the time
//! that twice as many packets of each flow take, which is three milliseconds at 50 Mbit/s.
//!
//! - The shortest round trip is that of the last two minutes, since routes change.
//! - The minimum of the last few measurements counts, since a busy processor delays single packets.
//! - The window never falls below some packets: next to flows that fill the queue, such as CUBIC's,
//!   this controller is slow but does not starve.

use std::any::Any;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_common::congestion::{
    ADDITIVE_PACKETS, GAIN, INITIAL_WINDOW_BYTES, LOSS_FACTOR, MIN_WINDOW_PACKETS, TARGET,
};
use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Lower bound for the round trip as a divisor.
const MIN_ROUND_TRIP: Duration = Duration::from_micros(10);
/// Measurements in [`RecentMin`].
const RECENT_SAMPLES: usize = 3;
/// [`BaseRoundTrip`] covers this many intervals of [`BASE_INTERVAL`].
const BASE_INTERVALS: usize = 4;
const BASE_INTERVAL: Duration = Duration::from_secs(30);

/// Makes one [`DelayBased`] per path.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DelayBasedConfig;

impl ControllerFactory for DelayBasedConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(DelayBased::new(now, mtu))
    }
}

/// The controller of one path.
#[derive(Debug, Clone)]
pub(super) struct DelayBased {
    window_bytes: f64,
    mtu: u64,
    base: BaseRoundTrip,
    recent: RecentMin,
    /// Packets of the acknowledgement that is being processed.
    ack: AckBatch,
    /// When the last loss was handled. Acknowledgements of packets sent before do not grow the
    /// window.
    recovery_since: Option<Instant>,
}

/// The sum of the packets that one acknowledgement frame covers.
#[derive(Debug, Clone, Copy, Default)]
struct AckBatch {
    bytes: u64,
    min_round_trip: Option<Duration>,
}

impl DelayBased {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            window_bytes: INITIAL_WINDOW_BYTES as f64,
            mtu: u64::from(mtu),
            base: BaseRoundTrip::new(now),
            recent: RecentMin::default(),
            ack: AckBatch::default(),
            recovery_since: None,
        }
    }

    fn min_window(&self) -> f64 {
        (MIN_WINDOW_PACKETS * self.mtu) as f64
    }

    /// Adds one packet of an acknowledgement.
    fn add_acknowledged(&mut self, round_trip: Duration, sent: Instant, bytes: u64) {
        self.ack.min_round_trip = min_of(self.ack.min_round_trip, round_trip);
        if self.recovery_since.is_none_or(|since| sent > since) {
            self.ack.bytes += bytes;
        }
    }

    /// Moves the window once all packets of an acknowledgement were added.
    fn finish_acknowledgement(&mut self, now: Instant, is_app_limited: bool) {
        let ack = mem::take(&mut self.ack);
        let Some(round_trip) = ack.min_round_trip else {
            return;
        };
        self.base.record(now, round_trip);
        self.recent.record(round_trip);
        self.move_window(ack.bytes, is_app_limited);
    }

    fn move_window(&mut self, acknowledged_bytes: u64, is_app_limited: bool) {
        let (Some(base), Some(round_trip)) = (self.base.min(), self.recent.min()) else {
            return;
        };
        let queueing = round_trip.saturating_sub(base);
        let off_target = TARGET.as_secs_f64() - queueing.as_secs_f64();
        let correction = GAIN * off_target / round_trip.max(MIN_ROUND_TRIP).as_secs_f64();
        let per_round_trip =
            self.window_bytes * correction.clamp(-0.5, 1.0) + ADDITIVE_PACKETS * self.mtu as f64;
        // A sender that does not fill the window measures nothing about a larger one.
        if per_round_trip > 0.0 && is_app_limited {
            return;
        }
        let moved =
            self.window_bytes + per_round_trip * acknowledged_bytes as f64 / self.window_bytes;
        self.window_bytes = moved.max(self.min_window());
    }
}

impl Controller for DelayBased {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _: bool, _: &RttEstimator) {
        self.add_acknowledged(now.saturating_duration_since(sent), sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, _: u64, is_app_limited: bool, _: Option<u64>) {
        self.finish_acknowledgement(now, is_app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, _: u64) {
        if self.recovery_since.is_some_and(|since| sent <= since) {
            return;
        }
        self.recovery_since = Some(now);
        let factor = if is_persistent { 0.0 } else { LOSS_FACTOR };
        self.window_bytes = (self.window_bytes * factor).max(self.min_window());
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
        self.window_bytes = self.window_bytes.max(self.min_window());
    }

    fn window(&self) -> u64 {
        self.window_bytes as u64
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn min_of(known: Option<Duration>, sample: Duration) -> Option<Duration> {
    Some(known.map_or(sample, |known| known.min(sample)))
}

/// The shortest round trip of the last [`BASE_INTERVALS`] times [`BASE_INTERVAL`].
#[derive(Debug, Clone)]
struct BaseRoundTrip {
    /// The minimum of each interval, the current one first.
    minima: [Option<Duration>; BASE_INTERVALS],
    interval_began: Instant,
}

impl BaseRoundTrip {
    fn new(now: Instant) -> Self {
        Self {
            minima: [None; BASE_INTERVALS],
            interval_began: now,
        }
    }

    fn record(&mut self, now: Instant, round_trip: Duration) {
        if now.saturating_duration_since(self.interval_began) >= BASE_INTERVAL {
            self.interval_began = now;
            self.minima.rotate_right(1);
            self.minima[0] = None;
        }
        self.minima[0] = min_of(self.minima[0], round_trip);
    }

    fn min(&self) -> Option<Duration> {
        self.minima.iter().flatten().min().copied()
    }
}

/// The minimum of the last [`RECENT_SAMPLES`] measurements.
#[derive(Debug, Clone, Default)]
struct RecentMin {
    round_trips: [Option<Duration>; RECENT_SAMPLES],
    next: usize,
}

impl RecentMin {
    fn record(&mut self, round_trip: Duration) {
        self.round_trips[self.next] = Some(round_trip);
        self.next = (self.next + 1) % RECENT_SAMPLES;
    }

    fn min(&self) -> Option<Duration> {
        self.round_trips.iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "quinn passes std instants to controllers"
    )]

    use super::*;

    const MTU: u16 = 1_452;
    /// Upper bound of the window next to a queue that stays far too long: each round trip halves
    /// the window and adds [`ADDITIVE_PACKETS`].
    const MAX_BESIDE_LONG_QUEUE: f64 = 3.0 * ADDITIVE_PACKETS * MTU as f64;

    /// A model of a link with a queue before it, used by controllers that always have data to send.
    struct SimulatedLink {
        now: Instant,
        bytes_per_second: f64,
        /// The round-trip time with an empty queue.
        base_round_trip: Duration,
        /// Queueing delay caused by other traffic.
        other_queueing: Duration,
    }

    impl SimulatedLink {
        fn new(bits_per_second: f64, base_round_trip: Duration) -> Self {
            Self {
                now: Instant::now(),
                bytes_per_second: bits_per_second / 8.0,
                base_round_trip,
                other_queueing: Duration::ZERO,
            }
        }

        /// The queueing delay: bytes in flight beyond the bandwidth-delay product, as time.
        fn queueing(&self, flows: &[DelayBased]) -> Duration {
            let in_flight: f64 = flows.iter().map(|flow| flow.window_bytes).sum();
            let bandwidth_delay = self.bytes_per_second * self.base_round_trip.as_secs_f64();
            Duration::from_secs_f64(
                ((in_flight - bandwidth_delay) / self.bytes_per_second).max(0.0),
            ) + self.other_queueing
        }

        /// Simulates a round trip in which each controller's window is acknowledged. Two packets of
        /// three arrive `jitter` later.
        fn run_round_trip(&mut self, flows: &mut [DelayBased], jitter: Duration) {
            let round_trip = self.base_round_trip + self.queueing(flows);
            let sent = self.now;
            self.now += round_trip;
            for flow in flows {
                let packets = (flow.window_bytes / f64::from(MTU)) as u64;
                for packet in 0..packets.div_ceil(2) {
                    let delay = if packet % 3 == 0 {
                        Duration::ZERO
                    } else {
                        jitter
                    };
                    flow.add_acknowledged(round_trip + delay, sent, 2 * u64::from(MTU));
                    flow.finish_acknowledgement(self.now, false);
                }
            }
        }

        fn run_round_trips(&mut self, flows: &mut [DelayBased], count: u32) {
            (0..count).for_each(|_| self.run_round_trip(flows, Duration::ZERO));
        }
    }

    fn flow(link: &SimulatedLink) -> DelayBased {
        let mut flow = DelayBased::new(link.now, MTU);
        // The handshake has measured the idle link.
        flow.base.record(link.now, link.base_round_trip);
        flow
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The longest acceptable queueing delay of `flows` flows that share a link: twice the target,
    /// and the delay of their additive packets.
    fn max_queueing(bits_per_second: f64, flows: u32) -> Duration {
        let additive =
            Duration::from_secs_f64(ADDITIVE_PACKETS * f64::from(MTU) * 8.0 / bits_per_second);
        2 * TARGET + 2 * flows * additive
    }

    #[test]
    fn links_are_filled_with_queueing_near_target() {
        for bits_per_second in [5e6, 50e6, 1e9, 10e9] {
            for base_round_trip in [Duration::from_micros(100), ms(2), ms(40)] {
                let mut link = SimulatedLink::new(bits_per_second, base_round_trip);
                let mut flows = [flow(&link)];
                link.run_round_trips(&mut flows, 100);
                let queueing = link.queueing(&flows);
                assert!(
                    (TARGET / 2..max_queueing(bits_per_second, 1)).contains(&queueing),
                    "{queueing:?} at {bits_per_second} bit/s and {base_round_trip:?}"
                );
            }
        }
    }

    #[test]
    fn oversized_window_drains_within_five_round_trips() {
        let mut link = SimulatedLink::new(50e6, ms(1));
        let mut flows = [flow(&link)];
        flows[0].window_bytes = 400_000.0;
        assert!(link.queueing(&flows) > ms(60));
        link.run_round_trips(&mut flows, 5);
        assert!(
            link.queueing(&flows) < 2 * TARGET,
            "{:?}",
            link.queueing(&flows)
        );
    }

    #[test]
    fn flows_sharing_a_link_converge_with_short_queue() {
        let mut link = SimulatedLink::new(50e6, ms(1));
        let mut flows = [flow(&link), flow(&link), flow(&link)];
        flows[0].window_bytes = 60_000.0;
        link.run_round_trips(&mut flows, 12);
        let windows = flows.each_ref().map(|flow| flow.window_bytes);
        assert!(
            windows
                .iter()
                .all(|window| (0.7..1.4).contains(&(window / windows[0]))),
            "{windows:?}"
        );
        assert!(
            link.queueing(&flows) < max_queueing(50e6, 3),
            "{:?}",
            link.queueing(&flows)
        );
    }

    #[test]
    fn jitter_of_single_packets_does_not_count_as_queueing() {
        let mut link = SimulatedLink::new(1e9, ms(1));
        let mut flows = [flow(&link)];
        (0..100).for_each(|_| link.run_round_trip(&mut flows, ms(30)));
        assert!(
            link.queueing(&flows) > TARGET / 2,
            "{:?}",
            link.queueing(&flows)
        );
    }

    #[test]
    fn small_window_beside_queue_filling_traffic_then_recovery() {
        let mut link = SimulatedLink::new(50e6, ms(1));
        link.other_queueing = ms(100);
        let mut flows = [flow(&link)];
        link.run_round_trips(&mut flows, 100);
        assert!(
            flows[0].window_bytes <= MAX_BESIDE_LONG_QUEUE,
            "{}",
            flows[0].window_bytes
        );
        link.other_queueing = Duration::ZERO;
        link.run_round_trips(&mut flows, 20);
        assert!(flows[0].window() > 30_000, "{}", flows[0].window());
    }

    #[test]
    fn longer_route_becomes_new_base_after_two_minutes() {
        let mut link = SimulatedLink::new(50e6, ms(1));
        let mut flows = [flow(&link)];
        link.base_round_trip = ms(60);
        while link
            .now
            .saturating_duration_since(flows[0].base.interval_began)
            < BASE_INTERVAL / 2
        {
            link.run_round_trips(&mut flows, 1);
        }
        assert!(
            flows[0].window_bytes <= MAX_BESIDE_LONG_QUEUE,
            "{}",
            flows[0].window_bytes
        );
        for _ in 0..BASE_INTERVALS {
            link.now += BASE_INTERVAL;
            link.run_round_trips(&mut flows, 1);
        }
        link.run_round_trips(&mut flows, 200);
        assert!(flows[0].window() > 300_000, "{}", flows[0].window());
    }

    #[test]
    fn loss_reduces_window_and_persistent_congestion_resets_it() {
        let link = SimulatedLink::new(50e6, ms(1));
        let mut flow = flow(&link);
        flow.window_bytes = 100_000.0;
        let later = link.now + ms(5);
        flow.on_congestion_event(later, link.now, false, 1_452);
        flow.on_congestion_event(later + ms(1), link.now + ms(1), false, 1_452);
        assert_eq!(flow.window(), 70_000);
        flow.on_congestion_event(later + ms(9), later + ms(2), true, 1_452);
        assert_eq!(flow.window(), MIN_WINDOW_PACKETS * u64::from(MTU));
    }

    #[test]
    fn app_limited_flow_does_not_grow_window() {
        let link = SimulatedLink::new(50e6, ms(1));
        let mut flow = flow(&link);
        flow.add_acknowledged(ms(1), link.now, 1_452);
        flow.finish_acknowledgement(link.now + ms(1), true);
        assert_eq!(flow.window(), INITIAL_WINDOW_BYTES);
    }
}

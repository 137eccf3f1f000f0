//! How much a connection may have in flight: what fills the link, and hardly more.
//!
//! A controller that waits for losses, as CUBIC does, fills the queue before the slowest link
//! first. Peers ask and refuse each other behind what is in that queue, so a question takes as long
//! as a transfer. This one bounds the delay that it causes: it looks at the round trip beyond the
//! shortest one seen, and steers towards some milliseconds of it.
//!
//! Per round trip the window moves by
//! ```text
//! window x GAIN x (TARGET - queueing) / round trip     at most doubled, at least halved
//! + STEP packets                                       so that flows which share a link become equal
//! ```
//! which doubles it while the link is idle, holds it while the queue is as long as it should be,
//! and empties a long queue within a few round trips. It is FAST's and LEDBAT++'s law (RFC 6817 has
//! the traps). A loss is a loss: the window shrinks as CUBIC's does.
//!
//! The first term alone would keep shares as they are: it multiplies. A chunk lasts for a dozen
//! round trips, neighbours come and go with each, and a transfer that begins with a small window
//! must have its share long before it ends: hence several packets. Their price is a queue that is
//! longer by what twice so many packets of each flow take, three milliseconds at 50 Mbit/s.
//!
//! - The shortest round trip is that of the last minutes, not for ever: a route may change.
//! - A packet that was held up by a busy processor is no queue: the least of the last few
//!   measurements counts.
//! - The window never falls below some packets: beside somebody who fills queues we are slow, but
//!   never starve.

use std::any::Any;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// The delay that a connection may cause: above what a busy processor or a token bucket adds, and a
/// fraction of what a chunk takes where that matters.
const TARGET: Duration = Duration::from_millis(7);
/// How much of the way towards the target is made in a round trip. More overshoots: the answer is a
/// round trip old.
const GAIN: f64 = 0.5;
/// Packets by which a window grows in a round trip whatever the delay.
const STEP: f64 = 6.0;
/// After a loss.
const BETA: f64 = 0.7;
const INITIAL_WINDOW: u64 = 14_720;
const MIN_WINDOW_PACKETS: u64 = 4;
/// Shorter ones are as good as none.
const LEAST_ROUND_TRIP: Duration = Duration::from_micros(10);
/// The measurements of which the least counts.
const RECENT: usize = 3;
/// The shortest round trip is the least of so many spans.
const SPANS: usize = 4;
const SPAN: Duration = Duration::from_secs(30);

/// Makes one [`DelayBound`] per path.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DelayBoundConfig;

impl ControllerFactory for DelayBoundConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(DelayBound::new(now, mtu))
    }
}

/// The controller of one path.
#[derive(Debug, Clone)]
pub(super) struct DelayBound {
    window: f64,
    mtu: u64,
    base: Base,
    recent: Recent,
    /// What the acknowledgement at hand has told so far.
    batch: Batch,
    /// Packets sent before this are of the time before the last loss.
    recovery_since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    bytes: u64,
    round_trip: Option<Duration>,
}

impl DelayBound {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            window: INITIAL_WINDOW as f64,
            mtu: u64::from(mtu),
            base: Base::new(now),
            recent: Recent::default(),
            batch: Batch::default(),
            recovery_since: None,
        }
    }

    fn min_window(&self) -> f64 {
        (MIN_WINDOW_PACKETS * self.mtu) as f64
    }

    /// One packet of an acknowledgement.
    fn acknowledge(&mut self, round_trip: Duration, sent: Instant, bytes: u64) {
        self.batch.round_trip = least(self.batch.round_trip, round_trip);
        if self.recovery_since.is_none_or(|since| sent > since) {
            self.batch.bytes += bytes;
        }
    }

    /// All packets of an acknowledgement are told.
    fn end_batch(&mut self, now: Instant, is_app_limited: bool) {
        let Batch { bytes, round_trip } = mem::take(&mut self.batch);
        let Some(round_trip) = round_trip else { return };
        self.base.note(now, round_trip);
        self.recent.note(round_trip);
        self.steer(bytes, is_app_limited);
    }

    /// Moves the window, after so many bytes were acknowledged.
    fn steer(&mut self, acknowledged: u64, is_app_limited: bool) {
        let (Some(base), Some(round_trip)) = (self.base.least(), self.recent.least()) else {
            return;
        };
        let queueing = round_trip.saturating_sub(base);
        let off_target = TARGET.as_secs_f64() - queueing.as_secs_f64();
        let pull = GAIN * off_target / round_trip.max(LEAST_ROUND_TRIP).as_secs_f64();
        let per_round_trip = self.window * pull.clamp(-0.5, 1.0) + STEP * self.mtu as f64;
        // Who sends less than the window learns nothing about a larger one.
        if per_round_trip > 0.0 && is_app_limited {
            return;
        }
        let window = self.window + per_round_trip * acknowledged as f64 / self.window;
        self.window = window.max(self.min_window());
    }
}

impl Controller for DelayBound {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _: bool, _: &RttEstimator) {
        self.acknowledge(now.saturating_duration_since(sent), sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, _: u64, is_app_limited: bool, _: Option<u64>) {
        self.end_batch(now, is_app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, _: u64) {
        if self.recovery_since.is_some_and(|since| sent <= since) {
            return;
        }
        self.recovery_since = Some(now);
        let factor = if is_persistent { 0.0 } else { BETA };
        self.window = (self.window * factor).max(self.min_window());
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
        self.window = self.window.max(self.min_window());
    }

    fn window(&self) -> u64 {
        self.window as u64
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn least(before: Option<Duration>, now: Duration) -> Option<Duration> {
    Some(before.map_or(now, |before| before.min(now)))
}

/// The shortest round trip of the last [`SPANS`] times [`SPAN`].
#[derive(Debug, Clone)]
struct Base {
    spans: [Option<Duration>; SPANS],
    since: Instant,
}

impl Base {
    fn new(now: Instant) -> Self {
        Self {
            spans: [None; SPANS],
            since: now,
        }
    }

    fn note(&mut self, now: Instant, round_trip: Duration) {
        if now.saturating_duration_since(self.since) >= SPAN {
            self.since = now;
            self.spans.rotate_right(1);
            self.spans[0] = None;
        }
        self.spans[0] = least(self.spans[0], round_trip);
    }

    fn least(&self) -> Option<Duration> {
        self.spans.iter().flatten().min().copied()
    }
}

/// The last measurements.
#[derive(Debug, Clone, Default)]
struct Recent {
    round_trips: [Option<Duration>; RECENT],
    next: usize,
}

impl Recent {
    fn note(&mut self, round_trip: Duration) {
        self.round_trips[self.next] = Some(round_trip);
        self.next = (self.next + 1) % RECENT;
    }

    fn least(&self) -> Option<Duration> {
        self.round_trips.iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1_452;
    /// What a window comes to when the queue is far too long: of each round trip half of it goes,
    /// and the steps come.
    const LEAST_BY_DELAY: f64 = 3.0 * STEP * MTU as f64;

    /// A link with a queue before it, and what is sent over it by controllers that always have
    /// something to send.
    struct Pipe {
        now: Instant,
        bytes_per_second: f64,
        idle: Duration,
        /// What somebody else keeps in the queue.
        others: Duration,
    }

    impl Pipe {
        fn new(bits_per_second: f64, idle: Duration) -> Self {
            Self {
                now: Instant::now(),
                bytes_per_second: bits_per_second / 8.0,
                idle,
                others: Duration::ZERO,
            }
        }

        /// The delay of the queue: what is in flight beyond what the wire itself holds.
        fn queueing(&self, flows: &[DelayBound]) -> Duration {
            let in_flight: f64 = flows.iter().map(|flow| flow.window).sum();
            let holds = self.bytes_per_second * self.idle.as_secs_f64();
            Duration::from_secs_f64(((in_flight - holds) / self.bytes_per_second).max(0.0))
                + self.others
        }

        /// One round trip in which each controller's window is acknowledged, `jitter` later for all
        /// packets but some.
        fn round_trip(&mut self, flows: &mut [DelayBound], jitter: Duration) {
            let round_trip = self.idle + self.queueing(flows);
            let sent = self.now;
            self.now += round_trip;
            for flow in flows {
                let packets = (flow.window / f64::from(MTU)) as u64;
                for packet in 0..packets.div_ceil(2) {
                    let late = if packet % 3 == 0 {
                        Duration::ZERO
                    } else {
                        jitter
                    };
                    flow.acknowledge(round_trip + late, sent, 2 * u64::from(MTU));
                    flow.end_batch(self.now, false);
                }
            }
        }

        fn round_trips(&mut self, flows: &mut [DelayBound], count: u32) {
            (0..count).for_each(|_| self.round_trip(flows, Duration::ZERO));
        }
    }

    fn flow(pipe: &Pipe) -> DelayBound {
        let mut flow = DelayBound::new(pipe.now, MTU);
        // The handshake crossed an idle link.
        flow.base.note(pipe.now, pipe.idle);
        flow
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The queue that may be seen where so many flows share a link: twice what is aimed at, and
    /// what their steps add.
    fn longest(bits_per_second: f64, flows: u32) -> Duration {
        let step = Duration::from_secs_f64(STEP * f64::from(MTU) * 8.0 / bits_per_second);
        2 * TARGET + 2 * flows * step
    }

    #[test]
    fn links_from_slow_to_fast_and_near_to_far_are_filled_with_the_queue_that_is_wanted() {
        for bits_per_second in [5e6, 50e6, 1e9, 10e9] {
            for idle in [Duration::from_micros(100), ms(2), ms(40)] {
                let mut pipe = Pipe::new(bits_per_second, idle);
                let mut flows = [flow(&pipe)];
                pipe.round_trips(&mut flows, 100);
                let queueing = pipe.queueing(&flows);
                assert!(
                    (TARGET / 2..longest(bits_per_second, 1)).contains(&queueing),
                    "{queueing:?} at {bits_per_second} bit/s and {idle:?}"
                );
            }
        }
    }

    #[test]
    fn a_window_that_was_larger_empties_its_queue_within_a_few_round_trips() {
        let mut pipe = Pipe::new(50e6, ms(1));
        let mut flows = [flow(&pipe)];
        flows[0].window = 400_000.0;
        assert!(pipe.queueing(&flows) > ms(60));
        pipe.round_trips(&mut flows, 5);
        assert!(
            pipe.queueing(&flows) < 2 * TARGET,
            "{:?}",
            pipe.queueing(&flows)
        );
    }

    #[test]
    fn flows_that_share_a_link_become_equal_and_the_queue_stays_short() {
        let mut pipe = Pipe::new(50e6, ms(1));
        let mut flows = [flow(&pipe), flow(&pipe), flow(&pipe)];
        flows[0].window = 60_000.0;
        pipe.round_trips(&mut flows, 12);
        let windows = flows.each_ref().map(|flow| flow.window);
        assert!(
            windows
                .iter()
                .all(|window| (0.7..1.4).contains(&(window / windows[0]))),
            "{windows:?}"
        );
        assert!(
            pipe.queueing(&flows) < longest(50e6, 3),
            "{:?}",
            pipe.queueing(&flows)
        );
    }

    #[test]
    fn packets_that_are_held_up_now_and_then_are_no_queue() {
        let mut pipe = Pipe::new(1e9, ms(1));
        let mut flows = [flow(&pipe)];
        (0..100).for_each(|_| pipe.round_trip(&mut flows, ms(30)));
        assert!(
            pipe.queueing(&flows) > TARGET / 2,
            "{:?}",
            pipe.queueing(&flows)
        );
    }

    #[test]
    fn beside_somebody_who_fills_the_queue_it_is_slow_but_does_not_starve() {
        let mut pipe = Pipe::new(50e6, ms(1));
        pipe.others = ms(100);
        let mut flows = [flow(&pipe)];
        pipe.round_trips(&mut flows, 100);
        assert!(flows[0].window <= LEAST_BY_DELAY, "{}", flows[0].window);
        pipe.others = Duration::ZERO;
        pipe.round_trips(&mut flows, 20);
        assert!(flows[0].window() > 30_000, "{}", flows[0].window());
    }

    #[test]
    fn a_route_that_became_longer_is_believed_after_some_minutes() {
        let mut pipe = Pipe::new(50e6, ms(1));
        let mut flows = [flow(&pipe)];
        pipe.idle = ms(60);
        while pipe.now.saturating_duration_since(flows[0].base.since) < SPAN / 2 {
            pipe.round_trips(&mut flows, 1);
        }
        assert!(flows[0].window <= LEAST_BY_DELAY, "{}", flows[0].window);
        for _ in 0..SPANS {
            pipe.now += SPAN;
            pipe.round_trips(&mut flows, 1);
        }
        pipe.round_trips(&mut flows, 200);
        assert!(flows[0].window() > 300_000, "{}", flows[0].window());
    }

    #[test]
    fn one_loss_shrinks_the_window_once_and_a_dead_path_to_the_least() {
        let pipe = Pipe::new(50e6, ms(1));
        let mut flow = flow(&pipe);
        flow.window = 100_000.0;
        let later = pipe.now + ms(5);
        flow.on_congestion_event(later, pipe.now, false, 1_452);
        flow.on_congestion_event(later + ms(1), pipe.now + ms(1), false, 1_452);
        assert_eq!(flow.window(), 70_000);
        flow.on_congestion_event(later + ms(9), later + ms(2), true, 1_452);
        assert_eq!(flow.window(), MIN_WINDOW_PACKETS * u64::from(MTU));
    }

    #[test]
    fn who_sends_less_than_the_window_does_not_widen_it() {
        let pipe = Pipe::new(50e6, ms(1));
        let mut flow = flow(&pipe);
        flow.acknowledge(ms(1), pipe.now, 1_452);
        flow.end_batch(pipe.now + ms(1), true);
        assert_eq!(flow.window(), INITIAL_WINDOW);
    }
}

//! Congestion windows on long links: how they begin, how they grow, and how large packet loss lets
//! them get.
//!
//! | Transport | Sender | Growth per round trip | Window at a loss of p |
//! |---|---|---|---|
//! | QUIC | a peer | as its delay-based controller on an idle link | where growth and losses balance |
//! | HTTP | an origin's kernel: CUBIC | doubles | the larger one of CUBIC's and Reno's |

use flotilla_common::congestion::{
    ADDITIVE_PACKETS, CONNECTION_WINDOW_BYTES, GAIN, INITIAL_WINDOW_BYTES, LOSS_FACTOR, TARGET,
};

use crate::delays::{Route, Transport};
use crate::network::{Growth, Window};

/// A packet on an Ethernet path.
const PACKET_BYTES: f64 = 1_472.0;

/// Bounds of a window's lost packets per round trip, and steps to find them.
const MAX_LOSSES: f64 = 10.0;
const BISECTIONS: u32 = 60;

/// The receive window of a TCP connection: half of the buffer that Linux allows by default.
const TCP_WINDOW_BYTES: f64 = 3.0 * 1024.0 * 1024.0;

/// The window of a connection, or `None` if nothing limits it: growth is not simulated, and no
/// packet is lost.
pub(crate) fn window(transport: Transport, route: Route, has_slow_start: bool) -> Option<Window> {
    let round_trip = 2 * route.one_way;
    if round_trip.is_zero() || !has_slow_start && route.loss == 0.0 {
        return None;
    }
    let seconds = round_trip.as_secs_f64();
    let mut max_bytes = match transport {
        Transport::Quic => f64::from(CONNECTION_WINDOW_BYTES),
        Transport::Http => TCP_WINDOW_BYTES,
    };
    if route.loss > 0.0 {
        let packets = match transport {
            Transport::Quic => delay_based_packets(route.loss, seconds),
            Transport::Http => cubic_packets(route.loss, seconds),
        };
        max_bytes = max_bytes.min(packets * PACKET_BYTES);
    }
    let initial = if has_slow_start {
        // Linux begins with ten packets, too.
        (INITIAL_WINDOW_BYTES as f64).min(max_bytes)
    } else {
        max_bytes
    };
    Some(Window {
        bytes: initial,
        max_bytes,
        round_trip,
        growth: match transport {
            Transport::Quic => Growth {
                share: growth_share(seconds),
                bytes: ADDITIVE_PACKETS * PACKET_BYTES,
            },
            Transport::Http => Growth {
                share: 1.0,
                bytes: 0.0,
            },
        },
    })
}

/// The share by which a peer's window grows per round trip while there is no queue.
fn growth_share(round_trip_s: f64) -> f64 {
    (GAIN * TARGET.as_secs_f64() / round_trip_s).min(1.0)
}

/// The mean window of a peer's controller, in packets, at a loss of `p`. In a round trip without a
/// loss, whose probability is `exp(-p w)`, the window `w` grows by `a w + b`; in any other one it
/// shrinks by 0.3 of itself. So it stays where `a + b p / x = 0.3 (exp(x) - 1)` with `x = p w`.
/// This is the fluid model of Misra, Gong and Towsley, "Fluid-based analysis of a network of AQM
/// routers supporting TCP flows", SIGCOMM 2000, with this controller's law.
fn delay_based_packets(p: f64, round_trip_s: f64) -> f64 {
    let share = growth_share(round_trip_s);
    let grows = |x: f64| share + ADDITIVE_PACKETS * p / x > (1.0 - LOSS_FACTOR) * libm::expm1(x);
    let (mut least, mut most) = (0.0, MAX_LOSSES);
    for _ in 0..BISECTIONS {
        let middle = (least + most) / 2.0;
        if grows(middle) {
            least = middle;
        } else {
            most = middle;
        }
    }
    least / p
}

/// The mean window of CUBIC, in packets: `1.054 (RTT / p)^(3/4)` (RFC 9438, section 5.1, with
/// C = 0.4 and a factor of 0.7), and at least that of Reno, `sqrt(3 / 2 p)` (Mathis, Semke, Mahdavi
/// and Ott, "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997).
fn cubic_packets(p: f64, round_trip_s: f64) -> f64 {
    let cubic = 1.054 * libm::pow(round_trip_s / p, 0.75);
    cubic.max(libm::sqrt(1.5 / p))
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use flotilla_common::congestion::MIN_WINDOW_PACKETS;
    use rand::{RngExt as _, SeedableRng as _};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    fn route(one_way_ms: u64, loss: f64) -> Route {
        Route {
            one_way: Duration::from_millis(one_way_ms),
            loss,
        }
    }

    /// The mean window of a peer's controller, packet by packet, with one cut per round trip at
    /// most.
    fn simulated_packets(p: f64, round_trip_s: f64) -> f64 {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let (mut window, mut sum) = (INITIAL_WINDOW_BYTES as f64 / PACKET_BYTES, 0.0);
        let round_trips = 20_000;
        for _ in 0..round_trips {
            sum += window;
            let is_lost = (0..window as u32).any(|_| rng.random_bool(p));
            if is_lost {
                window = (window * LOSS_FACTOR).max(MIN_WINDOW_PACKETS as f64);
            } else {
                window += window * growth_share(round_trip_s) + ADDITIVE_PACKETS;
            }
        }
        sum / f64::from(round_trips)
    }

    #[test]
    fn window_under_loss_is_that_of_the_controller() {
        for (p, round_trip_s) in [(0.001, 0.08), (0.0001, 0.08), (0.002, 0.2), (0.0002, 0.03)] {
            let ratio = delay_based_packets(p, round_trip_s) / simulated_packets(p, round_trip_s);
            assert!(
                (0.8..1.25).contains(&ratio),
                "{ratio} at {p}, {round_trip_s} s"
            );
        }
    }

    #[test]
    fn peers_get_more_out_of_a_lossy_link_than_origins() {
        let rate = |transport| {
            let window = window(transport, route(40, 0.001), false).expect("loss limits it");
            window.bytes / window.round_trip.as_secs_f64() * 8.0 / 1e6
        };
        assert!(
            (5.0..6.0).contains(&rate(Transport::Http)),
            "{}",
            rate(Transport::Http)
        );
        assert!(
            (30.0..40.0).contains(&rate(Transport::Quic)),
            "{}",
            rate(Transport::Quic)
        );
    }

    #[test]
    fn windows_are_not_simulated_unless_asked_for_or_limited_by_loss() {
        assert_eq!(window(Transport::Quic, route(40, 0.0), false), None);
        assert_eq!(window(Transport::Http, route(0, 0.1), true), None);
        let cold = window(Transport::Http, route(40, 0.0), true).expect("slow start limits it");
        assert_eq!(cold.bytes, 14_720.0);
        assert_eq!(cold.growth.share, 1.0);
    }
}

//! The constants of the congestion control between peers, which peers run and the simulator models.

use core::time::Duration;

/// The queueing delay to aim at: above the jitter of a busy processor or a token bucket, and a
/// fraction of a chunk's transfer time on links where queueing matters.
pub const TARGET: Duration = Duration::from_millis(7);
/// Share of the distance to the target made up in a round trip. A larger one overshoots, because
/// the measurement is a round trip old.
pub const GAIN: f64 = 0.5;
/// Packets added to the window in each round trip whatever the delay.
pub const ADDITIVE_PACKETS: f64 = 6.0;
/// Factor on the window after a loss, as in CUBIC.
pub const LOSS_FACTOR: f64 = 0.7;
/// The window at the start: ten packets of an Ethernet path.
pub const INITIAL_WINDOW_BYTES: u64 = 14_720;
/// The smallest window.
pub const MIN_WINDOW_PACKETS: u64 = 4;
/// Flow-control window of a connection: usually one chunk each way, plus a hedged request and
/// control messages.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

//! The rate at which control messages of one link are read. A neighbour that sends more waits: its
//! messages stay in the stream's flow-control window, and the driver has time for everything else.

use core::time::Duration;

use flotilla_common::wire::peer::{Control, Holding};
use tokio::time::{Instant, sleep};

/// Units per second. An honest neighbour sends a message for each chunk that it gets, at most.
const RATE: f64 = 2000.0;
/// Units that may be read at once. A new link begins with a message for each blob in common.
const BURST: f64 = 8192.0;
/// The shortest wait, so that a flood does not cost a timer per message.
const MIN_WAIT: Duration = Duration::from_millis(5);
/// Chunks of a message that cost as much as the message itself.
const CHUNKS_PER_UNIT: usize = 64;
/// The same for chunk maps, which are bits.
const BITS_PER_UNIT: u32 = 4096;

/// The budget of one link.
#[derive(Debug)]
pub(super) struct ControlBudget {
    units: f64,
    counted_at: Instant,
}

impl ControlBudget {
    pub(super) fn new() -> Self {
        Self {
            units: BURST,
            counted_at: Instant::now(),
        }
    }

    /// Waits until the driver may have this message.
    pub(super) async fn take(&mut self, message: &Control) {
        let wait = self.charge(Instant::now(), cost(message));
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    /// Charges units, which may leave a debt, and returns the time until it is paid.
    fn charge(&mut self, now: Instant, units: f64) -> Duration {
        let elapsed = now.saturating_duration_since(self.counted_at);
        self.counted_at = now;
        self.units = (self.units + elapsed.as_secs_f64() * RATE).min(BURST) - units;
        if self.units >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-self.units / RATE).max(MIN_WAIT)
    }
}

/// The work that a message costs the driver.
fn cost(message: &Control) -> f64 {
    let further = match message {
        Control::Have(have) => have.chunks.len() / CHUNKS_PER_UNIT,
        Control::Holds(holds) => match &holds.holding {
            Holding::Partial(map) => (map.len() / BITS_PER_UNIT) as usize,
            Holding::Complete => 0,
        },
        _ => 0,
    };
    1.0 + further as f64
}

#[cfg(test)]
mod tests {
    use flotilla_common::chunk_map::ChunkMap;
    use flotilla_common::digest::Digest;
    use flotilla_common::wire::peer::{Have, Holds};

    use super::*;

    #[test]
    fn flood_is_slowed_to_the_rate_after_a_burst() {
        let mut budget = ControlBudget::new();
        let started = budget.counted_at;
        let mut now = started;
        for _ in 0..BURST as u32 {
            now += budget.charge(now, 1.0);
        }
        assert_eq!(now, started);
        for _ in 0..10 * RATE as u32 {
            now += budget.charge(now, 1.0);
        }
        let took = (now - started).as_secs_f64();
        assert!((9.9..10.5).contains(&took), "{took}");
        // An idle link saves up one burst, not more.
        now += Duration::from_secs(3600);
        budget.charge(now, 1.0);
        assert!(budget.units < BURST);
    }

    #[test]
    fn long_messages_cost_more() {
        let digest = Digest::sha256(b"x");
        let have = |chunks: u32| {
            let chunks = (0..chunks).collect();
            cost(&Control::Have(Have { digest, chunks }))
        };
        assert_eq!((have(8), have(640)), (1.0, 11.0));
        let holding = Holding::Partial(ChunkMap::empty(4_194_304));
        let map = cost(&Control::Holds(Holds { digest, holding }));
        assert_eq!(map, 1025.0);
    }
}

//! How many leases are open at once while origins of other regions serve them.
//!
//! A long link is filled only by as many chunks as it can carry in a round trip, and most holders
//! have to open a connection first. So the number grows with each chunk that comes from another
//! region, and is what it was before once the own region's origin serves again.

use crate::origin_region::OriginRegion;
use crate::tracker::config::LeaseSettings;

/// The window of one blob in one region.
#[derive(Debug, Default)]
pub(super) struct FarWindow {
    /// The last bytes came from another region.
    is_far: bool,
    /// Chunks that came from other regions since the own one last served.
    done: usize,
}

impl FarWindow {
    /// A holder received bytes from an origin.
    pub(super) fn on_served(&mut self, origin: OriginRegion) {
        self.is_far = origin != OriginRegion::OWN;
        if !self.is_far {
            self.done = 0;
        }
    }

    /// A holder received its chunk from an origin.
    pub(super) fn on_done(&mut self, origin: OriginRegion) {
        self.on_served(origin);
        if self.is_far {
            self.done += 1;
        }
    }

    /// How many leases may be open.
    pub(super) fn open_limit(&self, is_own_usable: bool, config: &LeaseSettings) -> usize {
        if is_own_usable && !self.is_far {
            return config.open_limit;
        }
        (2 * config.open_limit + self.done).min(config.far_open_limit)
    }
}

//! A burst: all peers pull the same images at the same time.

use crate::world::World;

/// The images of a burst, and the number of peers that pull them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    pub(crate) regions: u32,
    /// Peers that pull, of all regions.
    pub(crate) peers: u32,
    /// Sum of the sizes of the images' layers, each counted once.
    pub(crate) bytes: u64,
    /// Their chunks.
    pub(crate) chunks: u64,
    /// The slower direction of a peer's link, in bytes per second.
    pub(crate) peer_rate: f64,
}

impl World<'_> {
    /// Whether all peers pull the same images at the same time, so that the fleet's bounds hold.
    pub(crate) fn is_burst(&self) -> bool {
        let scenario = self.scenario;
        let at_once = scenario.pulls.at_once;
        self.images.are_pulled_by_all()
            && at_once.is_none_or(|at_once| at_once >= self.images.len())
            && !scenario.arrivals.are_over_time()
    }

    /// The burst of all images.
    pub(crate) fn burst(&self) -> Burst {
        let peers = &self.scenario.peers;
        let images = || 0..self.images.len();
        Burst {
            regions: peers.regions.get(),
            peers: peers.count - peers.seeders,
            bytes: self.images.distinct_bytes(images()),
            chunks: self.images.distinct_chunks(images()),
            peer_rate: peers
                .up
                .bytes_per_second()
                .min(peers.down.bytes_per_second()),
        }
    }
}

//! Checks that the state of peers is bounded: connections, neighbours of a blob, and chunks that
//! they send and fetch at once.

use crate::world::World;

/// Uploads that are nearly done take no slot, but all together are at most so many times the slots.
const UPLOADS_PER_SLOT: u32 = 2;
/// Downloads that are nearly done, late or slow take no slot, but all together are at most so many
/// times the slots, and so many more.
const DOWNLOADS_PER_SLOT: u32 = 2;
const MORE_DOWNLOADS: u32 = 2;

impl World<'_> {
    /// To be called when a peer has handled a new connection.
    pub(crate) fn check_connections(&mut self, peer: u32) {
        let shipped = self.scenario.machine.swarm_config().max_connections;
        let limit = self.scenario.peers.max_connections.unwrap_or(shipped);
        let connections = self.peers[peer as usize].links.connected().count();
        if connections > limit as usize {
            self.oracle.complain(|| {
                format!("peer {peer} has {connections} connections, and its limit is {limit}")
            });
        }
    }

    /// To be called when a peer tells so many neighbours of a new chunk of a blob.
    pub(crate) fn check_neighbours(&mut self, peer: u32, count: usize) {
        let limit = self.scenario.machine.swarm_config().max_neighbours;
        if count > limit as usize {
            self.oracle.complain(|| {
                format!("peer {peer} has {count} neighbours for a blob, and its limit is {limit}")
            });
        }
    }

    /// To be called when a peer has begun to fetch a chunk.
    pub(crate) fn check_downloads(&mut self, peer: u32) {
        let simulated = &self.peers[peer as usize];
        let (downloads, blobs) = (simulated.fetches.len(), simulated.blobs.iter().count());
        // Without a slot, a peer fetches one chunk of each blob from an origin.
        let limit = DOWNLOADS_PER_SLOT * self.most_slots() + MORE_DOWNLOADS + blobs as u32;
        if downloads > limit as usize {
            self.oracle.complain(|| {
                format!("peer {peer} fetches {downloads} chunks at once, and its limit is {limit}")
            });
        }
    }

    /// The most slots that a peer may have in each direction. Those that know their rates have
    /// more the faster they are.
    fn most_slots(&self) -> u32 {
        let config = self.scenario.machine.swarm_config();
        match self.scenario.peers.knows_rates {
            true => config.max_slots,
            false => config.slots,
        }
    }

    /// To be called when a peer has begun to send a chunk.
    pub(crate) fn check_uploads(&mut self, peer: u32) {
        let limit = UPLOADS_PER_SLOT * self.most_slots();
        if self.network.sends(peer) <= limit as usize {
            return;
        }
        // An upload to an unresponsive neighbour takes no slot: it does not move.
        let moves = |to: &u32| self.peers[*to as usize].frozen.is_none();
        let uploads = self.network.receivers(peer).filter(moves).count();
        if uploads > limit as usize {
            self.oracle.complain(|| {
                format!("peer {peer} sends {uploads} chunks at once, and its limit is {limit}")
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use flotilla_common::swarm::{PeerMachine, SwarmConfig};

    use super::*;
    use crate::record::RunOptions;
    use crate::scenario::Scenario;

    /// The complaints about a burst in which the peers' machines have other settings than the
    /// scenario says.
    fn complaints(alter: impl Fn(&mut SwarmConfig)) -> Vec<String> {
        complaints_with("", alter)
    }

    /// As [`complaints`], of a scenario with these settings besides.
    fn complaints_with(settings: &str, alter: impl Fn(&mut SwarmConfig)) -> Vec<String> {
        let scenario = "name = 'limits'\n[image]\nlayers = ['8MiB']\n[origin]\nup = '100Mbit'\n\
             [peers]\ncount = 24\nup = '100Mbit'\ndown = '100Mbit'\nmax_connections = 12\n";
        let scenario = Scenario::parse(&format!("{scenario}{settings}")).unwrap();
        let mut world = World::new(&scenario, 1, &RunOptions::default());
        // Seeders have blobs already.
        for peer in scenario.peers.seeders as usize..world.peers.len() {
            let altered = &world.peers[peer];
            let mut config = world.config(altered.up, altered.down);
            alter(&mut config);
            world.peers[peer].machine = PeerMachine::new(config, peer as u64);
        }
        world.run().details.complaints
    }

    #[test]
    fn shipped_machine_keeps_its_limits() {
        assert_eq!(complaints(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn machine_with_too_many_connections_is_found() {
        let complaints = complaints(|config| config.max_connections = 64);
        assert!(complaints[0].contains("connections, and its limit is 12"));
    }

    #[test]
    fn machine_with_too_many_neighbours_is_found() {
        let settings = "[machine]\nmax_neighbours = 4";
        assert_eq!(complaints_with(settings, |_| {}), Vec::<String>::new());
        let complaints = complaints_with(settings, |config| config.max_neighbours = 64);
        let is_found = |found: &String| found.contains("neighbours for a blob, and its limit is 4");
        assert!(complaints.iter().any(is_found), "{complaints:?}");
    }

    #[test]
    fn machine_that_sends_too_many_chunks_is_found() {
        let complaints = complaints(|config| config.slots = 64);
        assert!(complaints[0].contains("chunks at once, and its limit is 6"));
    }

    #[test]
    fn machine_that_fetches_too_many_chunks_is_found() {
        let settings = "seeders = 23\n[machine]\nslots = 1";
        let complaints = complaints_with(settings, |config| config.slots = 64);
        let is_found = |found: &String| found.contains("chunks at once, and its limit is 5");
        assert!(complaints.iter().any(is_found), "{complaints:?}");
    }
}

//! Checks that peers keep their limits: connections, and chunks that they send at once.

use crate::world::World;

/// Uploads that are nearly done take no slot, but all together are at most so many times the slots.
const UPLOADS_PER_SLOT: u32 = 2;

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

    /// To be called when a peer has begun to send a chunk.
    pub(crate) fn check_uploads(&mut self, peer: u32) {
        let config = self.scenario.machine.swarm_config();
        // Peers that know their rates have more slots the faster they are.
        let slots = match self.scenario.peers.knows_rates {
            true => config.max_slots,
            false => config.slots,
        };
        let limit = UPLOADS_PER_SLOT * slots;
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
        let scenario = "name = 'limits'\n[image]\nlayers = ['8MiB']\n[peers]\ncount = 24\n\
             up = '100Mbit'\ndown = '100Mbit'\nmax_connections = 12\n[origin]\nup = '100Mbit'";
        let scenario = Scenario::parse(scenario).unwrap();
        let mut world = World::new(&scenario, 1, &RunOptions::default());
        for peer in 0..world.peers.len() {
            let altered = &world.peers[peer];
            let mut config = world.config(altered.up, altered.down, altered.key);
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
    fn machine_that_sends_too_many_chunks_is_found() {
        let complaints = complaints(|config| config.slots = 64);
        assert!(complaints[0].contains("chunks at once, and its limit is 6"));
    }
}

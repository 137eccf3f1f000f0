//! The machines that can be recorded.

use super::Machine;
use crate::swarm::{self, PeerMachine, SwarmConfig};
use crate::time::Time;
use crate::tracker::{
    SessionInput, SessionOutput, TrackerConfig, TrackerInput, TrackerMachine, TrackerOutput,
    TrackerSession, TrackerUrl,
};
use crate::wire::tracker::PeerInfo;

/// Forwards to the methods of the machine itself.
macro_rules! forward {
    () => {
        fn handle(&mut self, now: Time, input: Self::Input) {
            self.handle(now, input);
        }

        fn handle_timeout(&mut self, now: Time) {
            self.handle_timeout(now);
        }

        fn poll_output(&mut self) -> Option<Self::Output> {
            self.poll_output()
        }
    };
}

impl Machine for PeerMachine {
    const NAME: &'static str = "peer";
    /// The settings, and the seed of its random choices.
    type Setup = (SwarmConfig, u64);
    type Input = swarm::Input;
    type Output = swarm::Output;

    fn create((config, rng_seed): Self::Setup) -> Self {
        Self::new(config, rng_seed)
    }

    forward!();
}

impl Machine for TrackerMachine {
    const NAME: &'static str = "tracker";
    /// The settings, and the seed of its random choices.
    type Setup = (TrackerConfig, u64);
    type Input = TrackerInput;
    type Output = TrackerOutput;

    fn create((config, rng_seed): Self::Setup) -> Self {
        Self::new(config, rng_seed)
    }

    forward!();
}

impl Machine for TrackerSession {
    const NAME: &'static str = "session";
    /// When it begins, the peer, and the trackers.
    type Setup = (Time, PeerInfo, Vec<TrackerUrl>);
    type Input = SessionInput;
    type Output = SessionOutput;

    fn create((now, peer, urls): Self::Setup) -> Self {
        Self::new(now, peer, urls)
    }

    forward!();
}

//! A world in which the shipped machines run: only network, disk and clock are replaced.
//!
//! [`run`] takes a [`Scenario`] (peers, links, an image, failures, bars) through discrete events,
//! chunk by chunk, with one [`flotilla_common::swarm::PeerMachine`] per peer and the tracker's
//! [`flotilla_common::tracker::TrackerMachine`], and gives an [`Outcome`]. The same scenario and
//! `rng_seed` give the same outcome on every machine, `trace_hash` and all. Wall time is the
//! caller's to measure, for there is no clock here.
//!
//! ```
//! let scenario = flotilla_simulations::Scenario::parse(r#"
//!     name = "two"
//!     [image]
//!     layers = ["1MiB"]
//!     [peers]
//!     count = 2
//!     up = "100Mbit"
//!     down = "100Mbit"
//!     [origin]
//!     up = "100Mbit"
//! "#)?;
//! let outcome = flotilla_simulations::run(&scenario, 1);
//! assert!(outcome.ok);
//! # Ok::<(), flotilla_simulations::ScenarioError>(())
//! ```

mod driver;
mod failures;
mod link;
mod network;
mod oracle;
mod outcome;
mod queue;
mod report;
mod scenario;
mod session;
mod slab;
mod tracking;
mod world;

pub use outcome::{Details, Outcome};
pub use report::report;
pub use scenario::{
    Bars, Failure, FailureKind, Image, Links, MachineSettings, Origins, Peers, Scenario,
    ScenarioError, Tracker,
};

/// Runs a scenario to its end: everybody is done, or the scenario's time is up.
pub fn run(scenario: &Scenario, rng_seed: u64) -> Outcome {
    world::World::new(scenario, rng_seed).run()
}

//! A discrete-event simulator that runs the shipped state machines: only network, disk and clock
//! are simulated.
//!
//! [`run`] simulates a [`Scenario`] (peers, links, an image, failures, bars) chunk by chunk. Each
//! peer has a [`flotilla_common::swarm::PeerMachine`] and a
//! [`flotilla_common::tracker::TrackerSession`]; the tracker is a
//! [`flotilla_common::tracker::TrackerMachine`]. The same scenario and `rng_seed` give the same
//! [`Outcome`] on every computer, including the `trace_hash`. The simulator has no clock: the
//! caller measures the wall-clock time.
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

mod baseline;
mod batch;
mod burst;
mod congestion;
mod connections;
mod delays;
mod driver;
mod event;
mod failures;
mod fetch;
mod figures;
mod holders;
mod huge_pages;
mod images;
mod known_misses;
mod links;
mod names;
mod network;
mod opening;
mod oracle;
mod origin_calls;
mod origin_connections;
mod origin_site;
mod origins;
mod outages;
mod outcome;
mod pairing;
mod peer;
mod peer_blobs;
mod peer_oracle;
mod population;
mod pulls;
mod queue;
mod reads;
mod record;
mod region_failures;
mod region_links;
mod report;
mod results;
mod rng;
mod rng_seeds;
mod scenario;
mod service;
mod session;
mod set;
mod slab;
mod storage_reads;
mod storage_site;
mod summary;
mod tracker;
mod tracker_failures;
mod tracker_messages;
mod tracker_oracle;
mod variation;
mod world;

pub use baseline::{Baseline, BaselineError, Comparison, Move, Tolerance};
pub use batch::{Job, Limits, run_all};
pub use figures::{FIGURES, Figure, Spread};
pub use huge_pages::restart_with_huge_pages;
pub use known_misses::{KnownMiss, KnownMisses};
pub use outcome::{Details, MissedBar, Outcome};
pub use pairing::comparison_table;
pub use record::{ByteSeries, ByteSource, Progress, RunOptions, StallSeries, Timeline};
pub use report::{compare_report, report};
pub use results::{Curves, Results, ResultsError, RunResult, Summary};
pub use rng_seeds::{RngSeeds, RngSeedsError};
pub use scenario::{
    Arrivals, Bars, BaseImage, Failure, FailureKind, HostClass, ImageSpec, LinkBetween, Links,
    MachineSettings, Origins, Peak, Peers, Pulls, Scenario, ScenarioError, SetImage, Tracker,
};
pub use set::{RunSet, SetError};
pub use variation::{Variation, VariationError};

/// Runs a scenario until every living peer is complete or the time limit is reached.
pub fn run(scenario: &Scenario, rng_seed: u64) -> Outcome {
    run_with(scenario, rng_seed, &RunOptions::default())
}

/// As [`run`], and reports what the options ask for. They do not alter the run.
pub fn run_with(scenario: &Scenario, rng_seed: u64, options: &RunOptions<'_>) -> Outcome {
    world::World::new(scenario, rng_seed, options).run()
}

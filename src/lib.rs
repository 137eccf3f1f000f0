//! Flotilla's commands, and the regions that are started here: in one process by `demo` and `up`,
//! as processes by `bench swarm`, both by the stories in `tests/`.

pub mod bench;
pub mod cli;
pub mod client;
pub mod completions;
pub mod demo;
pub mod fleet;
pub mod image;
pub mod lab;
pub mod peer;
pub mod pki;
mod progress;
pub mod region;
pub mod service;
pub mod simulate;
pub mod up;

//! Flotilla's commands, and the region in one process that `demo`, `up` and the stories in `tests/` start.

pub mod bench;
pub mod cli;
pub mod client;
pub mod demo;
pub mod fleet;
pub mod image;
pub mod pki;
pub mod region;
pub mod service;
pub mod simulate;
pub mod up;

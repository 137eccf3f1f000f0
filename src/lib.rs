//! Flotilla's commands, and the region in one process that `demo`, `up` and the stories in `tests/` start.

pub mod client;
pub mod image;

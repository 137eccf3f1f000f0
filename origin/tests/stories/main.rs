//! Stories of an origin, told over real HTTP in one process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod costs;
mod crashes;
mod errors;
mod fault;
mod manifests;
mod peers;
mod pull;
mod push;
mod races;
mod replicas;
mod standard;
mod support;

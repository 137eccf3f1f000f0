//! Flotilla's pure heart: its vocabulary, its wire messages, and the state machines that decide.
//!
//! Nothing here has a clock, a socket, a disk, a thread or randomness of its own: time and
//! generators are arguments. That is what lets `simulations` prove the very code that ships; CI
//! holds the line.

pub mod bounds;
pub mod chunk;
pub mod chunk_map;
pub mod codec;
pub mod digest;
pub mod grant;
pub mod hash_tree;
pub mod hex;
pub mod interner;
pub mod manifest;
pub mod name;
pub mod proof;
pub mod reachability;
pub mod seal;
pub mod swarm;
pub mod time;
pub mod tracker;
pub mod units;
pub mod wire;

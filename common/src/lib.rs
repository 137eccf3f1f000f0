//! Flotilla's pure core: its vocabulary, its wire messages, and the state machines that decide.
//!
//! Nothing here has a clock, a socket, a disk, a thread or a random generator of its own: time and
//! generators are arguments. Therefore `simulations` run the code that ships. CI enforces this.

pub mod bounds;
pub mod chunk;
pub mod chunk_map;
pub mod codec;
pub mod congestion;
pub mod digest;
pub mod failover;
pub mod grant;
pub mod hash_tree;
pub mod hex;
pub mod interner;
pub mod manifest;
pub mod name;
pub mod opening;
pub mod origin_region;
pub mod proof;
pub mod recording;
pub mod seal;
pub mod stamp;
pub mod storage_id;
pub mod swarm;
pub mod time;
pub mod tracker;
pub mod units;
pub mod wire;

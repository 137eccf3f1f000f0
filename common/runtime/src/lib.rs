//! What the drivers share.
//!
//! The machines of `flotilla_common` decide; the services round them read sockets, disks and
//! clocks. Whatever two of those services need alike is here, a room per subject. Nothing here
//! knows an origin, a tracker or a peer.

pub mod admin;
pub mod clock;
pub mod config;
pub mod http;
pub mod identity;
pub mod listen;
pub mod metrics;
pub mod rate;
pub mod shutdown;
pub mod telemetry;
mod wake_filter;

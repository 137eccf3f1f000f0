//! Infrastructure that the services share: ranges of addresses, clock, configuration, failover,
//! HTTP server, TLS identity, metrics, rate limits, the limit on open files, shutdown, logs.
//!
//! The state machines of `flotilla_common` decide; the services around them do the I/O. Code that
//! two services need lives here, one module per subject. Nothing here knows an origin, a tracker or
//! a peer.

pub mod address_range;
pub mod admin;
pub mod clock;
pub mod config;
pub mod error_text;
pub mod failover;
pub mod http;
pub mod identity;
pub mod listen;
pub mod log_limit;
pub mod metrics;
pub mod open_files;
pub mod rate;
pub mod recording;
pub mod shutdown;
pub mod suggest;
pub mod telemetry;

//! A tracker over real HTTP on loopback, as peers see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests are entry points, which choose the clock"
)]

mod announces;
mod errors;
mod harness;
mod leases;
mod operators;
mod tls;

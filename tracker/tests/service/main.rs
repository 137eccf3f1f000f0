//! A tracker over real HTTP on loopback, as peers see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod announces;
mod errors;
mod harness;
mod leases;

//! Stories: what a user would see, with real listeners, real clients where they are needed, and
//! things going wrong.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed story")]

mod burst;
mod clients;
mod clock;
mod commands;
mod configurations;
mod disks;
mod draining;
mod errors;
mod faults;
mod frozen;
mod harness;
mod killed;
mod liar;
mod metrics;
mod origins;
mod pushes;
mod real_tools;
mod resume;
mod system_calls;
mod trackers;
mod units;
mod upstream;

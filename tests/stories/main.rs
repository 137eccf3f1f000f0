//! Stories: what a user would see, with real listeners, real clients where they are needed, and things going wrong.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed story")]

mod burst;
mod clients;
mod commands;
mod errors;
mod faults;
mod harness;
mod killed;
mod liar;
mod real_tools;
mod resume;
mod upstream;

//! The commands, a module each. Every module has its arguments and a function `run`.

mod admin;
pub mod bench;
pub mod completions;
pub mod demo;
pub mod origin;
pub mod peer;
pub mod pki;
mod service;
pub mod simulate;
mod tls;
pub mod tracker;
pub mod up;

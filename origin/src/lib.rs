//! The origin: an OCI registry directly on object storage.

mod cache;
mod config;
mod format;
mod keys;
mod nonce;
mod record;
mod registry;
mod settle;
pub mod storage;
mod upload;

pub use config::{Config, Horizons, Limits};

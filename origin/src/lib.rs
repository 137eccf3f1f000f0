//! The origin: an OCI registry directly on object storage.
//!
//! [`Origin::start`] opens the storage, agrees with it on its format and serves the OCI
//! distribution specification. It has no state of its own that matters: any request may land on any
//! replica, and any replica may stop at any moment. `docs/origin.md` has the key layout and the
//! protocols; the rooms here are
//!
//! - [`storage`]: the one dependency, as a trait, with its implementations
//! - `record`, `layout`, `format`: what is stored, and where
//! - `upload`: ids, upload logs, hashing while bytes stream in
//! - `conditional_write`, `cache`: writes whose outcome is known, reads that are shared and dated
//! - `stall_budget`: how long a client may take to send a body
//! - `registry`: blobs, uploads, manifests, tags, referrers, closures
//! - `replicas`: telling the other replicas what changed
//! - `http`: the registry over HTTP
//! - [`check`]: whether a storage holds what was acknowledged
//!
//! It must never depend on the tracker or on a peer, never keep what storage does not have, and
//! never write twice where the outcome of a first write is unknown.

mod admission;
mod buffer_pool;
mod cache;
pub mod check;
mod conditional_write;
mod config;
mod format;
mod http;
mod layout;
mod metrics;
mod nonce;
mod origin;
#[cfg(test)]
mod protocol_models;
mod readiness;
mod record;
mod registry;
mod replicas;
mod stall_budget;
pub mod storage;
mod upload;

pub use config::{Config, Horizons, Limits, Replicas};
pub use format::FormatError;
pub use metrics::Metrics;
pub use origin::{Origin, StartError};
pub use replicas::{ReplicaAddress, ReplicaAddressError};

//! The origin: an OCI registry directly on object storage.
//!
//! [`Origin::start`] opens the storage, agrees with its `format` object and serves the OCI
//! distribution specification. The origin has no state of its own that matters: any request may
//! land on any replica, and any replica may stop at any moment. `docs/origin.md` describes the key
//! layout and the protocols. The modules, from the bottom up:
//!
//! - [`storage`]: the only dependency, as a trait, with its implementations
//! - `layout`, `record`, `format`: the keys of the bucket, its small objects, its version and times
//! - `upload`: upload ids, the upload log, hashing while bytes stream in
//! - `conditional_write`: writes whose outcome is known
//! - `cache`: reads that are shared, bounded in age, and consistent with writes
//! - `buffer_pool`, `stall_budget`, `admission`: bounds on memory, slow clients and concurrency
//! - [`policy`]: the regions, and what each repository needs of them
//! - `region_certificate`: whether the certificate names the region, as other regions require
//! - `registry`: blobs, uploads, manifests, tags, referrers, closures
//! - `replicas`: invalidation between the replicas of a region
//! - `regions`: replication between regions
//! - `metrics`, `readiness`: what operators see
//! - `http`: the registry over HTTP
//! - [`check`]: whether a storage holds everything that was acknowledged
//! - [`maintenance`]: repairs of a storage that an operator asks for
//!
//! The origin never depends on the tracker or on a peer, never keeps a fact that storage lacks, and
//! never writes twice while the outcome of the first write is unknown.

mod admission;
mod buffer_pool;
mod cache;
pub mod check;
mod conditional_write;
mod config;
mod format;
mod http;
mod layout;
pub mod maintenance;
mod metrics;
mod nonce;
mod origin;
pub mod policy;
#[cfg(test)]
mod protocol_models;
mod readiness;
mod record;
mod region_certificate;
mod regions;
mod registry;
mod replica_port;
mod replicas;
mod stall_budget;
pub mod storage;
mod upload;

pub use config::{Config, Horizons, Limits, RegionSettings, Replicas};
pub use format::FormatError;
pub use metrics::Metrics;
pub use origin::{Origin, StartError};
pub use region_certificate::{MissingRegion, RegionCertificateError};
pub use replicas::{ReplicaAddress, ReplicaAddressError};

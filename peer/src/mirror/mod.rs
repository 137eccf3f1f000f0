//! The mirror: the registry endpoint for the container runtime on this machine.
//!
//! ```text
//! runtime                     mirror                          origin            swarm
//!   GET manifest ───────────▶   (cached, or) ─────────────────▶
//!                               closure: seals, tables ───────▶
//!                               every blob is wanted ─────────────────────────▶
//!   ◀──────────────── manifest
//!   GET blob ───────────────▶   reader at its cursor ─────────────────────────▶
//!   ◀───── parts as they are verified
//! ```
//!
//! Its responses follow the habits of containerd. An error is 404 or 503, is sent at once and says
//! what happened; 408 and 429 are never sent. The head of a response is sent when its first bytes
//! are available. A body is cut if no source can deliver the next bytes; requests for the rest are
//! refused at once unless the bytes have arrived. Bytes that the swarm cannot deliver are passed
//! through from the origin: a pull is never slower or less reliable than without a peer.

mod admin;
mod blob_range;
mod blobs;
mod client_config;
mod context;
mod cursors;
mod error;
mod image_names;
mod manifests;
mod passthrough;
mod reader;
mod registries;
mod response;
mod route;
mod router;
mod state;
mod warm;

pub(crate) use admin::operators;
pub use client_config::{docker_daemon_json, hosts_toml, registries_conf};
pub(crate) use context::MirrorContext;
pub(crate) use router::router;
pub(crate) use state::Mirror;
pub use warm::Warming;

//! The client of the origins: manifests, closures, chunks, and blobs to pass through.
//!
//! An origin that does not answer is probed until it does. Which origin serves a *chunk* is decided
//! by the state machine, which receives the outcome of each request; all other requests try one
//! origin after another. Connecting, waiting for the response's head, and waiting for progress have
//! timeouts.

mod blob;
mod chunk;
mod client;
mod error;
mod http_client;
mod probe;
mod request;
mod unsealed;

pub(crate) use blob::OpenBlob;
pub(crate) use chunk::fetch_chunk;
pub(crate) use client::{FetchedManifest, OriginClient, OriginHealthReport};
pub(crate) use error::{OriginError, OriginFetchError};
pub(crate) use http_client::http_client;

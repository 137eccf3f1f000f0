//! The client of the origins: manifests, closures, chunks, and blobs to pass through.
//!
//! Which origin is asked, how long it may take, and when it is probed, is decided by one failover
//! machine ([`flotilla_common::failover`]), which receives the outcome of every request. A download
//! that breaks off goes on at the next origin.

mod blob;
mod chunk;
mod client;
mod error;
mod http_client;
mod probe;
mod request;
mod unsealed;

pub(crate) use blob::OpenBlob;
pub(crate) use chunk::{ChunkProgress, fetch_chunk};
pub(crate) use client::{FetchedManifest, OriginClient, content, region_count};
pub(crate) use error::{OriginError, OriginFetchError};
pub use http_client::{BuildClientError, tracker_http_client};
pub(crate) use http_client::{ConnectionReuse, origin_http_client};
pub(crate) use request::HttpClients;

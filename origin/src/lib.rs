//! The origin: an OCI registry directly on object storage.

mod nonce;
pub mod storage;

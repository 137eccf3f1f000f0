//! Opening an image: what a peer's mirror decides between the request for a manifest and the bytes
//! of its blobs.
//!
//! ```text
//! runtime           mirror                    origins        neighbours
//!   GET manifest ──▶ Opening
//!                      AskOrigins ──────────────▶
//!                      ◀──────────── proofs, refused, missing, unavailable
//!                      AskNeighbours ───────────────────────────▶ ImageSeeks
//!                      AskOrigins, after a pause ▶
//!                      Add, Want: the blobs join the swarm
//!   ◀──── manifest     (when all is decided, after 2 s at the latest)
//!   GET blob ──────▶ BlobRead         waits while the blob's proof is asked for
//!   ◀──── bytes        from the store, as they arrive
//!   ◀──── bytes        or passed through from an origin
//! ```
//!
//! - [`Opening`]: one request for the manifest of an image. Whom it asks for the proofs of the
//!   blobs, what an answer means, and how long the manifest is held back.
//! - [`ImageSeeks`]: which neighbours are asked for an image while no origin is available.
//! - [`BlobRead`]: one request for a blob. Whether it is answered from the store or passed through
//!   from an origin, and when a reader in the store falls back to an origin.
//!
//! Which origin is asked, and how long, is decided by [`crate::failover`].
//!
//! # Known limits
//!
//! If neither an origin nor a neighbour proves a blob for 10 to 15 s, it does not join the swarm:
//! every peer passes it through, one copy for each.

mod blob_read;
mod config;
mod image_seeks;
mod machine;

#[cfg(test)]
mod tests;

pub use blob_read::{BlobRead, BlobReadInput, BlobReadOutput, FallbackReason, KnownBlob};
pub use config::{FallbackTimeouts, OpeningConfig, SeekConfig};
pub use image_seeks::{ImageSeeks, NamedPeer, PeerConnection, SeekInput, SeekOutput};
pub use machine::{
    ClosureResult, ImageBlob, Opening, OpeningInput, OpeningOutput, ProofSource, ProvedBlob, Stored,
};

//! Opening an image: what a peer's mirror decides between the request for a manifest and the bytes
//! of its blobs.
//!
//! ```text
//! runtime           mirror                    origins        neighbours
//!   GET manifest ──▶ Opening
//!                      AskOrigins ──────────────▶
//!                      ◀──────────── proofs, refused, missing, unavailable
//!                      AskNeighbours ───────────────────────────▶ ImageSeeks
//!                      Add, Want: the blobs join the swarm
//!   ◀──── manifest     (when all is decided, after 2 s at the latest)
//!   GET blob ──────▶ BlobRead
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
//! The proofs are asked for once. If no origin answers, and no neighbour has them, no blob of the
//! image joins the swarm: every peer passes all its blobs through, one copy for each. The same
//! happens if the proofs take longer than the manifest is held back: a request for a blob that is
//! not in the store is passed through at once, and whole, even if its proof comes a moment later.

mod blob_read;
mod config;
mod image_seeks;
mod machine;

#[cfg(test)]
mod tests;

pub use blob_read::{BlobRead, BlobReadInput, BlobReadOutput, FallbackReason};
pub use config::{FallbackTimeouts, OpeningConfig, SeekConfig};
pub use image_seeks::{ImageSeeks, NamedPeer, PeerConnection, SeekInput, SeekOutput};
pub use machine::{
    ClosureResult, ImageBlob, Opening, OpeningInput, OpeningOutput, ProofSource, ProvedBlob, Stored,
};

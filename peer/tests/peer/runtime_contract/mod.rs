//! The mirror's contract with container runtimes, tested with a client that behaves as containerd.
//!
//! containerd
//! - sends `?ns=` and `Accept-Encoding`, and requests a range even of manifests;
//! - fetches large layers by several open-ended ranges: it reads a piece of each and then closes
//!   the connection;
//! - resumes an interrupted body with a range request, first at the same host;
//! - tries its next host after 404 and 503;
//! - fails the pull after a connection reset, a timeout, or an error in the middle of a layer.

mod client;
mod errors;
mod headers;
mod interrupted_bodies;
mod ranges;
mod tags;
mod unsealed;

use bytes::Bytes;

use crate::harness::{digest, random_bytes};

const MIB: usize = 1 << 20;

/// A configuration, a small layer and a larger one.
fn image() -> Vec<Bytes> {
    vec![
        random_bytes(700, 1),
        random_bytes(MIB + 77, 2),
        random_bytes(6 * MIB + 5, 3),
    ]
}

/// The path of a blob at the mirror.
fn path_of(blob: &Bytes) -> String {
    format!("/v2/app/blobs/{}", digest(blob))
}

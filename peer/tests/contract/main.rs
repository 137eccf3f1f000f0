//! The mirror's contract with container runtimes, told by a client that does exactly what
//! containerd does.
//!
//! containerd sends `?ns=` and `Accept-Encoding`; asks for a range even of manifests; fetches large
//! layers by several open-ended ranges, of which it reads a piece each and then hangs up; goes on
//! after a cut with a range, at the first host again; goes to its next host on 404 and 503; and
//! fails a pull on a reset, on silence, and on an error in the middle of a layer.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

mod client;
mod cuts;
mod errors;
#[path = "../harness/mod.rs"]
mod harness;
mod heads;
mod ranges;
mod tags;
mod wholes;

use bytes::Bytes;

const MIB: usize = 1 << 20;

/// A configuration, a small layer and a larger one.
fn image() -> Vec<Bytes> {
    vec![
        harness::noise(700, 1),
        harness::noise(MIB + 77, 2),
        harness::noise(6 * MIB + 5, 3),
    ]
}

/// Where a blob is asked for.
fn path_of(blob: &Bytes) -> String {
    format!("/v2/app/blobs/{}", harness::digest(blob))
}

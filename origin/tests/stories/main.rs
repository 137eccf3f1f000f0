//! End-to-end tests of origins in one process, over real HTTP.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets and processes, in real time"
)]

mod check;
mod conformance;
mod costs;
mod crashes;
mod errors;
mod faults;
mod faulty_storage;
mod history;
mod http2;
mod limits;
mod logs;
mod manifests;
mod part_buffers;
mod peers;
mod policy;
mod pull;
mod push;
mod races;
mod redirects;
mod regions;
mod remote;
mod replica_leases;
mod replicas;
#[path = "../servers/mod.rs"]
mod servers;

mod support;

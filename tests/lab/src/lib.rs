//! A laboratory: a region of real processes, on separate hosts where the machine allows it, that
//! tests break and benchmarks measure.
//!
//! ```text
//!                        switch (a bridge in a network namespace)
//!             ┌───────────────┬──────────────┬──────────────┐
//!        tbf ↑↓ tbf      tbf ↑↓ tbf          ↑↓             ↑↓       each link can be shaped and cut
//!         host peer-1     host peer-2    host origin   host tracker-1    a network namespace each
//!         flotilla peer   flotilla peer  flotilla origin  flotilla tracker
//!         its clients     its clients
//! ```
//! On loopback, a host is an address of 127.0.0.0/8 instead, and has no link.
//!
//! A laboratory leaves nothing behind. A network namespace has no name and exists only as long as
//! the thread of its host; when that thread ends, the kernel kills the processes that were started
//! on the host, even if this process was killed. The only other trace is a temporary folder.

mod error;
mod host;
mod lab;
mod link;
mod network;
mod service;
mod service_log;

pub use error::LabError;
pub use host::Host;
pub use lab::{Lab, LabPlan, PeerSetup, PullTask, TAG};
pub use link::{LinkShape, LinkTraffic, VirtualLink};
pub use network::{NetworkKind, why_namespaces_are_unavailable};
pub use service::Service;

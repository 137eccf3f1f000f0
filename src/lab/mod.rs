//! A laboratory: a region of real processes, on hosts of their own where that is allowed, to be
//! measured and broken. `flotilla bench swarm` and the stories in `tests/` start it.
//!
//! ```text
//!                        switch (a bridge in a network namespace)
//!             ┌───────────────┬──────────────┬──────────────┐
//!        tbf ↑↓ tbf      tbf ↑↓ tbf          ↑↓             ↑↓       each link shaped both ways, cut, healed
//!         host peer-1     host peer-2    host origin   host tracker-1    a network namespace each
//!         flotilla peer   flotilla peer  flotilla origin  flotilla tracker
//!         its clients     its clients
//! ```
//! On loopback every host is an address of 127.0.0.0/8 instead, and has no link to cut.
//!
//! What must never happen: something is left over. A namespace has no name and lives only as long
//! as the thread that is its host; whatever was started on a host is killed by the kernel when that
//! thread ends, even if this process is killed. The only thing outside is a temporary folder.

mod host;
mod log;
mod network;
mod region;
mod service;

use std::path::Path;

pub use host::Host;
pub use network::{Carried, Ground, Shape, missing_for_hosts};
pub use region::{Lab, LabPlan, PeerPlan, Pulling, TAG};
pub use service::Service;

use crate::client::ClientError;

/// What the laboratory could not do.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program of the operating system is missing or refused.
    #[error("{what}: {why}")]
    Failed {
        /// Verb and noun.
        what: String,
        /// What the system said.
        why: String,
    },
    /// A service ended although nobody ended it, or did not come up.
    #[error("{name} {what}; its log:\n{log}")]
    Service {
        /// Which.
        name: String,
        /// What happened to it.
        what: String,
        /// The end of what it had logged.
        log: String,
    },
    /// The client of a registry or a service.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What went wrong behind the measurement's back: errors in logs, services that died.
    #[error("not everything was well:\n{0}")]
    Complaints(String),
}

impl LabError {
    fn failed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Failed {
            what: what.into(),
            why: why.to_string(),
        }
    }

    fn io(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        move |error| Self::failed(what, error)
    }
}

//! The handles that the mirror's handlers and readers share.

use std::sync::Arc;

use flotilla_common::opening::FallbackTimeouts;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;

use crate::driver::Commands;
use crate::handles::{Stores, Upstream};
use crate::telemetry::Telemetry;

/// The parts of the peer that handlers and readers use.
#[derive(Debug)]
pub(crate) struct MirrorContext {
    pub(crate) clock: Clock,
    pub(crate) stores: Stores,
    pub(crate) upstream: Upstream,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) commands: Commands,
    pub(crate) fallback_timeouts: FallbackTimeouts,
    /// Of tasks that may outlive a request.
    pub(crate) shutdown: Shutdown,
}

//! The driver: one task that owns the peer's state machine, feeds it every event, and carries out
//! its outputs.
//!
//! ```text
//! mirror ── DriverCommand ──┐                          ┌──▶ transport: dial, send, fetch, serve
//! transport ──────── Event ─┼─▶ driver ─▶ PeerMachine ─┼──▶ origins: fetch
//! tracker ────────── Event ─┤            ◀─ outputs    ├──▶ trackers: announce, leases
//! tasks ─────── TaskReport ─┘                          └──▶ store: whole-blob check, bypass
//! ```
//!
//! The driver makes no decisions; those are the machine's. It waits for nothing but the next event,
//! never touches payload bytes, and every queue into it is bounded.

mod accounting;
mod command;
mod grants;
mod images;
mod local_events;
mod network_events;
mod outputs;
mod status;
mod tables;
mod tasks;
mod tracker_events;

use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use flotilla_common::failover::SourceId;
use flotilla_common::recording::Recorded;
use flotilla_common::swarm::{
    BlobSlot, ChunkSource, PeerMachine, StallTimes, TransferId, UploadId,
};
use flotilla_common::time::Time;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::dial_filter::DialFilter;
use crate::handles::{Network, Stores, Upstream};
use crate::rate_meter::RateMeter;
use crate::store::StoredBlob;
use crate::telemetry::Telemetry;
use crate::tracker_client::TrackerEvent;
use crate::transport::{ChunkInterceptor, ChunkRequest, PeerLink, TransportEvent};
pub(crate) use command::{Commands, DriverCommand, QUEUE};
use tables::Tables;
use tasks::TaskReport;

/// Time between two runs of periodic work: saving records, and stopping the download of blobs that
/// are no longer read.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(2);
/// How long after its last reader the download of a blob goes on.
const UNREAD_DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The parts of the peer that the driver uses.
#[derive(Debug)]
pub(crate) struct DriverContext {
    pub(crate) clock: Clock,
    pub(crate) stores: Stores,
    pub(crate) network: Network,
    /// Which peers that a tracker names are dialled.
    pub(crate) dial_filter: DialFilter,
    pub(crate) upstream: Upstream,
    pub(crate) telemetry: Arc<Telemetry>,
    /// Sends chunks to neighbours.
    pub(crate) interceptor: Arc<dyn ChunkInterceptor>,
    /// Whether neighbours must present a grant.
    pub(crate) requires_grants: bool,
    pub(crate) shutdown: Shutdown,
}

/// The receiving ends of the driver's queues.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) commands: mpsc::Receiver<DriverCommand>,
    pub(crate) transport_events: mpsc::Receiver<TransportEvent>,
    pub(crate) tracker: mpsc::Receiver<TrackerEvent>,
}

/// A running download of a chunk.
#[derive(Debug)]
struct Fetch {
    blob: BlobSlot,
    chunk: u32,
    /// The length of the chunk.
    bytes: u64,
    received: u64,
    source: ChunkSource,
    /// The origin that sends it, once the response has begun.
    origin: Option<SourceId>,
    task: AbortHandle,
}

/// An upload of a chunk: requested or running.
#[derive(Debug)]
struct ActiveUpload {
    link: PeerLink,
    stored: Arc<StoredBlob>,
    /// The request, until the machine has accepted or refused it.
    request: Option<ChunkRequest>,
    task: Option<AbortHandle>,
    sent: u64,
}

/// The state of the driver's task.
#[derive(Debug)]
pub(crate) struct Driver {
    machine: Recorded<PeerMachine>,
    tables: Tables,
    context: DriverContext,
    fetches: HashMap<TransferId, Fetch>,
    uploads: HashMap<UploadId, ActiveUpload>,
    next_upload: u64,
    renewals: grants::Renewals,
    verified: grants::VerifiedGrants,
    images: images::ImageExchange,
    /// Whether the machine was told that an origin is usable.
    has_origin: bool,
    /// The rates of all downloads and of all uploads.
    down: RateMeter,
    up: RateMeter,
    /// The waiting times of all blobs, summed.
    blob_waits: StallTimes,
    reports: mpsc::Sender<TaskReport>,
    housekeeping_at: Time,
}

impl Driver {
    /// Runs until the shutdown starts. Blobs that are in the store already are served from the
    /// beginning.
    pub(crate) async fn run(
        machine: Recorded<PeerMachine>,
        context: DriverContext,
        mut events: Events,
    ) {
        let (reports, mut reported) = mpsc::channel(QUEUE);
        let clock = context.clock;
        let shutdown = context.shutdown.clone();
        let mut origin_changes = context.upstream.origins.sources().changes();
        let mut driver = Self::new(machine, context, reports);
        driver.begin(clock.now());
        loop {
            driver.carry_out_all();
            let deadline = driver.deadline();
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(report) = reported.recv() => driver.on_report(clock.now(), report),
                Some(command) = events.commands.recv() => driver.on_command(clock.now(), command),
                Some(event) = events.tracker.recv() => driver.on_tracker(clock.now(), event),
                Ok(()) = origin_changes.changed() => driver.on_origin_change(clock.now()),
                // After the others: neighbours decide how many of these there are.
                Some(event) = events.transport_events.recv() => {
                    driver.on_transport_event(clock.now(), event);
                }
                () = clock.sleep_until(Some(deadline)) => {}
            }
            driver.on_time(clock.now());
        }
        driver.end();
    }

    fn new(
        machine: Recorded<PeerMachine>,
        context: DriverContext,
        reports: mpsc::Sender<TaskReport>,
    ) -> Self {
        Self {
            machine,
            tables: Tables::default(),
            fetches: HashMap::new(),
            uploads: HashMap::new(),
            next_upload: 0,
            renewals: grants::Renewals::new(),
            verified: grants::VerifiedGrants::default(),
            images: images::ImageExchange::default(),
            has_origin: true,
            down: RateMeter::default(),
            up: RateMeter::default(),
            blob_waits: StallTimes::default(),
            reports,
            housekeeping_at: context.clock.now() + HOUSEKEEPING_INTERVAL,
            context,
        }
    }

    fn deadline(&self) -> Time {
        let machines = [
            self.machine.poll_timeout(),
            self.images.seeks.poll_timeout(),
        ];
        let deadlines = machines.into_iter().flatten();
        deadlines.fold(self.housekeeping_at, Time::min)
    }

    fn on_time(&mut self, now: Time) {
        let deadline = self.machine.poll_timeout();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.machine.handle_timeout(now);
        }
        let deadline = self.images.seeks.poll_timeout();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.end_late_seeks(now);
        }
        if self.housekeeping_at <= now {
            self.housekeeping_at = now + HOUSEKEEPING_INTERVAL;
            self.run_housekeeping(now);
        }
    }

    /// Ends all pulls and transfers.
    fn end(self) {
        let waits = self.machine.total_stall_times(self.context.clock.now());
        self.context.telemetry.pulls.close(waits);
        for fetch in self.fetches.values() {
            fetch.task.abort();
        }
        for task in self.uploads.values().filter_map(|it| it.task.as_ref()) {
            task.abort();
        }
    }
}

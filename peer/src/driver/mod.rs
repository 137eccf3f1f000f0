//! The driver: one task that owns the machine, feeds it everything that happens, and does what it
//! says.
//!
//! ```text
//! mirror ── Command ──┐                          ┌──▶ transport: dial, say, fetch, serve
//! transport ─ Incident ┼─▶ driver ─▶ PeerMachine ─┼──▶ origins: fetch
//! tracker ─── Event ──┤            ◀─ outputs    ├──▶ trackers: announce, leases
//! tasks ───── Report ─┘                          └──▶ store: whole-blob check, bypass
//! ```
//!
//! It is boring on purpose: whatever decides is in the machine. It never waits for anything but the
//! next event, never touches a payload byte, and every queue into it is bounded.

mod accounts;
mod act;
mod events;
mod grants;
mod images;
mod meetings;
mod report;
mod roster;
mod tasks;

use core::time::Duration;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::name::RepositoryName;
use flotilla_common::swarm::{BlobSlot, PeerMachine, Source, TransferId, UploadId, WaitTimes};
use flotilla_common::time::Time;
use flotilla_common::units::BitRate;
use flotilla_common::wire::peer::Image;
use flotilla_common::wire::tracker::PeerInfo;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{Identity, LiveKeys};
use flotilla_runtime::rate::Limiter;
use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::flow::Flow;
use crate::mirror::Patience;
use crate::origin::{Origins, Sighting};
use crate::pulls::{Opened, Pulls};
use crate::stats::Counters;
use crate::status::Status;
use crate::store::{ManifestStore, Pin, Store, StoredBlob};
use crate::tracker_client::{TrackerEvent, Trackers};
use crate::transport::{Incident, Link, Outbound, Question, Transport};
pub(crate) use images::MAX_TOLD;
use roster::Roster;
pub(crate) use roster::peer_key;

/// Events of each kind that wait for the driver at most.
pub(crate) const QUEUE: usize = 1024;
/// How often it looks after what no event calls for: records to save, blobs nobody reads any more.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// A blob that no reader has used for this long is not downloaded further.
const LINGER: Duration = Duration::from_secs(60);

/// What the mirror asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    /// A pull needs this blob, or soon will.
    Want {
        pin: Pin,
        repository: RepositoryName,
        grant: Option<Grant>,
    },
    /// The readers of a blob moved, came or went.
    ReadersMoved(Digest),
    /// Can anybody bring this chunk now?
    Reach {
        digest: Digest,
        chunk: u32,
        answer: oneshot::Sender<Reach>,
    },
    /// A stored chunk turned out damaged.
    Lost { digest: Digest, chunk: u32 },
    /// The store let these blobs go.
    Evicted(Vec<Digest>),
    /// Nothing of this blob can be trusted any more.
    Quarantine { digest: Digest, why: String },
    /// No origin can tell an image: perhaps a neighbour can. Dropped if none does.
    Seek {
        manifest: Digest,
        answer: oneshot::Sender<Image>,
    },
    /// The runtime pulls an image from now on.
    Pull(Opened),
    /// How is it going?
    Status(oneshot::Sender<Box<Status>>),
}

/// Whether waiting for a chunk makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It is on its way, a neighbour has it, or an origin may be asked.
    Within,
    /// No source that is known can bring it at the moment.
    Out,
}

/// How the tasks that the driver spawned are getting on.
#[derive(Debug)]
enum Report {
    FirstByte(TransferId),
    Progress(TransferId, u64),
    Fetched(TransferId, tasks::Fetched),
    UploadProgress(UploadId, u64),
    /// So many bytes were sent.
    UploadEnded(UploadId, u64),
    /// A chunk was found damaged while it was served.
    Lost(Digest, u32),
    /// The whole blob was hashed.
    Checked(Digest, tasks::Whole),
    /// An origin renewed a grant.
    Granted(Grant),
    /// A neighbour handed on an image, whose manifest has its digest.
    HandedOn(Digest, Box<Image>),
}

/// What the driver and its tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) me: PeerInfo,
    pub(crate) store: Store,
    pub(crate) manifests: ManifestStore,
    pub(crate) origins: Origins,
    pub(crate) transport: Transport,
    pub(crate) trackers: Trackers,
    pub(crate) identity: Identity,
    pub(crate) trusted: LiveKeys,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pulls: Pulls,
    pub(crate) waited: Waited,
    pub(crate) moved: Moved,
    pub(crate) up_cap: Option<BitRate>,
    pub(crate) up: Limiter,
    pub(crate) down: Limiter,
    pub(crate) outbound: Arc<dyn Outbound>,
    /// One permit for each image that may be told to a neighbour at a time.
    pub(crate) images_told: Arc<Semaphore>,
    /// Whether neighbours must show a grant.
    pub(crate) requires_grants: bool,
    /// How long readers wait.
    pub(crate) patience: Patience,
    pub(crate) shutdown: Shutdown,
}

/// What was waited until now: by the peer as a whole, and by blobs. Renewed now and then.
#[derive(Debug, Default)]
pub(crate) struct Waited(Mutex<(WaitTimes, WaitTimes)>);

impl Waited {
    pub(crate) fn read(&self) -> (WaitTimes, WaitTimes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, still: WaitTimes, blobs: WaitTimes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (still, blobs);
    }
}

/// When bytes of any blob last came: readers that wait tell a swarm that is busy from one that is
/// stuck.
#[derive(Debug, Default)]
pub(crate) struct Moved(AtomicU64);

impl Moved {
    fn note(&self, now: Time) {
        self.0.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// How long ago that was.
    pub(crate) fn ago(&self, now: Time) -> Duration {
        now.saturating_since(Time::from_nanos(self.0.load(Ordering::Relaxed)))
    }
}

/// The receiving ends of what happens elsewhere.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) incidents: mpsc::Receiver<Incident>,
    pub(crate) tracker: mpsc::Receiver<TrackerEvent>,
    pub(crate) sightings: mpsc::Receiver<Sighting>,
}

/// A download that runs.
#[derive(Debug)]
struct Fetch {
    blob: BlobSlot,
    chunk: u32,
    bytes: u64,
    received: u64,
    source: Source,
    task: AbortHandle,
}

/// An upload: asked for, or running.
#[derive(Debug)]
struct Upload {
    link: Link,
    stored: Arc<StoredBlob>,
    /// Until the machine has answered.
    question: Option<Question>,
    task: Option<AbortHandle>,
    sent: u64,
}

/// The task's state.
#[derive(Debug)]
pub(crate) struct Driver {
    machine: PeerMachine,
    roster: Roster,
    shared: Arc<Shared>,
    fetches: HashMap<TransferId, Fetch>,
    uploads: HashMap<UploadId, Upload>,
    next_upload: u64,
    next_ticket: u64,
    renewals: grants::Renewals,
    verified: grants::Verified,
    seeks: images::Seeks,
    down: Flow,
    up: Flow,
    /// What blobs have waited, all together.
    blob_waits: WaitTimes,
    reports: mpsc::Sender<Report>,
    housekeeping_at: Time,
}

impl Driver {
    /// Runs until the shutdown starts. Blobs that the store held before are served from the
    /// beginning.
    pub(crate) async fn run(machine: PeerMachine, shared: Arc<Shared>, mut events: Events) {
        let (reports, mut reported) = mpsc::channel(QUEUE);
        let clock = shared.clock;
        let now = clock.now();
        let mut driver = Self {
            machine,
            roster: Roster::default(),
            shared,
            fetches: HashMap::new(),
            uploads: HashMap::new(),
            next_upload: 0,
            next_ticket: 0,
            renewals: grants::Renewals::new(),
            verified: grants::Verified::default(),
            seeks: images::Seeks::default(),
            down: Flow::default(),
            up: Flow::default(),
            blob_waits: WaitTimes::default(),
            reports,
            housekeeping_at: now + HOUSEKEEPING,
        };
        driver.begin(now);
        let shutdown = driver.shared.shutdown.clone();
        loop {
            driver.act();
            let deadline = driver.deadline();
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(report) = reported.recv() => driver.on_report(clock.now(), report),
                Some(command) = events.commands.recv() => driver.on_command(clock.now(), command),
                Some(incident) = events.incidents.recv() => driver.on_incident(clock.now(), incident),
                Some(event) = events.tracker.recv() => driver.on_tracker(clock.now(), event),
                Some(sighting) = events.sightings.recv() => driver.on_sighting(clock.now(), sighting),
                () = clock.sleep_until(Some(deadline)) => {}
            }
            driver.on_time(clock.now());
        }
        driver.end();
    }

    fn deadline(&self) -> Time {
        self.machine
            .poll_timeout()
            .map_or(self.housekeeping_at, |next| next.min(self.housekeeping_at))
    }

    fn on_time(&mut self, now: Time) {
        if self
            .machine
            .poll_timeout()
            .is_some_and(|deadline| deadline <= now)
        {
            self.machine.handle_timeout(now);
        }
        if self.housekeeping_at <= now {
            self.housekeeping_at = now + HOUSEKEEPING;
            self.keep_house(now);
        }
    }

    /// Nothing goes on after this.
    fn end(self) {
        self.shared
            .pulls
            .close(self.machine.stood_still(self.shared.clock.now()));
        for fetch in self.fetches.values() {
            fetch.task.abort();
        }
        for task in self
            .uploads
            .values()
            .filter_map(|upload| upload.task.as_ref())
        {
            task.abort();
        }
    }
}

//! The peer's connection to its trackers: posts the requests of the tracker session over HTTP.
//!
//! Everything that decides (when to announce, which tracker to ask, when to give a request up) is
//! in [`TrackerSession`]. One task waits for its deadlines and carries out what it returns; each
//! request is a task of its own.
//!
//! ```text
//! driver                         Trackers                            tracker
//!   announce, request_lease ─────▶ session ──▶ task: POST ──────────────▶
//!   ◀────────── Snapshot?          session ◀── answer or failure ◀───────
//!   ─────────────────────────────▶
//!   ◀── Handouts, LeaseGranted
//! ```

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::recording::{Recorded, Sink};
use flotilla_common::time::Time;
use flotilla_common::tracker::{
    CancelReason, ExchangeId, LeaseUpdate, NamedPeers, PeerSnapshot, SessionInput, SessionOutput,
    TrackerRequest, TrackerSession, TrackerUrl, Urgency,
};
use flotilla_common::wire::tracker::{
    ANNOUNCE_PATH, AnnounceAnswer, AnnounceRequest, LEASE_PATH, LeaseAnswer, LeaseAsk,
    LeaseRequest, PeerInfo, v1,
};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use reqwest::{Client, StatusCode};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::base_url;
use crate::status::TrackerStatus;

/// The longest time that a tracker takes to answer: a lease request may be parked.
pub(crate) const POLL_TIMEOUT: Duration = TrackerSession::LONGEST_EXCHANGE;

/// How long a tracker that does not know version 2 of a message gets version 1. It may be replaced
/// by a newer build meanwhile.
const OLD_TRACKER_TIME: Duration = Duration::from_secs(60);

/// The kind of a request to a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    /// An announce; answered at once.
    Announce,
    /// A request for a lease, which the tracker may park.
    LeaseRequest,
    /// The state of a lease, or a withdrawn request; answered at once.
    LeaseUpdate,
}

impl ExchangeKind {
    fn of(request: &TrackerRequest) -> Self {
        match request {
            TrackerRequest::Announce(_) => Self::Announce,
            TrackerRequest::Lease(request) => match request.ask {
                LeaseAsk::Take { .. } => Self::LeaseRequest,
                _ => Self::LeaseUpdate,
            },
        }
    }
}

/// Is told how every request to a tracker ended.
pub trait ExchangeObserver: fmt::Debug + Send + Sync {
    /// The tracker answered after `elapsed`.
    fn answered(&self, kind: ExchangeKind, elapsed: Duration);
    /// There was no usable answer.
    fn failed(&self, kind: ExchangeKind, error: &PostError);
}

/// An event for the driver.
#[derive(Debug)]
pub enum TrackerEvent {
    /// An announce is due and needs the peer's state.
    Snapshot(oneshot::Sender<PeerSnapshot>),
    /// Neighbours that a tracker named.
    Handouts(Vec<NamedPeers>),
    /// The lease that was requested last for this blob was granted.
    LeaseGranted {
        /// The blob.
        digest: Digest,
        /// The chunk to fetch from the origin.
        chunk: u32,
        /// Time until the lease expires, unless it is renewed.
        term: Duration,
        /// The origin to ask first; `None` if the peer decides.
        from: Option<OriginRegion>,
    },
    /// The chunk of a lease is to be fetched from another origin.
    LeaseMoved {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: u32,
        /// The origin.
        to: OriginRegion,
    },
    /// It was not granted; the next request may follow after `retry_after`.
    LeaseWait {
        /// The blob.
        digest: Digest,
        /// The time.
        retry_after: Duration,
    },
    /// A lease could not be renewed.
    LeaseLost {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: u32,
    },
    /// A tracker answers again.
    Reachable,
    /// No tracker answers any more.
    Unreachable,
}

/// Why a request to a tracker failed.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The connection failed, or the tracker answered with an error status.
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    /// The request cannot be encoded, or the answer not decoded.
    #[error("{0}")]
    Codec(#[from] codec::CodecError),
    /// The answer did not come in time.
    #[error("request timed out")]
    Timeout,
}

/// All configured trackers. Clones share one session.
#[derive(Debug, Clone)]
pub struct Trackers(Arc<SharedSession>);

/// What a peer's trackers work with.
#[derive(Debug)]
pub struct TrackerContext {
    /// The client for their requests.
    pub client: Client,
    /// The clock of the session.
    pub clock: Clock,
    /// Is told how requests end.
    pub observer: Arc<dyn ExchangeObserver>,
    /// The session's inputs and outputs are recorded to it, if there is one.
    pub recording: Option<Box<dyn Sink>>,
    /// The number of regions whose origins the peer may ask.
    pub origins: u8,
}

#[derive(Debug)]
struct SharedSession {
    client: Client,
    clock: Clock,
    session: Mutex<Recorded<TrackerSession>>,
    /// The session may have outputs, or an earlier deadline.
    session_changed: Notify,
    observer: Arc<dyn ExchangeObserver>,
    origins: u8,
    /// The paths that a tracker of an older build does not know, and until when they are not tried
    /// again.
    unknown_paths: Mutex<HashMap<(usize, &'static str), Time>>,
    /// The error of the last failed announce, by tracker.
    errors: Mutex<Vec<Option<String>>>,
    events: mpsc::Sender<TrackerEvent>,
    shutdown: Shutdown,
}

impl Trackers {
    /// Starts announcing `peer` to the trackers, until the shutdown.
    pub fn start(
        context: TrackerContext,
        trackers: &[TrackerUrl],
        peer: PeerInfo,
        events: mpsc::Sender<TrackerEvent>,
        shutdown: &Shutdown,
    ) -> Self {
        let TrackerContext {
            client,
            clock,
            observer,
            recording,
            origins,
        } = context;
        let tracker = |tracker: &TrackerUrl| TrackerUrl {
            region: tracker.region.clone(),
            url: base_url(&tracker.url).to_owned(),
        };
        let urls: Vec<TrackerUrl> = trackers.iter().map(tracker).collect();
        let errors = vec![None; urls.len()];
        let session = Recorded::new((clock.now(), peer, urls), recording);
        let trackers = Self(Arc::new(SharedSession {
            client,
            clock,
            errors: Mutex::new(errors),
            session: Mutex::new(session),
            session_changed: Notify::new(),
            observer,
            origins,
            unknown_paths: Mutex::new(HashMap::new()),
            events,
            shutdown: shutdown.clone(),
        }));
        shutdown.spawn(trackers.clone().run());
        trackers
    }

    /// Whether no tracker is configured.
    pub(crate) fn is_empty(&self) -> bool {
        self.session().trackers().is_empty()
    }

    /// The state of each tracker.
    pub(crate) fn status(&self) -> Vec<TrackerStatus> {
        let session = self.session();
        let errors = lock(&self.0.errors);
        let status = |(number, (tracker, error)): (usize, (&TrackerUrl, &Option<String>))| {
            let announces = session.accepted_announces(number);
            let is_unresponsive = session.is_unresponsive(number);
            let is_used = session.is_used(number);
            let is_known = is_used && (is_unresponsive || announces > 0);
            TrackerStatus {
                url: tracker.url.clone(),
                region: session.region(number).cloned(),
                is_used,
                is_answering: is_known.then_some(!is_unresponsive),
                announces,
                trouble: error.clone().filter(|_| is_unresponsive),
            }
        };
        let trackers = session.trackers().iter().zip(&*errors);
        trackers.enumerate().map(status).collect()
    }

    /// Announces the peer's state to all trackers.
    pub fn announce(&self, urgency: Urgency) {
        self.handle(SessionInput::StateChanged(urgency));
    }

    /// Requests a lease. [`TrackerEvent::LeaseGranted`] or [`TrackerEvent::LeaseWait`] follows,
    /// unless another request for the same blob, or a withdrawal, comes before it.
    pub fn request_lease(
        &self,
        digest: Digest,
        missing: ChunkMap,
        starving: bool,
        unreachable: Vec<PeerId>,
    ) {
        self.handle(SessionInput::RequestLease {
            digest,
            missing,
            starving,
            unreachable,
            origins: self.0.origins,
        });
    }

    /// Withdraws the request for a lease.
    pub fn withdraw_request(&self, digest: Digest) {
        self.handle(SessionInput::WithdrawRequest { digest });
    }

    /// Reports the state of a lease.
    pub fn update_lease(&self, digest: Digest, update: LeaseUpdate) {
        self.handle(SessionInput::UpdateLease { digest, update });
    }

    /// Tells every tracker that this peer leaves. Call it after the shutdown, which ends all other
    /// requests.
    pub(crate) async fn leave(&self) {
        self.handle(SessionInput::Leave);
        let mut exchanges = JoinSet::new();
        loop {
            while let Some(output) = self.next_output() {
                if let SessionOutput::Post {
                    exchange,
                    tracker,
                    request: TrackerRequest::Announce(request),
                } = output
                {
                    let request = TrackerRequest::Announce(request);
                    exchanges.spawn(self.clone().exchange(exchange, tracker, request));
                }
            }
            let deadline = {
                let session = self.session();
                if session.has_left() {
                    return;
                }
                session.poll_timeout()
            };
            self.wait_for_change_or_deadline(deadline).await;
        }
    }

    async fn run(self) {
        let mut exchanges: HashMap<ExchangeId, AbortHandle> = HashMap::new();
        loop {
            while let Some(output) = self.next_output() {
                if !self.carry_out(output, &mut exchanges).await {
                    return;
                }
            }
            exchanges.retain(|_, exchange| !exchange.is_finished());
            let deadline = self.session().poll_timeout();
            tokio::select! {
                () = self.0.shutdown.wait() => return,
                () = self.wait_for_change_or_deadline(deadline) => {}
            }
        }
    }

    /// Waits for new outputs or for the deadline, and handles the latter.
    async fn wait_for_change_or_deadline(&self, deadline: Option<Time>) {
        tokio::select! {
            () = self.0.session_changed.notified() => {}
            () = self.0.clock.sleep_until(deadline) => {}
        }
        self.session().handle_timeout(self.0.clock.now());
    }

    /// Carries out an output of the session; false if the driver is gone.
    async fn carry_out(
        &self,
        output: SessionOutput,
        exchanges: &mut HashMap<ExchangeId, AbortHandle>,
    ) -> bool {
        let event = match output {
            SessionOutput::NeedSnapshot { tracker } => {
                let (sender, snapshot) = oneshot::channel();
                let is_sent = self.report(TrackerEvent::Snapshot(sender)).await;
                // A busy driver must not delay what the session sends to other trackers.
                let client = self.clone();
                self.0.shutdown.spawn(async move {
                    if let Ok(snapshot) = snapshot.await {
                        client.handle(SessionInput::Snapshot { tracker, snapshot });
                    }
                });
                return is_sent;
            }
            SessionOutput::Post {
                exchange,
                tracker,
                request,
            } => {
                let posting = self.clone().exchange(exchange, tracker, request);
                let task = self.0.shutdown.spawn(posting);
                exchanges.insert(exchange, task.abort_handle());
                return true;
            }
            SessionOutput::Cancel {
                exchange,
                tracker,
                reason,
            } => {
                if let Some(task) = exchanges.remove(&exchange) {
                    task.abort();
                }
                if reason == CancelReason::AnnounceTimeout {
                    self.note_failed_announce(tracker, &PostError::Timeout);
                }
                return true;
            }
            SessionOutput::Handouts(handouts) => TrackerEvent::Handouts(handouts),
            SessionOutput::LeaseGranted {
                digest,
                chunk,
                term,
                from,
            } => TrackerEvent::LeaseGranted {
                digest,
                chunk,
                term,
                from,
            },
            SessionOutput::LeaseMoved { digest, chunk, to } => {
                TrackerEvent::LeaseMoved { digest, chunk, to }
            }
            SessionOutput::LeaseWait {
                digest,
                retry_after,
            } => TrackerEvent::LeaseWait {
                digest,
                retry_after,
            },
            SessionOutput::LeaseLost { digest, chunk } => TrackerEvent::LeaseLost { digest, chunk },
            SessionOutput::Reachable => TrackerEvent::Reachable,
            SessionOutput::Unreachable => TrackerEvent::Unreachable,
        };
        self.report(event).await
    }

    /// Posts a request and passes the answer to the session.
    async fn exchange(self, exchange: ExchangeId, tracker: usize, request: TrackerRequest) {
        let kind = ExchangeKind::of(&request);
        let started = self.0.clock.now();
        let input = match &request {
            TrackerRequest::Announce(request) => match self.post_announce(tracker, request).await {
                Ok(answer) => SessionInput::AnnounceAnswered { exchange, answer },
                Err(error) => {
                    self.0.observer.failed(kind, &error);
                    if request.leaving {
                        tracing::debug!(%error, "telling a tracker that this peer leaves failed");
                    } else {
                        self.note_failed_announce(tracker, &error);
                    }
                    SessionInput::Failed { exchange }
                }
            },
            TrackerRequest::Lease(request) => match self.post_lease(tracker, request).await {
                Ok(answer) => SessionInput::LeaseAnswered { exchange, answer },
                Err(error) => {
                    self.0.observer.failed(kind, &error);
                    tracing::debug!(blob = %request.digest, %error, "lease request failed");
                    SessionInput::Failed { exchange }
                }
            },
        };
        if !matches!(input, SessionInput::Failed { .. }) {
            let elapsed = self.0.clock.now().saturating_since(started);
            self.0.observer.answered(kind, elapsed);
        }
        self.handle(input);
    }

    /// Announces in version 2, and in version 1 to a tracker of an older build.
    async fn post_announce(
        &self,
        tracker: usize,
        request: &AnnounceRequest,
    ) -> Result<AnnounceAnswer, PostError> {
        if let Some(answer) = self.post_new(tracker, ANNOUNCE_PATH, request).await {
            return answer;
        }
        let request = v1::AnnounceRequest::from(request.clone());
        let answer: v1::AnnounceAnswer = self.post(tracker, v1::ANNOUNCE_PATH, &request).await?;
        Ok(answer.into())
    }

    /// As [`Self::post_announce`], for requests about leases.
    async fn post_lease(
        &self,
        tracker: usize,
        request: &LeaseRequest,
    ) -> Result<LeaseAnswer, PostError> {
        if let Some(answer) = self.post_new(tracker, LEASE_PATH, request).await {
            return answer;
        }
        let request = v1::LeaseRequest::from(request.clone());
        let answer: v1::LeaseAnswer = self.post(tracker, v1::LEASE_PATH, &request).await?;
        Ok(answer.into())
    }

    /// Posts a request in the newest version; `None` if the tracker does not know the path.
    async fn post_new<Q: bincode::Encode, A: bincode::Decode<()>>(
        &self,
        tracker: usize,
        path: &'static str,
        request: &Q,
    ) -> Option<Result<A, PostError>> {
        let now = self.0.clock.now();
        let unknown_until = lock(&self.0.unknown_paths).get(&(tracker, path)).copied();
        if unknown_until.is_some_and(|until| now < until) {
            return None;
        }
        match self.post(tracker, path, request).await {
            Err(PostError::Http(error)) if error.status() == Some(StatusCode::NOT_FOUND) => {
                lock(&self.0.unknown_paths).insert((tracker, path), now + OLD_TRACKER_TIME);
                None
            }
            answer => Some(answer),
        }
    }

    async fn post<Q: bincode::Encode, A: bincode::Decode<()>>(
        &self,
        tracker: usize,
        path: &str,
        request: &Q,
    ) -> Result<A, PostError> {
        let url = format!("{}{path}", self.session().trackers()[tracker].url);
        let request = self.0.client.post(url).body(codec::encode(request)?);
        let answer = request.send().await?.error_for_status()?;
        Ok(codec::decode(&body(answer).await?)?)
    }

    /// Logs a failed announce: only the first failure of a tracker is a warning.
    fn note_failed_announce(&self, tracker: usize, error: &PostError) {
        let session = self.session();
        let url = &session.trackers()[tracker].url;
        lock(&self.0.errors)[tracker] = Some(error.to_string());
        if session.is_unresponsive(tracker) {
            tracing::debug!(tracker = url, %error, "announce failed");
        } else {
            tracing::warn!(tracker = url, %error, "announce failed; continuing without this tracker");
        }
    }

    fn handle(&self, input: SessionInput) {
        let now = self.0.clock.now();
        self.session().handle(now, input);
        self.0.session_changed.notify_one();
    }

    fn next_output(&self) -> Option<SessionOutput> {
        self.session().poll_output()
    }

    fn session(&self) -> MutexGuard<'_, Recorded<TrackerSession>> {
        lock(&self.0.session)
    }

    /// Sends an event to the driver; false if the driver is gone.
    async fn report(&self, event: TrackerEvent) -> bool {
        self.0.events.send(event).await.is_ok()
    }
}

/// The body of an answer, unless it is longer than any message.
async fn body(mut answer: reqwest::Response) -> Result<Vec<u8>, PostError> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        let length = body.len() + piece.len();
        if length > codec::MAX_LEN {
            return Err(codec::CodecError::TooLong(length).into());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

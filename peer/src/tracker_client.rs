//! The trackers, as a peer uses them: announces out, handouts in, leases asked for by long polls.
//!
//! Per tracker one task announces, when its interval is over and at once when something changed. Of
//! several trackers the best two by rendezvous hashing hear of a blob, and leases come from the
//! first of them that answers: which ones do is [`Health`]'s opinion, and a request that a tracker
//! has parked is put to the next one once it fell silent. Nothing is decided here: whether no
//! tracker can be reached is told to the machine, which then does without.
//!
//! ```text
//! announce loop                     driver                        lease task
//!   Snapshot? ───────────────────────▶
//!   ◀──── blobs, leases, neighbours ──
//!   POST announce ▶ tracker
//!   Handouts, Reachable ─────────────▶            (waits until the blob is announced)
//!                                                 POST lease ▶ tracker, parked
//!                                     ◀──────────────────── Lease {answer}
//! ```

use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::tracker::{Health, News, ranked};
use flotilla_common::wire::tracker::{
    ANNOUNCE_PATH, AnnounceAnswer, AnnounceRequest, BlobState, Change, Handout, HeldLease,
    LEASE_PATH, LeaseAnswer, LeaseAsk, LeaseRequest, MAX_CHANGES, PeerInfo,
};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use reqwest::Client;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::stats::Counter;
use crate::status::TrackerStatus;

/// Trackers that hear of one blob.
const TRACKERS_PER_BLOB: usize = 2;
/// An announce that is not answered for this long is not waited for: its tracker counts as silent.
/// Twice as long for the last one that answers.
const LATE: Duration = Duration::from_secs(1);
/// A parked request whose tracker said nothing at all for this long is a reason to announce, which
/// is answered at once.
const QUIET: Duration = Duration::from_secs(3);
/// For an announce, and for what says how a lease goes on.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request that the tracker parks: its bound and some more.
pub(crate) const POLL_TIMEOUT: Duration = Duration::from_secs(30);
/// Changes within this time go into one announce.
const COALESCE: Duration = Duration::from_millis(5);
/// After an announce that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a lease request waits for its blob to be announced.
const ANNOUNCED_TIMEOUT: Duration = Duration::from_secs(2);

/// All that an announce says, as it is now.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) blobs: Vec<Change>,
    pub(crate) leases: Vec<HeldLease>,
    pub(crate) connected: Vec<PeerId>,
    pub(crate) unreachable: Vec<PeerId>,
}

/// What the driver hears.
#[derive(Debug)]
pub(crate) enum TrackerEvent {
    /// An announce is due.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Neighbours.
    Handouts(Vec<Handout>),
    /// The answer to [`Trackers::take_lease`] with this ticket.
    Lease {
        digest: Digest,
        ticket: u64,
        answer: LeaseAnswer,
    },
    /// A renewal came too late.
    LeaseLost { digest: Digest, chunk: u32 },
    /// A tracker answers (again).
    Reachable,
    /// None answers.
    Unreachable,
}

/// What fails while a tracker is asked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("{0}")]
    Codec(#[from] codec::CodecError),
    #[error("no answer in time")]
    Timeout,
    #[error("it fell silent")]
    Silent,
    #[error("no tracker is configured")]
    None,
}

/// All configured trackers. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Trackers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    clock: Clock,
    urls: Vec<String>,
    trackers: Vec<Tracker>,
    health: Mutex<Health>,
    me: PeerInfo,
    events: mpsc::Sender<TrackerEvent>,
    shutdown: Shutdown,
}

#[derive(Debug, Default)]
struct Tracker {
    /// What it was told last, by blob.
    announced: Mutex<HashMap<Digest, BlobState>>,
    /// After each accepted announce.
    accepted: Notify,
    /// Announce now.
    wake: Notify,
    /// When it falls silent.
    silenced: Notify,
    /// Announces that it accepted.
    announces: Counter,
    /// What went wrong last.
    trouble: Mutex<Option<String>>,
}

impl Trackers {
    /// Begins to announce `me` to every tracker in `urls`.
    pub(crate) fn start(
        client: Client,
        urls: &[String],
        me: PeerInfo,
        clock: Clock,
        events: mpsc::Sender<TrackerEvent>,
        shutdown: &Shutdown,
    ) -> Self {
        let urls: Vec<String> = urls
            .iter()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        let trackers = urls.iter().map(|_| Tracker::default()).collect();
        let health = Mutex::new(Health::new(urls.len(), LATE));
        let inner = Inner {
            client,
            clock,
            urls,
            trackers,
            health,
            me,
            events,
            shutdown: shutdown.clone(),
        };
        let trackers = Self(Arc::new(inner));
        for index in 0..trackers.0.urls.len() {
            shutdown.spawn(trackers.clone().announce_for_ever(index));
        }
        trackers
    }

    /// Whether there is any.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.urls.is_empty()
    }

    /// Each tracker, and whether it answers.
    pub(crate) fn status(&self) -> Vec<TrackerStatus> {
        let status = |(index, (url, tracker)): (usize, (&String, &Tracker))| {
            let announces = tracker.announces.value();
            let is_silent = self.is_silent(index);
            let is_answering = (is_silent || announces > 0).then_some(!is_silent);
            let trouble = lock(&tracker.trouble).clone().filter(|_| is_silent);
            TrackerStatus {
                url: url.clone(),
                is_answering,
                announces,
                trouble,
            }
        };
        self.0
            .urls
            .iter()
            .zip(&self.0.trackers)
            .enumerate()
            .map(status)
            .collect()
    }

    /// Announces to all, at once.
    pub(crate) fn announce(&self) {
        for tracker in &self.0.trackers {
            tracker.wake.notify_one();
        }
    }

    /// Asks for a lease; a [`TrackerEvent::Lease`] with the ticket follows.
    pub(crate) fn take_lease(&self, digest: Digest, ticket: u64, ask: LeaseAsk) {
        let trackers = self.clone();
        self.0.shutdown.spawn(async move {
            let answer = match trackers.ask_lease(&digest, ask, POLL_TIMEOUT).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(blob = %digest, %error, "ask for lease");
                    LeaseAnswer::Wait {
                        retry_ms: RETRY.as_millis() as u32,
                    }
                }
            };
            trackers
                .report(TrackerEvent::Lease {
                    digest,
                    ticket,
                    answer,
                })
                .await;
        });
    }

    /// Says how a lease goes on.
    pub(crate) fn tell_lease(&self, digest: Digest, ask: LeaseAsk) {
        let trackers = self.clone();
        self.0.shutdown.spawn(async move {
            let renewed = match ask {
                LeaseAsk::Renew { chunk, .. } => Some(chunk),
                _ => None,
            };
            match (
                trackers.ask_lease(&digest, ask, REQUEST_TIMEOUT).await,
                renewed,
            ) {
                (Ok(LeaseAnswer::NotHeld), Some(chunk)) => {
                    trackers
                        .report(TrackerEvent::LeaseLost { digest, chunk })
                        .await;
                }
                (Ok(_), _) => {}
                (Err(error), _) => {
                    tracing::debug!(blob = %digest, %error, "say how a lease goes on")
                }
            }
        });
    }

    /// Tells every tracker that this peer leaves.
    pub(crate) async fn leave(&self) {
        for index in 0..self.0.urls.len() {
            let request = AnnounceRequest {
                leaving: true,
                ..self.request(0, 0, &Snapshot::default())
            };
            if let Err(error) = self
                .post::<_, AnnounceAnswer>(index, ANNOUNCE_PATH, &request, RETRY)
                .await
            {
                tracing::debug!(tracker = self.0.urls[index], %error, "say goodbye");
            }
        }
    }

    async fn announce_for_ever(self, index: usize) {
        let (mut epoch, mut sequence) = (0, 0);
        let tracker = &self.0.trackers[index];
        loop {
            let Some(snapshot) = self.snapshot(index).await else {
                return;
            };
            let request = self.request(epoch, sequence, &snapshot);
            let request = AnnounceRequest {
                changes: self.changes(index, sequence == 0, &snapshot.blobs),
                ..request
            };
            let answer = self.post_announce(index, &request).await;
            let wait = match answer {
                Ok(AnnounceAnswer::Accepted {
                    epoch: now,
                    next_ms,
                    handouts,
                }) => {
                    epoch = now;
                    sequence += 1;
                    *lock(&tracker.announced) = snapshot
                        .blobs
                        .into_iter()
                        .map(|change| (change.digest, change.state))
                        .collect();
                    tracker.announces.add(1);
                    tracker.accepted.notify_waiters();
                    self.heard(|health| health.answered(self.0.clock.now(), index))
                        .await;
                    if !handouts.is_empty() {
                        self.report(TrackerEvent::Handouts(handouts)).await;
                    }
                    Duration::from_millis(u64::from(next_ms))
                }
                Ok(AnnounceAnswer::Resync { epoch: now }) => {
                    (epoch, sequence) = (now, 0);
                    COALESCE
                }
                Err(error) => {
                    self.complain(index, &error);
                    (epoch, sequence) = (0, 0);
                    self.heard(|health| health.failed(index)).await;
                    // News do not shorten this wait: nobody hears them.
                    tokio::select! {
                        () = self.0.shutdown.wait() => return,
                        () = sleep(RETRY) => continue,
                    }
                }
            };
            tokio::select! {
                () = self.0.shutdown.wait() => return,
                () = tracker.wake.notified() => sleep(COALESCE).await,
                () = sleep(wait) => {}
            }
        }
    }

    /// The peer's state, as far as it concerns a tracker; `None` when the driver is gone.
    async fn snapshot(&self, index: usize) -> Option<Snapshot> {
        let (sender, answer) = oneshot::channel();
        self.report(TrackerEvent::Snapshot(sender)).await;
        let mut snapshot = answer.await.ok()?;
        snapshot
            .blobs
            .retain(|change| self.responsible(&change.digest).any(|other| other == index));
        Some(snapshot)
    }

    /// What changed since the last announce; and whatever is wanted, for its handout.
    fn changes(&self, index: usize, full: bool, blobs: &[Change]) -> Vec<Change> {
        let announced = lock(&self.0.trackers[index].announced);
        let is_news = |change: &&Change| {
            full || matches!(change.state, BlobState::Wanted { .. })
                || announced.get(&change.digest) != Some(&change.state)
        };
        let mut changes: Vec<Change> = blobs.iter().filter(is_news).cloned().collect();
        if !full {
            let gone = announced
                .keys()
                .filter(|digest| blobs.iter().all(|change| change.digest != **digest));
            changes.extend(gone.map(|digest| Change {
                digest: *digest,
                state: BlobState::Gone,
            }));
        }
        changes.truncate(MAX_CHANGES);
        changes
    }

    fn request(&self, epoch: u64, sequence: u64, snapshot: &Snapshot) -> AnnounceRequest {
        AnnounceRequest {
            peer: self.0.me.clone(),
            epoch,
            sequence,
            full: sequence == 0,
            changes: Vec::new(),
            leases: snapshot.leases.clone(),
            connected: snapshot.connected.clone(),
            unreachable: snapshot.unreachable.clone(),
            leaving: false,
        }
    }

    /// Logs a failed announce: the first one loudly.
    fn complain(&self, index: usize, error: &AskError) {
        let tracker = &self.0.urls[index];
        *lock(&self.0.trackers[index].trouble) = Some(error.to_string());
        if self.is_silent(index) {
            tracing::debug!(tracker, %error, "announce");
        } else {
            tracing::warn!(tracker, %error, "announce: the tracker does not answer, going on without it");
        }
    }

    /// Notes how a tracker is getting on, and tells whom it concerns: who waits for it, and the
    /// driver.
    async fn heard(&self, note: impl FnOnce(&mut Health) -> Option<News>) {
        let news = note(&mut lock(&self.0.health));
        for (index, tracker) in self.0.trackers.iter().enumerate() {
            if self.is_silent(index) {
                tracker.silenced.notify_waiters();
            }
        }
        match news {
            Some(News::Reachable) => self.report(TrackerEvent::Reachable).await,
            Some(News::Unreachable) => self.report(TrackerEvent::Unreachable).await,
            None => {}
        }
    }

    fn is_silent(&self, index: usize) -> bool {
        lock(&self.0.health).is_silent(index)
    }

    /// Comes back when the tracker is silent.
    async fn silence_of(&self, index: usize) {
        loop {
            let silenced = self.0.trackers[index].silenced.notified();
            tokio::pin!(silenced);
            silenced.as_mut().enable();
            if self.is_silent(index) {
                return;
            }
            silenced.await;
        }
    }

    /// Announces, and takes note when the answer is late, which does not end the waiting for it.
    async fn post_announce(
        &self,
        index: usize,
        request: &AnnounceRequest,
    ) -> Result<AnnounceAnswer, AskError> {
        lock(&self.0.health).asked(self.0.clock.now(), index);
        let answer = self.post(index, ANNOUNCE_PATH, request, REQUEST_TIMEOUT);
        tokio::pin!(answer);
        loop {
            let late_at = lock(&self.0.health).poll_timeout();
            tokio::select! {
                answer = &mut answer => return answer,
                () = self.0.clock.sleep_until(late_at) => {
                    self.heard(|health| health.handle_timeout(self.0.clock.now())).await;
                }
            }
        }
    }

    /// The trackers of a blob, best first.
    fn responsible(&self, digest: &Digest) -> impl Iterator<Item = usize> + use<> {
        ranked(&self.0.urls, digest)
            .into_iter()
            .take(TRACKERS_PER_BLOB)
    }

    /// Waits, not for ever, until a tracker has heard of the blob.
    async fn until_announced(&self, index: usize, digest: &Digest) {
        let tracker = &self.0.trackers[index];
        let heard_of = async {
            loop {
                let accepted = tracker.accepted.notified();
                tokio::pin!(accepted);
                accepted.as_mut().enable();
                if lock(&tracker.announced).contains_key(digest) {
                    return;
                }
                accepted.await;
            }
        };
        // The tracker will say that it does not know us; that is an answer, too.
        let _ = timeout(ANNOUNCED_TIMEOUT, heard_of).await;
    }

    /// Asks the first tracker of the blob that answers, and the next one when it falls silent
    /// meanwhile.
    async fn ask_lease(
        &self,
        digest: &Digest,
        ask: LeaseAsk,
        bound: Duration,
    ) -> Result<LeaseAnswer, AskError> {
        let mut failure = AskError::None;
        let mut first_unreachable = false;
        for index in self.responsible(digest) {
            let request = LeaseRequest {
                peer: self.0.me.id.clone(),
                digest: *digest,
                first_unreachable,
                ask: ask.clone(),
            };
            let answer = tokio::select! {
                biased;
                () = self.silence_of(index) => Err(AskError::Silent),
                answer = self.post_lease(index, &request, bound) => answer,
            };
            if answer.is_ok() {
                self.heard(|health| health.answered(self.0.clock.now(), index))
                    .await;
            }
            match answer {
                Ok(LeaseAnswer::NotFirst) => {}
                Ok(LeaseAnswer::Unknown) => {
                    self.0.trackers[index].wake.notify_one();
                    return Ok(LeaseAnswer::Unknown);
                }
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    first_unreachable = true;
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    /// Asks one tracker for a lease, or tells it about one. While it parks the question and says
    /// nothing else, it may be dead: then an announce finds out.
    async fn post_lease(
        &self,
        index: usize,
        request: &LeaseRequest,
        bound: Duration,
    ) -> Result<LeaseAnswer, AskError> {
        if matches!(request.ask, LeaseAsk::Take { .. }) {
            self.until_announced(index, &request.digest).await;
        }
        let answer = self.post(index, LEASE_PATH, request, bound);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = sleep(QUIET) => {
                    if lock(&self.0.health).is_quiet(self.0.clock.now(), index, QUIET) {
                        self.0.trackers[index].wake.notify_one();
                    }
                }
            }
        }
    }

    async fn post<Q: bincode::Encode, A: bincode::Decode<()>>(
        &self,
        index: usize,
        path: &str,
        question: &Q,
        bound: Duration,
    ) -> Result<A, AskError> {
        let url = format!("{}{path}", self.0.urls[index]);
        let request = self.0.client.post(url).body(codec::encode(question)?);
        let exchange = async {
            let answer = request.send().await?.error_for_status()?;
            Ok(codec::decode(&answer.bytes().await?)?)
        };
        timeout(bound, exchange)
            .await
            .map_err(|_| AskError::Timeout)?
    }

    async fn report(&self, event: TrackerEvent) {
        // Only fails when the driver is gone.
        let _ = self.0.events.send(event).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

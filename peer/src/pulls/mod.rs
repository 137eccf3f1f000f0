//! The records of image pulls. A pull lasts from the request for the manifest until every blob is
//! complete in the store or was sent to the runtime, or until there was no progress for too long.
//! Each pull ends with one log line that explains its duration.
//!
//! ```text
//! mirror                             driver
//!   PullStart (manifest) ────────────▶ open
//!   emitted, passed_through, failed    received, completed, waited
//!                                      end_finished: logs and counts finished pulls
//! ```
//!
//! The records are for people only: no code waits for them or decides by them. The number of pulls
//! and of remembered reports is bounded.

mod log;

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flotilla_common::digest::Digest;
use flotilla_common::swarm::StallTimes;
use flotilla_common::time::Time;
use flotilla_common::units::BitRate;
use flotilla_runtime::metrics::seconds_histogram;
use prometheus_client::metrics::histogram::Histogram;

use crate::stats::Counter;
use crate::status::{PullReport, PullResult, PullStatus, Sources, rounded, waits};

/// The maximum number of open pulls. The oldest is given up for a new one.
const MAX_OPEN: usize = 256;
/// Finished pulls that are remembered.
const MAX_FINISHED: usize = 16;
/// A pull whose blobs are complete is finished after the runtime read nothing for this long.
const IDLE: Duration = Duration::from_secs(2);
/// A pull with incomplete blobs is given up after nothing was received and nothing was read for
/// this long.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// A pull that starts.
#[derive(Clone, Debug)]
pub(crate) struct PullStart {
    /// The image's display name.
    pub(crate) image: String,
    pub(crate) manifest: Digest,
    /// The digests and sizes of its blobs.
    pub(crate) blobs: Vec<(Digest, u64)>,
    /// Whether it is downloaded into the store only.
    pub(crate) is_warming: bool,
    pub(crate) started: Time,
}

/// The source of a blob's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteSource {
    SameZone,
    OtherZones,
    OriginLeased,
    OriginUnleased,
}

/// A blob of an open pull.
#[derive(Debug)]
struct PulledBlob {
    digest: Digest,
    bytes: u64,
    emitted: u64,
    is_complete: bool,
    waited: StallTimes,
}

impl PulledBlob {
    fn is_emitted(&self) -> bool {
        self.emitted >= self.bytes
    }
}

/// A pull in progress.
#[derive(Debug)]
struct OpenPull {
    start: PullStart,
    blobs: Vec<PulledBlob>,
    sources: Sources,
    first_byte: Option<Time>,
    /// When bytes of it were last received or read.
    last_progress: Time,
    /// The peer's total waiting times when the pull started.
    initial_waits: StallTimes,
    /// The last error.
    error: Option<String>,
}

#[derive(Debug, Default)]
struct Table {
    open: Vec<OpenPull>,
    finished: VecDeque<PullReport>,
}

/// The records of all pulls.
#[derive(Debug)]
pub(crate) struct Pulls {
    table: Mutex<Table>,
    down: Option<BitRate>,
    pub(crate) pulled: Counter,
    pub(crate) given_up: Counter,
    pub(crate) refused: Counter,
    pub(crate) seconds: Histogram,
    pub(crate) first_byte_seconds: Histogram,
}

impl Pulls {
    /// No pulls, with this configured download limit.
    pub(crate) fn new(down: Option<BitRate>) -> Self {
        Self {
            table: Mutex::default(),
            down,
            pulled: Counter::default(),
            given_up: Counter::default(),
            refused: Counter::default(),
            seconds: seconds_histogram(),
            first_byte_seconds: seconds_histogram(),
        }
    }

    /// Opens a pull, unless it is open already. `waits` are the peer's total waiting times; `held`
    /// returns how many bytes of a blob are stored and whether it is complete.
    pub(crate) fn open(
        &self,
        start: PullStart,
        waits: StallTimes,
        held: impl Fn(&Digest) -> (u64, bool),
    ) {
        let mut table = self.lock();
        if table.open.iter().any(|pull| pull.is_same(&start)) {
            return;
        }
        if table.open.len() >= MAX_OPEN {
            let oldest = table.open.remove(0);
            let why = Some("too many concurrent pulls".to_owned());
            self.finish(&mut table, &oldest, PullResult::GivenUp, why, waits);
        }
        table.open.push(OpenPull::new(start, waits, held));
    }

    /// A chunk of a blob was received and stored.
    pub(crate) fn received(&self, now: Time, digest: &Digest, source: ByteSource, bytes: u64) {
        self.for_each_with(now, digest, |pull, _| {
            let sources = &mut pull.sources;
            *match source {
                ByteSource::SameZone => &mut sources.same_zone,
                ByteSource::OtherZones => &mut sources.other_zones,
                ByteSource::OriginLeased => &mut sources.origin_leased,
                ByteSource::OriginUnleased => &mut sources.origin_unleased,
            } += bytes;
        });
    }

    /// Bytes of a blob were passed through from an origin.
    pub(crate) fn passed_through(&self, now: Time, digest: &Digest, bytes: u64) {
        self.for_each_with(now, digest, |pull, _| pull.sources.passed_through += bytes);
    }

    /// Bytes of a blob were sent to the runtime.
    pub(crate) fn emitted(&self, now: Time, digest: &Digest, bytes: u64) {
        self.for_each_with(now, digest, |pull, at| {
            pull.first_byte.get_or_insert(now);
            pull.blobs[at].emitted += bytes;
        });
    }

    /// A blob is complete in the store.
    pub(crate) fn completed(&self, now: Time, digest: &Digest) {
        self.for_each_with(now, digest, |pull, at| pull.blobs[at].is_complete = true);
    }

    /// Sets the waiting times of a blob since it was wanted.
    pub(crate) fn waited(&self, digest: &Digest, times: StallTimes) {
        for pull in &mut self.lock().open {
            if let Some(at) = pull.find(digest) {
                pull.blobs[at].waited = times;
            }
        }
    }

    /// An error about a blob: the reason, if the pull is given up later.
    pub(crate) fn failed(&self, digest: &Digest, why: &str) {
        for pull in &mut self.lock().open {
            if pull.find(digest).is_some() {
                pull.error = Some(why.to_owned());
            }
        }
    }

    /// Logs and counts the pulls that are finished. A pull with a running download is not finished,
    /// even if the runtime has read the chunk from the store already: its bytes are not counted
    /// yet.
    pub(crate) fn end_finished(
        &self,
        now: Time,
        waits: StallTimes,
        is_being_fetched: impl Fn(&Digest) -> bool,
    ) {
        let mut table = self.lock();
        let mut at = 0;
        while let Some(pull) = table.open.get(at) {
            let is_counted = || !pull.blobs.iter().any(|blob| is_being_fetched(&blob.digest));
            let ended = pull
                .result(now)
                .filter(|result| *result == PullResult::GivenUp || is_counted());
            let Some(result) = ended else {
                at += 1;
                continue;
            };
            let pull = table.open.remove(at);
            let why = (result == PullResult::GivenUp).then(|| pull.why_given_up());
            self.finish(&mut table, &pull, result, why, waits);
        }
    }

    /// Ends all pulls because the peer stops. Pulls with incomplete blobs are given up.
    pub(crate) fn close(&self, waits: StallTimes) {
        let mut table = self.lock();
        for pull in core::mem::take(&mut table.open) {
            let (result, why) = if pull.is_complete() {
                (PullResult::Pulled, None)
            } else {
                (PullResult::GivenUp, Some("the peer was stopped".to_owned()))
            };
            self.finish(&mut table, &pull, result, why, waits);
        }
    }

    /// The open pulls. `held` returns how many bytes of a blob are stored.
    pub(crate) fn open_now(&self, now: Time, held: impl Fn(&Digest) -> u64) -> Vec<PullStatus> {
        self.lock()
            .open
            .iter()
            .map(|pull| pull.status(now, &held))
            .collect()
    }

    /// Whether the image of a manifest is being warmed.
    pub(crate) fn is_warming(&self, manifest: &Digest) -> bool {
        self.lock()
            .open
            .iter()
            .any(|pull| pull.start.is_warming && pull.start.manifest == *manifest)
    }

    /// The configured download limit.
    pub(crate) fn down(&self) -> Option<BitRate> {
        self.down
    }

    /// The last finished pulls, the newest first.
    pub(crate) fn finished(&self) -> Vec<PullReport> {
        self.lock().finished.iter().cloned().collect()
    }

    fn for_each_with(&self, now: Time, digest: &Digest, act: impl Fn(&mut OpenPull, usize)) {
        for pull in &mut self.lock().open {
            if let Some(at) = pull.find(digest) {
                pull.last_progress = now;
                act(pull, at);
            }
        }
    }

    fn finish(
        &self,
        table: &mut Table,
        pull: &OpenPull,
        result: PullResult,
        why: Option<String>,
        waits: StallTimes,
    ) {
        let report = pull.report(result, why, waits, self.down);
        if pull.is_reported() {
            log::finished(&report);
            match result {
                PullResult::Pulled => self.pulled.add(1),
                PullResult::GivenUp => self.given_up.add(1),
            }
            self.seconds.observe(report.seconds);
            if let Some(seconds) = report.first_byte_seconds {
                self.first_byte_seconds.observe(seconds);
            }
        }
        table.finished.push_front(report);
        table.finished.truncate(MAX_FINISHED);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenPull {
    fn new(start: PullStart, waits: StallTimes, held: impl Fn(&Digest) -> (u64, bool)) -> Self {
        let mut pull = Self {
            blobs: Vec::with_capacity(start.blobs.len()),
            sources: Sources::default(),
            first_byte: None,
            last_progress: start.started,
            initial_waits: waits,
            error: None,
            start,
        };
        for (digest, bytes) in pull.start.blobs.clone() {
            if pull.find(&digest).is_none() {
                let (held, is_complete) = held(&digest);
                pull.sources.own_store += held;
                pull.blobs.push(PulledBlob {
                    digest,
                    bytes,
                    emitted: 0,
                    is_complete,
                    waited: StallTimes::default(),
                });
            }
        }
        pull
    }

    fn is_same(&self, other: &PullStart) -> bool {
        self.start.manifest == other.manifest && self.start.is_warming == other.is_warming
    }

    fn find(&self, digest: &Digest) -> Option<usize> {
        self.blobs.iter().position(|blob| blob.digest == *digest)
    }

    /// The result, if the pull is finished.
    fn result(&self, now: Time) -> Option<PullResult> {
        let idle = now.saturating_since(self.last_progress);
        let is_read = self.start.is_warming || self.blobs.iter().all(PulledBlob::is_emitted);
        if self.is_complete() && (is_read || idle >= IDLE) {
            Some(PullResult::Pulled)
        } else {
            (idle >= GIVE_UP_AFTER).then_some(PullResult::GivenUp)
        }
    }

    fn is_complete(&self) -> bool {
        self.blobs
            .iter()
            .all(|blob| blob.is_complete || blob.is_emitted())
    }

    /// Whether the pull is logged and counted. A request for the manifest of a complete image alone
    /// is not a pull.
    fn is_reported(&self) -> bool {
        self.start.is_warming || self.first_byte.is_some() || self.sources.received() > 0
    }

    fn emitted(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.emitted).sum()
    }

    fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.bytes).sum()
    }

    fn why_given_up(&self) -> String {
        self.error.clone().unwrap_or_else(|| {
            let seconds = GIVE_UP_AFTER.as_secs();
            format!("no bytes received or read for {seconds} s")
        })
    }

    fn status(&self, now: Time, held: &impl Fn(&Digest) -> u64) -> PullStatus {
        PullStatus {
            image: self.start.image.clone(),
            manifest: self.start.manifest,
            is_warming: self.start.is_warming,
            bytes: self.bytes(),
            held: self.blobs.iter().map(|blob| held(&blob.digest)).sum(),
            emitted: self.emitted(),
            blobs: self.blobs.len() as u32,
            complete: self.blobs.iter().filter(|blob| blob.is_complete).count() as u32,
            seconds: rounded(now.saturating_since(self.start.started).as_secs_f64()),
            sources: self.sources,
            trouble: self.error.clone(),
        }
    }

    fn report(
        &self,
        result: PullResult,
        why: Option<String>,
        waits_now: StallTimes,
        down: Option<BitRate>,
    ) -> PullReport {
        let since = |time: Time| time.saturating_since(self.start.started).as_secs_f64();
        let seconds = since(self.last_progress);
        let mut blob_waits = StallTimes::default();
        for blob in &self.blobs {
            blob_waits += blob.waited;
        }
        let received = self.sources.received();
        let bound = down
            .filter(|_| received > 0)
            .map(|down| down.time_for(received).as_secs_f64());
        PullReport {
            image: self.start.image.clone(),
            manifest: self.start.manifest,
            result,
            why,
            is_warming: self.start.is_warming,
            bytes: self.bytes(),
            emitted: self.emitted(),
            sources: self.sources,
            seconds: rounded(seconds),
            first_byte_seconds: self.first_byte.map(|time| rounded(since(time))),
            bytes_per_second: (received.max(self.emitted()) as f64 / seconds.max(0.001)).round(),
            waits: waits(&(waits_now - self.initial_waits)),
            blob_waits: waits(&blob_waits),
            bound_seconds: bound.map(rounded),
            over_bound: bound.map(|bound| rounded(seconds / bound)),
        }
    }
}

#[cfg(test)]
mod tests;

//! Images on their way through the mirror: from the request for the manifest until every blob is
//! here or with the runtime, or nothing has come for too long. Each ends in one line of the log
//! that explains it.
//!
//! ```text
//! mirror                         driver
//!   opened (manifest) ────────────▶ open
//!   emitted, passed, failed         received, completed, waited
//!                                   settle: what is over is logged and counted
//! ```
//!
//! It only keeps accounts: nothing waits for it, and nothing is decided by it. Bounded: so many
//! pulls at once, so many blobs of one.

mod log;

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flotilla_common::digest::Digest;
use flotilla_common::swarm::WaitTimes;
use flotilla_common::time::Time;
use flotilla_common::units::BitRate;
use flotilla_runtime::metrics::seconds_histogram;
use prometheus_client::metrics::histogram::Histogram;

use crate::stats::Counter;
use crate::status::{PullReport, PullResult, PullStatus, Sources, rounded, waits};

/// Pulls at once at most; the oldest is given up for another one.
const MAX_OPEN: usize = 256;
/// Pulls that are over and remembered.
const MAX_FINISHED: usize = 16;
/// A pull of which all is here is over once the runtime has asked for nothing more for so long.
const QUIET: Duration = Duration::from_secs(2);
/// A pull of which something is missing is given up once nothing has come and nothing was read for
/// so long.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// A pull that begins.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// As people name it.
    pub(crate) image: String,
    pub(crate) manifest: Digest,
    /// Its blobs and their sizes.
    pub(crate) blobs: Vec<(Digest, u64)>,
    /// Whether it is fetched for the store only.
    pub(crate) is_warming: bool,
    pub(crate) started: Time,
}

/// Where bytes of a blob came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    SameZone,
    OtherZones,
    OriginLeased,
    OriginUnleased,
}

#[derive(Debug)]
struct Blob {
    digest: Digest,
    bytes: u64,
    emitted: u64,
    is_complete: bool,
    waited: WaitTimes,
}

impl Blob {
    fn is_emitted(&self) -> bool {
        self.emitted >= self.bytes
    }
}

#[derive(Debug)]
struct Pull {
    opened: Opened,
    blobs: Vec<Blob>,
    sources: Sources,
    first_byte: Option<Time>,
    /// When anything last happened to it.
    moved: Time,
    /// What the peer had waited when it began.
    stood_still: WaitTimes,
    trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Table {
    open: Vec<Pull>,
    finished: VecDeque<PullReport>,
}

/// All pulls.
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
    /// No pulls, behind a downlink with this cap.
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

    /// A pull begins; `held` says of each of its blobs how much is in the store and whether that is
    /// all of it. The runtime that asks again for the manifest of a pull under way changes nothing.
    pub(crate) fn open(
        &self,
        opened: Opened,
        stood_still: WaitTimes,
        held: impl Fn(&Digest) -> (u64, bool),
    ) {
        let mut table = self.lock();
        if table.open.iter().any(|pull| pull.is_same(&opened)) {
            return;
        }
        if table.open.len() >= MAX_OPEN {
            let oldest = table.open.remove(0);
            let why = "too many pulls at once".to_owned();
            self.finish(
                &mut table,
                &oldest,
                PullResult::GivenUp,
                Some(why),
                stood_still,
            );
        }
        table.open.push(Pull::new(opened, stood_still, held));
    }

    /// A chunk of a blob came and was stored.
    pub(crate) fn received(&self, now: Time, digest: &Digest, from: From, bytes: u64) {
        self.each(now, digest, |pull, _| {
            let sources = &mut pull.sources;
            *match from {
                From::SameZone => &mut sources.same_zone,
                From::OtherZones => &mut sources.other_zones,
                From::OriginLeased => &mut sources.origin_leased,
                From::OriginUnleased => &mut sources.origin_unleased,
            } += bytes;
        });
    }

    /// Bytes of a blob came from an origin for the runtime only.
    pub(crate) fn passed(&self, now: Time, digest: &Digest, bytes: u64) {
        self.each(now, digest, |pull, _| pull.sources.passed_through += bytes);
    }

    /// Bytes of a blob went to the runtime.
    pub(crate) fn emitted(&self, now: Time, digest: &Digest, bytes: u64) {
        self.each(now, digest, |pull, at| {
            pull.first_byte.get_or_insert(now);
            pull.blobs[at].emitted += bytes;
        });
    }

    /// A blob is complete in the store.
    pub(crate) fn completed(&self, now: Time, digest: &Digest) {
        self.each(now, digest, |pull, at| pull.blobs[at].is_complete = true);
    }

    /// A blob has waited so long since it was wanted.
    pub(crate) fn waited(&self, digest: &Digest, times: WaitTimes) {
        for pull in &mut self.lock().open {
            if let Some(at) = pull.find(digest) {
                pull.blobs[at].waited = times;
            }
        }
    }

    /// Something about a blob went wrong: why a pull is given up, if it is.
    pub(crate) fn failed(&self, digest: &Digest, why: &str) {
        for pull in &mut self.lock().open {
            if pull.find(digest).is_some() {
                pull.trouble = Some(why.to_owned());
            }
        }
    }

    /// Logs and counts the pulls that are over. One is not while a chunk of it counts as on its
    /// way: the runtime may have read it from the store before its download is reported, and the
    /// report would say too little.
    pub(crate) fn settle(
        &self,
        now: Time,
        stood_still: WaitTimes,
        is_on_its_way: impl Fn(&Digest) -> bool,
    ) {
        let mut table = self.lock();
        let mut at = 0;
        while let Some(pull) = table.open.get(at) {
            let is_counted = || !pull.blobs.iter().any(|blob| is_on_its_way(&blob.digest));
            let over = pull
                .result(now)
                .filter(|result| *result == PullResult::GivenUp || is_counted());
            let Some(result) = over else {
                at += 1;
                continue;
            };
            let pull = table.open.remove(at);
            let why = (result == PullResult::GivenUp).then(|| pull.why_given_up());
            self.finish(&mut table, &pull, result, why, stood_still);
        }
    }

    /// Nothing comes after this: what is not here by now is given up.
    pub(crate) fn close(&self, stood_still: WaitTimes) {
        let mut table = self.lock();
        for pull in core::mem::take(&mut table.open) {
            let (result, why) = if pull.is_all_here() {
                (PullResult::Pulled, None)
            } else {
                (PullResult::GivenUp, Some("the peer was stopped".to_owned()))
            };
            self.finish(&mut table, &pull, result, why, stood_still);
        }
    }

    /// The pulls under way; `held` says how much of a blob is in the store.
    pub(crate) fn open_now(&self, now: Time, held: impl Fn(&Digest) -> u64) -> Vec<PullStatus> {
        self.lock()
            .open
            .iter()
            .map(|pull| pull.status(now, &held))
            .collect()
    }

    /// Whether the image under a manifest is being warmed.
    pub(crate) fn is_warming(&self, manifest: &Digest) -> bool {
        self.lock()
            .open
            .iter()
            .any(|pull| pull.opened.is_warming && pull.opened.manifest == *manifest)
    }

    /// The cap of the own downlink.
    pub(crate) fn down(&self) -> Option<BitRate> {
        self.down
    }

    /// The last pulls that are over, the latest first.
    pub(crate) fn finished(&self) -> Vec<PullReport> {
        self.lock().finished.iter().cloned().collect()
    }

    fn each(&self, now: Time, digest: &Digest, act: impl Fn(&mut Pull, usize)) {
        for pull in &mut self.lock().open {
            if let Some(at) = pull.find(digest) {
                pull.moved = now;
                act(pull, at);
            }
        }
    }

    fn finish(
        &self,
        table: &mut Table,
        pull: &Pull,
        result: PullResult,
        why: Option<String>,
        stood_still: WaitTimes,
    ) {
        let report = pull.report(result, why, stood_still, self.down);
        if pull.is_worth_a_word() {
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
        // Nothing panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pull {
    fn new(opened: Opened, stood_still: WaitTimes, held: impl Fn(&Digest) -> (u64, bool)) -> Self {
        let mut pull = Self {
            blobs: Vec::with_capacity(opened.blobs.len()),
            sources: Sources::default(),
            first_byte: None,
            moved: opened.started,
            stood_still,
            trouble: None,
            opened,
        };
        for (digest, bytes) in pull.opened.blobs.clone() {
            if pull.find(&digest).is_none() {
                let (held, is_complete) = held(&digest);
                pull.sources.own_store += held;
                pull.blobs.push(Blob {
                    digest,
                    bytes,
                    emitted: 0,
                    is_complete,
                    waited: WaitTimes::default(),
                });
            }
        }
        pull
    }

    fn is_same(&self, other: &Opened) -> bool {
        self.opened.manifest == other.manifest && self.opened.is_warming == other.is_warming
    }

    fn find(&self, digest: &Digest) -> Option<usize> {
        self.blobs.iter().position(|blob| blob.digest == *digest)
    }

    /// How it has ended, if it has.
    fn result(&self, now: Time) -> Option<PullResult> {
        let rests = now.saturating_since(self.moved);
        let is_all_out = self.opened.is_warming || self.blobs.iter().all(Blob::is_emitted);
        if self.is_all_here() && (is_all_out || rests >= QUIET) {
            Some(PullResult::Pulled)
        } else {
            (rests >= GIVEN_UP).then_some(PullResult::GivenUp)
        }
    }

    fn is_all_here(&self) -> bool {
        self.blobs
            .iter()
            .all(|blob| blob.is_complete || blob.is_emitted())
    }

    /// Whoever only looks at a manifest whose image is here pulls nothing.
    fn is_worth_a_word(&self) -> bool {
        self.opened.is_warming || self.first_byte.is_some() || self.sources.received() > 0
    }

    fn emitted(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.emitted).sum()
    }

    fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.bytes).sum()
    }

    fn why_given_up(&self) -> String {
        self.trouble.clone().unwrap_or_else(|| {
            format!(
                "for {} s nothing came, and nothing was read",
                GIVEN_UP.as_secs()
            )
        })
    }

    fn status(&self, now: Time, held: &impl Fn(&Digest) -> u64) -> PullStatus {
        PullStatus {
            image: self.opened.image.clone(),
            manifest: self.opened.manifest,
            is_warming: self.opened.is_warming,
            bytes: self.bytes(),
            held: self.blobs.iter().map(|blob| held(&blob.digest)).sum(),
            emitted: self.emitted(),
            blobs: self.blobs.len() as u32,
            complete: self.blobs.iter().filter(|blob| blob.is_complete).count() as u32,
            seconds: rounded(now.saturating_since(self.opened.started).as_secs_f64()),
            sources: self.sources,
            trouble: self.trouble.clone(),
        }
    }

    fn report(
        &self,
        result: PullResult,
        why: Option<String>,
        stood_still: WaitTimes,
        down: Option<BitRate>,
    ) -> PullReport {
        let since = |time: Time| time.saturating_since(self.opened.started).as_secs_f64();
        let seconds = since(self.moved);
        let mut blob_waits = WaitTimes::default();
        for blob in &self.blobs {
            blob_waits += blob.waited;
        }
        let received = self.sources.received();
        let bound = down
            .filter(|_| received > 0)
            .map(|down| down.time_for(received).as_secs_f64());
        PullReport {
            image: self.opened.image.clone(),
            manifest: self.opened.manifest,
            result,
            why,
            is_warming: self.opened.is_warming,
            bytes: self.bytes(),
            emitted: self.emitted(),
            sources: self.sources,
            seconds: rounded(seconds),
            first_byte_seconds: self.first_byte.map(|time| rounded(since(time))),
            bytes_per_second: (received.max(self.emitted()) as f64 / seconds.max(0.001)).round(),
            waits: waits(&(stood_still - self.stood_still)),
            blob_waits: waits(&blob_waits),
            bound_seconds: bound.map(rounded),
            over_bound: bound.map(|bound| rounded(seconds / bound)),
        }
    }
}

#[cfg(test)]
mod tests;

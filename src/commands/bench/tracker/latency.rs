//! How long the tracker takes, as all VMs of the benchmark see it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_common::bounds::percentile;
use flotilla_peer::{ExchangeKind, ExchangeObserver, PostError};

/// Errors that are kept for the report.
const KEPT_ERRORS: usize = 5;

/// The requests of all VMs since the last [`Latencies::take`].
#[derive(Debug, Default)]
pub(super) struct Latencies(Mutex<Requests>);

/// How requests ended.
#[derive(Debug, Default)]
pub(super) struct Requests {
    announce_s: Vec<f64>,
    lease_update_s: Vec<f64>,
    /// Lease requests that were answered; the tracker may have parked them.
    pub(super) lease_requests: u64,
    pub(super) errors: u64,
    /// Some of the errors and how often each came.
    pub(super) error_texts: BTreeMap<String, u64>,
}

impl Latencies {
    /// The requests so far; the next call returns those that end later.
    pub(super) fn take(&self) -> Requests {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExchangeObserver for Latencies {
    fn answered(&self, kind: ExchangeKind, elapsed: Duration) {
        let mut requests = self.lock();
        match kind {
            ExchangeKind::Announce => requests.announce_s.push(elapsed.as_secs_f64()),
            ExchangeKind::LeaseUpdate => requests.lease_update_s.push(elapsed.as_secs_f64()),
            ExchangeKind::LeaseRequest => requests.lease_requests += 1,
        }
    }

    fn failed(&self, _kind: ExchangeKind, error: &PostError) {
        let mut requests = self.lock();
        requests.errors += 1;
        let text = error_text(error);
        if requests.error_texts.len() < KEPT_ERRORS || requests.error_texts.contains_key(&text) {
            *requests.error_texts.entry(text).or_default() += 1;
        }
    }
}

/// The error with its causes.
fn error_text(error: &PostError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Requests {
    pub(super) fn announces(&self) -> usize {
        self.announce_s.len()
    }

    pub(super) fn lease_updates(&self) -> usize {
        self.lease_update_s.len()
    }

    /// The percentile of the announces' latencies, in milliseconds.
    pub(super) fn announce_ms(&mut self, share: f64) -> f64 {
        percentile_ms(&mut self.announce_s, share)
    }

    /// The percentile of the lease updates' latencies, in milliseconds.
    pub(super) fn lease_update_ms(&mut self, share: f64) -> f64 {
        percentile_ms(&mut self.lease_update_s, share)
    }
}

/// The percentile of times in seconds, in milliseconds.
pub(super) fn percentile_ms(seconds: &mut [f64], share: f64) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    percentile(seconds, share) * 1e3
}

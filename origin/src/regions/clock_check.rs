//! Compares this replica's wall clock with the storage's, by an object that was just written.
//!
//! Stamps order changes of different regions, so a replica whose clock is wrong would undo changes
//! of others, or make its own last for ever. It refuses changes until its clock is corrected.

use core::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio::sync::Mutex;

use crate::layout;
use crate::nonce::nonce;
use crate::registry::Registry;

/// How far the clocks may differ.
const MAX_SKEW_MS: i64 = 60_000;

/// The result of the last comparison.
#[derive(Debug, Default)]
pub(crate) struct ClockCheck {
    skew_ms: AtomicI64,
    is_wrong: AtomicBool,
    has_run: AtomicBool,
    /// Held by the first comparison, for which the first changes wait.
    first: Mutex<()>,
}

impl ClockCheck {
    /// Whether changes must be refused. Compares the clocks if they have not been compared: of a
    /// storage that fails, each caller asks again.
    pub(crate) async fn refuses_changes(&self, registry: &Registry) -> bool {
        if !self.has_run.load(Ordering::Acquire) {
            let _held = self.first.lock().await;
            if !self.has_run.load(Ordering::Acquire) {
                self.run(registry).await;
            }
        }
        self.is_wrong.load(Ordering::Relaxed)
    }

    /// Compares the clocks. Without an answer, or with a storage that tells no times, the last
    /// result stays.
    pub(crate) async fn run(&self, registry: &Registry) {
        let key = layout::clock_probe(nonce());
        let storage = registry.storage();
        if storage.create(&key, "clock".into()).await.is_err() {
            return;
        }
        let written = storage.read(&key).await;
        let now_ms = i64::try_from(registry.wall_clock_nanos() / 1_000_000).unwrap_or(i64::MAX);
        // One that stays does no harm.
        let _deleted = storage.delete(&key).await;
        let Ok(Some(object)) = written else { return };
        let Some(modified) = object.modified else {
            self.has_run.store(true, Ordering::Release);
            return;
        };
        let modified_ms = i64::try_from(modified.unix_ms()).unwrap_or(i64::MAX);
        let skew_ms = now_ms.saturating_sub(modified_ms);
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
        let is_wrong = skew_ms.abs() > MAX_SKEW_MS;
        if is_wrong {
            tracing::error!(
                skew_ms,
                "the clock of this machine differs from the storage's by more than a minute; refusing changes until it is corrected"
            );
        } else {
            registry.trust_wall_clock();
        }
        if self.is_wrong.swap(is_wrong, Ordering::Relaxed) && !is_wrong {
            tracing::info!(skew_ms, "the clock agrees with the storage's again");
        }
        self.has_run.store(true, Ordering::Release);
    }

    /// How far this machine's clock is ahead of the storage's, in milliseconds.
    pub(crate) fn skew_ms(&self) -> i64 {
        self.skew_ms.load(Ordering::Relaxed)
    }
}

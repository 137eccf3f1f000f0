//! Which blobs this process is copying, and for whom: each at most once, and what a client or
//! another region waits for has places and bandwidth of its own.
//!
//! ```text
//! turn (one for each digest) ──▶ permit (background, or awaited) ──▶ bytes (paced, or not)
//! ```
//! A copy in the background for which a client begins to wait becomes an awaited one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::digest::Digest;
use flotilla_runtime::rate::Limiter;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, SemaphorePermit, watch};

/// Blobs that one replica copies concurrently in the background, and as many that are waited for.
pub(crate) const COPIES_AT_ONCE: usize = 8;

/// Who wants a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// The follower, or a sweep.
    Background,
    /// A client or another region waits for it.
    Awaited,
}

/// The copies of one process.
#[derive(Debug)]
pub(super) struct CopyTurns {
    background: Semaphore,
    awaited: Semaphore,
    running: Mutex<HashMap<Digest, Arc<Running>>>,
}

#[derive(Debug)]
struct Running {
    turn: Arc<AsyncMutex<()>>,
    is_awaited: watch::Sender<bool>,
}

impl Running {
    async fn wait_until_awaited(&self) {
        let mut is_awaited = self.is_awaited.subscribe();
        // The sender is in `self`, so it is not dropped.
        let _is_awaited = is_awaited.wait_for(|is| *is).await.is_ok();
    }
}

/// The right to copy one blob.
#[derive(Debug)]
pub(super) struct CopyTurn<'a> {
    turns: &'a CopyTurns,
    digest: Digest,
    running: Arc<Running>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Default for CopyTurns {
    fn default() -> Self {
        Self {
            background: Semaphore::new(COPIES_AT_ONCE),
            awaited: Semaphore::new(COPIES_AT_ONCE),
            running: Mutex::default(),
        }
    }
}

impl CopyTurns {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other copy of the blob runs here.
    pub(super) async fn turn(&self, digest: Digest, urgency: Urgency) -> CopyTurn<'_> {
        let running = Arc::clone(self.lock().entry(digest).or_insert_with(|| {
            Arc::new(Running {
                turn: Arc::default(),
                is_awaited: watch::Sender::new(false),
            })
        }));
        if urgency == Urgency::Awaited {
            running.is_awaited.send_replace(true);
        }
        let mut turn = CopyTurn {
            turns: self,
            digest,
            running,
            turn: None,
        };
        let lock = Arc::clone(&turn.running.turn);
        turn.turn = Some(lock.lock_owned().await);
        turn
    }
}

impl CopyTurn<'_> {
    /// Waits for a place to copy; `None` if the replica is stopping.
    pub(super) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        tokio::select! {
            permit = self.turns.background.acquire() => permit.ok(),
            () = self.running.wait_until_awaited() => self.turns.awaited.acquire().await.ok(),
        }
    }

    /// A limit for the bytes of this copy, which ends when the copy is waited for.
    pub(super) fn pace(&self, down: Limiter) -> Pace {
        Pace {
            is_awaited: self.running.is_awaited.subscribe(),
            down,
        }
    }
}

impl Drop for CopyTurn<'_> {
    fn drop(&mut self) {
        self.turn = None;
        let mut running = self.turns.lock();
        // The map has one, and this turn another.
        if Arc::strong_count(&self.running) == 2 {
            running.remove(&self.digest);
        }
    }
}

/// Paces the bytes of one copy.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    is_awaited: watch::Receiver<bool>,
    down: Limiter,
}

impl Pace {
    /// Waits until `bytes` may pass.
    pub(super) async fn take(&self, bytes: usize) {
        let mut is_awaited = self.is_awaited.clone();
        tokio::select! {
            biased;
            Ok(_) = is_awaited.wait_for(|is| *is) => {}
            () = self.down.take(bytes) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use flotilla_common::units::BitRate;
    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    fn digest(number: usize) -> Digest {
        Digest::sha256(&number.to_le_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn blobs_are_copied_once_at_a_time() {
        let turns = CopyTurns::default();
        let first = turns.turn(digest(1), Urgency::Background).await;
        let second = turns.turn(digest(1), Urgency::Background);
        assert!(timeout(MOMENT, second).await.is_err());
        let other = turns.turn(digest(2), Urgency::Background);
        let other = timeout(MOMENT, other).await.expect("another blob");
        drop(first);
        let second = turns.turn(digest(1), Urgency::Background);
        let second = timeout(MOMENT, second).await.expect("the first ended");
        drop((second, other));
        assert!(turns.lock().is_empty());
    }

    /// All places are taken by copies in the background.
    #[tokio::test(start_paused = true)]
    async fn awaited_copies_have_places_of_their_own() {
        let turns = CopyTurns::default();
        let mut running = Vec::new();
        for number in 0..COPIES_AT_ONCE {
            running.push(turns.turn(digest(number), Urgency::Background).await);
        }
        let mut permits = Vec::new();
        for turn in &running {
            permits.push(turn.permit().await.expect("a place"));
        }
        let late = turns.turn(digest(100), Urgency::Background).await;
        assert!(timeout(MOMENT, late.permit()).await.is_err());
        let awaited = turns.turn(digest(101), Urgency::Awaited).await;
        let permit = timeout(MOMENT, awaited.permit()).await;
        assert!(permit.expect("at once").is_some());
        // A client begins to wait for the one that waits for a place.
        let wanted = turns.turn(digest(100), Urgency::Awaited);
        assert!(timeout(MOMENT, wanted).await.is_err());
        let permit = timeout(MOMENT, late.permit()).await;
        assert!(permit.expect("at once").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn limit_of_bandwidth_ends_when_a_copy_is_waited_for() {
        let turns = CopyTurns::default();
        let turn = turns.turn(digest(1), Urgency::Background).await;
        let pace = turn.pace(Limiter::new(BitRate(8)));
        let piece = pace.take(1_000_000);
        let mut piece = core::pin::pin!(piece);
        assert!(timeout(Duration::from_mins(1), &mut piece).await.is_err());
        let wanted = turns.turn(digest(1), Urgency::Awaited);
        assert!(timeout(MOMENT, wanted).await.is_err());
        timeout(MOMENT, piece).await.expect("at once");
    }
}

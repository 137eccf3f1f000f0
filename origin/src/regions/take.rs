//! Keys that other regions asked this one to copy: a bounded queue between the endpoint and the
//! follower.
//!
//! ```text
//! source ── take ──▶ TakeQueue::take ──▶ TakeOrders::next ──▶ the follower copies the keys
//!        ◀─ merged ─ (waits, if asked to)  ◀── TakeOrder::finish ──'
//! ```
//! An order that does not fit is dropped, which costs only time: the journal still lists its keys.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{FactKey, TakeAnswer, TakeRequest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Keys and blobs of orders that are not finished.
const MAX_QUEUED: usize = 1_024;
/// How long a sender that waits is waited for, before bytes are counted.
const MERGE_TIMEOUT: Duration = Duration::from_secs(60);
/// The bandwidth that is assumed for bytes that must be copied first, in bytes per second.
const ASSUMED_RATE: u64 = 10_000_000;
/// The maximum wait of a sender, whatever must be copied.
pub(crate) const MAX_TAKE_WAIT: Duration = Duration::from_hours(1);

/// What came of orders, for metrics.
#[derive(Debug, Default)]
struct TakeCounts {
    queued: AtomicU64,
    dropped: AtomicU64,
    merged: AtomicU64,
    unmerged: AtomicU64,
}

/// The sending side. Clones share the queue.
#[derive(Clone, Debug)]
pub(crate) struct TakeQueue {
    orders: mpsc::Sender<TakeOrder>,
    room: Arc<Semaphore>,
    counts: Arc<TakeCounts>,
}

/// The receiving side.
#[derive(Debug)]
pub(crate) struct TakeOrders {
    orders: mpsc::Receiver<TakeOrder>,
}

/// Keys to copy from a region. Dropped unfinished, it answers that they are not merged.
#[derive(Debug)]
pub(crate) struct TakeOrder {
    /// The region that has them.
    pub(crate) from: RegionName,
    /// The keys.
    pub(crate) keys: Vec<FactKey>,
    /// Blobs that keys will soon name, with a repository that has them.
    pub(crate) blobs: Vec<(RepositoryName, Digest)>,
    waiter: Option<Waiter>,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Waiter {
    merged: oneshot::Sender<bool>,
    /// Bytes that must be copied first.
    bytes: Arc<AtomicU64>,
}

/// A queue of orders.
pub(crate) fn take_queue() -> (TakeQueue, TakeOrders) {
    let (sender, orders) = mpsc::channel(MAX_QUEUED);
    let queue = TakeQueue {
        orders: sender,
        room: Arc::new(Semaphore::new(MAX_QUEUED)),
        counts: Arc::default(),
    };
    (queue, TakeOrders { orders })
}

impl TakeQueue {
    /// Queues an order of the region `from`. If it asks to wait, returns once it is finished: at
    /// the latest after 60 s and the time that its bytes take at 10 MB/s.
    pub(crate) async fn take(&self, from: RegionName, request: TakeRequest) -> TakeAnswer {
        let mut pending = None;
        let waiter = request.wait.then(|| {
            let (merged, answer) = oneshot::channel();
            let bytes = Arc::new(AtomicU64::new(0));
            pending = Some((answer, Arc::clone(&bytes)));
            Waiter { merged, bytes }
        });
        if !self.push(from, request, waiter) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return TakeAnswer { merged: false };
        }
        let Some((answer, bytes)) = pending else {
            self.counts.queued.fetch_add(1, Ordering::Relaxed);
            return TakeAnswer { merged: false };
        };
        let merged = wait_until_finished(answer, &bytes).await;
        let count = match merged {
            true => &self.counts.merged,
            false => &self.counts.unmerged,
        };
        count.fetch_add(1, Ordering::Relaxed);
        TakeAnswer { merged }
    }

    /// Whether there was room.
    fn push(&self, from: RegionName, request: TakeRequest, waiter: Option<Waiter>) -> bool {
        let len = (request.keys.len() + request.blobs.len()).max(1);
        let room = u32::try_from(len)
            .ok()
            .and_then(|len| Arc::clone(&self.room).try_acquire_many_owned(len).ok());
        let Some(room) = room else {
            return false;
        };
        let order = TakeOrder {
            from,
            keys: request.keys,
            blobs: request.blobs,
            waiter,
            _room: room,
        };
        self.orders.try_send(order).is_ok()
    }

    /// Orders so far, by outcome.
    pub(crate) fn by_outcome(&self) -> [(&'static str, u64); 4] {
        let counts = &self.counts;
        [
            ("queued", &counts.queued),
            ("dropped", &counts.dropped),
            ("merged", &counts.merged),
            ("unmerged", &counts.unmerged),
        ]
        .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }
}

/// Waits for the outcome of an order. The deadline moves with the bytes that its closure turns out
/// to have.
async fn wait_until_finished(mut answer: oneshot::Receiver<bool>, bytes: &AtomicU64) -> bool {
    let started = Instant::now();
    loop {
        let deadline = started + wait_limit(bytes.load(Ordering::Relaxed));
        match timeout_at(deadline, &mut answer).await {
            Ok(merged) => return merged.unwrap_or(false),
            Err(_) if started + wait_limit(bytes.load(Ordering::Relaxed)) > deadline => {}
            Err(_) => return false,
        }
    }
}

/// How long a sender waits until keys are merged whose blobs have so many bytes.
pub(super) fn wait_limit(bytes: u64) -> Duration {
    (MERGE_TIMEOUT + Duration::from_secs(bytes / ASSUMED_RATE)).min(MAX_TAKE_WAIT)
}

impl TakeOrders {
    /// Waits for the next order; `None` once the origin stops.
    pub(crate) async fn next(&mut self) -> Option<TakeOrder> {
        self.orders.recv().await
    }
}

impl TakeOrder {
    /// Whether the sender waits, and has not given up.
    pub(crate) fn is_awaited(&self) -> bool {
        let waiter = self.waiter.as_ref();
        waiter.is_some_and(|waiter| !waiter.merged.is_closed())
    }

    /// Adds bytes that must be copied first, so that the sender is kept waiting longer.
    pub(crate) fn expect_bytes(&self, bytes: u64) {
        if let Some(waiter) = &self.waiter {
            let add = |sum: u64| Some(sum.saturating_add(bytes));
            let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
            // The closure never refuses.
            let _previous = waiter.bytes.fetch_update(set, get, add);
        }
    }

    /// Answers a sender that waits. `merged`: all keys are merged, and none is left out by the
    /// policy.
    pub(crate) fn finish(self, merged: bool) {
        if let Some(waiter) = self.waiter {
            // A sender that has gone needs no answer.
            let _gone = waiter.merged.send(merged);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn request(keys: usize, wait: bool) -> TakeRequest {
        let key = |number| {
            let tag = format!("v{number}").parse().unwrap();
            FactKey::Tag("app".parse().unwrap(), tag)
        };
        TakeRequest {
            keys: (0..keys).map(key).collect(),
            blobs: Vec::new(),
            wait,
        }
    }

    fn us() -> RegionName {
        "us-1".parse().unwrap()
    }

    #[tokio::test]
    async fn orders_beyond_the_queue_are_dropped() {
        let (queue, mut orders) = take_queue();
        queue.take(us(), request(MAX_QUEUED - 1, false)).await;
        queue.take(us(), request(2, true)).await;
        queue.take(us(), request(1, false)).await;
        assert_eq!(queue.by_outcome()[..2], [("queued", 2), ("dropped", 1)]);
        // An order that is being worked on still takes its room.
        let first = orders.next().await.unwrap();
        assert_eq!(first.keys.len(), MAX_QUEUED - 1);
        queue.take(us(), request(1, false)).await;
        assert_eq!(queue.by_outcome()[1], ("dropped", 2));
        first.finish(true);
        queue.take(us(), request(MAX_QUEUED - 1, false)).await;
        assert_eq!(queue.by_outcome()[0], ("queued", 3));
    }

    #[tokio::test(start_paused = true)]
    async fn sender_waits_for_the_outcome_and_its_bytes() {
        let (queue, mut orders) = take_queue();
        let take = async || {
            let started = Instant::now();
            let answer = queue.take(us(), request(1, true)).await;
            (answer.merged, started.elapsed().as_secs())
        };
        for merged in [true, false] {
            let follow = async {
                let order = orders.next().await.unwrap();
                assert!(order.is_awaited());
                tokio::time::sleep(Duration::from_secs(5)).await;
                order.finish(merged);
            };
            assert_eq!(tokio::join!(take(), follow).0, (merged, 5));
        }
        // An order that is dropped.
        let drop_it = async { drop(orders.next().await) };
        assert_eq!(tokio::join!(take(), drop_it).0, (false, 0));
        // 100 MB take 10 s more, and the caller is let go then.
        let hang = async {
            let order = orders.next().await.unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
            order.expect_bytes(100_000_000);
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(!order.is_awaited());
        };
        assert_eq!(tokio::join!(take(), hang).0, (false, 70));
        drop(orders);
        assert_eq!(take().await, (false, 0));
    }
}

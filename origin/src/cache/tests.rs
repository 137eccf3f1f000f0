//! Stories of concurrent readers and writers.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::atomic::AtomicUsize;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::*;

/// A storage of one value, whose reads are counted and end when they are let through.
struct Backend {
    value: Mutex<Option<u32>>,
    reads: AtomicUsize,
    gate: Semaphore,
}

impl Backend {
    fn new(value: Option<u32>, open: bool) -> Arc<Self> {
        let gate = Semaphore::new(if open { Semaphore::MAX_PERMITS } else { 0 });
        Arc::new(Self {
            value: Mutex::new(value),
            reads: AtomicUsize::new(0),
            gate,
        })
    }

    fn read(
        self: &Arc<Self>,
    ) -> impl Fn() -> futures_util::future::BoxFuture<'static, Result<Option<u32>, StorageError>>
    {
        let backend = Arc::clone(self);
        move || {
            let backend = Arc::clone(&backend);
            Box::pin(async move {
                backend.reads.fetch_add(1, Ordering::SeqCst);
                let value = *backend.value.lock().unwrap();
                backend.gate.acquire().await.unwrap().forget();
                if value == Some(0) {
                    Err(StorageError::unavailable("read", "value", "down"))
                } else {
                    Ok(value)
                }
            })
        }
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    fn set(&self, value: Option<u32>) {
        *self.value.lock().unwrap() = value;
    }
}

fn cache(time_to_live: Duration) -> Cache<&'static str, u32> {
    let limits = Limits {
        time_to_live,
        refresh_after: None,
        bytes: 1 << 20,
        fill_timeout: Duration::from_secs(60),
    };
    Cache::new(limits, |_, _| 100)
}

const LONG: Duration = Duration::from_hours(1);

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

fn values(answers: Vec<Result<Option<Cached<u32>>, Arc<StorageError>>>) -> Vec<Option<u32>> {
    answers
        .into_iter()
        .map(|answer| answer.unwrap().map(|cached| cached.value))
        .collect()
}

#[tokio::test]
async fn a_thousand_readers_cost_one_read() {
    let (cache, backend) = (cache(LONG), Backend::new(Some(7), false));
    let fill = backend.read();
    let readers = join_all((0..1_000).map(|_| cache.get(&"tag", &fill)));
    let ((), answers) = tokio::join!(async { backend.gate.add_permits(1) }, readers);
    assert_eq!(values(answers), vec![Some(7); 1_000]);
    assert_eq!(backend.reads(), 1);
    assert_eq!(cache.get(&"tag", &fill).await.unwrap().unwrap().value, 7);
    assert_eq!(backend.reads(), 1);
}

#[tokio::test]
async fn a_fill_that_read_before_a_write_is_neither_kept_nor_joined_after_it() {
    let (cache, backend) = (cache(LONG), Backend::new(Some(1), false));
    let fill = backend.read();
    let early = cache.get(&"tag", &fill);
    let rest = async {
        until(|| backend.reads() == 1).await;
        backend.set(Some(2));
        cache.invalidate(&"tag");
        // Acknowledged. Whoever asks now waits behind the old fill and reads anew, all of them
        // once.
        let late = join_all((0..10).map(|_| cache.get(&"tag", &fill)));
        let ((), late) = tokio::join!(async { backend.gate.add_permits(2) }, late);
        values(late)
    };
    let (early, late) = tokio::join!(early, rest);
    assert_eq!(
        early.unwrap().unwrap().value,
        1,
        "it began before the write"
    );
    assert_eq!(late, vec![Some(2); 10]);
    assert_eq!(backend.reads(), 2);
    assert_eq!(cache.peek(&"tag").unwrap().value, 2);
}

#[tokio::test]
async fn of_two_writes_the_cache_keeps_neither_unless_it_knows_the_order() {
    let cache = cache(LONG);
    let (first, second) = (cache.epoch(&"tag"), cache.epoch(&"tag"));
    cache.wrote(&"tag", second, Clock::system().now(), 2);
    assert_eq!(cache.peek(&"tag").unwrap().value, 2);
    cache.wrote(&"tag", first, Clock::system().now(), 1);
    assert!(cache.peek(&"tag").is_none());
}

#[tokio::test]
async fn absence_is_not_kept_and_not_taken_from_an_earlier_read() {
    let (cache, backend) = (cache(LONG), Backend::new(None, false));
    let fill = backend.read();
    let early = cache.get(&"blob", &fill);
    let rest = async {
        until(|| backend.reads() == 1).await;
        // Another replica acknowledges the blob now; the fill has already looked.
        backend.set(Some(5));
        let late = cache.get(&"blob", &fill);
        let ((), late) = tokio::join!(async { backend.gate.add_permits(2) }, late);
        late.unwrap().unwrap().value
    };
    let (early, late) = tokio::join!(early, rest);
    assert!(early.unwrap().is_none());
    assert_eq!(late, 5);
}

#[tokio::test]
async fn an_expired_value_is_served_only_while_storage_cannot_be_reached() {
    let (cache, backend) = (cache(Duration::ZERO), Backend::new(Some(3), true));
    let fill = backend.read();
    assert!(!cache.get(&"tag", &fill).await.unwrap().unwrap().stale);
    backend.set(Some(0));
    let answer = cache.get(&"tag", &fill).await.unwrap().unwrap();
    assert_eq!((answer.value, answer.stale), (3, true));
    assert_eq!(cache.stale_answers(), 1);
    assert!(cache.get(&"other", &fill).await.is_err());
    backend.set(Some(4));
    let answer = cache.get(&"tag", &fill).await.unwrap().unwrap();
    assert_eq!((answer.value, answer.stale), (4, false));
}

#[tokio::test]
async fn a_value_is_refreshed_behind_its_readers() {
    let limits = Limits {
        time_to_live: LONG,
        refresh_after: Some(Duration::ZERO),
        bytes: 1 << 20,
        fill_timeout: Duration::from_secs(60),
    };
    let cache = Cache::new(limits, |_: &&str, _| 100);
    let backend = Backend::new(Some(1), true);
    let fill = backend.read();
    assert_eq!(cache.get(&"rb", &fill).await.unwrap().unwrap().value, 1);
    backend.set(Some(2));
    assert_eq!(
        cache.get(&"rb", &fill).await.unwrap().unwrap().value,
        1,
        "nobody waits"
    );
    until(|| cache.peek(&"rb").is_some_and(|cached| cached.value == 2)).await;
}

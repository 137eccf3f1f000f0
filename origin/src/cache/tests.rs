//! Concurrent readers and writers of one cache.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::atomic::AtomicUsize;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::*;

/// Storage of one value: counts reads, and each read waits for a permit.
struct CountingBackend {
    value: Mutex<Option<u32>>,
    reads: AtomicUsize,
    gate: Semaphore,
}

impl CountingBackend {
    fn new(value: Option<u32>, is_open: bool) -> Arc<Self> {
        let gate = Semaphore::new(if is_open { Semaphore::MAX_PERMITS } else { 0 });
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

const LONG: Duration = Duration::from_hours(1);

fn limits(time_to_live: Duration) -> CacheLimits {
    CacheLimits {
        time_to_live,
        term: None,
        refresh_after: None,
        bytes: 1 << 20,
        fill_timeout: Duration::from_secs(60),
    }
}

fn cache(limits: CacheLimits) -> Cache<&'static str, u32> {
    Cache::new(limits, Clock::tokio(), |_, _| 100)
}

async fn wait_until(condition: impl Fn() -> bool) {
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
async fn concurrent_misses_share_one_read() {
    let cache = cache(limits(LONG));
    let backend = CountingBackend::new(Some(7), false);
    let fill = backend.read();
    let readers = join_all((0..1_000).map(|_| cache.get(&"tag", &fill)));
    let ((), answers) = tokio::join!(async { backend.gate.add_permits(1) }, readers);
    assert_eq!(values(answers), vec![Some(7); 1_000]);
    assert_eq!(backend.reads(), 1);
    assert_eq!(cache.get(&"tag", &fill).await.unwrap().unwrap().value, 7);
    assert_eq!(backend.reads(), 1);
}

#[tokio::test]
async fn fill_from_before_a_write_is_neither_kept_nor_joined() {
    let cache = cache(limits(LONG));
    let backend = CountingBackend::new(Some(1), false);
    let fill = backend.read();
    let early = cache.get(&"tag", &fill);
    let rest = async {
        wait_until(|| backend.reads() == 1).await;
        backend.set(Some(2));
        cache.invalidate(&"tag");
        // The write is acknowledged. Readers that start now wait for the old fill to end and share
        // one new read.
        let late = join_all((0..10).map(|_| cache.get(&"tag", &fill)));
        let ((), late) = tokio::join!(async { backend.gate.add_permits(2) }, late);
        values(late)
    };
    let (early, late) = tokio::join!(early, rest);
    assert_eq!(
        early.unwrap().unwrap().value,
        1,
        "it started before the write"
    );
    assert_eq!(late, vec![Some(2); 10]);
    assert_eq!(backend.reads(), 2);
    assert_eq!(cache.peek(&"tag").unwrap().value, 2);
}

#[tokio::test]
async fn overlapping_writes_drop_the_key() {
    let cache = cache(limits(LONG));
    let (acknowledge, acknowledged) = tokio::sync::oneshot::channel::<()>();
    let slow = cache.write(&"tag", async {
        acknowledged.await.unwrap();
        Ok::<_, ()>((Effect::Stored(1), ()))
    });
    let fast = async {
        let write = async { Ok::<_, ()>((Effect::Stored(2), "result")) };
        assert_eq!(cache.write(&"tag", write).await, Ok("result"));
        assert_eq!(cache.peek(&"tag").unwrap().value, 2);
        acknowledge.send(()).unwrap();
    };
    let (slow, ()) = tokio::join!(slow, fast);
    assert_eq!(slow, Ok(()));
    assert!(cache.peek(&"tag").is_none());
}

#[tokio::test]
async fn failed_and_lost_writes_drop_the_key() {
    let cache = cache(limits(LONG));
    let store = async || {
        let write = async { Ok::<_, ()>((Effect::Stored(1), ())) };
        cache.write(&"tag", write).await.unwrap();
        assert_eq!(cache.peek(&"tag").unwrap().value, 1);
    };
    store().await;
    let unchanged = async { Ok::<_, ()>((Effect::Unchanged, ())) };
    cache.write(&"tag", unchanged).await.unwrap();
    assert_eq!(cache.peek(&"tag").unwrap().value, 1);
    let changed = async { Ok::<_, ()>((Effect::Changed, ())) };
    cache.write(&"tag", changed).await.unwrap();
    assert!(cache.peek(&"tag").is_none());
    store().await;
    let failed = async { Err::<(Effect<u32>, ()), _>("unavailable") };
    assert_eq!(cache.write(&"tag", failed).await, Err("unavailable"));
    assert!(cache.peek(&"tag").is_none());
}

#[tokio::test]
async fn absence_is_not_kept_and_not_taken_from_an_earlier_read() {
    let cache = cache(limits(LONG));
    let backend = CountingBackend::new(None, false);
    let fill = backend.read();
    let early = cache.get(&"blob", &fill);
    let rest = async {
        wait_until(|| backend.reads() == 1).await;
        // Another replica acknowledges the blob after the running fill has read.
        backend.set(Some(5));
        let late = cache.get(&"blob", &fill);
        let ((), late) = tokio::join!(async { backend.gate.add_permits(2) }, late);
        late.unwrap().unwrap().value
    };
    let (early, late) = tokio::join!(early, rest);
    assert!(early.unwrap().is_none());
    assert_eq!(late, 5);
}

#[tokio::test(start_paused = true)]
async fn time_to_live_counts_from_the_start_of_the_read() {
    let second = Duration::from_secs(1);
    let cache = cache(limits(10 * second));
    let backend = CountingBackend::new(Some(1), false);
    let fill = backend.read();
    let slow = async {
        tokio::time::sleep(4 * second).await;
        backend.gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(cache.get(&"tag", &fill), slow);
    let read_at = answer.unwrap().unwrap().read_at;
    backend.set(Some(2));
    backend.gate.add_permits(1);
    tokio::time::sleep(6 * second - Duration::from_millis(10)).await;
    let last = cache.get(&"tag", &fill).await.unwrap().unwrap();
    assert_eq!((last.value, last.read_at), (1, read_at));
    assert_eq!(cache.fresh(&"tag"), Some(1));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(cache.fresh(&"tag"), None);
    assert_eq!(cache.get(&"tag", &fill).await.unwrap().unwrap().value, 2);
    assert_eq!(backend.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn hung_fill_fails_after_its_timeout() {
    let cache = cache(limits(LONG));
    let backend = CountingBackend::new(Some(1), false);
    let fill = backend.read();
    let started = tokio::time::Instant::now();
    let error = cache.get(&"tag", &fill).await.unwrap_err();
    assert!(error.to_string().contains("did not answer in time"));
    assert_eq!(started.elapsed(), Duration::from_secs(60));
}

#[tokio::test]
async fn expired_value_is_served_only_while_storage_is_unavailable() {
    let cache = cache(limits(Duration::ZERO));
    let backend = CountingBackend::new(Some(3), true);
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

#[tokio::test(start_paused = true)]
async fn refresh_runs_in_the_background() {
    let refresh_after = Some(LONG / 2);
    let cache = cache(CacheLimits {
        refresh_after,
        ..limits(LONG)
    });
    let backend = CountingBackend::new(Some(1), true);
    let fill = backend.read();
    assert_eq!(cache.get(&"rb", &fill).await.unwrap().unwrap().value, 1);
    backend.set(Some(2));
    assert_eq!(cache.fresh(&"rb"), Some(1));
    tokio::time::sleep(LONG / 2).await;
    assert_eq!(cache.fresh(&"rb"), None, "due to be refreshed");
    assert_eq!(
        cache.get(&"rb", &fill).await.unwrap().unwrap().value,
        1,
        "readers do not wait for the refresh"
    );
    wait_until(|| cache.peek(&"rb").is_some_and(|cached| cached.value == 2)).await;
}

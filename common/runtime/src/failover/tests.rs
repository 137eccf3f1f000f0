//! Requests, bodies and calls, on a paused clock.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};

use flotilla_common::failover::{ContentKey, FailoverConfig};

use super::*;

const CONTENT: Need = Need::Content(ContentKey(1));
const OWN: SourceId = SourceId(0);
const OTHER: SourceId = SourceId(1);

#[derive(Debug, PartialEq, Eq)]
struct NotFound;

impl CallError for NotFound {
    fn outcome(&self) -> Outcome {
        Outcome::Missing
    }
}

fn sources(regions: &[u32]) -> Sources {
    let machine = Failover::new(FailoverConfig::default(), regions, 1);
    Sources::new(machine, Vec::new(), Clock::tokio())
}

/// The own source hangs; the other one answers at once.
async fn hanging(source: SourceId) -> Result<u32, NotFound> {
    match source {
        OWN => pending().await,
        other => Ok(other.0),
    }
}

async fn hanging_probe(source: SourceId) -> Result<(), String> {
    match source {
        OWN => pending().await,
        _ => Ok(()),
    }
}

async fn elapsed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let started = tokio::time::Instant::now();
    (work.await, started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn hung_source_costs_one_wait() {
    let sources = sources(&[0, 1]);
    let shutdown = Shutdown::new();
    shutdown.spawn(sources.clone().run_probes(hanging_probe, shutdown.clone()));
    let (answer, first) = elapsed(sources.ask(CONTENT, hanging)).await;
    assert_eq!(answer.unwrap().0, OTHER);
    assert!(first < Duration::from_millis(1_600), "{first:?}");
    let (fact, second) = elapsed(sources.ask(Need::Fact, hanging)).await;
    assert_eq!(fact.unwrap().0, OTHER);
    assert!(first + second < Duration::from_millis(2_600), "{second:?}");
    let (_, third) = elapsed(sources.ask(Need::Fact, hanging)).await;
    assert!(third < Duration::from_millis(10), "{third:?}");
}

#[tokio::test(start_paused = true)]
async fn absence_is_told_from_silence() {
    let sources = sources(&[0, 1]);
    let absent = sources.ask(CONTENT, async |_| Err::<(), _>(NotFound)).await;
    assert!(matches!(absent, Err(Unserved::Absent(errors)) if errors.len() == 2));
    let unsure = sources.ask(CONTENT, async |source| match source {
        OWN => Err::<(), _>(NotFound),
        _ => pending().await,
    });
    assert!(matches!(unsure.await, Err(Unserved::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn caller_that_goes_away_leaves_its_experience() {
    let sources = sources(&[0, 1]);
    let probed = Arc::new(AtomicU32::new(0));
    let shutdown = Shutdown::new();
    let counter = Arc::clone(&probed);
    let probe = move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    };
    shutdown.spawn(sources.clone().run_probes(probe, shutdown.clone()));
    let ask = sources.ask(CONTENT, hanging);
    timeout(Duration::from_millis(700), ask).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(probed.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn stalled_body_ends_when_its_source_is_out() {
    let sources = sources(&[0, 1]);
    let shutdown = Shutdown::new();
    shutdown.spawn(sources.clone().run_probes(hanging_probe, shutdown.clone()));
    let (stalled, took) = elapsed(sources.next_piece(OWN, pending::<()>())).await;
    stalled.unwrap_err();
    assert!(took < Duration::from_millis(2_600), "{took:?}");
    let slow = tokio::time::sleep(Duration::from_secs(60));
    sources.next_piece(OTHER, slow).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn observed_calls_let_probes_decide() {
    let sources = sources(&[0, 1]);
    let shutdown = Shutdown::new();
    shutdown.spawn(sources.clone().run_probes(hanging_probe, shutdown.clone()));
    // The other one fails at once, but its probes are good.
    for _ in 0..10 {
        let failed = sources.observe(OTHER, async { Err::<(), _>("refused") });
        failed.await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(sources.standing(OTHER), Standing::Fine);
    // The own one hangs, also for its probes.
    let hung = sources.observe(OWN, pending::<Result<(), ()>>());
    timeout(Duration::from_millis(600), hung).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(sources.standing(OWN), Standing::Out);
    let quick = sources.observe(OTHER, async { Ok::<_, ()>(7) });
    assert_eq!(quick.await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn write_ends_when_its_source_is_out() {
    let sources = sources(&[0, 1]);
    let shutdown = Shutdown::new();
    shutdown.spawn(sources.clone().run_probes(hanging_probe, shutdown.clone()));
    let long = tokio::time::sleep(Duration::from_secs(60));
    sources.until_out(OTHER, long).await.unwrap();
    assert_eq!(sources.standing(OTHER), Standing::Fine);
    let (stalled, took) = elapsed(sources.until_out(OWN, pending::<()>())).await;
    stalled.unwrap_err();
    assert!(took < Duration::from_millis(2_600), "{took:?}");
    let (stalled, took) = elapsed(sources.until_out(OWN, pending::<()>())).await;
    stalled.unwrap_err();
    assert!(took < Duration::from_millis(1_100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn source_returns_by_its_probes_alone() {
    let sources = sources(&[0]);
    let shutdown = Shutdown::new();
    let started = tokio::time::Instant::now();
    let probe = move |_| async move {
        if started.elapsed() < Duration::from_secs(5) {
            return Err("connection refused".to_owned());
        }
        Ok(())
    };
    shutdown.spawn(sources.clone().run_probes(probe, shutdown.clone()));
    sources.handle(Input::Hung { source: OWN });
    let mut changes = sources.changes();
    let mut seen = Vec::new();
    while sources.standing(OWN) != Standing::Fine {
        changes.changed().await.unwrap();
        seen.push(sources.standing(OWN));
    }
    assert!(seen.contains(&Standing::Out), "{seen:?}");
}

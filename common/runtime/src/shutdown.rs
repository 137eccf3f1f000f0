//! Shutting down: one handle that everybody waits on, and a drain with a bound.
//!
//! ```text
//! SIGTERM, SIGINT or trigger()      wait() returns: accept nothing new, finish what is in flight
//! a second signal, the bound, or    what was spawned through the handle is dropped where it stands
//! abandon()
//! ```
//!
//! It must never end the process itself, and nobody waits longer than the bound that `drain` was
//! given.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::wake_filter::WakeFilter;

/// A clone of it is in every part of a service. A service made of services hands out children.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    abandoned: CancellationToken,
    tasks: TaskTracker,
    /// Tasks that were dropped where they stood.
    dropped: Arc<AtomicUsize>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything in flight was finished.
    Complete,
    /// The bound passed, or a second signal came: this many tasks were dropped where they stood.
    Abandoned(usize),
}

impl Shutdown {
    /// A handle that only [`Shutdown::trigger`] triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that SIGTERM and SIGINT trigger; the second of them abandons what still drains.
    ///
    /// # Errors
    /// The operating system refuses a signal handler.
    pub fn on_signals() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        tokio::spawn(follow_signals(shutdown.clone(), terminate, interrupt));
        Ok(shutdown)
    }

    /// A handle for a part: it follows this one, can be triggered and drained alone, and has its
    /// own tasks.
    pub fn child(&self) -> Self {
        Self {
            draining: self.draining.child_token(),
            abandoned: self.abandoned.child_token(),
            tasks: TaskTracker::new(),
            dropped: Arc::default(),
        }
    }

    /// Starts the shutdown. More calls change nothing.
    pub fn trigger(&self) {
        self.draining.cancel();
    }

    /// Starts the shutdown and drops what was spawned through this handle and its children where it
    /// stands, as a killed process would.
    pub fn abandon(&self) {
        self.draining.cancel();
        self.abandoned.cancel();
    }

    /// Whether the shutdown has started.
    pub fn is_triggered(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits for the shutdown to start.
    pub async fn wait(&self) {
        self.draining.cancelled().await;
    }

    /// Waits until nothing more may be finished.
    pub async fn wait_abandoned(&self) {
        self.abandoned.cancelled().await;
    }

    /// Spawns work that a drain waits for. `None` if it was abandoned.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_on(&Handle::current(), work)
    }

    /// [`spawn`](Self::spawn) on another runtime than the caller's.
    pub fn spawn_on<F>(&self, runtime: &Handle, work: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let abandoned = WakeFilter::new(self.abandoned.clone().cancelled_owned());
        let dropped = Arc::clone(&self.dropped);
        let until_abandoned = async move {
            tokio::select! {
                biased;
                () = abandoned => {
                    dropped.fetch_add(1, Ordering::Relaxed);
                    None
                }
                output = work => Some(output),
            }
        };
        self.tasks.spawn_on(until_abandoned, runtime)
    }

    /// Starts the shutdown and waits at most `bound` for the work spawned through this handle (not
    /// through its children); what is left then is dropped.
    pub async fn drain(&self, bound: Duration) -> Drained {
        self.trigger();
        self.tasks.close();
        tokio::select! {
            biased;
            () = self.tasks.wait() => {}
            () = self.abandoned.cancelled() => {}
            () = tokio::time::sleep(bound) => {}
        }
        if !self.tasks.is_empty() {
            self.abandon();
            self.tasks.wait().await;
        }
        match self.dropped.load(Ordering::Relaxed) {
            0 => Drained::Complete,
            dropped => Drained::Abandoned(dropped),
        }
    }
}

async fn follow_signals(shutdown: Shutdown, mut terminate: Signal, mut interrupt: Signal) {
    next_signal(&mut terminate, &mut interrupt).await;
    tracing::info!("signal received, draining; a second one ends at once");
    shutdown.trigger();
    next_signal(&mut terminate, &mut interrupt).await;
    tracing::warn!("second signal received, ending at once");
    shutdown.abandon();
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const BOUND: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_what_is_in_flight() {
        let shutdown = Shutdown::new();
        let work = shutdown.spawn(async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            "finished"
        });
        let started = Instant::now();
        assert_eq!(shutdown.drain(BOUND).await, Drained::Complete);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(work.await.unwrap(), Some("finished"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_no_longer_than_its_bound() {
        let shutdown = Shutdown::new();
        let work = shutdown.spawn(std::future::pending::<()>());
        let started = Instant::now();
        assert_eq!(shutdown.drain(BOUND).await, Drained::Abandoned(1));
        assert_eq!(started.elapsed(), BOUND);
        assert_eq!(work.await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_drain_that_was_abandoned_says_so_however_soon_its_work_is_gone() {
        let shutdown = Shutdown::new();
        let work = shutdown.spawn(std::future::pending::<()>());
        shutdown.abandon();
        assert_eq!(work.await.unwrap(), None);
        assert_eq!(shutdown.drain(BOUND).await, Drained::Abandoned(1));
    }

    #[tokio::test]
    async fn everybody_sees_the_trigger_and_a_child_alone_does_not_trigger_its_family() {
        let shutdown = Shutdown::new();
        let (child, sibling) = (shutdown.child(), shutdown.child());
        child.trigger();
        child.wait().await;
        assert!(!shutdown.is_triggered() && !sibling.is_triggered());
        shutdown.trigger();
        sibling.clone().wait().await;
    }

    #[tokio::test]
    async fn abandoning_reaches_the_work_of_children() {
        let shutdown = Shutdown::new();
        let work = shutdown.child().spawn(std::future::pending::<()>());
        shutdown.abandon();
        assert_eq!(work.await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_signal_triggers_and_a_second_one_abandons() {
        let shutdown = Shutdown::on_signals().unwrap();
        let this_process = rustix::process::getpid();
        rustix::process::kill_process(this_process, rustix::process::Signal::TERM).unwrap();
        shutdown.wait().await;
        rustix::process::kill_process(this_process, rustix::process::Signal::TERM).unwrap();
        shutdown.wait_abandoned().await;
    }
}

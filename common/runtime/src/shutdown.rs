//! Graceful shutdown: one handle shared by all tasks, and a drain with a timeout.
//!
//! ```text
//! SIGTERM, SIGINT or trigger()        wait() returns: accept nothing new, finish work in flight
//! a second signal, the drain timeout  tasks spawned through the handle are dropped unfinished
//! or abandon()
//! ```
//!
//! This module never ends the process itself, and `drain` never waits longer than its timeout.

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

/// The shutdown handle of a service. Each of its parts has a clone; a service that consists of
/// services gives each of them a child.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    abandoned: CancellationToken,
    tasks: TaskTracker,
    /// The number of tasks that were dropped unfinished.
    dropped: Arc<AtomicUsize>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All tasks finished.
    Complete,
    /// The timeout expired, or a second signal came: this many tasks were dropped unfinished.
    Abandoned(usize),
}

impl Shutdown {
    /// A handle that only [`Shutdown::trigger`] triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that SIGTERM and SIGINT trigger; a second signal abandons the tasks that still run.
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

    /// A handle for a part of the service: it follows this one, can be triggered and drained alone,
    /// and has its own tasks.
    pub fn child(&self) -> Self {
        Self {
            draining: self.draining.child_token(),
            abandoned: self.abandoned.child_token(),
            tasks: TaskTracker::new(),
            dropped: Arc::default(),
        }
    }

    /// Starts the shutdown. Further calls have no effect.
    pub fn trigger(&self) {
        self.draining.cancel();
    }

    /// Starts the shutdown and drops the tasks of this handle and its children unfinished, as if
    /// the process had been killed.
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

    /// Waits until the shutdown is abandoned.
    pub async fn wait_until_abandoned(&self) {
        self.abandoned.cancelled().await;
    }

    /// Spawns a task that `drain` waits for. Its output is `None` if it was abandoned.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_on(&Handle::current(), work)
    }

    /// [`spawn`](Self::spawn) on a given runtime.
    pub fn spawn_on<F>(&self, runtime: &Handle, work: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let abandoned = self.abandoned.clone().cancelled_owned();
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

    /// Starts the shutdown and waits at most `limit` for the tasks of this handle (not of its
    /// children). Tasks that still run then are dropped.
    pub async fn drain(&self, limit: Duration) -> Drained {
        self.trigger();
        self.tasks.close();
        tokio::select! {
            biased;
            () = self.tasks.wait() => {}
            () = self.abandoned.cancelled() => {}
            () = tokio::time::sleep(limit) => {}
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
    tracing::info!("signal received; draining (a second signal drops requests in flight)");
    shutdown.trigger();
    next_signal(&mut terminate, &mut interrupt).await;
    tracing::warn!("second signal received; dropping requests in flight");
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

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_running_tasks() {
        let shutdown = Shutdown::new();
        let work = shutdown.spawn(async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            "finished"
        });
        let started = Instant::now();
        assert_eq!(shutdown.drain(LIMIT).await, Drained::Complete);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(work.await.unwrap(), Some("finished"));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_drops_tasks_after_its_limit() {
        let shutdown = Shutdown::new();
        let work = shutdown.spawn(std::future::pending::<()>());
        let started = Instant::now();
        assert_eq!(shutdown.drain(LIMIT).await, Drained::Abandoned(1));
        assert_eq!(started.elapsed(), LIMIT);
        assert_eq!(work.await.unwrap(), None);
    }

    #[tokio::test]
    async fn abandoned_drain_counts_dropped_tasks() {
        let shutdown = Shutdown::new();
        let work = shutdown.spawn(std::future::pending::<()>());
        shutdown.abandon();
        assert_eq!(work.await.unwrap(), None);
        assert_eq!(shutdown.drain(LIMIT).await, Drained::Abandoned(1));
    }

    #[tokio::test]
    async fn child_trigger_does_not_reach_parent_or_siblings() {
        let shutdown = Shutdown::new();
        let (child, sibling) = (shutdown.child(), shutdown.child());
        child.trigger();
        child.wait().await;
        assert!(!shutdown.is_triggered() && !sibling.is_triggered());
        shutdown.trigger();
        sibling.clone().wait().await;
    }

    #[tokio::test]
    async fn abandon_drops_tasks_of_children() {
        let shutdown = Shutdown::new();
        let work = shutdown.child().spawn(std::future::pending::<()>());
        shutdown.abandon();
        assert_eq!(work.await.unwrap(), None);
    }

    #[tokio::test]
    async fn first_signal_triggers_and_second_abandons() {
        let shutdown = Shutdown::on_signals().unwrap();
        let this_process = rustix::process::getpid();
        rustix::process::kill_process(this_process, rustix::process::Signal::TERM).unwrap();
        shutdown.wait().await;
        rustix::process::kill_process(this_process, rustix::process::Signal::TERM).unwrap();
        shutdown.wait_until_abandoned().await;
    }
}

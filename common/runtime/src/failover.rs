//! The driver of a failover machine: one handle that every caller of a process shares.
//!
//! [`Sources::ask`] runs a request through the sources that
//! [`flotilla_common::failover::Failover`] names, and reports how the calls end.
//! [`Sources::next_piece`] does the same for the body of an answer. [`Sources::run_probes`] is the
//! task that probes. Who the sources are, and how they are called, is the caller's.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::failover::{
    Failover, Input, Need, Outcome, Output, ProbeId, Request, SourceId, SourceStatus, Standing,
    Step,
};
use flotilla_common::time::Time;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::shutdown::Shutdown;

/// Upper bound of the probes that wait for [`Sources::run_probes`]; the oldest are dropped. They
/// expire within a second, so more than a few mean that the task does not run.
const MAX_DUE_PROBES: usize = 64;

/// The error of a call, as the machine sees it.
pub trait CallError {
    /// How the call ended. An error that another source would give too, such as an invalid range,
    /// is [`Outcome::Answered`]; it ends the request, as [`Outcome::Refused`] does.
    fn outcome(&self) -> Outcome;
}

/// Why no source served a request.
#[derive(Debug)]
pub enum Unserved<E> {
    /// A source answered with an error that is final.
    Final(SourceId, E),
    /// Every region is sure that it does not have what was asked for. The errors of those asked.
    Absent(Vec<(SourceId, E)>),
    /// No source could serve it now, and one that could not may have it. The errors of the calls
    /// that ended; calls without an answer have none.
    Unavailable(Vec<(SourceId, E)>),
}

/// A body that made no progress until its source was Out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer made no progress, and its source does not answer probes: {0}")]
pub struct Stalled(String);

/// The sources of a process, shared by all that ask them. Clones refer to the same machine.
#[derive(Clone, Debug)]
pub struct Sources(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// The names of the sources, for logs.
    names: Vec<String>,
    state: Mutex<State>,
    /// The number of changes of standings, and of whether any source is usable.
    changes: watch::Sender<u64>,
    /// A probe is due, or the machine's deadline moved.
    wake: Notify,
}

#[derive(Debug)]
struct State {
    machine: Failover,
    due_probes: Vec<(SourceId, ProbeId)>,
    /// The deadline for which the probing task waits.
    deadline: Option<Time>,
}

impl Sources {
    /// A handle of a machine. `names` are the sources' names for logs, in the machine's order.
    pub fn new(machine: Failover, names: Vec<String>, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            clock,
            names,
            state: Mutex::new(State {
                machine,
                due_probes: Vec::new(),
                deadline: None,
            }),
            changes: watch::Sender::default(),
            wake: Notify::new(),
        }))
    }

    /// Asks one source after another, as the machine decides, until one serves the request.
    ///
    /// # Errors
    /// No source served it; see [`Unserved`].
    pub async fn ask<T, E, F>(
        &self,
        need: Need,
        call: impl Fn(SourceId) -> F,
    ) -> Result<(SourceId, T), Unserved<E>>
    where
        E: CallError,
        F: Future<Output = Result<T, E>>,
    {
        let mut changes = self.0.changes.subscribe();
        let mut request = OpenRequest {
            sources: self,
            request: self.with_machine(|machine, now| machine.request(now, need)),
        };
        let mut calls = FuturesUnordered::new();
        let mut errors = Vec::new();
        loop {
            let until = match request.poll() {
                Step::Ask(source) => {
                    let answer = call(source);
                    calls.push(async move { (source, answer.await) });
                    continue;
                }
                Step::Wait(until) => until,
                Step::Exhausted if request.request.is_absent() => {
                    return Err(Unserved::Absent(errors));
                }
                Step::Exhausted => return Err(Unserved::Unavailable(errors)),
            };
            tokio::select! {
                biased;
                Some((source, answer)) = calls.next() => {
                    let outcome = answer.as_ref().map_or_else(E::outcome, |_| Outcome::Answered);
                    let is_final = matches!(outcome, Outcome::Answered | Outcome::Refused);
                    if !request.ended(source, outcome) {
                        continue;
                    }
                    match answer {
                        Ok(answer) => return Ok((source, answer)),
                        Err(error) if is_final => return Err(Unserved::Final(source, error)),
                        Err(error) => errors.push((source, error)),
                    }
                }
                _ = changes.changed() => {}
                () = self.0.clock.sleep_until(Some(until)) => {}
            }
        }
    }

    /// Waits for the next piece of an answer's body from a source. The time between two pieces is
    /// judged like the time to a head: the source becomes suspect after a second, and is avoided
    /// half a second later.
    ///
    /// # Errors
    /// The piece did not come before the source was Out. It was reported.
    pub async fn next_piece<T>(
        &self,
        source: SourceId,
        piece: impl Future<Output = T>,
    ) -> Result<T, Stalled> {
        let mut piece = pin!(piece);
        let (slow_after, hung_after) = self.with_machine(|machine, _| {
            let config = machine.config();
            (config.slow_after, config.hung_after)
        });
        if let Ok(piece) = timeout(slow_after, &mut piece).await {
            return Ok(piece);
        }
        let mut changes = self.0.changes.subscribe();
        self.handle(Input::Slow { source });
        let mut hung = pin!(tokio::time::sleep(hung_after.saturating_sub(slow_after)));
        let mut is_hung = false;
        while self.standing(source) != Standing::Out {
            tokio::select! {
                biased;
                piece = &mut piece => return Ok(piece),
                _ = changes.changed() => {}
                () = &mut hung, if !is_hung => {
                    is_hung = true;
                    self.handle(Input::Hung { source });
                }
            }
        }
        let error = self.with_machine(|machine, _| error_of(machine, source));
        Err(Stalled(error.unwrap_or_default()))
    }

    /// Reports something that happened outside [`Self::ask`], such as a body that broke off.
    pub fn handle(&self, input: Input) {
        self.with_machine(|machine, now| machine.handle(now, input));
    }

    /// Whether a source is worth asking.
    pub fn is_usable(&self) -> bool {
        self.with_machine(|machine, _| machine.is_usable())
    }

    /// How far a source is used.
    pub fn standing(&self, source: SourceId) -> Standing {
        self.with_machine(|machine, _| machine.standing(source))
    }

    /// Passes what is known of each source to `read`, in the machine's order.
    pub fn read_status<T>(&self, read: impl FnMut(SourceStatus<'_>) -> T) -> Vec<T> {
        self.with_machine(|machine, _| machine.status().map(read).collect())
    }

    /// The number of changes of standings and of [`Self::is_usable`] so far, to wait for the next.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Probes sources when the machine asks for it, until the shutdown begins. `probe` says whether
    /// a source can serve, or why not; it is dropped when the machine's timeout expires.
    pub async fn run_probes<F>(self, probe: impl Fn(SourceId) -> F, shutdown: Shutdown)
    where
        F: Future<Output = Result<(), String>>,
    {
        let limit = self.with_machine(|machine, _| machine.config().probe_timeout);
        let mut running = FuturesUnordered::new();
        loop {
            let (due, deadline) = self.due();
            for (source, id) in due {
                let result = timeout(limit, probe(source));
                running.push(async move { (source, id, result.await) });
            }
            tokio::select! {
                biased;
                () = shutdown.wait() => return,
                Some((source, probe, result)) = running.next() => {
                    // The machine knows without a report that a probe took too long.
                    if let Ok(result) = result {
                        self.handle(Input::Probed { source, probe, result });
                    }
                }
                () = self.0.wake.notified() => {}
                () = self.0.clock.sleep_until(deadline) => {}
            }
        }
    }

    /// The probes that are due, and the machine's next deadline.
    fn due(&self) -> (Vec<(SourceId, ProbeId)>, Option<Time>) {
        self.with_machine(Failover::handle_timeout);
        let mut state = self.lock();
        let due = core::mem::take(&mut state.due_probes);
        (due, state.deadline)
    }

    /// Lets the machine do something, and carries out what it asks for.
    fn with_machine<T>(&self, act: impl FnOnce(&mut Failover, Time) -> T) -> T {
        let now = self.0.clock.now();
        let mut state = self.lock();
        let result = act(&mut state.machine, now);
        while let Some(output) = state.machine.poll_output() {
            match output {
                Output::Probe { source, probe } => {
                    if state.due_probes.len() == MAX_DUE_PROBES {
                        state.due_probes.remove(0);
                    }
                    state.due_probes.push((source, probe));
                    self.0.wake.notify_one();
                }
                Output::Changed { source, standing } => {
                    let error = error_of(&state.machine, source);
                    self.log(source, standing, error.as_deref());
                    self.0.changes.send_modify(|changes| *changes += 1);
                }
                Output::UsableChanged { .. } => {
                    self.0.changes.send_modify(|changes| *changes += 1);
                }
            }
        }
        let deadline = state.machine.poll_timeout();
        if deadline != state.deadline {
            state.deadline = deadline;
            self.0.wake.notify_one();
        }
        result
    }

    fn log(&self, source: SourceId, standing: Standing, error: Option<&str>) {
        let name = self.0.names.get(source.0 as usize);
        let source = name.map_or("", String::as_str);
        match standing {
            Standing::Fine => tracing::info!(source, "source is used again without limits"),
            Standing::Suspect => {
                tracing::debug!(source, error, "source is slow or failed; probing it");
            }
            Standing::Out => tracing::warn!(
                source,
                error,
                "source does not answer; using others until it answers probes"
            ),
            Standing::Returning { percent } => {
                tracing::info!(source, percent, "source answers again; using it by steps");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

fn error_of(machine: &Failover, source: SourceId) -> Option<String> {
    let status = machine.status().nth(source.0 as usize)?;
    status.error.map(str::to_owned)
}

/// A request whose calls are reported as abandoned when it is dropped.
struct OpenRequest<'a> {
    sources: &'a Sources,
    request: Request,
}

impl OpenRequest<'_> {
    fn poll(&mut self) -> Step {
        let request = &mut self.request;
        self.sources
            .with_machine(|machine, now| request.poll(now, machine))
    }

    fn ended(&mut self, source: SourceId, outcome: Outcome) -> bool {
        let request = &mut self.request;
        self.sources
            .with_machine(|machine, now| request.ended(now, machine, source, outcome))
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        let request = &mut self.request;
        self.sources
            .with_machine(|machine, now| request.abandon(now, machine));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use core::time::Duration;
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
}

//! The driver of a failover machine: one handle that every caller of a process shares.
//!
//! [`Sources::ask`] runs a request through the sources that
//! [`flotilla_common::failover::Failover`] names, and reports how the calls end.
//! [`Sources::next_piece`] does the same for the body of an answer. [`Sources::run_probes`] is the
//! task that probes. Who the sources are, and how they are called, is the caller's.

use core::time::Duration;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use flotilla_common::failover::{
    Failover, Input, Need, Outcome, Output, ProbeId, Request, SourceId, SourceStatus, Standing,
    Step,
};
use flotilla_common::time::Time;
use futures_util::future::FutureExt as _;
use futures_util::poll;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::shutdown::Shutdown;

/// Upper bound of the probes that wait for [`Sources::run_probes`]; the oldest are dropped. They
/// expire within a second, so more than a few mean that the task does not run.
const MAX_DUE_PROBES: usize = 64;

/// A call of [`Sources::until_out`] makes its source be probed again after this pause.
const SUSPECT_AGAIN: Duration = Duration::from_secs(5);

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
    /// The standings that were logged last, in the machine's order.
    standings: Vec<Standing>,
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
                standings: machine.status().map(|status| status.standing).collect(),
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
        let (mut request, step) = OpenRequest::begin(self, need);
        let mut errors = Vec::new();
        let Step::Ask(first) = step else {
            return Err(Unserved::Unavailable(errors));
        };
        // Most requests end here: what is in memory needs no timer, and nothing to wait for.
        let mut first_call = pin!(call(first).fuse());
        if let Poll::Ready(answer) = poll!(first_call.as_mut())
            && let Some(served) = request.end(first, answer, &mut errors)
        {
            return served;
        }
        let mut changes = self.0.changes.subscribe();
        let mut calls = FuturesUnordered::new();
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
            let (source, answer) = tokio::select! {
                biased;
                answer = &mut first_call => (first, answer),
                Some(ended) = calls.next() => ended,
                _ = changes.changed() => continue,
                () = self.0.clock.sleep_until(Some(until)) => continue,
            };
            if let Some(served) = request.end(source, answer, &mut errors) {
                return served;
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

    /// Makes a call outside [`Self::ask`], bounded by its caller. If it takes long or fails, its
    /// source is probed, and the probes decide: such a call may take long with good reason, or fail
    /// where others do not. An answer brings the next probe of a source that is Out forward.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn observe<T, E>(
        &self,
        source: SourceId,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let slow_after = self.with_machine(|machine, _| machine.config().slow_after);
        let mut observed = ObservedCall {
            sources: self,
            source,
            suspect_at: Some(self.0.clock.now() + slow_after / 2),
        };
        let mut call = pin!(call);
        let answer = match timeout(slow_after, &mut call).await {
            Ok(answer) => answer,
            Err(_) => {
                observed.suspect();
                call.await
            }
        };
        observed.suspect_at = None;
        if answer.is_err() {
            observed.suspect();
        } else if self.standing(source) == Standing::Out {
            self.handle(Input::Ended {
                source,
                need: Need::Fact,
                outcome: Outcome::Answered,
            });
        }
        answer
    }

    /// Makes a call that no other source can repeat, such as a write. It may take long with good
    /// reason, so a long one only makes its source be probed, from time to time; it ends when the
    /// source is Out. Its outcome is the caller's to report.
    ///
    /// # Errors
    /// The source went Out before the call ended, or was Out and did not answer within the time
    /// after which a call is slow.
    pub async fn until_out<T>(
        &self,
        source: SourceId,
        call: impl Future<Output = T>,
    ) -> Result<T, Stalled> {
        let mut call = pin!(call);
        let slow_after = self.with_machine(|machine, _| machine.config().slow_after);
        if let Ok(ended) = timeout(slow_after, &mut call).await {
            return Ok(ended);
        }
        let mut changes = self.0.changes.subscribe();
        self.handle(Input::Slow { source });
        while self.standing(source) != Standing::Out {
            tokio::select! {
                biased;
                ended = &mut call => return Ok(ended),
                _ = changes.changed() => {}
                () = tokio::time::sleep(SUSPECT_AGAIN) => self.handle(Input::Slow { source }),
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
                    let before = state.standings.get_mut(source.0 as usize);
                    let before = before.map(|before| core::mem::replace(before, standing));
                    self.log(source, before, standing, error.as_deref());
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

    fn log(
        &self,
        source: SourceId,
        before: Option<Standing>,
        standing: Standing,
        error: Option<&str>,
    ) {
        let name = self.0.names.get(source.0 as usize);
        let source = name.map_or("", String::as_str);
        match standing {
            // A long call makes its source suspect for a moment; that is no news.
            Standing::Fine if before == Some(Standing::Suspect) => {
                tracing::debug!(source, "source answers probes");
            }
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

impl<'a> OpenRequest<'a> {
    /// A request, and its first step.
    fn begin(sources: &'a Sources, need: Need) -> (Self, Step) {
        let (request, step) = sources.with_machine(|machine, now| {
            let mut request = machine.request(now, need);
            let step = request.poll(now, machine);
            (request, step)
        });
        (Self { sources, request }, step)
    }

    fn poll(&mut self) -> Step {
        let request = &mut self.request;
        self.sources
            .with_machine(|machine, now| request.poll(now, machine))
    }

    /// A call ended. Returns what that means for the request, if it decides it; otherwise its error
    /// is kept in `errors`.
    fn end<T, E: CallError>(
        &mut self,
        source: SourceId,
        answer: Result<T, E>,
        errors: &mut Vec<(SourceId, E)>,
    ) -> Option<Result<(SourceId, T), Unserved<E>>> {
        let outcome = answer
            .as_ref()
            .map_or_else(E::outcome, |_| Outcome::Answered);
        let is_final = matches!(outcome, Outcome::Answered | Outcome::Refused);
        let request = &mut self.request;
        let is_waited_for = self
            .sources
            .with_machine(|machine, now| request.ended(now, machine, source, outcome));
        if !is_waited_for {
            return None;
        }
        match answer {
            Ok(answer) => Some(Ok((source, answer))),
            Err(error) if is_final => Some(Err(Unserved::Final(source, error))),
            Err(error) => {
                errors.push((source, error));
                None
            }
        }
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        let request = &mut self.request;
        if !request.has_calls() {
            return;
        }
        self.sources
            .with_machine(|machine, now| request.abandon(now, machine));
    }
}

/// A call of [`Sources::observe`]. A caller that gives up must not hide a hung source.
struct ObservedCall<'a> {
    sources: &'a Sources,
    source: SourceId,
    /// From when on a call that is dropped makes its source suspect; `None` once it has ended or
    /// was reported.
    suspect_at: Option<Time>,
}

impl ObservedCall<'_> {
    fn suspect(&mut self) {
        self.suspect_at = None;
        let source = self.source;
        self.sources.handle(Input::Slow { source });
    }
}

impl Drop for ObservedCall<'_> {
    fn drop(&mut self) {
        if self
            .suspect_at
            .is_some_and(|at| at <= self.sources.0.clock.now())
        {
            self.suspect();
        }
    }
}

#[cfg(test)]
mod tests;

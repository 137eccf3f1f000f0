//! The tracker's service: one lock around the state, and one task for its timers.
//!
//! The lock is never held across an await. A parked request waits on a channel of its own; the
//! machine bounds how long.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_common::name::PeerId;
use flotilla_common::recording::Sink;
use flotilla_common::wire::tracker::{AnnounceAnswer, AnnounceRequest, LeaseAnswer, LeaseRequest};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::Notify;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::state::{RequestError, State, SwarmStatus, TrackerFigures};

/// When a peer whose request was parked at the drain may ask again.
const DRAINING_WAIT: Duration = Duration::from_secs(1);

/// The tracker behind HTTP.
#[derive(Debug)]
pub(crate) struct Service {
    config: Config,
    state: Mutex<State>,
    /// With an identity, every peer must have a certificate with its id; the endpoints check that
    /// there is one.
    identity: Option<Identity>,
    clock: Clock,
    /// The machine's next deadline is earlier than the one that the timer task sleeps for.
    deadline_moved: Notify,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
}

impl Service {
    /// The machine is recorded to `recording` if there is one.
    pub(crate) fn new(
        config: Config,
        identity: Option<Identity>,
        clock: Clock,
        shutdown: Shutdown,
        recording: Option<Box<dyn Sink>>,
    ) -> Self {
        Self {
            state: Mutex::new(State::new(&config, recording)),
            config,
            identity,
            clock,
            deadline_moved: Notify::new(),
            shutdown,
            metrics: Arc::default(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Handles an announce from the address `client`, with the id `identity` in its certificate.
    pub(crate) fn announce(
        &self,
        request: AnnounceRequest,
        identity: Option<&PeerId>,
        client: IpAddr,
    ) -> Result<AnnounceAnswer, RequestError> {
        check_identity(identity, &request.peer.id)?;
        self.with_state(|state| state.announce(self.clock.now(), request, client))
    }

    /// Handles a lease request and waits for its answer.
    pub(crate) async fn lease(
        &self,
        request: LeaseRequest,
        identity: Option<&PeerId>,
    ) -> Result<LeaseAnswer, RequestError> {
        check_identity(identity, &request.peer)?;
        let answer = self.with_state(|state| state.lease(self.clock.now(), request))?;
        let draining = LeaseAnswer::Wait {
            retry_ms: DRAINING_WAIT.as_millis() as u32,
        };
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or(Ok(draining)),
            () = self.shutdown.wait() => Ok(draining),
        }
    }

    /// Fires the machine's timers until the shutdown.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            let deadline = self.lock().fire_timers(self.clock.now());
            tokio::select! {
                () = self.clock.sleep_until(deadline) => {}
                () = self.deadline_moved.notified() => {}
                () = self.shutdown.wait() => return,
            }
        }
    }

    pub(crate) fn swarms(&self, limit: usize) -> Vec<SwarmStatus> {
        self.lock().swarms(limit)
    }

    pub(crate) fn figures(&self) -> TrackerFigures {
        self.lock().figures()
    }

    fn with_state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        if state.is_due_earlier() {
            self.deadline_moved.notify_one();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock fails one request. The state that it leaves is soft: the next
        // announces repair it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer speaks only for itself. Without TLS it has no certificate, and its word is taken.
fn check_identity(certified: Option<&PeerId>, claimed: &PeerId) -> Result<(), RequestError> {
    match certified {
        Some(certified) if certified != claimed => Err(RequestError::OtherIdentity {
            certified: certified.clone(),
            claimed: claimed.clone(),
        }),
        _ => Ok(()),
    }
}

//! The driver: one lock round the machine, one task for its timers, and requests that wait for
//! their answer.
//!
//! The lock is never held across an await. A request that is parked waits on a channel of its own;
//! the machine bounds how long.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_common::name::PeerId;
use flotilla_common::tracker::Counts;
use flotilla_common::wire::tracker::{AnnounceAnswer, AnnounceRequest, LeaseAnswer, LeaseRequest};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::Notify;

use crate::config::Config;
use crate::metrics::{Metrics, Snapshot};
use crate::state::{Refusal, State, SwarmStatus};

/// What a peer is told that still waits when the tracker drains.
const DRAINING_WAIT: Duration = Duration::from_secs(1);

/// The tracker behind HTTP.
#[derive(Debug)]
pub(crate) struct Service {
    config: Config,
    state: Mutex<State>,
    /// With one, every peer must show a certificate with its id.
    identity: Option<Identity>,
    /// The machine's next deadline is earlier than the one that the timer task sleeps for.
    is_earlier: Notify,
    shutdown: Shutdown,
    metrics: Metrics,
}

impl Service {
    pub(crate) fn new(config: Config, identity: Option<Identity>, shutdown: Shutdown) -> Self {
        let state = Mutex::new(State::new(&config));
        let (is_earlier, metrics) = (Notify::new(), Metrics::default());
        Self {
            config,
            state,
            identity,
            is_earlier,
            shutdown,
            metrics,
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Takes an announce that came from `client`, which is `identity` by its certificate.
    pub(crate) fn announce(
        &self,
        request: AnnounceRequest,
        identity: Option<&PeerId>,
        client: IpAddr,
    ) -> Result<AnnounceAnswer, Refusal> {
        self.check_identity(identity, &request.peer.id)?;
        self.with_state(|state| state.announce(Clock::system().now(), request, client))
    }

    /// Takes a lease request and waits for its answer.
    pub(crate) async fn lease(
        &self,
        request: LeaseRequest,
        identity: Option<&PeerId>,
    ) -> Result<LeaseAnswer, Refusal> {
        self.check_identity(identity, &request.peer)?;
        let answer = self.with_state(|state| state.lease(Clock::system().now(), request))?;
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
            let deadline = self.lock().fire_timers(Clock::system().now());
            tokio::select! {
                () = Clock::system().sleep_until(deadline) => {}
                () = self.is_earlier.notified() => {}
                () = self.shutdown.wait() => return,
            }
        }
    }

    pub(crate) fn peer_count(&self) -> u32 {
        self.lock().snapshot().peers
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().snapshot().counts
    }

    pub(crate) fn swarms(&self, limit: usize) -> Vec<SwarmStatus> {
        self.lock().swarms(limit)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    fn check_identity(&self, certified: Option<&PeerId>, claimed: &PeerId) -> Result<(), Refusal> {
        match certified {
            None if self.identity.is_some() => Err(Refusal::NoIdentity {
                claimed: claimed.clone(),
            }),
            Some(certified) if certified != claimed => Err(Refusal::OtherIdentity {
                certified: certified.clone(),
                claimed: claimed.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn with_state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        if state.is_due_earlier() {
            self.is_earlier.notify_one();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a failed request; what is left is soft state that announces
        // repair.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

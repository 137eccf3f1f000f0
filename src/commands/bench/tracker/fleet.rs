//! The VMs of the benchmark: each has the shipped tracker client with a certificate and an address
//! of its own, and a place in the model of the pulls.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::time::Time;
use flotilla_common::tracker::{LeaseUpdate, NamedPeers, TrackerUrl, Urgency};
use flotilla_common::wire::tracker::PeerInfo;
use flotilla_peer::{TrackerContext, TrackerEvent, Trackers, tracker_http_client};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use reqwest::Client;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::images::{Image, peer_id, vm_address, vm_number};
use super::latency::Latencies;
use super::pull_model::{Action, PullModel};
use crate::command::CommandError;
use crate::fleet::Fleet as FleetKeys;

/// Step of the model.
const TICK: Duration = Duration::from_millis(50);
/// Until the origin has delivered a leased chunk of 256 KiB, while it sends eight at 1 Gbit/s.
const ORIGIN_TIME: Duration = Duration::from_millis(20);
/// Events of one session that wait for the model.
const QUEUE: usize = 64;
const REGION: &str = "local";
const ZONES: u32 = 3;

/// All VMs. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct VmFleet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    shutdown: Shutdown,
    tracker: Vec<TrackerUrl>,
    latencies: Arc<Latencies>,
    clients: Mutex<Vec<Option<Client>>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    model: PullModel,
    sessions: Vec<Option<Trackers>>,
    /// VMs named in handouts.
    handouts: u64,
    turnround: Turnround,
}

/// The time from the end of a lease to the next grant in the same swarm, while requests wait.
#[derive(Debug, Default)]
struct Turnround {
    /// Requests that wait, by layer.
    parked: HashMap<Digest, u64>,
    done: HashMap<Digest, VecDeque<Time>>,
    seconds: Vec<f64>,
}

impl VmFleet {
    /// `count` VMs that are not connected yet.
    pub(super) fn new(
        tracker: String,
        images: Vec<Image>,
        count: usize,
        chunks_per_s: f64,
        shutdown: Shutdown,
    ) -> Self {
        Self(Arc::new(Shared {
            clock: Clock::system(),
            shutdown,
            tracker: vec![TrackerUrl {
                region: None,
                url: tracker,
            }],
            latencies: Arc::default(),
            clients: Mutex::new((0..count).map(|_| None).collect()),
            state: Mutex::new(State {
                model: PullModel::new(images, count, chunks_per_s),
                sessions: (0..count).map(|_| None).collect(),
                handouts: 0,
                turnround: Turnround::default(),
            }),
        }))
    }

    pub(super) fn latencies(&self) -> &Latencies {
        &self.0.latencies
    }

    /// VMs whose pull is complete.
    pub(super) fn complete(&self) -> usize {
        self.state().model.complete()
    }

    /// VMs named in handouts so far.
    pub(super) fn handouts(&self) -> u64 {
        self.state().handouts
    }

    /// Times from the end of a lease to the next grant, in seconds, since the last call.
    pub(super) fn take_turnrounds(&self) -> Vec<f64> {
        std::mem::take(&mut self.state().turnround.seconds)
    }

    /// Makes the VM's certificate and client.
    pub(super) fn prepare(&self, vm: usize, keys: &FleetKeys) -> Result<(), CommandError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            CommandError::failed(format!("create VM {vm}"), error)
        };
        let identity = keys
            .peer(&peer_id(vm as u32))
            .map_err(|error| failed(error.into()))?;
        let address = vm_address(vm as u32).ip();
        let client =
            tracker_http_client(&identity, Some(address)).map_err(|error| failed(error.into()))?;
        lock(&self.0.clients)[vm] = Some(client);
        Ok(())
    }

    /// Opens the VM's connection to the tracker with a request that costs it nothing.
    pub(super) async fn connect(&self, vm: usize) -> Result<(), CommandError> {
        let Some(client) = lock(&self.0.clients)[vm].clone() else {
            return Ok(());
        };
        let url = format!("{}/healthz", self.0.tracker[0].url);
        let answer = client.get(url).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let read = match answer {
            Ok(answer) => answer.bytes().await.map(drop),
            Err(error) => Err(error),
        };
        read.map_err(|error| CommandError::failed(format!("connect VM {vm}"), error))
    }

    /// The VM starts: it wants its image, and announces.
    pub(super) fn start(&self, vm: usize) {
        let Some(client) = lock(&self.0.clients)[vm].take() else {
            return;
        };
        let number = vm as u32;
        let info = PeerInfo {
            id: peer_id(number),
            addr: vm_address(number),
            region: REGION.parse().expect("a label"),
            zone: format!("{REGION}-{}", number % ZONES)
                .parse()
                .expect("a label"),
        };
        let context = TrackerContext {
            client,
            clock: self.0.clock,
            observer: self.0.latencies.clone(),
            recording: None,
            origins: 1,
        };
        let (sender, mut events) = mpsc::channel(QUEUE);
        let mut state = self.state();
        state.model.start(vm);
        let session = Trackers::start(context, &self.0.tracker, info, sender, &self.0.shutdown);
        state.sessions[vm] = Some(session);
        drop(state);
        let fleet = self.clone();
        self.0.shutdown.spawn(async move {
            while let Some(event) = events.recv().await {
                fleet.on_event(vm, event);
            }
        });
    }

    /// The VM also holds these blobs, and announces them.
    pub(super) fn hold(&self, vm: usize, extra: &[Digest]) {
        let mut state = self.state();
        state.model.hold(vm, extra);
        if let Some(session) = &state.sessions[vm] {
            session.announce(Urgency::Soon);
        }
    }

    /// Moves the pulls on until the shutdown.
    pub(super) async fn run(self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.0.shutdown.wait() => return,
            }
            let now = self.0.clock.now();
            let mut state = self.state();
            for (vm, action) in state.model.tick(now) {
                self.carry_out(&mut state, now, vm, vec![action]);
            }
        }
    }

    fn on_event(&self, vm: usize, event: TrackerEvent) {
        let now = self.0.clock.now();
        let mut state = self.state();
        match event {
            TrackerEvent::Snapshot(sender) => {
                // An announce that was cancelled needs no snapshot.
                let _ = sender.send(state.model.snapshot(vm));
            }
            TrackerEvent::Handouts(handouts) => {
                for named in handouts {
                    state.on_handout(now, vm, &named);
                }
            }
            TrackerEvent::LeaseGranted { digest, chunk, .. } => {
                state.turnround.granted(now, digest);
                if let Some(layer) = state.model.layer(vm, &digest) {
                    let actions = state.model.on_granted(now, vm, layer, chunk);
                    self.carry_out(&mut state, now, vm, actions);
                }
            }
            TrackerEvent::LeaseWait {
                digest,
                retry_after,
            } => {
                state.turnround.unparked(digest);
                if let Some(layer) = state.model.layer(vm, &digest) {
                    state.model.on_wait(now, vm, layer, retry_after);
                }
            }
            TrackerEvent::LeaseLost { .. }
            | TrackerEvent::LeaseMoved { .. }
            | TrackerEvent::Reachable
            | TrackerEvent::Unreachable => {}
        }
    }

    fn carry_out(&self, state: &mut State, now: Time, vm: usize, actions: Vec<Action>) {
        for action in actions {
            if let Action::Fetch { layer, chunk } = action {
                let fleet = self.clone();
                self.0.shutdown.spawn(async move {
                    sleep(ORIGIN_TIME).await;
                    let now = fleet.0.clock.now();
                    let mut state = fleet.state();
                    let actions = state.model.on_fetched(now, vm, layer, chunk);
                    fleet.carry_out(&mut state, now, vm, actions);
                });
            } else {
                state.tell_session(now, vm, action);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl State {
    fn on_handout(&mut self, now: Time, vm: usize, named: &NamedPeers) {
        let named: Vec<u32> = named
            .peers
            .iter()
            .filter_map(|peer| vm_number(&peer.id))
            .collect();
        self.handouts += named.len() as u64;
        self.model.on_handout(now, vm, &named);
    }

    fn tell_session(&mut self, now: Time, vm: usize, action: Action) {
        let Some(session) = self.sessions[vm].clone() else {
            return;
        };
        match action {
            // Not for the session.
            Action::Fetch { .. } => {}
            Action::Announce => session.announce(Urgency::Soon),
            Action::RequestLease {
                layer,
                missing,
                starving,
            } => {
                let digest = self.model.digest(vm, layer);
                self.turnround.parked(digest);
                session.request_lease(digest, missing, starving, Vec::new());
            }
            Action::WithdrawRequest { layer } => {
                let digest = self.model.digest(vm, layer);
                self.turnround.unparked(digest);
                session.withdraw_request(digest);
            }
            Action::UpdateLease { layer, update } => {
                let digest = self.model.digest(vm, layer);
                if let LeaseUpdate::Done { .. } = update {
                    self.turnround.done(now, digest);
                }
                session.update_lease(digest, update);
            }
        }
    }
}

impl Turnround {
    fn parked(&mut self, digest: Digest) {
        *self.parked.entry(digest).or_default() += 1;
    }

    fn unparked(&mut self, digest: Digest) {
        let parked = self.parked.entry(digest).or_default();
        *parked = parked.saturating_sub(1);
    }

    fn done(&mut self, now: Time, digest: Digest) {
        if self.parked.get(&digest).is_some_and(|parked| *parked > 0) {
            self.done.entry(digest).or_default().push_back(now);
        }
    }

    fn granted(&mut self, now: Time, digest: Digest) {
        self.unparked(digest);
        if let Some(done_at) = self.done.entry(digest).or_default().pop_front() {
            self.seconds
                .push(now.saturating_since(done_at).as_secs_f64());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

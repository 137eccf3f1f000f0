//! The machine with names: peers, blobs, zones and regions have slots here, and only here.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::time::Time;
use flotilla_common::tracker::{
    self as machine, BlobSlot, Input, LeaseEvent, Output, PeerSlot, Progress, RequestId, SlotNames,
    TrackerMachine, ranked,
};
use flotilla_common::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, BlobState, LeaseAnswer, LeaseAsk, LeaseRequest, MAX_CHANGES,
};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::metrics::Snapshot;

/// Peers that one message may name as connected or unreachable.
const MAX_NAMED_PEERS: usize = 256;
/// Leases that one announce may name.
const MAX_LEASES: usize = 1_024;

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{what}: {count} are more than the {limit} that one message may carry")]
    TooMany {
        what: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("progress {progress} of {digest} is above {}", Progress::COMPLETE.step())]
    Progress { digest: Digest, progress: u8 },
    #[error("chunk count mismatch for {digest}: request says {chunks}")]
    ChunkCount { digest: Digest, chunks: u32 },
    #[error("the message is of peer {claimed}, and no certificate says so")]
    NoIdentity { claimed: PeerId },
    #[error("the certificate is of peer {certified}, the message of peer {claimed}")]
    OtherIdentity { certified: PeerId, claimed: PeerId },
    #[error("this tracker has as many peers as it may have: limits.peers")]
    TooManyPeers,
    #[error("this tracker knows as many zones as it may know: limits.zones")]
    TooManyZones,
}

/// One swarm, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwarmStatus {
    /// The blob.
    pub digest: Digest,
    /// Members.
    pub peers: usize,
    /// Of these, peers that hold all of it.
    pub seeders: usize,
    /// Leases open, in all regions.
    pub leases_open: usize,
    /// Lease requests parked, in all regions.
    pub leases_parked: usize,
}

/// The answer to a lease request, when it comes.
pub(crate) type Answer = oneshot::Receiver<Result<LeaseAnswer, Refusal>>;

/// Who waits for the answer to a lease request.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Result<LeaseAnswer, Refusal>>,
    peer: PeerSlot,
    blob: BlobSlot,
    digest: Digest,
    chunks: u32,
}

/// The machine, and the names of its slots.
#[derive(Debug)]
pub(crate) struct State {
    machine: TrackerMachine,
    names: SlotNames,
    zones_limit: usize,
    waiting: HashMap<RequestId, Waiting>,
    next_request: u64,
    trackers: Vec<String>,
    own_url: Option<String>,
    /// What the timer task sleeps for.
    armed: Option<Time>,
}

impl State {
    pub(crate) fn new(config: &Config) -> Self {
        // The standard library's hasher keys come from the system: another seed, and so another
        // epoch, each start.
        let rng_seed = RandomState::new().build_hasher().finish();
        Self {
            machine: TrackerMachine::new(config.machine(), rng_seed),
            names: SlotNames::default(),
            zones_limit: config.limits.zones as usize,
            waiting: HashMap::new(),
            next_request: 0,
            trackers: config.trackers.clone(),
            own_url: config.own_url.clone(),
            armed: None,
        }
    }

    /// Whether something is due before what [`Self::fire_timers`] returned last.
    pub(crate) fn is_due_earlier(&self) -> bool {
        match (self.machine.poll_timeout(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (next, _) => next.is_some(),
        }
    }

    /// Does what is due; when to come again.
    pub(crate) fn fire_timers(&mut self, now: Time) -> Option<Time> {
        self.machine.handle_timeout(now);
        self.drain(now);
        self.armed = self.machine.poll_timeout();
        self.armed
    }

    /// Takes an announce of a peer at `client`.
    pub(crate) fn announce(
        &mut self,
        now: Time,
        mut request: AnnounceRequest,
        client: IpAddr,
    ) -> Result<AnnounceAnswer, Refusal> {
        check_announce(&request)?;
        if !self.names.has_zone_or_room(&request.peer, self.zones_limit) {
            return Err(Refusal::TooManyZones);
        }
        if request.peer.addr.ip().is_unspecified() {
            request.peer.addr.set_ip(client);
        }
        let announce = self.names.announce(RequestId(0), request);
        self.machine.handle(now, Input::Announce(announce));
        let epoch = self.machine.epoch();
        // An announce is answered while it is handled.
        self.drain(now)
            .unwrap_or(Ok(AnnounceAnswer::Resync { epoch }))
    }

    /// Takes a lease request; the answer may come later.
    pub(crate) fn lease(&mut self, now: Time, request: LeaseRequest) -> Result<Answer, Refusal> {
        let LeaseRequest {
            digest,
            first_unreachable,
            ..
        } = request;
        let mut chunks = 0;
        let mut unreachable_count = 0;
        let mut is_not_first = false;
        if let LeaseAsk::Take {
            missing,
            unreachable,
            ..
        } = &request.ask
        {
            chunks = missing.len();
            unreachable_count = unreachable.len();
            is_not_first = !first_unreachable && !self.is_first(&digest);
        }
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let Some(input) = self.names.lease(id, request) else {
            return Ok(answered(LeaseAnswer::Unknown));
        };
        if is_not_first {
            return Ok(answered(LeaseAnswer::NotFirst));
        }
        check_count("unreachable", unreachable_count, MAX_NAMED_PEERS)?;
        let (peer, blob) = match &input {
            Input::Take(take) => (take.peer, take.blob),
            Input::Lease(lease) => (lease.peer, lease.blob),
            // The machine does not answer this one.
            _ => {
                self.machine.handle(now, input);
                self.drain(now);
                return Ok(answered(LeaseAnswer::Noted));
            }
        };
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(
            id,
            Waiting {
                answer: sender,
                peer,
                blob,
                digest,
                chunks,
            },
        );
        self.machine.handle(now, input);
        self.drain(now);
        Ok(answer)
    }

    /// The largest swarms, at most `limit`.
    pub(crate) fn swarms(&self, limit: usize) -> Vec<SwarmStatus> {
        let mut swarms: Vec<machine::SwarmSummary> = self.machine.swarms().collect();
        swarms.sort_by_key(|swarm| core::cmp::Reverse(swarm.peers));
        let status = |swarm: machine::SwarmSummary| {
            Some(SwarmStatus {
                digest: *self.names.digest(swarm.blob)?,
                peers: swarm.peers,
                seeders: swarm.seeders,
                leases_open: swarm.leases_open,
                leases_parked: swarm.parked,
            })
        };
        swarms.into_iter().take(limit).filter_map(status).collect()
    }

    /// The figures of this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            peers: self.machine.peer_count(),
            swarms: self.names.blob_count() as u64,
            leases_open: self
                .machine
                .swarms()
                .map(|swarm| swarm.leases_open as u64)
                .sum(),
            requests_parked: self.waiting.len() as u64,
            counts: self.machine.counts(),
        }
    }

    /// Whether this tracker is the first of the blob's.
    fn is_first(&self, digest: &Digest) -> bool {
        let first = ranked(&self.trackers, digest)
            .first()
            .map(|first| &self.trackers[*first]);
        first == self.own_url.as_ref()
    }

    /// Carries out what the machine wants; the answer to an announce, if one was handled.
    fn drain(&mut self, now: Time) -> Option<Result<AnnounceAnswer, Refusal>> {
        let mut announced = None;
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Announced { answer, .. } => {
                    let epoch = self.machine.epoch();
                    let answer = self.names.announce_answer(epoch, answer);
                    announced = Some(answer.ok_or(Refusal::TooManyPeers));
                }
                Output::Lease { request, answer } => self.answer(now, request, answer),
                Output::PeerForgotten(peer) => self.names.release_peer(peer),
                Output::BlobForgotten(blob) => self.names.release_blob(blob),
            }
        }
        announced
    }

    /// Answers a lease request. A lease for somebody who does not wait any more is given up at
    /// once.
    fn answer(&mut self, now: Time, request: RequestId, answer: machine::LeaseAnswer) {
        let Some(waiting) = self.waiting.remove(&request) else {
            return;
        };
        let wire = self.names.lease_answer(answer).ok_or(Refusal::ChunkCount {
            digest: waiting.digest,
            chunks: waiting.chunks,
        });
        let (peer, blob) = (waiting.peer, waiting.blob);
        if let (Err(_), machine::LeaseAnswer::Granted { chunk, .. }) =
            (waiting.answer.send(wire), answer)
        {
            // The answer to this has nobody who waits for it.
            self.next_request += 1;
            let request = RequestId(self.next_request);
            let event = LeaseEvent::Failed;
            self.machine.handle(
                now,
                Input::Lease(machine::Lease {
                    request,
                    peer,
                    blob,
                    chunk,
                    event,
                }),
            );
        }
    }
}

fn answered(answer: LeaseAnswer) -> Answer {
    let (sender, receiver) = oneshot::channel();
    // The receiver is right here, so it cannot be gone.
    let _is_sent = sender.send(Ok(answer));
    receiver
}

fn check_announce(request: &AnnounceRequest) -> Result<(), Refusal> {
    check_count("changes", request.changes.len(), MAX_CHANGES)?;
    check_count("leases", request.leases.len(), MAX_LEASES)?;
    check_count("connected", request.connected.len(), MAX_NAMED_PEERS)?;
    check_count("unreachable", request.unreachable.len(), MAX_NAMED_PEERS)?;
    for change in &request.changes {
        if let BlobState::Wanted { progress } | BlobState::Held { progress } = change.state
            && Progress::from_step(progress).is_none()
        {
            return Err(Refusal::Progress {
                digest: change.digest,
                progress,
            });
        }
    }
    Ok(())
}

fn check_count(what: &'static str, count: usize, limit: usize) -> Result<(), Refusal> {
    if count > limit {
        Err(Refusal::TooMany { what, count, limit })
    } else {
        Ok(())
    }
}

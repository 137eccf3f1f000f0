//! The machine, the names of its slots, and the requests that wait for its answers.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, SocketAddr};

use flotilla_common::digest::Digest;
use flotilla_common::name::{PeerId, RegionName};
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::recording::{Recorded, Sink};
use flotilla_common::time::Time;
use flotilla_common::tracker::{
    self as machine, BlobSlot, LeaseEvent, PeerSlot, Progress, RegionSlot, RequestId, SlotNames,
    TrackerCounts, TrackerGroup, TrackerInput, TrackerMachine, TrackerOutput,
};
use flotilla_common::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, BlobState, LeaseAnswer, LeaseAsk, LeaseRequest, MAX_CHANGES,
    PeerInfo,
};
use flotilla_runtime::address_range::AddressRange;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::config::Config;

/// Peers that one message may name as connected or unreachable.
const MAX_NAMED_PEERS: usize = 256;
/// Leases that one announce may name.
const MAX_LEASES: usize = 1_024;

/// Why a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("too many {what}: {count}, but one message may carry at most {limit}")]
    TooMany {
        what: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("invalid progress {progress} for {digest}: the largest is {}", Progress::COMPLETE.step())]
    Progress { digest: Digest, progress: u8 },
    #[error("chunk count mismatch for {digest}: request says {chunks}")]
    ChunkCount { digest: Digest, chunks: u32 },
    #[error("peer id mismatch: the message says {claimed}, the certificate {certified}")]
    OtherIdentity { certified: PeerId, claimed: PeerId },
    #[error(
        "peer {peer} announces the address {announced}, but its request comes from {client}; if it \
         is right, add its network to advertised-from of the tracker"
    )]
    Address {
        peer: PeerId,
        announced: SocketAddr,
        client: IpAddr,
    },
    #[error("the tracker is full; run more trackers")]
    TooManyPeers,
    #[error("the tracker has too many zones; check the zone keys of the peers")]
    TooManyZones,
}

/// One swarm, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwarmStatus {
    /// The blob.
    pub digest: Digest,
    /// Peers in the swarm.
    pub peers: usize,
    /// Of these, peers that hold all of it.
    pub seeders: usize,
    /// Open leases, in all regions.
    pub leases_open: usize,
    /// Parked lease requests, in all regions.
    pub leases_parked: usize,
}

/// Receives the answer to a lease request.
pub(crate) type PendingAnswer = oneshot::Receiver<Result<LeaseAnswer, RequestError>>;

/// A lease request without an answer.
#[derive(Debug)]
struct WaitingRequest {
    answer: oneshot::Sender<Result<LeaseAnswer, RequestError>>,
    peer: PeerSlot,
    blob: BlobSlot,
    digest: Digest,
    chunks: u32,
}

/// The figures of one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrackerFigures {
    pub(crate) peers: u32,
    pub(crate) swarms: u64,
    pub(crate) leases_open: u64,
    pub(crate) requests_parked: u64,
    pub(crate) origins_out: u64,
    pub(crate) counts: TrackerCounts,
}

/// The machine, the names of its slots, and the waiting requests.
#[derive(Debug)]
pub(crate) struct State {
    machine: Recorded<TrackerMachine>,
    names: SlotNames,
    zones_limit: usize,
    advertised_from: Vec<AddressRange>,
    waiting: HashMap<RequestId, WaitingRequest>,
    next_request: u64,
    group: TrackerGroup,
    /// The deadline that the timer task sleeps for.
    armed: Option<Time>,
}

impl State {
    /// The machine is recorded to `recording` if there is one.
    pub(crate) fn new(config: &Config, recording: Option<Box<dyn Sink>>) -> Self {
        // The keys of the standard library's hasher come from the system, so each start has another
        // seed and another epoch.
        let rng_seed = RandomState::new().build_hasher().finish();
        Self {
            machine: Recorded::new((config.machine(), rng_seed), recording),
            names: SlotNames::default(),
            zones_limit: config.limits.zones as usize,
            advertised_from: config.advertised_from.clone(),
            waiting: HashMap::new(),
            next_request: 0,
            group: TrackerGroup::new(config.trackers.clone(), config.own_url.clone()),
            armed: None,
        }
    }

    /// Whether the next deadline is earlier than the one that [`Self::fire_timers`] returned last.
    pub(crate) fn is_due_earlier(&self) -> bool {
        match (self.machine.poll_timeout(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (next, _) => next.is_some(),
        }
    }

    /// Handles everything that is due and returns the next deadline.
    pub(crate) fn fire_timers(&mut self, now: Time) -> Option<Time> {
        self.machine.handle_timeout(now);
        self.drain(now);
        self.armed = self.machine.poll_timeout();
        self.armed
    }

    /// Handles an announce of a peer with the address `client`.
    pub(crate) fn announce(
        &mut self,
        now: Time,
        mut request: AnnounceRequest,
        client: IpAddr,
    ) -> Result<AnnounceAnswer, RequestError> {
        check_announce(&request)?;
        self.check_address(&mut request.peer, client)?;
        if !self.names.has_zone_or_room(&request.peer, self.zones_limit) {
            return Err(RequestError::TooManyZones);
        }
        let announce = self.names.announce(RequestId(0), request);
        self.machine.handle(now, TrackerInput::Announce(announce));
        let epoch = self.machine.epoch();
        // An announce is answered while it is handled.
        self.drain(now)
            .unwrap_or(Ok(AnnounceAnswer::Resync { epoch }))
    }

    /// Checks that a peer is at the address that it announces, because all peers of its swarms dial
    /// it: it is the source address of its request, or in a configured range.
    fn check_address(&self, peer: &mut PeerInfo, client: IpAddr) -> Result<(), RequestError> {
        let (ip, source) = (peer.addr.ip().to_canonical(), client.to_canonical());
        if ip.is_unspecified() {
            peer.addr.set_ip(client);
            return Ok(());
        }
        // All loopback addresses are of the tracker's own machine.
        let is_source = ip == source || (ip.is_loopback() && source.is_loopback());
        if is_source || self.advertised_from.iter().any(|range| range.contains(ip)) {
            return Ok(());
        }
        Err(RequestError::Address {
            peer: peer.id.clone(),
            announced: peer.addr,
            client,
        })
    }

    /// Handles a lease request. The answer may come later.
    pub(crate) fn lease(
        &mut self,
        now: Time,
        request: LeaseRequest,
    ) -> Result<PendingAnswer, RequestError> {
        let digest = request.digest;
        let mut chunks = 0;
        let mut unreachable_count = 0;
        let is_for_another = self.group.is_for_another(&request);
        if let LeaseAsk::Take {
            missing,
            unreachable,
            ..
        } = &request.ask
        {
            chunks = missing.len();
            unreachable_count = unreachable.len();
        }
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let Some(input) = self.names.lease(id, request) else {
            return Ok(answered(LeaseAnswer::Unknown));
        };
        if is_for_another {
            return Ok(answered(LeaseAnswer::NotFirst));
        }
        check_count("unreachable", unreachable_count, MAX_NAMED_PEERS)?;
        let (peer, blob) = match &input {
            TrackerInput::Take(take) => (take.peer, take.blob),
            TrackerInput::Lease(lease) => (lease.peer, lease.blob),
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
            WaitingRequest {
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

    pub(crate) fn figures(&self) -> TrackerFigures {
        TrackerFigures {
            peers: self.machine.peer_count(),
            swarms: self.names.blob_count() as u64,
            leases_open: self
                .machine
                .swarms()
                .map(|swarm| swarm.leases_open as u64)
                .sum(),
            requests_parked: self.waiting.len() as u64,
            origins_out: self.machine.origins_out() as u64,
            counts: self.machine.counts(),
        }
    }

    /// Carries out the machine's outputs. Returns the answer to an announce, if it handled one.
    fn drain(&mut self, now: Time) -> Option<Result<AnnounceAnswer, RequestError>> {
        let mut announced = None;
        while let Some(output) = self.machine.poll_output() {
            match output {
                TrackerOutput::Announced { answer, .. } => {
                    let epoch = self.machine.epoch();
                    let answer = self.names.announce_answer(epoch, answer);
                    announced = Some(answer.ok_or(RequestError::TooManyPeers));
                }
                TrackerOutput::Lease { request, answer } => self.answer(now, request, answer),
                TrackerOutput::OriginChanged {
                    region,
                    origin,
                    is_out,
                } => self.log_origin(region, origin, is_out),
                TrackerOutput::PeerForgotten(peer) => self.names.release_peer(peer),
                TrackerOutput::BlobForgotten(blob) => self.names.release_blob(blob),
            }
        }
        announced
    }

    /// Logs that leases are fetched from another region, or from this one again. The origin is
    /// named as in the peers' configuration: 0 is that of their own region.
    fn log_origin(&self, region: RegionSlot, origin: OriginRegion, is_out: bool) {
        let region = self.names.region(region).map_or("?", RegionName::as_str);
        let origin = origin.0;
        if is_out {
            tracing::warn!(
                peers_of = region,
                origin,
                "an origin serves none of the peers that hold leases; leases go to the next region"
            );
        } else {
            tracing::info!(
                peers_of = region,
                origin,
                "an origin serves peers again; leases return to it step by step"
            );
        }
    }

    /// Answers a lease request. A lease for a peer that does not wait any more is given up at once.
    fn answer(&mut self, now: Time, request: RequestId, answer: machine::LeaseOutcome) {
        let Some(waiting) = self.waiting.remove(&request) else {
            return;
        };
        let wire = self
            .names
            .lease_answer(answer)
            .ok_or(RequestError::ChunkCount {
                digest: waiting.digest,
                chunks: waiting.chunks,
            });
        let (peer, blob) = (waiting.peer, waiting.blob);
        if let (Err(_), machine::LeaseOutcome::Granted { chunk, .. }) =
            (waiting.answer.send(wire), answer)
        {
            // No request waits for the answer to this.
            self.next_request += 1;
            let request = RequestId(self.next_request);
            let event = LeaseEvent::Failed;
            self.machine.handle(
                now,
                TrackerInput::Lease(machine::Lease {
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

fn answered(answer: LeaseAnswer) -> PendingAnswer {
    let (sender, receiver) = oneshot::channel();
    // The receiver exists, so this cannot fail.
    let _is_sent = sender.send(Ok(answer));
    receiver
}

fn check_announce(request: &AnnounceRequest) -> Result<(), RequestError> {
    check_count("changes", request.changes.len(), MAX_CHANGES)?;
    check_count("leases", request.leases.len(), MAX_LEASES)?;
    check_count("neighbours", request.neighbours.len(), MAX_CHANGES)?;
    check_count("connected", request.connected.len(), MAX_NAMED_PEERS)?;
    check_count("unreachable", request.unreachable.len(), MAX_NAMED_PEERS)?;
    for change in &request.changes {
        if let BlobState::Wanted { progress } | BlobState::Held { progress } = change.state
            && Progress::from_step(progress).is_none()
        {
            return Err(RequestError::Progress {
                digest: change.digest,
                progress,
            });
        }
    }
    Ok(())
}

fn check_count(what: &'static str, count: usize, limit: usize) -> Result<(), RequestError> {
    if count > limit {
        Err(RequestError::TooMany { what, count, limit })
    } else {
        Ok(())
    }
}

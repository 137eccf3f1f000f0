//! The machine with names: peers, blobs, zones and regions have slots here, and only here.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::interner::{Interner, Slot};
use flotilla_common::name::{PeerId, RegionName, ZoneName};
use flotilla_common::time::Time;
use flotilla_common::tracker::{
    self as machine, BlobSlot, Input, LeaseEvent, Output, PeerSlot, Progress, RegionSlot,
    RequestId, TrackerMachine, ZoneSlot, ranked,
};
use flotilla_common::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, BlobState, Change, Handout, LeaseAnswer, LeaseAsk,
    LeaseRequest, MAX_CHANGES, PeerInfo,
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
    #[error(
        "{digest} has another number of chunks than {chunks}, as others say or as any blob may have"
    )]
    Chunks { digest: Digest, chunks: u32 },
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
    peers: Interner<PeerId, PeerSlot>,
    /// By peer slot.
    infos: Vec<Option<PeerInfo>>,
    blobs: Interner<Digest, BlobSlot>,
    zones: Interner<(RegionName, ZoneName), ZoneSlot>,
    regions: Interner<RegionName, RegionSlot>,
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
            peers: Interner::default(),
            infos: Vec::new(),
            blobs: Interner::default(),
            zones: Interner::default(),
            regions: Interner::default(),
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
        request: AnnounceRequest,
        client: IpAddr,
    ) -> Result<AnnounceAnswer, Refusal> {
        check_announce(&request)?;
        let (zone, region) = self.place(&request.peer)?;
        let mut info = request.peer;
        if info.addr.ip().is_unspecified() {
            info.addr.set_ip(client);
        }
        let peer = self.peers.intern(&info.id);
        let index = peer.index() as usize;
        if self.infos.len() <= index {
            self.infos.resize_with(index + 1, || None);
        }
        self.infos[index] = Some(info);
        let changes = request
            .changes
            .iter()
            .filter_map(|change| self.change(change))
            .collect();
        let leases = request.leases.iter().filter_map(|lease| {
            let blob = self.blobs.slot(&lease.digest)?;
            Some(machine::HeldLease {
                blob,
                chunk: lease.chunk,
                chunks: lease.chunks,
            })
        });
        let announce = machine::Announce {
            request: RequestId(0),
            peer,
            zone,
            region,
            epoch: request.epoch,
            sequence: request.sequence,
            full: request.full,
            leases: leases.collect(),
            changes,
            connected: self.known(&request.connected),
            unreachable: self.known(&request.unreachable),
            leaving: request.leaving,
        };
        self.machine.handle(now, Input::Announce(announce));
        let epoch = self.machine.epoch();
        // An announce is answered while it is handled.
        self.drain(now)
            .unwrap_or(Ok(AnnounceAnswer::Resync { epoch }))
    }

    /// Takes a lease request; the answer may come later.
    pub(crate) fn lease(&mut self, now: Time, request: LeaseRequest) -> Result<Answer, Refusal> {
        let (sender, answer) = oneshot::channel();
        let (Some(peer), Some(blob)) = (
            self.peers.slot(&request.peer),
            self.blobs.slot(&request.digest),
        ) else {
            return Ok(answered(LeaseAnswer::Unknown));
        };
        if matches!(request.ask, LeaseAsk::Take { .. })
            && !request.first_unreachable
            && !self.is_first(&request.digest)
        {
            return Ok(answered(LeaseAnswer::NotFirst));
        }
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let mut chunks = 0;
        let event = |chunk, event| {
            Input::Lease(machine::Lease {
                request: id,
                peer,
                blob,
                chunk,
                event,
            })
        };
        let input = match request.ask {
            LeaseAsk::Take {
                number,
                missing,
                starving,
                unreachable,
            } => {
                check_count("unreachable", unreachable.len(), MAX_NAMED_PEERS)?;
                chunks = missing.len();
                let unreachable = self.known(&unreachable);
                let request = id;
                Input::Take(machine::Take {
                    request,
                    peer,
                    blob,
                    number,
                    missing,
                    starving,
                    unreachable,
                })
            }
            LeaseAsk::Drop => {
                self.machine.handle(now, Input::Drop { peer, blob });
                self.drain(now);
                return Ok(answered(LeaseAnswer::Noted));
            }
            LeaseAsk::Renew { chunk, received } => event(chunk, LeaseEvent::Renew { received }),
            LeaseAsk::Done { chunk } => event(chunk, LeaseEvent::Done),
            LeaseAsk::Failed { chunk } => event(chunk, LeaseEvent::Failed),
        };
        self.waiting.insert(
            id,
            Waiting {
                answer: sender,
                peer,
                blob,
                digest: request.digest,
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
                digest: *self.blobs.value(swarm.blob)?,
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
            swarms: self.blobs.len() as u64,
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

    /// The slots of a peer's zone and region.
    fn place(&mut self, info: &PeerInfo) -> Result<(ZoneSlot, RegionSlot), Refusal> {
        let zone = (info.region.clone(), info.zone.clone());
        if self.zones.slot(&zone).is_none() && self.zones.len() >= self.zones_limit {
            return Err(Refusal::TooManyZones);
        }
        Ok((self.zones.intern(&zone), self.regions.intern(&info.region)))
    }

    fn change(&mut self, change: &Change) -> Option<machine::Change> {
        let (blob, state) = match change.state {
            BlobState::Wanted { progress } => (
                self.blobs.intern(&change.digest),
                machine::BlobState::Wanted(Progress::from_step(progress)?),
            ),
            BlobState::Held { progress } => (
                self.blobs.intern(&change.digest),
                machine::BlobState::Held(Progress::from_step(progress)?),
            ),
            BlobState::Gone => (self.blobs.slot(&change.digest)?, machine::BlobState::Gone),
        };
        Some(machine::Change { blob, state })
    }

    /// The slots of those of `peers` that are known.
    fn known(&self, peers: &[PeerId]) -> Vec<PeerSlot> {
        peers
            .iter()
            .filter_map(|peer| self.peers.slot(peer))
            .collect()
    }

    fn info(&self, peer: PeerSlot) -> Option<&PeerInfo> {
        self.infos.get(peer.index() as usize)?.as_ref()
    }

    /// Carries out what the machine wants; the answer to an announce, if one was handled.
    fn drain(&mut self, now: Time) -> Option<Result<AnnounceAnswer, Refusal>> {
        let mut announced = None;
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Announced { answer, .. } => announced = Some(self.announced(answer)),
                Output::Lease { request, answer } => self.answer(now, request, answer),
                Output::PeerForgotten(peer) => {
                    self.peers.release(peer);
                    if let Some(info) = self.infos.get_mut(peer.index() as usize) {
                        *info = None;
                    }
                }
                Output::BlobForgotten(blob) => _ = self.blobs.release(blob),
            }
        }
        announced
    }

    fn announced(&self, answer: machine::AnnounceAnswer) -> Result<AnnounceAnswer, Refusal> {
        let epoch = self.machine.epoch();
        match answer {
            machine::AnnounceAnswer::Resync => Ok(AnnounceAnswer::Resync { epoch }),
            machine::AnnounceAnswer::Full => Err(Refusal::TooManyPeers),
            machine::AnnounceAnswer::Accepted { next, handouts } => {
                let handouts = handouts.into_iter().filter_map(|(blob, peers)| {
                    let peers = peers
                        .into_iter()
                        .filter_map(|peer| self.info(peer).cloned())
                        .collect();
                    Some(Handout {
                        digest: *self.blobs.value(blob)?,
                        peers,
                    })
                });
                Ok(AnnounceAnswer::Accepted {
                    epoch,
                    next_ms: millis(next),
                    handouts: handouts.collect(),
                })
            }
        }
    }

    /// Answers a lease request. A lease for somebody who does not wait any more is given up at
    /// once.
    fn answer(&mut self, now: Time, request: RequestId, answer: machine::LeaseAnswer) {
        let Some(waiting) = self.waiting.remove(&request) else {
            return;
        };
        let wire = match answer {
            machine::LeaseAnswer::Granted { chunk, term } => Ok(LeaseAnswer::Granted {
                chunk,
                term_ms: millis(term),
            }),
            machine::LeaseAnswer::Wait { retry_after } => Ok(LeaseAnswer::Wait {
                retry_ms: millis(retry_after),
            }),
            machine::LeaseAnswer::Dial { holder, .. } => Ok(match self.info(holder) {
                Some(holder) => LeaseAnswer::Dial {
                    peer: holder.clone(),
                },
                None => LeaseAnswer::Wait { retry_ms: 0 },
            }),
            machine::LeaseAnswer::Renewed { .. } | machine::LeaseAnswer::Noted => {
                Ok(LeaseAnswer::Noted)
            }
            machine::LeaseAnswer::NotHeld => Ok(LeaseAnswer::NotHeld),
            machine::LeaseAnswer::Unknown => Ok(LeaseAnswer::Unknown),
            machine::LeaseAnswer::Mismatch => Err(Refusal::Chunks {
                digest: waiting.digest,
                chunks: waiting.chunks,
            }),
        };
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

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

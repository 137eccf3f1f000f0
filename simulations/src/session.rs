//! Each peer's session with the trackers: the shipped machine, over simulated messages.

use flotilla_common::digest::Digest;
use flotilla_common::failover::{SourceId, Standing};
use flotilla_common::name::PeerId;
use flotilla_common::swarm::{BlobSlot, Input, PeerFacts};
use flotilla_common::time::Time;
use flotilla_common::tracker::{
    NamedPeers, PeerSnapshot, SessionInput, SessionOutput, TrackerSession,
};
use flotilla_common::wire::tracker::{BlobState, Change, HeldLease, NeighboursWanted};
use rand::RngExt as _;

use crate::event::Event;
use crate::names::{peer_number, tracker_url};
use crate::peer::PeerSession;
use crate::peer_blobs::PeerBlob;
use crate::world::World;

impl World<'_> {
    /// Starts a peer's session, if there are trackers.
    pub(crate) fn begin_session(&mut self, peer: u32) {
        if self.scenario.tracker.enabled {
            let info = self.infos[peer as usize].clone();
            let regions = self.scenario.peers.regions.get();
            let region = self.locations[peer as usize].region;
            let trackers: Vec<u32> = self.scenario.tracker.known_in(region, regions).collect();
            let known = trackers.iter().map(|number| {
                let region = self.trackers[*number as usize].region;
                tracker_url(*number, region)
            });
            let machine = TrackerSession::new(self.now, info, known.collect());
            self.peers[peer as usize].session = Some(PeerSession {
                machine,
                wake_at: Time::MAX,
                trackers,
                exchanges: Vec::new(),
            });
            self.drain_session(peer);
        }
    }

    /// Without a tracker, a peer knows some others from earlier that have or pull an image.
    pub(crate) fn add_known_peers(&mut self, peer: u32, pull: u32) {
        let count = self.peers.len() as u32;
        let known = self.scenario.tracker.known_peers.min(count - 1);
        let mut peers: Vec<PeerFacts> = Vec::new();
        while (peers.len() as u32) < known {
            let other = self.rng.random_range(0..count);
            let facts = self.facts(other, peer);
            if other != peer && peers.iter().all(|known| known.peer != facts.peer) {
                peers.push(facts);
            }
        }
        let simulated = &self.peers[peer as usize];
        let image = simulated.pulls[pull as usize].image;
        let layers = self.images.image(image).blobs.iter();
        let slots = layers.filter_map(|layer| simulated.blobs.slot(*layer));
        for blob in slots.collect::<Vec<_>>() {
            let peers = peers.clone();
            self.feed(peer, Input::Handout { blob, peers });
        }
        self.feed(peer, Input::TrackerUnreachable);
    }

    /// Gives an input to a peer's session and carries out its outputs. A frozen peer gets it when
    /// it thaws.
    pub(crate) fn feed_session(&mut self, peer: u32, input: SessionInput) {
        let simulated = &mut self.peers[peer as usize];
        if let Some(backlog) = &mut simulated.frozen {
            backlog.session_inputs.push(input);
        } else if let Some(session) = simulated.session.as_mut().filter(|_| simulated.is_alive) {
            session.machine.handle(self.now, input);
            self.drain_session(peer);
        }
    }

    pub(crate) fn on_session_wake(&mut self, peer: u32) {
        let simulated = &mut self.peers[peer as usize];
        let is_running = simulated.is_alive && simulated.frozen.is_none();
        let now = self.now;
        if let Some(session) = &mut simulated.session
            && session.wake_at == now
        {
            session.wake_at = Time::MAX;
            if is_running {
                session.machine.handle_timeout(now);
                self.drain_session(peer);
            }
        }
    }

    /// Continues the session of a peer that was frozen.
    pub(crate) fn thaw_session(&mut self, peer: u32, inputs: Vec<SessionInput>) {
        for input in inputs {
            self.feed_session(peer, input);
        }
        if let Some(session) = &mut self.peers[peer as usize].session {
            session.machine.handle_timeout(self.now);
            self.drain_session(peer);
        }
    }

    fn drain_session(&mut self, peer: u32) {
        loop {
            let session = self.peers[peer as usize].session.as_mut();
            let Some(output) = session.and_then(|session| session.machine.poll_output()) else {
                break;
            };
            self.act_for_session(peer, output);
        }
        if let Some(session) = &mut self.peers[peer as usize].session
            && let Some(at) = session.machine.poll_timeout()
            && at < session.wake_at
        {
            let at = at.max(self.now);
            session.wake_at = at;
            self.queue.push(at, Event::SessionWake { peer });
        }
    }

    fn act_for_session(&mut self, peer: u32, output: SessionOutput) {
        match output {
            SessionOutput::NeedSnapshot { tracker } => {
                let snapshot = self.snapshot(peer);
                self.feed_session(peer, SessionInput::Snapshot { tracker, snapshot });
            }
            SessionOutput::Post {
                exchange,
                tracker,
                request,
            } => {
                let session = self.peers[peer as usize].session.as_ref();
                let number = session.and_then(|it| it.trackers.get(tracker).copied());
                if let Some(number) = number {
                    self.send_to_tracker(peer, number, exchange, request);
                }
            }
            SessionOutput::Cancel { exchange, .. } => self.cancel_exchange(peer, exchange),
            SessionOutput::Handouts(handouts) => {
                for named in handouts {
                    self.on_handout(peer, &named);
                }
            }
            SessionOutput::LeaseGranted {
                digest,
                chunk,
                term,
                from,
            } => {
                if let Some(blob) = self.slot(peer, &digest) {
                    let failover = &self.peers[peer as usize].failover;
                    let is_out = from.is_some_and(|from| {
                        failover.standing(SourceId(from.0.into())) == Standing::Out
                    });
                    let granted = Input::LeaseGranted {
                        blob,
                        chunk,
                        term,
                        from,
                        is_out,
                    };
                    self.feed(peer, granted);
                }
            }
            SessionOutput::LeaseMoved { digest, chunk, to } => {
                if let Some(blob) = self.slot(peer, &digest) {
                    self.feed(peer, Input::LeaseMoved { blob, chunk, to });
                }
            }
            SessionOutput::LeaseWait {
                digest,
                retry_after,
            } => {
                if let Some(blob) = self.slot(peer, &digest) {
                    self.feed(peer, Input::LeaseWait { blob, retry_after });
                }
            }
            SessionOutput::LeaseLost { digest, chunk } => {
                if let Some(blob) = self.slot(peer, &digest) {
                    self.feed(peer, Input::LeaseLost { blob, chunk });
                }
            }
            SessionOutput::Reachable => self.feed(peer, Input::TrackerReachable),
            SessionOutput::Unreachable => self.feed(peer, Input::TrackerUnreachable),
        }
    }

    fn on_handout(&mut self, peer: u32, named: &NamedPeers) {
        let Some(blob) = self.slot(peer, &named.digest) else {
            return;
        };
        let others = named.peers.iter().filter_map(peer_number);
        let peers = others.map(|other| self.facts(other, peer)).collect();
        self.feed(peer, Input::Handout { blob, peers });
    }

    /// The state that a peer announces.
    fn snapshot(&self, peer: u32) -> PeerSnapshot {
        let simulated = &self.peers[peer as usize];
        let wanted: Vec<BlobSlot> = simulated.machine.wanted().collect();
        let change = |(slot, blob): (BlobSlot, &PeerBlob)| {
            let held = simulated.machine.held(slot)?;
            Some(Change {
                digest: self.images.blob(blob.id).digest,
                state: BlobState::of(held, wanted.contains(&slot))?,
            })
        };
        let leases = simulated.machine.leases().map(|(slot, chunk)| {
            let blob = self.images.blob(simulated.blobs.at(slot).id);
            HeldLease {
                digest: blob.digest,
                chunk,
                chunks: blob.geometry.chunks(),
            }
        });
        let neighbours = |(slot, blob): (BlobSlot, &PeerBlob)| NeighboursWanted {
            digest: self.images.blob(blob.id).digest,
            count: simulated.machine.neighbours_wanted(self.now, slot),
        };
        PeerSnapshot {
            neighbours: simulated.blobs.iter().map(neighbours).collect(),
            blobs: simulated.blobs.iter().filter_map(change).collect(),
            leases: leases.collect(),
            connected: simulated
                .links
                .connected()
                .map(|peer| self.id(peer))
                .collect(),
            unreachable: self.unreachable(peer, None),
        }
    }

    /// Peers that the tracker must not name to this one, those of `blob` first.
    pub(crate) fn unreachable(&self, peer: u32, blob: Option<BlobSlot>) -> Vec<PeerId> {
        let simulated = &self.peers[peer as usize];
        let unreachable = simulated.machine.unreachable(self.now, blob);
        unreachable
            .map(|slot| self.id(simulated.links.at(slot.0).peer))
            .collect()
    }

    fn id(&self, peer: u32) -> PeerId {
        self.infos[peer as usize].id.clone()
    }

    /// The slot of a blob that a peer pulls.
    fn slot(&self, peer: u32, digest: &Digest) -> Option<BlobSlot> {
        let id = self.images.find(digest)?;
        self.peers[peer as usize].blobs.slot(id)
    }
}

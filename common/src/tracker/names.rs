//! The tracker's names: translates wire messages to the machine's slots and answers back.
//!
//! Every driver of a [`TrackerMachine`](super::TrackerMachine) has one: the tracker's service and
//! the simulator.

use super::messages::{
    Announce, AnnounceOutcome, Lease, LeaseEvent, LeaseOutcome, ReportedLease, RequestId,
    RoleChange, SwarmRole, Take, TrackerInput,
};
use super::roster::Progress;
use super::slots::{BlobSlot, PeerSlot, RegionSlot, ZoneSlot};
use crate::digest::Digest;
use crate::interner::{CountedInterner, Interner, Slot};
use crate::name::{PeerId, RegionName, ZoneName};
use crate::wire::tracker as wire;

/// The slots of a zone and a region that the machine does not know: it compares them with those of
/// a peer, and never keeps them.
const UNKNOWN_PLACE: (ZoneSlot, RegionSlot) = (ZoneSlot(u32::MAX), RegionSlot(u32::MAX));

/// The peers, blobs, zones and regions that the machine knows, by slot. A zone and a region are
/// forgotten with their last peer.
#[derive(Debug, Default)]
pub struct SlotNames {
    peers: Interner<PeerId, PeerSlot>,
    /// By peer slot.
    infos: Vec<Option<wire::PeerInfo>>,
    blobs: Interner<Digest, BlobSlot>,
    zones: CountedInterner<(RegionName, ZoneName), ZoneSlot>,
    regions: CountedInterner<RegionName, RegionSlot>,
}

impl SlotNames {
    /// The announce with slots for all of its names. Leases of unknown blobs and changes with an
    /// impossible progress are left out.
    pub fn announce(&mut self, request: RequestId, message: wire::AnnounceRequest) -> Announce {
        let peer = self.peers.intern(&message.peer.id);
        let (zone, region) = self.place(peer, message.peer, message.full);
        let changes = message.changes.iter();
        let changes = changes.filter_map(|change| self.change(change)).collect();
        let leases = message.leases.iter().filter_map(|lease| {
            let blob = self.blobs.slot(&lease.digest)?;
            Some(ReportedLease {
                blob,
                chunk: lease.chunk,
                chunks: lease.chunks,
            })
        });
        let neighbours = message.neighbours.iter();
        let neighbours =
            neighbours.filter_map(|wanted| Some((self.blobs.slot(&wanted.digest)?, wanted.count)));
        Announce {
            request,
            peer,
            neighbours: neighbours.collect(),
            zone,
            region,
            epoch: message.epoch,
            sequence: message.sequence,
            full: message.full,
            leases: leases.collect(),
            changes,
            connected: self.known(&message.connected),
            unreachable: self.known(&message.unreachable),
            leaving: message.leaving,
        }
    }

    /// The lease request with slots; `None` if the peer or the blob is unknown.
    pub fn lease(&self, request: RequestId, message: wire::LeaseRequest) -> Option<TrackerInput> {
        let peer = self.peers.slot(&message.peer)?;
        let blob = self.blobs.slot(&message.digest)?;
        let update = |chunk, event| {
            TrackerInput::Lease(Lease {
                request,
                peer,
                blob,
                chunk,
                event,
            })
        };
        Some(match message.ask {
            wire::LeaseAsk::Take {
                number,
                missing,
                starving,
                unreachable,
                origins,
            } => TrackerInput::Take(Take {
                request,
                peer,
                blob,
                number,
                missing,
                starving,
                unreachable: self.known(&unreachable),
                origins,
            }),
            wire::LeaseAsk::Drop => TrackerInput::Drop { peer, blob },
            wire::LeaseAsk::Waiting { chunk, from } => update(chunk, LeaseEvent::Waiting { from }),
            wire::LeaseAsk::Renew {
                chunk,
                received,
                from,
            } => update(chunk, LeaseEvent::Renew { received, from }),
            wire::LeaseAsk::Done { chunk, from } => update(chunk, LeaseEvent::Done { from }),
            wire::LeaseAsk::Failed { chunk } => update(chunk, LeaseEvent::Failed),
        })
    }

    /// The answer to an announce with names; `None` for [`AnnounceOutcome::Full`], which the wire
    /// protocol reports as an error.
    pub fn announce_answer(
        &self,
        epoch: u64,
        answer: AnnounceOutcome,
    ) -> Option<wire::AnnounceAnswer> {
        match answer {
            AnnounceOutcome::Resync => Some(wire::AnnounceAnswer::Resync { epoch }),
            AnnounceOutcome::Full => None,
            AnnounceOutcome::Accepted {
                next,
                lease_delay,
                handouts,
            } => {
                let mut named = NamedPeers::default();
                let handouts = handouts.into_iter().filter_map(|handout| {
                    let peers = handout.peers.into_iter();
                    let peers = peers.filter_map(|(peer, progress)| {
                        Some(wire::NamedPeer {
                            index: named.index(peer)?,
                            progress: progress.step(),
                        })
                    });
                    Some(wire::Handout {
                        digest: *self.blobs.value(handout.blob)?,
                        peers: peers.collect(),
                    })
                });
                let handouts = handouts.collect();
                let info = |peer: &PeerSlot| self.info(*peer).cloned();
                let peers: Option<Vec<wire::PeerInfo>> = named.0.iter().map(info).collect();
                Some(wire::AnnounceAnswer::Accepted {
                    epoch,
                    next_ms: millis(next),
                    lease_delay_ms: millis(lease_delay),
                    // The machine names only peers that it knows, and these have names.
                    peers: peers.unwrap_or_default(),
                    handouts,
                })
            }
        }
    }

    /// The answer to a lease request with names; `None` for [`LeaseOutcome::Mismatch`], which the
    /// wire protocol reports as an error.
    pub fn lease_answer(&self, answer: LeaseOutcome) -> Option<wire::LeaseAnswer> {
        Some(match answer {
            LeaseOutcome::Granted { chunk, term, from } => wire::LeaseAnswer::Granted {
                chunk,
                term_ms: millis(term),
                from,
            },
            LeaseOutcome::Moved { to } => wire::LeaseAnswer::Moved { to },
            LeaseOutcome::Wait { retry_after } => wire::LeaseAnswer::Wait {
                retry_ms: millis(retry_after),
            },
            LeaseOutcome::Dial { holder, .. } => match self.info(holder) {
                Some(holder) => wire::LeaseAnswer::Dial {
                    peer: holder.clone(),
                },
                None => wire::LeaseAnswer::Wait { retry_ms: 0 },
            },
            LeaseOutcome::Renewed { .. } | LeaseOutcome::Noted => wire::LeaseAnswer::Noted,
            LeaseOutcome::NotHeld => wire::LeaseAnswer::NotHeld,
            LeaseOutcome::Unknown => wire::LeaseAnswer::Unknown,
            LeaseOutcome::Mismatch => return None,
        })
    }

    /// Frees the slot of a peer that the machine forgot.
    pub fn release_peer(&mut self, peer: PeerSlot) {
        self.peers.release(peer);
        let info = self.infos.get_mut(peer.index() as usize);
        if let Some(info) = info.and_then(Option::take) {
            self.release_place(info);
        }
    }

    /// Frees the slot of a blob that the machine forgot.
    pub fn release_blob(&mut self, blob: BlobSlot) {
        self.blobs.release(blob);
    }

    /// The digest of a blob.
    pub fn digest(&self, blob: BlobSlot) -> Option<&Digest> {
        self.blobs.value(blob)
    }

    /// The name of a region.
    pub fn region(&self, region: RegionSlot) -> Option<&RegionName> {
        self.regions.value(region)
    }

    /// Number of blobs with a slot.
    pub fn blob_count(&self) -> usize {
        self.blobs.len()
    }

    /// Whether the peer's zone has a slot, or there would be at most `limit` zones with it.
    pub fn has_zone_or_room(&self, peer: &wire::PeerInfo, limit: usize) -> bool {
        let zone = (peer.region.clone(), peer.zone.clone());
        self.zones.slot(&zone).is_some() || self.zones.len() < limit
    }

    /// Keeps what the peer announced about itself, and returns its zone and region.
    ///
    /// A peer that the machine knows moves to another place only with a full announce, because the
    /// machine answers a delta from another place with a resync. Until then the old place must stay,
    /// or its slots would name another one.
    fn place(
        &mut self,
        peer: PeerSlot,
        info: wire::PeerInfo,
        is_full: bool,
    ) -> (ZoneSlot, RegionSlot) {
        let index = peer.index() as usize;
        if self.infos.len() <= index {
            self.infos.resize_with(index + 1, || None);
        }
        let is_same =
            |known: &wire::PeerInfo| (&known.region, &known.zone) == (&info.region, &info.zone);
        if !is_full
            && self.infos[index]
                .as_ref()
                .is_some_and(|known| !is_same(known))
        {
            return UNKNOWN_PLACE;
        }
        let region = self.regions.acquire(&info.region);
        let zone = (info.region.clone(), info.zone.clone());
        let zone = self.zones.acquire(&zone);
        if let Some(former) = self.infos[index].replace(info) {
            self.release_place(former);
        }
        (zone, region)
    }

    fn release_place(&mut self, info: wire::PeerInfo) {
        self.regions.release(&info.region);
        self.zones.release(&(info.region, info.zone));
    }

    fn change(&mut self, change: &wire::Change) -> Option<RoleChange> {
        let (blob, state) = match change.state {
            wire::BlobState::Wanted { progress } => (
                self.blobs.intern(&change.digest),
                SwarmRole::Wanted(Progress::from_step(progress)?),
            ),
            wire::BlobState::Held { progress } => (
                self.blobs.intern(&change.digest),
                SwarmRole::Held(Progress::from_step(progress)?),
            ),
            wire::BlobState::Gone => (self.blobs.slot(&change.digest)?, SwarmRole::Gone),
        };
        Some(RoleChange { blob, state })
    }

    /// The slots of those of `peers` that have one.
    fn known(&self, peers: &[PeerId]) -> Vec<PeerSlot> {
        let peers = peers.iter();
        peers.filter_map(|peer| self.peers.slot(peer)).collect()
    }

    /// The peer in a slot.
    pub fn info(&self, peer: PeerSlot) -> Option<&wire::PeerInfo> {
        self.infos.get(peer.index() as usize)?.as_ref()
    }
}

/// The peers that one answer names, each once. They are few, so a search is as fast as a map.
#[derive(Default)]
struct NamedPeers(Vec<PeerSlot>);

impl NamedPeers {
    /// The index of the peer, which is added if it is new; `None` if there are too many.
    fn index(&mut self, peer: PeerSlot) -> Option<u16> {
        let known = self.0.iter().position(|named| *named == peer);
        let index = known.unwrap_or_else(|| {
            self.0.push(peer);
            self.0.len() - 1
        });
        u16::try_from(index).ok()
    }
}

fn millis(duration: core::time::Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn info(peer: &str, region: &str, zone: &str) -> wire::PeerInfo {
        wire::PeerInfo {
            id: peer.parse().unwrap(),
            addr: "10.0.0.1:5002".parse().unwrap(),
            region: region.parse().unwrap(),
            zone: zone.parse().unwrap(),
        }
    }

    fn announce(names: &mut SlotNames, peer: &wire::PeerInfo, full: bool) -> Announce {
        let message = wire::AnnounceRequest {
            peer: peer.clone(),
            epoch: 1,
            sequence: 1,
            full,
            changes: Vec::new(),
            leases: Vec::new(),
            neighbours: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        };
        names.announce(RequestId(0), message)
    }

    #[test]
    fn zone_is_forgotten_with_its_last_peer() {
        let mut names = SlotNames::default();
        let (one, two) = (info("one", "eu", "a"), info("two", "eu", "a"));
        let first = announce(&mut names, &one, true);
        let second = announce(&mut names, &two, true);
        assert_eq!((first.zone, first.region), (second.zone, second.region));
        // Further announces of a peer are not further uses.
        announce(&mut names, &one, true);
        announce(&mut names, &one, false);
        let newcomer = info("three", "us", "b");
        names.release_peer(first.peer);
        assert!(!names.has_zone_or_room(&newcomer, 1), "a peer is left");
        names.release_peer(second.peer);
        assert!(names.has_zone_or_room(&newcomer, 1));
        assert_eq!(announce(&mut names, &newcomer, true).zone, first.zone);
        assert!(!names.has_zone_or_room(&one, 1));
    }

    #[test]
    fn peer_that_moves_leaves_its_zone_with_a_full_announce() {
        let mut names = SlotNames::default();
        let before = announce(&mut names, &info("one", "eu", "a"), true);
        let moved = info("one", "us", "b");
        let delta = announce(&mut names, &moved, false);
        assert_ne!((delta.zone, delta.region), (before.zone, before.region));
        assert_eq!(names.info(before.peer).unwrap().zone.as_str(), "a");
        assert!(
            !names.has_zone_or_room(&moved, 1),
            "the machine knows zone a"
        );
        let full = announce(&mut names, &moved, true);
        // The machine compares the new place with the one that it knows.
        assert_ne!((full.zone, full.region), (before.zone, before.region));
        assert_eq!(names.info(before.peer).unwrap().zone.as_str(), "b");
        assert!(names.has_zone_or_room(&moved, 1));
        assert!(!names.has_zone_or_room(&info("two", "eu", "a"), 1));
    }
}

//! How a peer opens the image: the shipped machines, over simulated messages.
//!
//! The runtime has the manifest when the peer starts; it requests all blobs as soon as the proofs
//! are decided. Manifests are not announced to the tracker and a peer has no neighbours when it
//! starts, so a seek among neighbours ends by its timeout. Proofs have no bytes: they
//! arrive with the head of the answer. An origin whose region lags behind has them from another
//! region, as a real one; the time for that is not simulated.

use flotilla_common::digest::Digest;
use flotilla_common::failover::{ContentKey, Need};
use flotilla_common::opening::{
    ClosureResult, ImageBlob, ImageSeeks, Opening, OpeningConfig, OpeningInput, OpeningOutput,
    SeekInput, SeekOutput, Stored,
};
use flotilla_common::proof::Proof;
use flotilla_common::swarm::{BlobSlot, Input};
use flotilla_common::time::Time;
use flotilla_common::wire::origin::ClosureAnswer;

use crate::event::Event;
use crate::fetch::FetchPurpose;
use crate::world::World;

/// The image's closure, as the failover machines know it.
const CLOSURE: Need = Need::Content(ContentKey(u64::MAX));
/// Stands for the image's manifest.
const MANIFEST: &[u8] = b"manifest";

/// A peer's opening of the image, until the runtime has the manifest and the proofs are decided.
#[derive(Debug)]
pub(crate) struct ImageOpening {
    machine: Opening,
    seeks: ImageSeeks,
    is_answered: bool,
    /// The regions whose origins failed this peer's first request for proofs.
    failed_regions: Vec<u32>,
    /// The time of the next `OpeningWake`.
    wake_at: Time,
}

impl World<'_> {
    /// The runtime requests the image's manifest.
    pub(crate) fn open_image(&mut self, peer: u32) {
        let digests = self.digests.iter().zip(&self.geometries);
        let blobs = digests.map(|(digest, geometry)| ImageBlob {
            digest: *digest,
            size: geometry.size(),
            has_urls: false,
            stored: Stored::Absent,
        });
        let config = OpeningConfig::default();
        let opening = ImageOpening {
            machine: Opening::new(self.now, &config, blobs.collect()),
            seeks: ImageSeeks::default(),
            is_answered: false,
            failed_regions: Vec::new(),
            wake_at: Time::MAX,
        };
        self.peers[peer as usize].opening = Some(Box::new(opening));
        self.drain_opening(peer);
    }

    /// Whether the origin of a region answers a request for proofs with an error: the first one of
    /// each peer, if the scenario says so.
    pub(crate) fn fails_closure(&mut self, peer: u32, region: u32) -> bool {
        let opening = self.peers[peer as usize].opening.as_mut();
        match opening.filter(|_| self.scenario.origin.fail_first_closures) {
            Some(opening) if !opening.failed_regions.contains(&region) => {
                opening.failed_regions.push(region);
                true
            }
            _ => false,
        }
    }

    /// An origin's answer with the proofs arrives. An origin without seals does not know the
    /// request.
    pub(crate) fn on_proofs(&mut self, peer: u32) {
        let result = if self.scenario.image.digest_only {
            ClosureResult::Missing
        } else {
            // The simulated layers have no bytes to prove, so the proofs merely name the blobs.
            let blobs = self.digests.iter().zip(&self.geometries);
            let proofs = blobs.map(|(digest, geometry)| Proof::DigestOnly {
                digest: *digest,
                size: geometry.size(),
            });
            let (proofs, grant) = (proofs.collect(), None);
            ClosureResult::Proved(ClosureAnswer { proofs, grant })
        };
        self.feed_opening(peer, OpeningInput::Closure(result));
    }

    /// No origin is left to ask for the proofs.
    pub(crate) fn on_no_proofs(&mut self, peer: u32) {
        let result = ClosureResult::Unavailable;
        self.feed_opening(peer, OpeningInput::Closure(result));
    }

    /// Gives an input to a peer's opening and carries out its outputs. A frozen peer gets it when
    /// it thaws.
    pub(crate) fn feed_opening(&mut self, peer: u32, input: OpeningInput) {
        let simulated = &mut self.peers[peer as usize];
        if let Some(backlog) = &mut simulated.frozen {
            backlog.opening_inputs.push(input);
        } else if simulated.is_alive
            && let Some(opening) = &mut simulated.opening
        {
            opening.machine.handle(self.now, input);
            self.drain_opening(peer);
        }
    }

    pub(crate) fn on_opening_wake(&mut self, peer: u32) {
        let simulated = &mut self.peers[peer as usize];
        let is_running = simulated.is_alive && simulated.frozen.is_none();
        if let Some(opening) = &mut simulated.opening
            && opening.wake_at == self.now
        {
            opening.wake_at = Time::MAX;
            if is_running {
                self.drain_opening(peer);
            }
        }
    }

    /// Continues the opening of a peer that was frozen.
    pub(crate) fn thaw_opening(&mut self, peer: u32, inputs: Vec<OpeningInput>) {
        for input in inputs {
            self.feed_opening(peer, input);
        }
        self.drain_opening(peer);
    }

    fn drain_opening(&mut self, peer: u32) {
        let now = self.now;
        let Some(opening) = &mut self.peers[peer as usize].opening else {
            return;
        };
        opening.machine.handle_timeout(now);
        opening.seeks.handle_timeout(now);
        while let Some(opening) = &mut self.peers[peer as usize].opening {
            if let Some(output) = opening.machine.poll_output() {
                self.act_for_opening(peer, output);
            } else if let Some(output) = opening.seeks.poll_output() {
                self.act_for_seek(peer, &output);
            } else {
                break;
            }
        }
        let Some(opening) = &mut self.peers[peer as usize].opening else {
            return;
        };
        let is_finished = opening.machine.is_finished();
        let is_answered = is_finished || opening.machine.is_late();
        let answers_now = is_answered && !core::mem::replace(&mut opening.is_answered, is_answered);
        let deadlines = [opening.machine.poll_timeout(), opening.seeks.poll_timeout()];
        if let Some(at) = deadlines.into_iter().flatten().min()
            && at < opening.wake_at
        {
            let at = at.max(now);
            opening.wake_at = at;
            self.queue.push(at, Event::OpeningWake { peer });
        }
        if is_finished {
            self.peers[peer as usize].opening = None;
            if !self.scenario.tracker.enabled {
                self.add_known_peers(peer);
            }
        }
        if answers_now {
            for blob in (0..self.geometries.len() as u32).map(BlobSlot) {
                self.request_blob(peer, blob);
            }
        }
    }

    fn act_for_opening(&mut self, peer: u32, output: OpeningOutput) {
        match output {
            OpeningOutput::AskOrigins => {
                self.fetch_from_origin(peer, FetchPurpose::Proofs, CLOSURE, BlobSlot(0));
            }
            OpeningOutput::AskNeighbours => {
                let manifest = Digest::sha256(MANIFEST);
                if let Some(opening) = &mut self.peers[peer as usize].opening {
                    opening.seeks.handle(self.now, SeekInput::Seek { manifest });
                }
            }
            OpeningOutput::Add(proved) => {
                if let Some(blob) = self.blob(proved.proof.digest()) {
                    let geometry = self.geometries[blob.0 as usize];
                    let held = self.peers[peer as usize].verified[blob.0 as usize].clone();
                    let add = Input::AddBlob {
                        blob,
                        geometry,
                        held,
                    };
                    self.feed(peer, add);
                    self.feed(peer, Input::Want { blob });
                }
            }
            OpeningOutput::Want { digest } => {
                if let Some(blob) = self.blob(&digest) {
                    self.feed(peer, Input::Want { blob });
                }
            }
        }
    }

    fn act_for_seek(&mut self, peer: u32, output: &SeekOutput) {
        match output {
            SeekOutput::GaveUp { .. } => {
                if let Some(opening) = &mut self.peers[peer as usize].opening {
                    let input = OpeningInput::Neighbours(None);
                    opening.machine.handle(self.now, input);
                }
            }
            // See the module's documentation: there is no neighbour to ask, and none is named.
            SeekOutput::Started { .. }
            | SeekOutput::Ask { .. }
            | SeekOutput::Connect { .. }
            | SeekOutput::Found { .. } => {}
        }
    }
}

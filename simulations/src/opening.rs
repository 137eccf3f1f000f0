//! How a peer opens an image: the shipped machines, over simulated messages.
//!
//! The runtime requests the image's blobs as soon as the proofs are decided. Manifests are not
//! announced to the tracker, so a seek among neighbours ends by its timeout. Manifests and proofs
//! have no bytes: they arrive with the head of the answer. An origin whose region lags behind has
//! them from another region, as a real one; the time for that is not simulated.

use flotilla_common::digest::Digest;
use flotilla_common::failover::{ContentKey, Need};
use flotilla_common::opening::{
    ClosureResult, ImageBlob, ImageSeeks, Opening, OpeningConfig, OpeningInput, OpeningOutput,
    SeekInput, SeekOutput, Stored,
};
use flotilla_common::proof::Proof;
use flotilla_common::swarm::Input;
use flotilla_common::time::Time;
use flotilla_common::wire::origin::ClosureAnswer;

use crate::event::Event;
use crate::fetch::FetchPurpose;
use crate::images::BlobId;
use crate::rng::mix;
use crate::world::World;

/// A peer's opening of an image, until the proofs are decided.
#[derive(Debug)]
pub(crate) struct ImageOpening {
    machine: Opening,
    seeks: ImageSeeks,
    is_answered: bool,
    /// The time of the next `OpeningWake`.
    wake_at: Time,
}

impl World<'_> {
    /// The manifest of a pull's image reaches the peer. A frozen peer opens the image when it
    /// thaws.
    pub(crate) fn on_manifest(&mut self, peer: u32, pull: u32) {
        let simulated = &mut self.peers[peer as usize];
        if let Some(backlog) = &mut simulated.frozen {
            backlog.manifests.push(pull);
        } else if simulated.is_alive {
            self.open_image(peer, pull);
        }
    }

    fn open_image(&mut self, peer: u32, pull: u32) {
        let image = self.peers[peer as usize].pulls[pull as usize].image;
        let layers = self.images.image(image).blobs.iter();
        let blobs = layers.map(|layer| {
            let blob = self.images.blob(*layer);
            ImageBlob {
                digest: blob.digest,
                size: blob.geometry.size(),
                has_urls: false,
                stored: self.stored(peer, *layer),
            }
        });
        let config = OpeningConfig::default();
        let rng_seed = mix(self.peers[peer as usize].key ^ u64::from(pull));
        let opening = ImageOpening {
            machine: Opening::new(self.now, &config, blobs.collect(), rng_seed),
            seeks: ImageSeeks::default(),
            is_answered: false,
            wake_at: Time::MAX,
        };
        self.peers[peer as usize].pulls[pull as usize].opening = Some(Box::new(opening));
        self.drain_opening(peer, pull);
    }

    /// How much of a blob a peer's store has.
    fn stored(&self, peer: u32, blob: BlobId) -> Stored {
        let simulated = &self.peers[peer as usize];
        let slot = simulated.blobs.slot(blob);
        match slot.and_then(|slot| simulated.machine.held(slot)) {
            Some(held) if held.is_full() => Stored::Complete,
            Some(_) => Stored::Incomplete,
            None => Stored::Absent,
        }
    }

    fn opening(&mut self, peer: u32, pull: u32) -> Option<&mut ImageOpening> {
        let pull = &mut self.peers[peer as usize].pulls[pull as usize];
        pull.opening.as_deref_mut()
    }

    /// Whether the origin of a region answers a request for proofs with an error: the first one of
    /// each peer, or all, if the scenario says so.
    pub(crate) fn fails_closure(&mut self, peer: u32, region: u32) -> bool {
        if self.scenario.origin.fail_closures {
            return true;
        }
        let failed = &mut self.peers[peer as usize].failed_closures;
        let fails = self.scenario.origin.fail_first_closures && !failed.contains(&region);
        if fails {
            failed.push(region);
        }
        fails
    }

    /// An origin's answer with the proofs arrives. An origin without seals does not know the
    /// request.
    pub(crate) fn on_proofs(&mut self, peer: u32, pull: u32) {
        let result = if self.scenario.image.digest_only {
            ClosureResult::Missing
        } else {
            // The simulated layers have no bytes to prove, so the proofs merely name the blobs.
            let image = self.peers[peer as usize].pulls[pull as usize].image;
            let layers = self.images.image(image).blobs.iter();
            let proofs = layers.map(|layer| {
                let blob = self.images.blob(*layer);
                Proof::DigestOnly {
                    digest: blob.digest,
                    size: blob.geometry.size(),
                }
            });
            let (proofs, grant) = (proofs.collect(), None);
            ClosureResult::Proved(ClosureAnswer { proofs, grant })
        };
        self.feed_opening(peer, pull, OpeningInput::Closure(result));
    }

    /// No origin is left to ask for the proofs.
    pub(crate) fn on_no_proofs(&mut self, peer: u32, pull: u32) {
        let result = ClosureResult::Unavailable;
        self.feed_opening(peer, pull, OpeningInput::Closure(result));
    }

    /// Gives an input to a peer's opening and carries out its outputs. A frozen peer gets it when
    /// it thaws.
    fn feed_opening(&mut self, peer: u32, pull: u32, input: OpeningInput) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        if let Some(backlog) = &mut simulated.frozen {
            backlog.opening_inputs.push((pull, input));
        } else if simulated.is_alive
            && let Some(opening) = self.opening(peer, pull)
        {
            opening.machine.handle(now, input);
            self.drain_opening(peer, pull);
        }
    }

    pub(crate) fn on_opening_wake(&mut self, peer: u32) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        let is_running = simulated.is_alive && simulated.frozen.is_none();
        let mut due = Vec::new();
        for (number, pull) in (0_u32..).zip(&mut simulated.pulls) {
            if let Some(opening) = &mut pull.opening
                && opening.wake_at == now
            {
                opening.wake_at = Time::MAX;
                due.push(number);
            }
        }
        if is_running {
            for pull in due {
                self.drain_opening(peer, pull);
            }
        }
    }

    /// Continues the openings of a peer that was frozen.
    pub(crate) fn thaw_openings(
        &mut self,
        peer: u32,
        manifests: Vec<u32>,
        inputs: Vec<(u32, OpeningInput)>,
    ) {
        for pull in manifests {
            self.open_image(peer, pull);
        }
        for (pull, input) in inputs {
            self.feed_opening(peer, pull, input);
        }
        for pull in 0..self.peers[peer as usize].pulls.len() as u32 {
            self.drain_opening(peer, pull);
        }
    }

    fn drain_opening(&mut self, peer: u32, pull: u32) {
        let now = self.now;
        let Some(opening) = self.opening(peer, pull) else {
            return;
        };
        opening.machine.handle_timeout(now);
        opening.seeks.handle_timeout(now);
        while let Some(opening) = self.opening(peer, pull) {
            if let Some(output) = opening.machine.poll_output() {
                self.act_for_opening(peer, pull, output);
            } else if let Some(output) = opening.seeks.poll_output() {
                self.act_for_seek(peer, pull, &output);
            } else {
                break;
            }
        }
        let Some(opening) = self.opening(peer, pull) else {
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
            let finished = &mut self.peers[peer as usize].pulls[pull as usize];
            finished.opening = None;
            let image = finished.image;
            self.stop_expecting(peer, image);
            if !self.scenario.tracker.enabled {
                self.add_known_peers(peer, pull);
            }
        }
        if answers_now {
            self.request_layers(peer, pull);
        }
    }

    /// The runtime requests those layers of an image that it has not requested yet.
    fn request_layers(&mut self, peer: u32, pull: u32) {
        let simulated = &mut self.peers[peer as usize];
        let image = simulated.pulls[pull as usize].image;
        let layers = &self.images.image(image).blobs;
        let mut requested = Vec::new();
        for layer in layers {
            let Some(slot) = simulated.blobs.slot(*layer) else {
                continue;
            };
            let blob = simulated.blobs.at_mut(slot);
            if !core::mem::replace(&mut blob.is_requested, true) {
                requested.push(slot);
            }
        }
        for slot in requested {
            self.request_blob(peer, slot);
        }
        self.complete_pulls(peer);
    }

    fn act_for_opening(&mut self, peer: u32, pull: u32, output: OpeningOutput) {
        let now = self.now;
        match output {
            OpeningOutput::AskOrigins => {
                let image = self.peers[peer as usize].pulls[pull as usize].image;
                let purpose = FetchPurpose::Proofs { pull };
                self.fetch_from_origin(peer, purpose, closure_of(image), BlobId(0));
            }
            OpeningOutput::AskNeighbours => {
                let image = self.peers[peer as usize].pulls[pull as usize].image;
                let manifest = Digest::sha256(format!("manifest {image}").as_bytes());
                if let Some(opening) = self.opening(peer, pull) {
                    opening.seeks.handle(now, SeekInput::Seek { manifest });
                }
            }
            OpeningOutput::Add(proved) => {
                let digest = *proved.proof.digest();
                if let Some(id) = self.images.find(&digest) {
                    self.add_blob(peer, id);
                    if let Some(opening) = self.opening(peer, pull) {
                        let stored = OpeningInput::Stored { digest };
                        opening.machine.handle(now, stored);
                    }
                    self.want(peer, id);
                    self.on_proved(peer, id);
                }
            }
            OpeningOutput::Want { digest } => {
                if let Some(id) = self.images.find(&digest) {
                    self.want(peer, id);
                }
            }
        }
    }

    /// A peer's store has a blob from now on, with the chunks that were verified before.
    pub(crate) fn add_blob(&mut self, peer: u32, id: BlobId) {
        let simulated = &self.peers[peer as usize];
        if let Some(blob) = simulated.blobs.slot(id)
            && simulated.machine.held(blob).is_none()
        {
            let geometry = *self.images.geometry(id);
            let held = simulated.blobs.at(blob).verified.clone();
            let add = Input::AddBlob {
                blob,
                geometry,
                held,
            };
            self.feed(peer, add);
        }
    }

    fn want(&mut self, peer: u32, id: BlobId) {
        if let Some(blob) = self.peers[peer as usize].blobs.slot(id) {
            self.feed(peer, Input::Want { blob });
        }
    }

    fn act_for_seek(&mut self, peer: u32, pull: u32, output: &SeekOutput) {
        let now = self.now;
        match output {
            SeekOutput::GaveUp { .. } => {
                if let Some(opening) = self.opening(peer, pull) {
                    let input = OpeningInput::Neighbours(None);
                    opening.machine.handle(now, input);
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

/// An image's closure, as the failover machines know it.
fn closure_of(image: u32) -> Need {
    Need::Content(ContentKey(u64::MAX - u64::from(image)))
}

//! The pulls of a peer: an image each, some at once, from the request for the manifest until the
//! runtime has all layers.
//!
//! ```text
//! runtime: manifest ──▶ opening: proofs ──▶ requests for the layers not requested yet ──▶ done
//!             │ no origin answers                                                             │
//!             └── again after 1 s                             the peer's next pull starts ◀───┘
//! ```

use flotilla_common::failover::Need;
use flotilla_common::swarm::BlobSlot;
use flotilla_common::time::Time;

use crate::event::Event;
use crate::fetch::FetchPurpose;
use crate::images::{BlobId, Images};
use crate::opening::ImageOpening;
use crate::peer_blobs::PeerBlobs;
use crate::reads::RUNTIME_RETRY;
use crate::world::World;

/// A peer's pull of an image.
#[derive(Debug)]
pub(crate) struct Pull {
    /// The number of the image.
    pub(crate) image: u32,
    /// When the runtime requested the image.
    pub(crate) started_at: Option<Time>,
    /// The bytes that the runtime lacked then.
    pub(crate) lacking: u64,
    /// When the first chunk of the image was there.
    pub(crate) first_byte_at: Option<Time>,
    pub(crate) completed_at: Option<Time>,
    /// The opening of the image, from the manifest until the proofs are decided.
    pub(crate) opening: Option<Box<ImageOpening>>,
}

impl Pull {
    pub(crate) fn new(image: u32) -> Self {
        Self {
            image,
            started_at: None,
            lacking: 0,
            first_byte_at: None,
            completed_at: None,
            opening: None,
        }
    }

    /// Whether it has started and is not complete.
    pub(crate) fn is_under_way(&self) -> bool {
        self.started_at.is_some() && self.completed_at.is_none()
    }
}

impl World<'_> {
    /// Starts as many of a peer's pulls as it may have under way.
    pub(crate) fn start_pulls(&mut self, peer: u32) {
        let at_once = self.scenario.pulls.at_once.unwrap_or(u32::MAX) as usize;
        loop {
            let pulls = &self.peers[peer as usize].pulls;
            let under_way = pulls.iter().filter(|pull| pull.is_under_way()).count();
            let next = pulls.iter().position(|pull| pull.started_at.is_none());
            match next {
                Some(next) if under_way < at_once => self.start_pull(peer, next as u32),
                _ => break,
            }
        }
    }

    fn start_pull(&mut self, peer: u32, number: u32) {
        let simulated = &mut self.peers[peer as usize];
        if !simulated.pulls.iter().any(Pull::is_under_way) {
            simulated.delivered_at = self.now;
        }
        let blobs = &simulated.blobs;
        let pull = &mut simulated.pulls[number as usize];
        pull.started_at = Some(self.now);
        pull.lacking = lacking_bytes(&self.images, blobs, pull.image);
        self.request_manifest(peer, number);
    }

    /// The runtime requests the manifest of a pull's image, by its tag.
    pub(crate) fn request_manifest(&mut self, peer: u32, pull: u32) {
        let simulated = &self.peers[peer as usize];
        if !simulated.is_alive {
            return;
        }
        if simulated.frozen.is_some() {
            return self.on_no_manifest(peer, pull);
        }
        let purpose = FetchPurpose::Manifest { pull };
        self.fetch_from_origin(peer, purpose, Need::Fact, BlobId(0));
    }

    /// No origin is left to ask for the manifest. The runtime repeats its request.
    pub(crate) fn on_no_manifest(&mut self, peer: u32, pull: u32) {
        let event = Event::ManifestRequested { peer, pull };
        self.queue.push_after(self.now, RUNTIME_RETRY, event);
    }

    /// A chunk of a blob, or bytes that are passed through, reached the start of a blob.
    pub(crate) fn note_first_byte(&mut self, peer: u32, blob: BlobId) {
        for pull in &mut self.peers[peer as usize].pulls {
            let is_first = self.images.image(pull.image).blobs.first() == Some(&blob);
            if is_first && pull.is_under_way() && pull.first_byte_at.is_none() {
                pull.first_byte_at = Some(self.now);
            }
        }
    }

    /// The runtime has all bytes of a blob, or reads the rest of them from the store.
    pub(crate) fn on_blob_delivered(&mut self, peer: u32, blob: BlobSlot) {
        let blob = self.peers[peer as usize].blobs.at_mut(blob);
        if !core::mem::replace(&mut blob.is_delivered, true) {
            self.complete_pulls(peer);
        }
    }

    /// Completes the pulls whose blobs the runtime has, and starts the next ones.
    pub(crate) fn complete_pulls(&mut self, peer: u32) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        let blobs = &simulated.blobs;
        for pull in &mut simulated.pulls {
            let layers = &self.images.image(pull.image).blobs;
            let mut is_delivered = layers.iter().map(|layer| blobs.is_delivered(*layer));
            if pull.is_under_way() && is_delivered.all(|it| it) {
                pull.completed_at = Some(now);
                pull.first_byte_at.get_or_insert(now);
            }
        }
        let mut pulls = simulated.pulls.iter();
        if simulated.completed_at.is_none() && pulls.all(|pull| pull.completed_at.is_some()) {
            simulated.completed_at = Some(now);
            self.unfinished -= 1;
        } else {
            self.start_pulls(peer);
        }
    }
}

/// Bytes of an image that a peer's runtime lacks.
fn lacking_bytes(images: &Images, blobs: &PeerBlobs, image: u32) -> u64 {
    let layers = images.image(image).blobs.iter();
    let lacking = layers.filter(|layer| !blobs.is_delivered(**layer));
    lacking.map(|layer| images.geometry(*layer).size()).sum()
}

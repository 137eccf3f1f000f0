//! Images from neighbours: which neighbours a peer asks for the manifest of an image and the proofs
//! of its blobs, while no origin is available.
//!
//! Connected neighbours are asked at once. The trackers name further ones, which are asked as soon
//! as they are connected. The first valid answer ends the seek, and so does the timeout. The number
//! of seeks and of neighbours asked for each are bounded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::config::SeekConfig;
use crate::digest::Digest;
use crate::name::PeerId;
use crate::time::Time;

/// The connection with a peer that a tracker named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerConnection {
    /// There is none.
    None,
    /// The peer is connected and answers requests for images.
    ServesImages,
    /// The peer is connected, but its version does not answer requests for images.
    LacksImages,
}

/// A peer that a tracker named as a holder of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPeer {
    /// The peer; never the own one.
    pub peer: PeerId,
    /// The connection with it.
    pub connection: PeerConnection,
}

/// An event for the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeekInput {
    /// An image is needed, and no origin is available. Ends with [`SeekOutput::Found`] or
    /// [`SeekOutput::GaveUp`]; a further request for the same image joins the first one.
    Seek {
        /// The digest of its manifest.
        manifest: Digest,
    },
    /// No request for the image waits any longer.
    Abandon {
        /// The digest of its manifest.
        manifest: Digest,
    },
    /// This neighbour is connected and answers requests for images.
    Neighbour {
        /// The neighbour.
        peer: PeerId,
    },
    /// A tracker named holders of an image.
    Handout {
        /// The digest of its manifest.
        manifest: Digest,
        /// The holders, without the own peer.
        peers: Vec<NamedPeer>,
    },
    /// A neighbour delivered an image whose manifest has the digest.
    Delivered {
        /// The digest of its manifest.
        manifest: Digest,
    },
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeekOutput {
    /// A seek began: announce that the manifest is wanted, and pass every connected neighbour that
    /// answers requests for images in with [`SeekInput::Neighbour`].
    Started {
        /// The digest of its manifest.
        manifest: Digest,
    },
    /// Ask a neighbour for an image.
    Ask {
        /// The neighbour.
        peer: PeerId,
        /// The digest of its manifest.
        manifest: Digest,
    },
    /// Connect to a peer that may have an image.
    Connect {
        /// The peer.
        peer: PeerId,
    },
    /// The image was delivered: give it to the requests that wait for it.
    Found {
        /// The digest of its manifest.
        manifest: Digest,
    },
    /// No neighbour delivered the image in time, or too many images are sought.
    GaveUp {
        /// The digest of its manifest.
        manifest: Digest,
    },
}

#[derive(Debug)]
struct ImageSeek {
    asked: BTreeSet<PeerId>,
    until: Time,
}

/// The images that a peer seeks among its neighbours.
#[derive(Debug, Default)]
pub struct ImageSeeks {
    config: SeekConfig,
    by_manifest: BTreeMap<Digest, ImageSeek>,
    outputs: VecDeque<SeekOutput>,
}

impl ImageSeeks {
    /// No image is sought.
    pub fn new(config: SeekConfig) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// The digests of the manifests that are sought, for the trackers.
    pub fn manifests(&self) -> impl Iterator<Item = &Digest> {
        self.by_manifest.keys()
    }

    /// The next action, if there is one.
    pub fn poll_output(&mut self) -> Option<SeekOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.by_manifest.values().map(|seek| seek.until).min()
    }

    /// Gives up the seeks that took too long.
    pub fn handle_timeout(&mut self, now: Time) {
        let late = self.by_manifest.extract_if(.., |_, seek| seek.until <= now);
        let gave_up = late.map(|(manifest, _)| SeekOutput::GaveUp { manifest });
        self.outputs.extend(gave_up);
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Time, input: SeekInput) {
        self.handle_timeout(now);
        match input {
            SeekInput::Seek { manifest } => self.seek(now, manifest),
            SeekInput::Abandon { manifest } => {
                self.by_manifest.remove(&manifest);
            }
            SeekInput::Neighbour { peer } => self.ask(&peer),
            SeekInput::Handout { manifest, peers } => {
                if self.by_manifest.contains_key(&manifest) {
                    for named in peers.into_iter().take(self.config.max_asked) {
                        self.on_named(named);
                    }
                }
            }
            SeekInput::Delivered { manifest } => {
                if self.by_manifest.remove(&manifest).is_some() {
                    self.outputs.push_back(SeekOutput::Found { manifest });
                }
            }
        }
    }

    fn seek(&mut self, now: Time, manifest: Digest) {
        if self.by_manifest.contains_key(&manifest) {
            return;
        }
        if self.by_manifest.len() >= self.config.max_seeks {
            return self.outputs.push_back(SeekOutput::GaveUp { manifest });
        }
        let seek = ImageSeek {
            asked: BTreeSet::new(),
            until: now + self.config.timeout,
        };
        self.by_manifest.insert(manifest, seek);
        self.outputs.push_back(SeekOutput::Started { manifest });
    }

    fn on_named(&mut self, NamedPeer { peer, connection }: NamedPeer) {
        match connection {
            // The peer is asked once it is connected.
            PeerConnection::None => self.outputs.push_back(SeekOutput::Connect { peer }),
            PeerConnection::ServesImages => self.ask(&peer),
            PeerConnection::LacksImages => {}
        }
    }

    /// Asks a neighbour for all images that are sought and for which it was not asked yet.
    fn ask(&mut self, peer: &PeerId) {
        for (manifest, seek) in &mut self.by_manifest {
            if seek.asked.len() < self.config.max_asked && seek.asked.insert(peer.clone()) {
                self.outputs.push_back(SeekOutput::Ask {
                    peer: peer.clone(),
                    manifest: *manifest,
                });
            }
        }
    }
}

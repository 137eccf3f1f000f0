//! One request for the manifest of an image: the blobs' proofs are obtained, and the blobs wanted.
//!
//! ```text
//!            all complete in the store
//!        ┌──────────────────────────────────────────────────────────────┐
//!        │                 proofs: Add; refused or missing: Add unsealed ▼
//! new ───┴▶ AskingOrigins ────────────────────────────────────────▶ Finished
//!              │ unavailable: Want what is stored                       ▲
//!              └──────────────▶ AskingNeighbours ───────────────────────┘
//!                                                proofs: Add; or none
//! ```

use std::collections::VecDeque;

use super::config::OpeningConfig;
use crate::digest::Digest;
use crate::grant::Grant;
use crate::proof::Proof;
use crate::time::Time;
use crate::wire::origin::ClosureAnswer;

/// How much of a blob is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The store does not know it.
    Absent,
    /// The store has its proof, and perhaps some of its chunks.
    Incomplete,
    /// The store has all its bytes.
    Complete,
}

/// A blob that the manifest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageBlob {
    /// The digest.
    pub digest: Digest,
    /// Bytes, as the manifest says.
    pub size: u64,
    /// Whether the manifest gives URLs of its own for it. Such a blob may be missing in the
    /// registry.
    pub has_urls: bool,
    /// How much of it is in the store when the image is opened.
    pub stored: Stored,
}

/// How the request for the proofs ended, at all origins together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClosureResult {
    /// An origin answered with proofs.
    Proved(ClosureAnswer),
    /// An origin refused the request.
    Refused,
    /// Every region is sure that it has no such manifest, or does not know the request.
    Missing,
    /// Some regions do not have it, and the others are unavailable.
    Unsure,
    /// No origin is available.
    Unavailable,
}

/// An event for the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpeningInput {
    /// The end of [`OpeningOutput::AskOrigins`].
    Closure(ClosureResult),
    /// The end of [`OpeningOutput::AskNeighbours`]: the proofs that a neighbour has, which are not
    /// checked yet; `None` if no neighbour delivered the image.
    Neighbours(Option<Vec<Proof>>),
}

/// Where a proof comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofSource {
    /// An origin's closure, or its lack of seals.
    Origin,
    /// A neighbour.
    Neighbour,
}

/// A blob with the proof by which its bytes can be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvedBlob {
    /// The proof, which is not checked yet.
    pub proof: Proof,
    /// The permission to receive the blob from peers.
    pub grant: Option<Grant>,
    /// Where the proof comes from.
    pub source: ProofSource,
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpeningOutput {
    /// Ask the origins for the proofs of all blobs, as the failover machine decides.
    AskOrigins,
    /// Seek the image among the neighbours.
    AskNeighbours,
    /// Check the proof, add the blob to the store if it is valid, and want the blob. A blob whose
    /// proof is not valid stays unknown.
    Add(Box<ProvedBlob>),
    /// Want a blob that is in the store.
    Want {
        /// The blob.
        digest: Digest,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AskingOrigins,
    AskingNeighbours,
    Finished,
}

/// One request for the manifest of an image. See the module's documentation.
#[derive(Debug)]
pub struct Opening {
    blobs: Vec<ImageBlob>,
    state: State,
    /// Until when the manifest is held back.
    answer_by: Time,
    is_late: bool,
    outputs: VecDeque<OpeningOutput>,
}

impl Opening {
    /// The request arrives `now`. `blobs` are those of the manifest, in its order; an index has
    /// none.
    pub fn new(now: Time, config: &OpeningConfig, blobs: Vec<ImageBlob>) -> Self {
        let mut opening = Self {
            blobs,
            state: State::AskingOrigins,
            answer_by: now + config.proofs_timeout,
            is_late: false,
            outputs: VecDeque::new(),
        };
        let mut blobs = opening.blobs.iter();
        if blobs.all(|blob| blob.stored == Stored::Complete) {
            opening.want_stored();
            opening.state = State::Finished;
        } else {
            opening.outputs.push_back(OpeningOutput::AskOrigins);
        }
        opening
    }

    /// Whether the manifest must be sent now, although the machine is not finished.
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// Whether no further input is needed. The manifest may be sent when all outputs are carried
    /// out.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// The next action, if there is one.
    pub fn poll_output(&mut self) -> Option<OpeningOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let is_held_back = !self.is_late && !self.is_finished();
        is_held_back.then_some(self.answer_by)
    }

    /// Handles the deadline. The machine goes on after it: what it learns later is used too.
    pub fn handle_timeout(&mut self, now: Time) {
        self.is_late |= self.answer_by <= now && !self.is_finished();
    }

    /// Handles an event. An event that the machine does not wait for is ignored.
    pub fn handle(&mut self, now: Time, input: OpeningInput) {
        self.handle_timeout(now);
        match (self.state, input) {
            (State::AskingOrigins, OpeningInput::Closure(result)) => self.on_closure(result),
            (State::AskingNeighbours, OpeningInput::Neighbours(proofs)) => {
                self.add_known(proofs.unwrap_or_default());
                self.state = State::Finished;
            }
            _ => {}
        }
    }

    fn on_closure(&mut self, result: ClosureResult) {
        self.state = State::Finished;
        match result {
            ClosureResult::Proved(ClosureAnswer { proofs, grant }) => {
                for proof in proofs {
                    self.add(proof, grant.clone(), ProofSource::Origin);
                }
            }
            ClosureResult::Refused | ClosureResult::Missing => self.add_unsealed(),
            ClosureResult::Unsure => self.want_stored(),
            ClosureResult::Unavailable => {
                self.want_stored();
                let mut blobs = self.blobs.iter();
                if blobs.any(|blob| blob.stored == Stored::Absent) {
                    self.state = State::AskingNeighbours;
                    self.outputs.push_back(OpeningOutput::AskNeighbours);
                }
            }
        }
    }

    /// Blobs of a registry without seals are exchanged as whole blobs.
    fn add_unsealed(&mut self) {
        let blobs = self.blobs.iter().filter(|blob| !blob.has_urls);
        let proof = |blob: &ImageBlob| Proof::DigestOnly {
            digest: blob.digest,
            size: blob.size,
        };
        for proof in blobs.map(proof).collect::<Vec<_>>() {
            self.add(proof, None, ProofSource::Origin);
        }
    }

    /// Adds a neighbour's proofs, as far as they are for blobs of this image.
    fn add_known(&mut self, proofs: Vec<Proof>) {
        for proof in proofs {
            let mut blobs = self.blobs.iter();
            if blobs.any(|blob| blob.digest == *proof.digest() && blob.size == proof.size()) {
                self.add(proof, None, ProofSource::Neighbour);
            }
        }
    }

    fn add(&mut self, proof: Proof, grant: Option<Grant>, source: ProofSource) {
        let blob = ProvedBlob {
            proof,
            grant,
            source,
        };
        self.outputs.push_back(OpeningOutput::Add(Box::new(blob)));
    }

    fn want_stored(&mut self) {
        let stored = self.blobs.iter().filter(|it| it.stored != Stored::Absent);
        let want = |blob: &ImageBlob| OpeningOutput::Want {
            digest: blob.digest,
        };
        self.outputs.extend(stored.map(want));
    }
}

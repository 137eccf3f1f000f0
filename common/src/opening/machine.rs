//! One request for the manifest of an image: the blobs' proofs are obtained, and the blobs wanted.
//!
//! ```text
//!            no blob lacks a proof
//!        ┌──────────────────────────────────────────────────────────────┐
//!        │                 proofs: Add; refused or missing: Add unsealed ▼
//! new ───┴▶ Asking ◀───────────────┐──────────────────────────────▶ Finished
//!              │ unavailable       │ after a pause                       ▲
//!              └────────────▶ Pausing ───────────────────────────────────┘
//!                        after 10 to 15 s and the last seek, or no blob lacks a proof any more
//! ```
//!
//! From the first failure on, the image is also sought among the neighbours, one seek at a time.
//! Neighbours prove blobs, and never end the requests to origins while a blob lacks a proof.

use core::time::Duration;
use std::collections::VecDeque;

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg32;

use super::config::OpeningConfig;
use crate::digest::Digest;
use crate::grant::Grant;
use crate::proof::Proof;
use crate::time::Time;
use crate::wire::origin::ClosureAnswer;

/// The pause after a failure is doubled so many times at most, so that the factor fits.
const MAX_DOUBLINGS: u32 = 16;

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
    /// The store has a blob of the image from now on.
    Stored {
        /// The blob.
        digest: Digest,
    },
    /// The store cannot take a blob of the image, although its proof is valid.
    NotStorable {
        /// The blob.
        digest: Digest,
    },
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
    /// Ask the origins for the proofs of all blobs, as the failover machine decides. An earlier
    /// request has ended.
    AskOrigins,
    /// Seek the image among the neighbours, beside a request to the origins. An earlier seek has
    /// ended.
    AskNeighbours,
    /// Check the proof. If it is valid, add the blob to the store, say with
    /// [`OpeningInput::Stored`] or [`OpeningInput::NotStorable`] whether it took the blob, and want
    /// the blob. A blob whose proof is not valid stays unknown.
    Add(Box<ProvedBlob>),
    /// Want a blob that is in the store.
    Want {
        /// The blob.
        digest: Digest,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The origins are asked.
    Asking,
    /// The origins are asked again at this time.
    Pausing(Time),
    /// The origins are asked no more; neighbours have not answered yet.
    GivingUp,
    Finished,
}

/// One request for the manifest of an image. See the module's documentation.
#[derive(Debug)]
pub struct Opening {
    config: OpeningConfig,
    blobs: Vec<ImageBlob>,
    state: State,
    /// Whether neighbours are asked.
    is_seeking: bool,
    /// Requests to the origins that failed.
    failures: u32,
    /// Until when the manifest is held back.
    answer_by: Time,
    /// When the origins are asked no more.
    give_up_at: Time,
    is_late: bool,
    rng: Pcg32,
    outputs: VecDeque<OpeningOutput>,
}

impl Opening {
    /// The request arrives `now`. `blobs` are those of the manifest, in its order; an index has
    /// none. `rng_seed` draws the pauses.
    pub fn new(now: Time, config: &OpeningConfig, blobs: Vec<ImageBlob>, rng_seed: u64) -> Self {
        let mut opening = Self {
            config: *config,
            blobs,
            state: State::Asking,
            is_seeking: false,
            failures: 0,
            answer_by: now + config.proofs_timeout,
            give_up_at: now,
            is_late: false,
            rng: Pcg32::seed_from_u64(rng_seed),
            outputs: VecDeque::new(),
        };
        opening.give_up_at = now + config.retry_for + opening.share_of(config.retry_for / 2);
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
        let retry_at = match self.state {
            State::Asking | State::GivingUp => None,
            State::Pausing(until) => Some(until),
            State::Finished => return None,
        };
        let answer_by = (!self.is_late).then_some(self.answer_by);
        answer_by.into_iter().chain(retry_at).min()
    }

    /// Handles the deadlines. The machine goes on after the manifest was sent: what it learns later
    /// is used too.
    pub fn handle_timeout(&mut self, now: Time) {
        self.is_late |= self.answer_by <= now && !self.is_finished();
        if let State::Pausing(until) = self.state
            && until <= now
        {
            if until < self.give_up_at {
                self.state = State::Asking;
                self.outputs.push_back(OpeningOutput::AskOrigins);
            } else {
                self.give_up();
            }
        }
    }

    /// The origins are asked no more.
    fn give_up(&mut self) {
        self.state = match self.is_seeking {
            true => State::GivingUp,
            false => State::Finished,
        };
    }

    /// Handles an event. An event that the machine does not wait for is ignored.
    pub fn handle(&mut self, now: Time, input: OpeningInput) {
        self.handle_timeout(now);
        match input {
            OpeningInput::Closure(result) if self.state == State::Asking => {
                self.on_closure(now, result);
            }
            OpeningInput::Neighbours(proofs) if self.is_seeking => {
                self.is_seeking = false;
                if !self.is_finished() {
                    self.add_known(proofs.unwrap_or_default());
                }
                if self.state == State::GivingUp {
                    self.state = State::Finished;
                }
            }
            OpeningInput::Stored { digest } => self.on_stored(&digest),
            OpeningInput::NotStorable { digest } => {
                self.blobs.retain(|blob| blob.digest != digest);
                self.finish_if_proved();
            }
            OpeningInput::Closure(_) | OpeningInput::Neighbours(_) => {}
        }
    }

    fn on_closure(&mut self, now: Time, result: ClosureResult) {
        match result {
            ClosureResult::Proved(ClosureAnswer { proofs, grant }) => {
                self.state = State::Finished;
                for proof in proofs {
                    self.add(proof, grant.clone(), ProofSource::Origin);
                }
            }
            ClosureResult::Refused | ClosureResult::Missing => {
                self.state = State::Finished;
                self.add_unsealed();
            }
            ClosureResult::Unsure | ClosureResult::Unavailable => self.on_failure(now),
        }
    }

    /// No origin answered for sure.
    fn on_failure(&mut self, now: Time) {
        if self.failures == 0 {
            self.want_stored();
        }
        self.failures += 1;
        if !self.lacks_proofs() {
            self.state = State::Finished;
            return;
        }
        if !self.is_seeking {
            self.is_seeking = true;
            self.outputs.push_back(OpeningOutput::AskNeighbours);
        }
        if self.give_up_at <= now {
            return self.give_up();
        }
        let doublings = (self.failures - 1).min(MAX_DOUBLINGS);
        let pause = (self.config.first_pause * (1 << doublings)).min(self.config.longest_pause);
        let retry_at = now + pause + self.share_of(pause);
        self.state = State::Pausing(retry_at.min(self.give_up_at));
    }

    fn on_stored(&mut self, digest: &Digest) {
        let blobs = self.blobs.iter_mut();
        for blob in blobs.filter(|blob| blob.digest == *digest && blob.stored == Stored::Absent) {
            blob.stored = Stored::Incomplete;
        }
        self.finish_if_proved();
    }

    fn finish_if_proved(&mut self) {
        if !self.lacks_proofs() {
            self.state = State::Finished;
        }
    }

    /// Whether any blob of the image is not in the store.
    fn lacks_proofs(&self) -> bool {
        let mut blobs = self.blobs.iter();
        blobs.any(|blob| blob.stored == Stored::Absent)
    }

    /// A random part of a duration.
    fn share_of(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX))
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

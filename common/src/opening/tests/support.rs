//! A mirror on a virtual clock: the machines, a store, and a test in the place of origins and
//! neighbours.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::chunk::Geometry;
use crate::digest::Digest;
use crate::opening::{
    BlobRead, BlobReadOutput, ClosureResult, FallbackReason, FallbackTimeouts, ImageBlob,
    KnownBlob, Opening, OpeningConfig, OpeningInput, OpeningOutput, ProofSource, Stored,
};
use crate::proof::Proof;
use crate::time::Time;
use crate::wire::origin::ClosureAnswer;

pub(super) fn ms(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

pub(super) fn digest(name: u8) -> Digest {
    Digest::sha256(&[name])
}

/// The size of the blob [`digest`].
const fn size(name: u8) -> u64 {
    1000 + name as u64
}

/// A blob that is not in the store.
pub(super) fn blob(name: u8) -> ImageBlob {
    ImageBlob {
        digest: digest(name),
        size: size(name),
        has_urls: false,
        stored: Stored::Absent,
    }
}

pub(super) fn stored(name: u8, stored: Stored) -> ImageBlob {
    ImageBlob {
        stored,
        ..blob(name)
    }
}

/// A proof of a blob. The machine does not look at seals, so one without will do.
pub(super) fn proof(name: u8) -> Proof {
    Proof::DigestOnly {
        digest: digest(name),
        size: size(name),
    }
}

pub(super) fn proved(names: &[u8]) -> ClosureResult {
    ClosureResult::Proved(ClosureAnswer {
        proofs: names.iter().copied().map(proof).collect(),
        grant: None,
    })
}

/// How a request for a blob is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    FromStore,
    /// When the proof is there.
    Later,
    PassedThrough(FallbackReason),
}

/// One mirror that opens one image.
pub(super) struct TestMirror {
    pub(super) opening: Opening,
    /// The blobs that joined the swarm, and where their proofs are from; `None` for those that
    /// were in the store.
    pub(super) wanted: BTreeMap<Digest, Option<ProofSource>>,
    /// The requests that the opening made, with their times.
    pub(super) asked: Vec<(Time, &'static str)>,
}

impl TestMirror {
    /// The manifest is requested at 0 ms.
    pub(super) fn new(blobs: Vec<ImageBlob>) -> Self {
        let config = OpeningConfig::default();
        let mut mirror = Self {
            opening: Opening::new(Time::ZERO, &config, blobs, 1),
            wanted: BTreeMap::new(),
            asked: Vec::new(),
        };
        mirror.carry_out(Time::ZERO);
        mirror
    }

    pub(super) fn closure(&mut self, now: Time, result: ClosureResult) {
        self.opening.handle(now, OpeningInput::Closure(result));
        self.carry_out(now);
    }

    pub(super) fn neighbours(&mut self, now: Time, proofs: Option<Vec<Proof>>) {
        self.opening.handle(now, OpeningInput::Neighbours(proofs));
        self.carry_out(now);
    }

    /// Moves the clock. Returns whether the manifest may be sent.
    pub(super) fn advance(&mut self, now: Time) -> bool {
        if self.opening.poll_timeout().is_some_and(|at| at <= now) {
            self.opening.handle_timeout(now);
            self.carry_out(now);
        }
        self.opening.is_late() || self.opening.is_finished()
    }

    /// Moves the clock from deadline to deadline until the origins are asked again. Returns when.
    pub(super) fn next_request(&mut self) -> Time {
        let asked = self.count("origins");
        while self.count("origins") == asked {
            let at = self.opening.poll_timeout().unwrap();
            self.advance(at);
        }
        self.asked.last().unwrap().0
    }

    /// The number of requests that were made to one side.
    pub(super) fn count(&self, side: &str) -> usize {
        self.asked
            .iter()
            .filter(|(_, asked)| *asked == side)
            .count()
    }

    /// How a request for a blob that arrives now is answered.
    pub(super) fn get(&self, name: u8) -> Answer {
        let geometry = Geometry::whole(size(name));
        let known = if self.wanted.contains_key(&digest(name)) {
            KnownBlob::Stored(&geometry)
        } else if self.opening.is_finished() {
            KnownBlob::Unknown
        } else {
            KnownBlob::Expected
        };
        let mut read = BlobRead::new(Time::ZERO, FallbackTimeouts::default(), known);
        match read.poll_output() {
            None if read.is_expecting() => Answer::Later,
            None => Answer::FromStore,
            Some(BlobReadOutput::PassThrough(reason)) => Answer::PassedThrough(reason),
            Some(output @ BlobReadOutput::CheckSources) => panic!("unexpected {output:?}"),
        }
    }

    fn carry_out(&mut self, now: Time) {
        while let Some(output) = self.opening.poll_output() {
            match output {
                OpeningOutput::AskOrigins => self.asked.push((now, "origins")),
                OpeningOutput::AskNeighbours => self.asked.push((now, "neighbours")),
                OpeningOutput::Add(blob) => {
                    let digest = *blob.proof.digest();
                    self.wanted.insert(digest, Some(blob.source));
                    self.opening.handle(now, OpeningInput::Stored { digest });
                }
                OpeningOutput::Want { digest } => {
                    self.wanted.insert(digest, None);
                }
            }
        }
    }
}

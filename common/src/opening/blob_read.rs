//! One request for a blob: from the store while the blob is downloaded, or passed through from an
//! origin.
//!
//! ```text
//! new ── not in the store ──────────────────────────────────────────────▶ PassThrough
//!   │  └─ proof expected ─▶ Expecting ── no proof, or a timeout has expired ───▶ │
//!   │ in the store             │ Proved                                          │
//!   ▼          NextByte        ▼                                                 │
//! Idle ◀───────────────────────┘                                                 │
//! Idle ──────────────────▶ Waiting ── Bypassed, or a timeout has expired ────────┘
//!   ▲          Delivered     │  ▲
//!   └────────────────────────┘  └─ CheckSources, every 250 ms
//! ```

use core::fmt;
use core::time::Duration;
use std::collections::VecDeque;

use super::config::FallbackTimeouts;
use crate::chunk::Geometry;
use crate::time::Time;

/// How often a waiting reader checks the fallback timeouts.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Whether the store knows a blob when it is requested, or will know it soon.
#[derive(Clone, Copy, Debug)]
pub enum KnownBlob<'a> {
    /// The store has its proof, and some or all of its chunks.
    Stored(&'a Geometry),
    /// An image that names it is being opened, and its proof has not arrived.
    Expected,
    /// The store does not know it, and no image that names it is being opened.
    Unknown,
}

/// Why a blob is passed through from an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackReason {
    /// The store does not know the blob.
    NotStored,
    /// Its proof did not arrive in time.
    NotProved,
    /// The store cannot take the blob, or cannot read it.
    Bypassed,
    /// No neighbour has the next chunk, and every origin fails.
    NoSource,
    /// No bytes were received for any blob.
    NoProgress,
    /// The next chunk did not arrive in time, although others did.
    TooLate,
}

impl fmt::Display for FallbackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStored => "the blob is not in the store",
            Self::NotProved => "the proof of the blob did not arrive in time",
            Self::Bypassed => "the store cannot take the blob",
            Self::NoSource => "no neighbour has the next chunk and no origin answers",
            Self::NoProgress => "no bytes received from any source",
            Self::TooLate => "next chunk did not arrive in time",
        })
    }
}

/// An event for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobReadInput {
    /// The store has the proof of a blob that was expected.
    Proved {
        /// Whether the blob has no chunk proofs.
        is_whole: bool,
    },
    /// No image that names the blob is being opened any more.
    NotExpected,
    /// The runtime is ready for the next byte.
    NextByte,
    /// Bytes were read from the store.
    Delivered,
    /// The store cannot take the blob, or a read failed.
    Bypassed,
    /// The answer to [`BlobReadOutput::CheckSources`].
    Sources {
        /// Whether any known source can deliver the next chunk now.
        has_source: bool,
        /// The time since bytes were received for any blob.
        last_received: Duration,
    },
}

/// An action for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobReadOutput {
    /// Find out which sources can deliver the next chunk, and pass that in with
    /// [`BlobReadInput::Sources`].
    CheckSources,
    /// Go on with bytes from an origin to the end of the requested range. The last output.
    PassThrough(FallbackReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The proof must arrive by this time.
    Expecting(Time),
    Idle,
    Waiting(ByteWait),
    PassedThrough,
}

/// One wait for the next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ByteWait {
    since: Time,
    /// Since when no source has the chunk, while none has.
    no_source_since: Option<Time>,
    /// The next check; `None` while one is under way.
    check_at: Option<Time>,
}

/// One request for a blob. See the module's documentation.
#[derive(Debug)]
pub struct BlobRead {
    timeouts: FallbackTimeouts,
    /// Whether the blob has no chunk proofs.
    is_whole_blob: bool,
    state: State,
    outputs: VecDeque<BlobReadOutput>,
}

impl BlobRead {
    /// A request for a blob arrives `now`.
    pub fn new(now: Time, timeouts: FallbackTimeouts, known: KnownBlob<'_>) -> Self {
        let mut read = Self {
            timeouts,
            is_whole_blob: false,
            state: State::Idle,
            outputs: VecDeque::new(),
        };
        match known {
            KnownBlob::Stored(geometry) => read.is_whole_blob = geometry.is_whole(),
            KnownBlob::Expected => read.state = State::Expecting(now + timeouts.proof),
            KnownBlob::Unknown => read.pass_through(FallbackReason::NotStored),
        }
        read
    }

    /// Whether the proof of the blob is waited for.
    pub fn is_expecting(&self) -> bool {
        matches!(self.state, State::Expecting(_))
    }

    /// The next action, if there is one.
    pub fn poll_output(&mut self) -> Option<BlobReadOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Expecting(until) => Some(until),
            State::Waiting(wait) => wait.check_at,
            State::Idle | State::PassedThrough => None,
        }
    }

    /// Handles the deadline: the sources are checked, or the proof is late.
    pub fn handle_timeout(&mut self, now: Time) {
        match &mut self.state {
            State::Expecting(until) if *until <= now => {
                self.pass_through(FallbackReason::NotProved);
            }
            State::Waiting(wait) if wait.check_at.is_some_and(|at| at <= now) => {
                wait.check_at = None;
                self.outputs.push_back(BlobReadOutput::CheckSources);
            }
            State::Expecting(_) | State::Waiting(_) | State::Idle | State::PassedThrough => {}
        }
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Time, input: BlobReadInput) {
        match (&mut self.state, input) {
            (State::PassedThrough, _) => {}
            (State::Expecting(_), BlobReadInput::Proved { is_whole }) => {
                self.is_whole_blob = is_whole;
                self.state = State::Idle;
            }
            (State::Expecting(_), BlobReadInput::NotExpected) => {
                self.pass_through(FallbackReason::NotStored);
            }
            (State::Expecting(_), _) => {}
            (_, BlobReadInput::Bypassed) => self.pass_through(FallbackReason::Bypassed),
            (state, BlobReadInput::Delivered) => *state = State::Idle,
            (State::Idle, BlobReadInput::NextByte) => {
                self.state = State::Waiting(ByteWait {
                    since: now,
                    no_source_since: None,
                    check_at: Some(now + CHECK_INTERVAL),
                });
            }
            (
                State::Waiting(wait),
                BlobReadInput::Sources {
                    has_source,
                    last_received,
                },
            ) => {
                wait.check_at = Some(now + CHECK_INTERVAL);
                let (timeouts, is_whole) = (&self.timeouts, self.is_whole_blob);
                let expired = wait.expired(now, has_source, last_received, timeouts, is_whole);
                if let Some(reason) = expired {
                    self.pass_through(reason);
                }
            }
            (_, BlobReadInput::Proved { .. } | BlobReadInput::NotExpected)
            | (State::Waiting(_), BlobReadInput::NextByte)
            | (State::Idle, BlobReadInput::Sources { .. }) => {}
        }
    }

    fn pass_through(&mut self, reason: FallbackReason) {
        self.state = State::PassedThrough;
        self.outputs.clear();
        self.outputs.push_back(BlobReadOutput::PassThrough(reason));
    }
}

impl ByteWait {
    /// The reason to fall back to an origin, if a timeout has expired.
    fn expired(
        &mut self,
        now: Time,
        has_source: bool,
        last_received: Duration,
        timeouts: &FallbackTimeouts,
        is_whole_blob: bool,
    ) -> Option<FallbackReason> {
        self.no_source_since = if has_source {
            None
        } else {
            self.no_source_since.or(Some(now))
        };
        let waited = now.saturating_since(self.since);
        let maximum = if is_whole_blob {
            timeouts.whole_blob.min(timeouts.maximum)
        } else {
            timeouts.maximum
        };
        if self
            .no_source_since
            .is_some_and(|since| now.saturating_since(since) >= timeouts.no_source)
        {
            Some(FallbackReason::NoSource)
        } else if waited >= timeouts.no_progress && last_received >= timeouts.no_progress {
            Some(FallbackReason::NoProgress)
        } else {
            (waited >= maximum).then_some(FallbackReason::TooLate)
        }
    }
}

//! One request for a blob: from the store while the blob is downloaded, or passed through from an
//! origin.
//!
//! ```text
//! new ── not in the store ──────────────────────────────────────────────▶ PassThrough
//!   │ in the store                                                            ▲
//!   ▼          NextByte                                                       │
//! Idle ──────────────────▶ Waiting ── Bypassed, or a timeout has expired ─────┘
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

/// Why a blob is passed through from an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackReason {
    /// The store does not know the blob.
    NotStored,
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
    /// A request for a blob; `stored` is its geometry if the store knows it, complete or not.
    pub fn new(timeouts: FallbackTimeouts, stored: Option<&Geometry>) -> Self {
        let mut read = Self {
            timeouts,
            is_whole_blob: stored.is_some_and(Geometry::is_whole),
            state: State::Idle,
            outputs: VecDeque::new(),
        };
        if stored.is_none() {
            read.pass_through(FallbackReason::NotStored);
        }
        read
    }

    /// The next action, if there is one.
    pub fn poll_output(&mut self) -> Option<BlobReadOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Waiting(wait) => wait.check_at,
            State::Idle | State::PassedThrough => None,
        }
    }

    /// Handles the deadline: the sources are checked.
    pub fn handle_timeout(&mut self, now: Time) {
        if let State::Waiting(wait) = &mut self.state
            && wait.check_at.is_some_and(|at| at <= now)
        {
            wait.check_at = None;
            self.outputs.push_back(BlobReadOutput::CheckSources);
        }
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Time, input: BlobReadInput) {
        match (&mut self.state, input) {
            (State::PassedThrough, _) => {}
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
            (State::Waiting(_), BlobReadInput::NextByte)
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

//! The settings of the machines.

use core::time::Duration;

/// Settings of an [`super::Opening`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpeningConfig {
    /// How long the manifest is held back for the proofs of the image's blobs. They usually take
    /// one round trip.
    pub proofs_timeout: Duration,
    /// The pause after the first request for the proofs that failed. Each pause is up to twice as
    /// long at random, and doubles with each failure, up to `longest_pause`.
    pub first_pause: Duration,
    /// See `first_pause`.
    pub longest_pause: Duration,
    /// How long the proofs are asked for again, or up to half as long again at random: peers that
    /// started together do not give up together.
    pub retry_for: Duration,
}

impl Default for OpeningConfig {
    fn default() -> Self {
        Self {
            proofs_timeout: Duration::from_secs(2),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(2),
            retry_for: Duration::from_secs(10),
        }
    }
}

/// Settings of [`super::ImageSeeks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeekConfig {
    /// How long neighbours may take to deliver an image. Being named by the tracker, connecting
    /// and asking takes some round trips; a runtime that has other hosts to try must not wait much
    /// longer.
    pub timeout: Duration,
    /// Images sought at a time. Requests for further ones end at once.
    pub max_seeks: usize,
    /// Neighbours asked for one image.
    pub max_asked: usize,
}

impl Default for SeekConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_millis(750),
            max_seeks: 16,
            max_asked: 8,
        }
    }
}

/// How long a blob's reader waits for its next byte before it falls back to an origin.
///
/// Bytes read from an origin by a reader are not stored, so waiting is cheaper while the swarm may
/// still deliver them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FallbackTimeouts {
    /// While no neighbour has the chunk and every origin fails. Default 3 s, which leaves time to
    /// connect to neighbours.
    pub no_source: Duration,
    /// While no bytes are received for any blob. Default 20 s; the state machine tries an origin
    /// long before.
    pub no_progress: Duration,
    /// For a blob without chunk proofs, whose bytes from a neighbour can be read only after the
    /// whole blob has arrived. Default 20 s.
    pub whole_blob: Duration,
    /// For a blob whose proof is asked for: how long its request waits for that. Default 15 s, so
    /// that an origin can still answer before containerd gives up.
    pub proof: Duration,
    /// After this time from the request the head of the response is sent, even if no byte of the
    /// body is there. Default 20 s; containerd gives up after 30 s without a head.
    pub head: Duration,
    /// The upper bound, even while other blobs make progress. Default 120 s; container runtimes
    /// give up after 5 minutes.
    pub maximum: Duration,
}

impl Default for FallbackTimeouts {
    fn default() -> Self {
        Self {
            no_source: Duration::from_secs(3),
            no_progress: Duration::from_secs(20),
            whole_blob: Duration::from_secs(20),
            proof: Duration::from_secs(15),
            head: Duration::from_secs(20),
            maximum: Duration::from_secs(120),
        }
    }
}

//! The settings of the machines.

use core::time::Duration;

/// Settings of an [`super::Opening`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpeningConfig {
    /// How long the manifest is held back for the proofs of the image's blobs. They usually take
    /// one round trip.
    pub proofs_timeout: Duration,
}

impl Default for OpeningConfig {
    fn default() -> Self {
        Self {
            proofs_timeout: Duration::from_secs(2),
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
            maximum: Duration::from_secs(120),
        }
    }
}

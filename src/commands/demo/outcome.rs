//! The outcome of a demonstration, compared with the pipelined bound.

use std::time::Duration;

use flotilla_common::bounds::{percentile, pipelined_s};
use flotilla_common::units::BitRate;
use serde::Serialize;

/// The criterion: bytes that the origin may send, as a multiple of the image's size.
pub(super) const MAX_ORIGIN_COPIES: f64 = 1.2;

/// The time of one peer's pull, and the sources of its bytes.
#[derive(Clone, Debug)]
pub(super) struct PeerOutcome {
    /// The peer's id.
    pub id: String,
    /// The peer's zone.
    pub zone: String,
    /// From the common start until all digests were verified; `Err` with the error that a container
    /// runtime would have got.
    pub total: Result<Duration, String>,
    /// From the common start to the first byte of a blob.
    pub first_byte: Duration,
    /// Verified bytes that came from other peers.
    pub from_peers: u64,
    /// Verified bytes that came from the origin.
    pub from_origin: u64,
    /// Bytes that were in the peer's store before the pull.
    pub from_store: u64,
}

/// The parameters of the demonstration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// Peers that pull concurrently.
    pub peers: u32,
    /// Zones among which the peers are divided.
    pub zones: u32,
    /// Bytes of the image's blobs.
    pub image_bytes: u64,
    /// Chunks of the image's blobs.
    pub image_chunks: u32,
    /// The rate limit of the origin's uplink and of each peer's uplink and downlink.
    pub rate: BitRate,
}

/// The object that `demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    /// Peers that pulled.
    pub peers: u32,
    /// Zones among which the peers were divided.
    pub zones: u32,
    /// Bytes of the image's blobs.
    pub image_bytes: u64,
    /// Blob bytes that the origin sent.
    pub origin_bytes: u64,
    /// Blob bytes that peers received from peers.
    pub peer_bytes: u64,
    /// `origin_bytes / image_bytes`.
    pub origin_copies: f64,
    /// Median time of a pull, seconds.
    pub p50_s: f64,
    /// 99th percentile (nearest rank) of the time of a pull, seconds.
    pub p99_s: f64,
    /// The rate limit, bits per second.
    pub rate_bit_s: u64,
    /// The pipelined lower bound of the time of a pull, seconds.
    pub pipelined_bound_s: f64,
    /// `p99_s / pipelined_bound_s`.
    pub p99_over_bound: f64,
    /// Whether every pull succeeded, and the origin sent at most [`MAX_ORIGIN_COPIES`].
    pub ok: bool,
}

impl Outcome {
    /// Summarizes the pulls; `origin_bytes` is the origin's count of the blob bytes it sent.
    pub(super) fn of(setup: &Setup, peers: &[PeerOutcome], origin_bytes: u64) -> Self {
        let mut times: Vec<f64> = peers
            .iter()
            .filter_map(|peer| peer.total.as_ref().ok())
            .map(Duration::as_secs_f64)
            .collect();
        times.sort_by(f64::total_cmp);
        let origin_copies = origin_bytes as f64 / setup.image_bytes.max(1) as f64;
        let bound = pipelined_s(
            setup.image_bytes,
            u64::from(setup.peers),
            u64::from(setup.image_chunks),
            setup.rate.bytes_per_second(),
        );
        let p99_s = percentile(&times, 0.99);
        Self {
            peers: setup.peers,
            zones: setup.zones,
            image_bytes: setup.image_bytes,
            origin_bytes,
            peer_bytes: peers.iter().map(|peer| peer.from_peers).sum(),
            origin_copies,
            p50_s: percentile(&times, 0.5),
            p99_s,
            rate_bit_s: setup.rate.0,
            pipelined_bound_s: bound,
            p99_over_bound: p99_s / bound,
            ok: times.len() == setup.peers as usize && origin_copies <= MAX_ORIGIN_COPIES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(total: Result<Duration, String>) -> PeerOutcome {
        PeerOutcome {
            id: "peer-1".to_owned(),
            zone: "zone-1".to_owned(),
            total,
            first_byte: Duration::ZERO,
            from_peers: 10,
            from_origin: 0,
            from_store: 0,
        }
    }

    #[test]
    fn a_failed_pull_or_too_many_origin_bytes_are_not_ok() {
        let setup = Setup {
            peers: 2,
            zones: 1,
            image_bytes: 1_000,
            image_chunks: 1,
            rate: BitRate(8_000),
        };
        let good = || peer(Ok(Duration::from_secs(2)));
        assert!(Outcome::of(&setup, &[good(), good()], 1_100).ok);
        assert!(!Outcome::of(&setup, &[good(), good()], 1_300).ok);
        assert!(!Outcome::of(&setup, &[good(), peer(Err("cut".to_owned()))], 1_000).ok);
        assert_eq!(
            Outcome::of(&setup, &[good(), good()], 1_000).origin_copies,
            1.0
        );
    }
}

//! A region of real processes with an image in its origin, to be broken. [`flotilla_lab`] says
//! what can be done to it.

use std::time::Duration;

use flotilla::client::PulledImage;
use flotilla::image::{self, Layout};
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_lab::{
    Lab, LabPlan, LinkShape, NetworkKind, PeerSetup, PullTask, why_namespaces_are_unavailable,
};
use tokio::time::{Instant, sleep, timeout};

use super::tools;

/// No pull of a story may take longer; far more than any needs.
const PULL_BOUND: Duration = Duration::from_secs(90);
const POLL_EVERY: Duration = Duration::from_millis(20);

/// The network of a story that needs hosts of their own, links shaped to `rate`; `None`, said
/// loudly, if there can be none here and the story must be skipped.
pub(crate) fn hosts(story: &str, rate: BitRate) -> Option<NetworkKind> {
    if let Some(missing) = why_namespaces_are_unavailable() {
        tools::skip(story, &missing);
        return None;
    }
    Some(NetworkKind::Namespaces(Some(LinkShape::with_rate(rate))))
}

/// An image that takes 3.4 s at [`SLOW_RATE`].
pub(crate) const SLOW_SIZE: ByteSize = ByteSize(16 << 20);
/// Slow enough that there is time to break something, and that two cores are not the limit.
pub(crate) const SLOW_RATE: BitRate = BitRate(40_000_000);

/// Peers whose own caps make a pull last long enough to be broken, also on loopback.
pub(crate) fn slow_peers(count: usize) -> Vec<PeerSetup> {
    let rate = SLOW_RATE.0.to_string();
    let arguments = ["--up", &rate, "--down", &rate].map(str::to_owned).to_vec();
    vec![
        PeerSetup {
            arguments,
            ..PeerSetup::default()
        };
        count
    ]
}

/// A region on loopback whose origin is as slow as its peers.
pub(crate) fn slow_region() -> LabPlan {
    let origin_arguments = vec!["--up".to_owned(), SLOW_RATE.0.to_string()];
    LabPlan {
        origin_arguments,
        ..LabPlan::new(env!("CARGO_BIN_EXE_flotilla"), NetworkKind::Loopback)
    }
}

/// A laboratory with an image in its origin.
pub(crate) struct LabScene {
    pub(crate) lab: Lab,
    pub(crate) image_bytes: u64,
}

impl LabScene {
    /// Starts an origin, a tracker and peers, and pushes an image of about `size` bytes.
    pub(crate) async fn start(network: NetworkKind, size: ByteSize, peers: &[PeerSetup]) -> Self {
        Self::of(
            LabPlan::new(env!("CARGO_BIN_EXE_flotilla"), network),
            size,
            peers,
        )
        .await
    }

    /// As [`LabScene::start`], with a plan of the story's own.
    pub(crate) async fn of(plan: LabPlan, size: ByteSize, peers: &[PeerSetup]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("image");
        image::generate(&layout, size, 1).unwrap();
        let mut lab = Lab::start(plan).await.unwrap();
        lab.push(&layout).await.unwrap();
        lab.add_peers(peers).await.unwrap();
        let image = Layout::open(&layout).unwrap();
        let (_, manifest) = image.manifest(&image.image().digest).unwrap();
        let image_bytes = manifest.blobs().iter().map(|blob| blob.size).sum();
        Self { lab, image_bytes }
    }

    /// Begins a pull through a peer's mirror.
    pub(crate) fn pull(&self, peer: usize) -> PullTask {
        self.lab.pull(peer, |_| {}).unwrap()
    }

    /// Begins a pull through every peer's mirror.
    pub(crate) fn pull_everywhere(&self) -> Vec<PullTask> {
        (0..self.lab.peer_count())
            .map(|peer| self.pull(peer))
            .collect()
    }

    /// Waits for a pull that must come to a good end, with all bytes of the image.
    pub(crate) async fn completes(&self, pull: PullTask) -> PulledImage {
        let pulled = timeout(PULL_BOUND, pull)
            .await
            .expect("a pull ends")
            .unwrap()
            .unwrap();
        assert_eq!(pulled.bytes, self.image_bytes);
        pulled
    }

    /// As [`LabScene::completes`], within `bound` from now.
    pub(crate) async fn completes_within(&self, pull: PullTask, bound: Duration) -> PulledImage {
        timeout(bound, self.completes(pull))
            .await
            .unwrap_or_else(|_| panic!("a pull is not through {bound:?} later"))
    }

    /// Bytes that left the origin since it started, over those of the image.
    pub(crate) async fn origin_copies(&self) -> f64 {
        self.lab.origin_blob_bytes().await.unwrap() as f64 / self.image_bytes as f64
    }

    /// Bytes of the image that a peer's store holds, verified.
    pub(crate) async fn held_by(&self, peer: usize) -> u64 {
        self.lab
            .stats(peer)
            .await
            .unwrap()
            .blobs
            .iter()
            .map(|blob| blob.held)
            .sum()
    }

    /// Waits until a peer holds this share of the image.
    pub(crate) async fn until_held(&self, peer: usize, share: f64) {
        let deadline = Instant::now() + PULL_BOUND;
        while (self.held_by(peer).await as f64) < share * self.image_bytes as f64 {
            assert!(
                Instant::now() < deadline,
                "waited in vain until peer {peer} held {share} of the image"
            );
            sleep(POLL_EVERY).await;
        }
    }
}

//! A region of real processes with an image in its origin, for a test to break.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use flotilla::client::PulledImage;
use flotilla::image::{self, Layout};
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_lab::{
    Lab, LabPlan, LinkShape, NetworkKind, PeerSetup, PullTask, why_namespaces_are_unavailable,
};
use tokio::time::{Instant, sleep, timeout};

use super::tools;

/// Limit for every pull of a test; generous.
const PULL_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The network of a test that needs hosts with links of rate `rate`. Where network namespaces are
/// unavailable, reports that the test is skipped and returns `None`.
pub(crate) fn namespaces_or_skip(test: &str, rate: BitRate) -> Option<NetworkKind> {
    if let Some(reason) = why_namespaces_are_unavailable() {
        tools::skip(test, &reason);
        return None;
    }
    Some(NetworkKind::Namespaces(Some(LinkShape::with_rate(rate))))
}

/// The size of an image that takes 3.4 s at [`SLOW_RATE`].
pub(crate) const SLOW_SIZE: ByteSize = ByteSize(16 << 20);
/// Slow enough that a test has time to break something, and that the machine's CPUs are not the
/// bottleneck.
pub(crate) const SLOW_RATE: BitRate = BitRate(40_000_000);

/// Peers with rate limits of [`SLOW_RATE`], for tests on loopback.
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

/// A region on loopback whose origin has a rate limit of [`SLOW_RATE`].
pub(crate) fn slow_region() -> LabPlan {
    let origin_arguments = vec!["--up".to_owned(), SLOW_RATE.0.to_string()];
    LabPlan {
        origin_arguments,
        ..LabPlan::new(env!("CARGO_BIN_EXE_flotilla"), NetworkKind::Loopback)
    }
}

/// A laboratory, and the image that its origin holds.
pub(crate) struct TestLab {
    lab: Lab,
    pub(crate) image_bytes: u64,
}

impl TestLab {
    /// Starts an origin, a tracker and peers, and pushes an image of about `size` bytes.
    pub(crate) async fn start(network: NetworkKind, size: ByteSize, peers: &[PeerSetup]) -> Self {
        let plan = LabPlan::new(env!("CARGO_BIN_EXE_flotilla"), network);
        Self::with_plan(plan, size, peers).await
    }

    /// As [`TestLab::start`], with another plan.
    pub(crate) async fn with_plan(plan: LabPlan, size: ByteSize, peers: &[PeerSetup]) -> Self {
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

    /// Starts a pull through a peer's mirror.
    pub(crate) fn pull(&self, peer: usize) -> PullTask {
        self.lab.pull(peer, |_| {}).unwrap()
    }

    /// Starts a pull through every peer's mirror.
    pub(crate) fn pull_everywhere(&self) -> Vec<PullTask> {
        (0..self.lab.peer_count())
            .map(|peer| self.pull(peer))
            .collect()
    }

    /// Waits for a pull, which must succeed with all bytes of the image.
    pub(crate) async fn finish_pull(&self, pull: PullTask) -> PulledImage {
        let pulled = timeout(PULL_TIMEOUT, pull)
            .await
            .expect("the pull ends in time")
            .unwrap()
            .unwrap();
        assert_eq!(pulled.bytes, self.image_bytes);
        pulled
    }

    /// As [`TestLab::finish_pull`], within `limit` from now.
    pub(crate) async fn finish_pull_within(&self, pull: PullTask, limit: Duration) -> PulledImage {
        timeout(limit, self.finish_pull(pull))
            .await
            .unwrap_or_else(|_| panic!("the pull is still running after {limit:?}"))
    }

    /// Blob bytes that the origin sent, as a multiple of the image's size.
    pub(crate) async fn origin_copies(&self) -> f64 {
        self.copies_from(0).await
    }

    /// As [`TestLab::origin_copies`], of the origin of a region.
    pub(crate) async fn copies_from(&self, region: usize) -> f64 {
        self.lab.origin_blob_bytes(region).await.unwrap() as f64 / self.image_bytes as f64
    }

    /// Verified bytes of the image in a peer's store.
    pub(crate) async fn held_bytes(&self, peer: usize) -> u64 {
        self.lab
            .stats(peer)
            .await
            .unwrap()
            .blobs
            .iter()
            .map(|blob| blob.held)
            .sum()
    }

    /// Waits until a peer holds this share of the image, from 0 to 1.
    pub(crate) async fn wait_until_held(&self, peer: usize, share: f64) {
        let deadline = Instant::now() + PULL_TIMEOUT;
        while (self.held_bytes(peer).await as f64) < share * self.image_bytes as f64 {
            assert!(
                Instant::now() < deadline,
                "timeout while waiting until peer {peer} holds {share} of the image"
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends all processes; fails if a service logged an unexpected error.
    pub(crate) fn finish(self) {
        self.lab.finish().unwrap();
    }
}

impl Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for TestLab {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

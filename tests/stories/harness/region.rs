//! A region in this process with an image in its origin, and pulls that run while a test breaks
//! something.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla::client::{ClientError, PulledImage, push_layout};
use flotilla::fleet::Fleet;
use flotilla::image;
use flotilla::region::{PeerPlan, Region, RegionPlan};
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_runtime::telemetry::{self, LogFormat};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub(crate) const REPOSITORY: &str = "library/app";
pub(crate) const TAG: &str = "v1";
/// Limit for every wait of a test; generous.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A region, and the image that its origin holds.
pub(crate) struct TestRegion {
    region: Region,
    pub(crate) layout: PathBuf,
    pub(crate) image_bytes: u64,
    dir: TempDir,
}

/// A pull that runs in the background.
pub(crate) type PullTask = JoinHandle<Result<PulledImage, ClientError>>;

impl TestRegion {
    /// Starts an origin and a tracker, and pushes an image of about `size` bytes.
    pub(crate) async fn with_image(size: ByteSize, rate: Option<BitRate>) -> Self {
        telemetry::init_with(LogFormat::Text, "warn").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("image");
        image::generate(&layout, size, 1).unwrap();
        let fleet = Fleet::create("local".parse().unwrap()).unwrap();
        let plan = RegionPlan {
            rate,
            ..RegionPlan::default()
        };
        let region = Region::start(dir.path(), fleet, plan).await.unwrap();
        push_layout(&region.origin_url(), REPOSITORY, TAG, &layout)
            .await
            .unwrap();
        let files = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let manifest_len = image::Layout::open(&layout).unwrap().image().size;
        let all: u64 = files
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        Self {
            region,
            layout,
            image_bytes: all - manifest_len,
            dir,
        }
    }

    /// The region's folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds `count` peers in one zone.
    pub(crate) async fn add_peers(&mut self, count: u32) {
        let first = self.region.peers().len() as u32 + 1;
        for number in first..first + count {
            self.region
                .add_peer(PeerPlan::numbered(number, 1))
                .await
                .unwrap();
        }
    }

    /// Starts a pull through a peer's mirror.
    pub(crate) fn pull(&self, peer: usize) -> PullTask {
        let client = self.region.mirror_client(peer, REPOSITORY).unwrap();
        tokio::spawn(async move { client.pull(TAG, |_| {}).await })
    }

    /// Starts a pull through every peer's mirror.
    pub(crate) fn pull_everywhere(&self) -> Vec<PullTask> {
        (0..self.region.peers().len())
            .map(|peer| self.pull(peer))
            .collect()
    }

    /// Verified bytes of the image in a peer's store.
    pub(crate) fn held_bytes(&self, peer: usize) -> u64 {
        self.region.peers()[peer]
            .stats()
            .blobs
            .iter()
            .map(|blob| blob.held)
            .sum()
    }

    /// Waits until `condition` is true.
    pub(crate) async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            while !condition(self) {
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(TEST_TIMEOUT, wait)
            .await
            .unwrap_or_else(|_| panic!("timeout while waiting until {what}"));
    }

    /// Waits for a pull, which must succeed with all bytes of the image.
    pub(crate) async fn finish_pull(&self, pull: PullTask) -> PulledImage {
        let pulled = timeout(TEST_TIMEOUT, pull)
            .await
            .expect("the pull ends in time")
            .unwrap()
            .unwrap();
        assert_eq!(pulled.bytes, self.image_bytes);
        pulled
    }

    /// Blob bytes that the origin sent, as a multiple of the image's size.
    pub(crate) fn origin_copies(&self) -> f64 {
        self.region.origin_blob_bytes() as f64 / self.image_bytes as f64
    }

    /// Drains and stops all services.
    pub(crate) async fn shut_down(self) {
        self.region.shut_down().await;
    }
}

impl Deref for TestRegion {
    type Target = Region;

    fn deref(&self) -> &Region {
        &self.region
    }
}

impl DerefMut for TestRegion {
    fn deref_mut(&mut self) -> &mut Region {
        &mut self.region
    }
}

//! A region with an image in its origin, and pulls that go on while the story breaks something.

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
/// No story may take longer; far more than any needs.
const STORY_BOUND: Duration = Duration::from_secs(120);
const POLL_EVERY: Duration = Duration::from_millis(5);

/// A region, its folder, and the image that its origin holds.
pub(crate) struct Scene {
    pub(crate) region: Region,
    pub(crate) layout: PathBuf,
    pub(crate) image_bytes: u64,
    dir: TempDir,
}

/// A pull that goes on in the background.
pub(crate) type Pulling = JoinHandle<Result<PulledImage, ClientError>>;

impl Scene {
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
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let manifest_len = image::Layout::open(&layout).unwrap().image().size;
        let all: u64 = blobs
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

    /// Adds `count` honest peers in one zone.
    pub(crate) async fn add_peers(&mut self, count: u32) {
        let first = self.region.peers().len() as u32 + 1;
        for number in first..first + count {
            self.region
                .add_peer(PeerPlan::numbered(number, 1))
                .await
                .unwrap();
        }
    }

    /// Begins a pull through a peer's mirror.
    pub(crate) fn pull(&self, peer: usize) -> Pulling {
        let client = self.region.mirror_client(peer, REPOSITORY).unwrap();
        tokio::spawn(async move { client.pull(TAG, |_| {}).await })
    }

    /// Begins a pull through every peer's mirror.
    pub(crate) fn pull_everywhere(&self) -> Vec<Pulling> {
        (0..self.region.peers().len())
            .map(|peer| self.pull(peer))
            .collect()
    }

    /// Bytes of the image that a peer's store holds, verified.
    pub(crate) fn held_by(&self, peer: usize) -> u64 {
        self.region.peers()[peer]
            .stats()
            .blobs
            .iter()
            .map(|blob| blob.held)
            .sum()
    }

    /// Waits until `condition` holds of the scene.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            while !condition(self) {
                sleep(POLL_EVERY).await;
            }
        };
        timeout(STORY_BOUND, wait)
            .await
            .unwrap_or_else(|_| panic!("waited in vain until {what}"));
    }

    /// Waits for a pull that must come to a good end, with all bytes of the image.
    pub(crate) async fn completes(&self, pull: Pulling) -> PulledImage {
        let pulled = timeout(STORY_BOUND, pull)
            .await
            .expect("a pull ends")
            .unwrap()
            .unwrap();
        assert_eq!(pulled.bytes, self.image_bytes);
        pulled
    }

    /// Origin bytes over image bytes.
    pub(crate) fn origin_copies(&self) -> f64 {
        self.region.origin_blob_bytes() as f64 / self.image_bytes as f64
    }
}

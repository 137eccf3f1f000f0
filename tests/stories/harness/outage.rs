//! Two regions and a peer of the first one, whose storage a test makes hang.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use flotilla::image::Layout;
use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use flotilla_peer::Stats;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::service::TestService;
use super::two_regions::TwoRegions;

pub(crate) const TAG: &str = "v1";
/// Limit for every wait; generous.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The regions with their services. Each region's storage is a process of its own.
pub(crate) struct Outage {
    pub(crate) regions: TwoRegions,
    /// The images that both regions have, in the order of their names.
    pub(crate) images: Vec<TestImage>,
    peer: TestService,
    _tracker: TestService,
    _origins: [TestService; 2],
}

/// An image that both regions have.
pub(crate) struct TestImage {
    /// The folder of its layout.
    pub(crate) layout: String,
    pub(crate) digest: Digest,
    /// The sum of its blobs.
    pub(crate) bytes: u64,
}

impl Outage {
    /// Starts two regions, and pushes images of these repositories and sizes to both. From then on
    /// the first region's origin has nothing in memory, and sends blobs at `rate`.
    pub(crate) async fn prepare(
        moto_server: &Path,
        rate: &str,
        images: &[(&str, ByteSize)],
    ) -> Self {
        let regions = TwoRegions::on_s3(moto_server);
        let first = regions.start_origin(0, &[]);
        let second = regions.start_origin(1, &[]);
        let mut pushed = Vec::new();
        for ((repository, size), rng_seed) in images.iter().zip(1..) {
            let layout = regions.generate(*size, rng_seed);
            let digest = regions.push(repository, TAG, &layout).await;
            let (_, manifest) = Layout::open(Path::new(&layout))
                .and_then(|layout| layout.manifest(&digest))
                .unwrap();
            pushed.push(TestImage {
                layout,
                digest,
                bytes: manifest.blobs().iter().map(|blob| blob.size).sum(),
            });
        }
        for (repository, _) in images {
            let image = format!("{repository}:{TAG}");
            regions.wait(&image, &["--region", "us-1"]).unwrap();
        }
        drop(first);
        let first = regions.start_origin(0, &["--up", rate]);
        let tracker = TestService::start(Command::new(env!("CARGO_BIN_EXE_flotilla")).args([
            "tracker",
            "--listen",
            "127.0.0.1:0",
        ]));
        let peer = regions.start_peer(&tracker);
        Self {
            regions,
            images: pushed,
            peer,
            _tracker: tracker,
            _origins: [first, second],
        }
    }

    /// The address of the peer's mirror.
    pub(crate) fn mirror(&self) -> SocketAddr {
        self.peer.address
    }

    /// The peer's statistics.
    pub(crate) async fn peer_stats(&self) -> Stats {
        let url = format!("{}/flotilla/status", self.peer.url());
        let answer = self.regions.http().get(url).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    /// Blob bytes that a region's origin has sent since its start.
    pub(crate) async fn sent_bytes(&self, region: usize) -> u64 {
        let sample = "flotilla_origin_sent_bytes_total ";
        self.regions.metric(region, sample).await
    }

    /// Waits until `condition` is true.
    pub(crate) async fn wait_until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let wait = async {
            while !condition(self).await {
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(TIMEOUT, wait)
            .await
            .unwrap_or_else(|_| panic!("timeout while waiting until {what}"));
    }

    /// Makes the storage of the first region hang.
    pub(crate) fn begin(&self) {
        self.regions.server(0).suspend();
    }
}

/// A client's command that runs in the background.
pub(crate) struct RunningCommand<T>(JoinHandle<(Result<T, String>, Duration)>);

impl<T: Send + 'static> RunningCommand<T> {
    pub(crate) fn start(command: impl FnOnce() -> Result<T, String> + Send + 'static) -> Self {
        Self(spawn_blocking(move || {
            let started = Instant::now();
            (command(), started.elapsed())
        }))
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.0.is_finished()
    }

    /// Waits for the command, which must succeed within a minute, and prints how long it took.
    pub(crate) async fn finish(self, what: &str) -> T {
        let ended = timeout(TIMEOUT, self.0).await;
        let ended = ended.unwrap_or_else(|_| panic!("{what}: still running after {TIMEOUT:?}"));
        let (result, duration) = ended.unwrap();
        eprintln!("{what}: {:.1} s", duration.as_secs_f64());
        result.unwrap_or_else(|output| panic!("{what}: {output}"))
    }
}

//! The configuration of an origin, with documented defaults.

use core::time::Duration;
use std::net::SocketAddr;

use flotilla_common::name::RegionName;
use flotilla_common::seal::SealKey;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_runtime::admin::AdminSettings;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::rate::Limiter;

pub use crate::format::Horizons;
pub use crate::replicas::Replicas;

/// The configuration of an origin.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address on which it serves clients; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The listener for operators. Default a free port on loopback.
    pub admin: AdminSettings,
    /// Its storage: `file:///dir`, `s3://bucket/prefix`, `gs://bucket/prefix`,
    /// `az://container/prefix` or `memory:///`.
    pub storage: String,
    /// Its region, which stamps of tags and manifests name; the seal key must belong to it.
    pub region: RegionName,
    /// Signs seals; its issuer is the region that peers see in them.
    pub seal_key: SealKey,
    /// A rate limit for the bytes of blobs, shared by all responses. Default none.
    pub uplink: Limiter,
    /// The certificate for HTTPS, reloaded when its files change; without one it serves HTTP.
    /// Default none.
    pub tls: Option<Identity>,
    /// The replicas to which it sends invalidations. Default none.
    pub replicas: Replicas,
    /// The address on which it accepts invalidations from other replicas; port 0 lets the system
    /// choose. Default none.
    pub replica_listen: Option<SocketAddr>,
    /// Whether blob requests are redirected to the storage (307 to a presigned URL). Default no:
    /// all bytes pass through the origin.
    pub redirect_blobs: bool,
    /// Threads that serve connections. Default 0: the caller's runtime serves them.
    pub threads: usize,
    /// Whether blobs of local storage are sent by sendfile(2) over plain HTTP. Default: on Linux.
    pub sendfile: bool,
    /// The times of collection, which must be equal at all replicas of a bucket.
    pub horizons: Horizons,
    /// The work between regions.
    pub regions: RegionSettings,
    /// Bounds on memory, time and concurrency.
    pub limits: Limits,
    /// Where all parts of the origin read the time.
    pub clock: Clock,
}

impl Config {
    /// A configuration with all defaults.
    pub fn new(
        listen: SocketAddr,
        storage: impl Into<String>,
        region: RegionName,
        seal_key: SealKey,
        clock: Clock,
    ) -> Self {
        Self {
            listen,
            admin: AdminSettings::default(),
            storage: storage.into(),
            region,
            seal_key,
            uplink: Limiter::unlimited(),
            tls: None,
            replicas: Replicas::none(),
            replica_listen: None,
            redirect_blobs: false,
            threads: 0,
            sendfile: cfg!(target_os = "linux"),
            horizons: Horizons::default(),
            regions: RegionSettings::default(),
            limits: Limits::default(),
            clock,
        }
    }

    /// Sets a rate limit for the bytes of blobs.
    #[must_use]
    pub fn with_uplink(mut self, rate: Option<BitRate>) -> Self {
        self.uplink = rate.into();
        self
    }
}

/// Settings of the work between regions.
#[derive(Clone, Debug)]
pub struct RegionSettings {
    /// A rate limit for blobs that are copied from other regions in the background. Default none.
    pub down: Limiter,
    /// Whether changes go to another region while this region's storage is out. Default yes; if
    /// not, they are answered 503.
    pub forward_writes: bool,
    /// From the first contact with a region to the first walk through all its keys: by then every
    /// replica of it has read the policy. Default 5 min.
    pub settle: Duration,
}

impl Default for RegionSettings {
    fn default() -> Self {
        Self {
            down: Limiter::unlimited(),
            forward_writes: true,
            settle: Duration::from_mins(5),
        }
    }
}

/// Bounds of an origin.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a tag may be served from memory, from the start of its read. Default and maximum
    /// 1 s.
    pub tag_time_to_live: Duration,
    /// How long a membership or a manifest may be served from memory, from the start of its read.
    /// It is refreshed in the background from half of it on. Default and maximum 10 s.
    pub repository_time_to_live: Duration,
    /// Memory for manifests. Default 64 MiB.
    pub manifest_cache: ByteSize,
    /// Memory for records of blobs. Default 64 MiB.
    pub record_cache: ByteSize,
    /// Memory for blobs of at most 64 KiB, most of them image configurations. Default 32 MiB.
    pub small_blob_cache: ByteSize,
    /// Memory for tags, memberships, open uploads and closures, each. Default 16 MiB.
    pub other_caches: ByteSize,
    /// Memory for bytes of uploads on their way to storage, in batches of 512 KiB. Default 16 MiB:
    /// 16 uploads at full speed; others wait.
    pub upload_buffers: ByteSize,
    /// Memory for parts of 5 MiB on their way to remote storage. Default 80 MiB: one part for each
    /// of 16 uploads.
    pub part_buffers: ByteSize,
    /// Memory for large pieces of blobs on their way to clients, where bytes are copied through
    /// this process. Default 16 MiB; a response that finds none free sends pieces of 16 KiB.
    pub pull_buffers: ByteSize,
    /// Concurrent connections. Default 8192; 128 more are answered 503, except for health.
    pub connections: usize,
    /// Concurrent requests, from their head to the last byte of their response. Default 4096; more
    /// are refused (429).
    pub requests: usize,
    /// Concurrent uploads that receive bytes or wait for a buffer. Default 512; more are refused
    /// (429).
    pub uploads: usize,
    /// The share of `requests` and of `uploads` that the origins of other regions may use, in
    /// percent: 1 to 100. Default 50; the rest remains for this region's clients.
    pub region_share: u8,
    /// Timeout for a whole request head, and for the next request on an idle connection. Default
    /// 120 s.
    pub head_timeout: Duration,
    /// Timeout for a client that reads nothing of its response. Default 300 s: containerd suspends
    /// one response while it reads others.
    pub reader_timeout: Duration,
    /// How long an upload id is valid. Default 24 h; shorter than the horizon.
    pub upload_lifetime: Duration,
    /// The stall budget of a request body: how long a client may send nothing, or less than 16
    /// KiB/s on average. Default 60 s.
    pub stall_timeout: Duration,
    /// Timeout of a storage call on a small object. A conditional write, which may read back and
    /// repeat, has twice as long in total. Default 15 s.
    pub storage_timeout: Duration,
    /// The maximum size of a segment. Default 4 GiB.
    pub segment_len: ByteSize,
    /// How long a shutdown still accepts requests while it reports not ready, so that load
    /// balancers turn away first. Default zero.
    pub drain_delay: Duration,
    /// How long a shutdown waits for requests in flight. Default 20 s.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tag_time_to_live: Duration::from_secs(1),
            repository_time_to_live: Duration::from_secs(10),
            manifest_cache: ByteSize(64 << 20),
            record_cache: ByteSize(64 << 20),
            small_blob_cache: ByteSize(32 << 20),
            other_caches: ByteSize(16 << 20),
            upload_buffers: ByteSize(16 << 20),
            part_buffers: ByteSize(80 << 20),
            pull_buffers: ByteSize(16 << 20),
            connections: 8192,
            requests: 4096,
            uploads: 512,
            region_share: 50,
            head_timeout: Duration::from_mins(2),
            reader_timeout: Duration::from_mins(5),
            upload_lifetime: Duration::from_hours(24),
            stall_timeout: Duration::from_mins(1),
            storage_timeout: Duration::from_secs(15),
            segment_len: ByteSize(4 << 30),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Limits {
    /// What the origins of other regions may use of `number` permits: at least one, so that they
    /// can copy from this region at all.
    pub(crate) const fn share_of_regions(&self, number: usize) -> usize {
        let percent = self.region_share as usize;
        // The same as `number * percent / 100`, without an overflow.
        let share = number / 100 * percent + number % 100 * percent / 100;
        if share == 0 { 1 } else { share }
    }
}

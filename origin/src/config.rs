//! The origin's configuration, one struct with documented defaults.

use core::time::Duration;
use std::net::SocketAddr;

use flotilla_common::name::RegionName;
use flotilla_common::seal::SealKey;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::Identity;
use flotilla_runtime::rate::Limiter;

pub use crate::format::Horizons;
pub use crate::replicas::Replicas;

/// How an origin runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Its storage: `file:///dir`, `s3://bucket/prefix`, `gs://bucket/prefix`,
    /// `az://container/prefix` or `memory:///`.
    pub storage: String,
    /// Its region, in the stamps of tags and manifests; the seal key's.
    pub region: RegionName,
    /// What signs seals; its issuer is the region that peers see in them.
    pub seal_key: SealKey,
    /// A cap on the bytes of blobs that it sends, shared by all responses. Default none.
    pub uplink: Limiter,
    /// HTTPS with this certificate, which follows its files; HTTP without. Default none.
    pub tls: Option<Identity>,
    /// The replicas that are told what this one changes. Default none.
    pub replicas: Replicas,
    /// Where this one is told by the others; port 0 lets the system choose. Default nowhere.
    pub replica_listen: Option<SocketAddr>,
    /// Whether clients are sent to the storage for blobs (307 to a presigned URL). Default no: all
    /// bytes pass the origin.
    pub redirect_blobs: bool,
    /// Threads that serve connections, each its own. Default 0: the caller's runtime does.
    pub threads: usize,
    /// The times of collection: the same at all replicas of a bucket.
    pub horizons: Horizons,
    /// Bounds on memory, time and concurrency.
    pub limits: Limits,
    /// Where all parts of the origin read the time.
    pub clock: Clock,
}

impl Config {
    /// A configuration with the defaults for all that has one.
    pub fn new(
        listen: SocketAddr,
        storage: impl Into<String>,
        region: RegionName,
        seal_key: SealKey,
        clock: Clock,
    ) -> Self {
        Self {
            listen,
            storage: storage.into(),
            region,
            seal_key,
            uplink: Limiter::unlimited(),
            tls: None,
            replicas: Replicas::none(),
            replica_listen: None,
            redirect_blobs: false,
            threads: 0,
            horizons: Horizons::default(),
            limits: Limits::default(),
            clock,
        }
    }

    /// The same with a cap on the uplink.
    #[must_use]
    pub fn with_uplink(mut self, rate: Option<BitRate>) -> Self {
        self.uplink = rate.into();
        self
    }
}

/// The origin's bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a tag may be served from memory, from the start of its read. At most 1 s, the
    /// default.
    pub tag_time_to_live: Duration,
    /// How long "this repository has this digest" may be. At most 10 s, the default; refreshed
    /// ahead at half of it.
    pub repository_time_to_live: Duration,
    /// Memory for manifests. Default 64 MiB.
    pub manifest_cache: ByteSize,
    /// Memory for records of blobs. Default 64 MiB.
    pub record_cache: ByteSize,
    /// Memory for blobs of at most 64 KiB: configurations, mostly. Default 32 MiB.
    pub small_blob_cache: ByteSize,
    /// Memory for tags, claims to blobs, open uploads and closures, each. Default 16 MiB.
    pub other_caches: ByteSize,
    /// Memory for the bytes of uploads on their way to storage, in batches of 512 KiB. Default 16
    /// MiB: 16 uploads at full speed, the others wait.
    pub upload_buffers: ByteSize,
    /// Memory for parts of 5 MiB on their way to a remote storage. Default 80 MiB: one for each of
    /// 16 uploads.
    pub part_buffers: ByteSize,
    /// Memory for the bytes of blobs on their way to clients, where they pass through this process,
    /// in large pieces. Default 16 MiB; beyond, each response has a piece of 16 KiB.
    pub pull_buffers: ByteSize,
    /// Connections at once. Default 8192; 128 more are told to come again (503), and operators are
    /// answered there, too.
    pub connections: usize,
    /// Requests at once, from their head to the last byte of their answer. Default 4096; more are
    /// refused (429).
    pub requests: usize,
    /// Uploads at once whose bytes are received or wait for their turn. Default 512; more are
    /// refused (429).
    pub uploads: usize,
    /// For a whole request head, and for the next request of an idle connection. Default 120 s.
    pub head_timeout: Duration,
    /// How long a client may take nothing of its answer. Default 300 s: containerd parks answers
    /// while it reads others.
    pub reader_timeout: Duration,
    /// How long an upload's id is good for. Default 24 h; shorter than the horizon.
    pub upload_lifetime: Duration,
    /// How long a client may send nothing in the middle of a body, or less than 16 KiB per second
    /// on average. Default 60 s.
    pub stall_timeout: Duration,
    /// For one storage call on a small object. A write, whose outcome is looked up and which is
    /// then repeated, has twice as long for all of it. Default 15 s.
    pub storage_timeout: Duration,
    /// Bytes at which a segment ends. Default 4 GiB.
    pub segment_len: ByteSize,
    /// How long a shutdown still takes on work while it says that it is not ready, so that load
    /// balancers turn away first. Default none.
    pub drain_delay: Duration,
    /// How long a shutdown waits for what is in flight. Default 20 s.
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

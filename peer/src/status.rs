//! The JSON document under `/flotilla/status`.
//!
//! Sizes are in bytes, times in seconds, rates in bytes per second. Fields are added, but never
//! renamed or removed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use flotilla_common::digest::Digest;
use flotilla_common::failover::Standing;
use flotilla_common::name::{PeerId, RegionName, ZoneName};
use flotilla_common::swarm::{Nearness, StallReason, StallTimes};
use flotilla_common::units::BitRate;
use serde::{Deserialize, Serialize};

use crate::stats::Stats;

/// The status of a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The peer's name.
    pub id: PeerId,
    /// The peer's region.
    pub region: RegionName,
    /// The peer's zone.
    pub zone: ZoneName,
    /// The address that neighbours dial.
    pub address: SocketAddr,
    /// Concurrent transfers.
    pub slots: Slots,
    /// Downloads from neighbours and origins.
    pub down: Direction,
    /// Uploads to neighbours.
    pub up: Direction,
    /// Pulls in progress, the oldest first.
    pub pulls: Vec<PullStatus>,
    /// The last finished pulls, the newest first.
    pub finished: Vec<PullReport>,
    /// Blobs that are wanted and incomplete.
    pub wanted: Vec<BlobStatus>,
    /// Connected neighbours.
    pub connected: Vec<NeighbourStatus>,
    /// Peers that are not used because they sent corrupt bytes.
    pub quarantined: Vec<Quarantined>,
    /// The configured trackers.
    pub trackers: Vec<TrackerStatus>,
    /// The configured origins, in the configured order.
    pub origins: Vec<OriginStatus>,
    /// Leases held.
    pub leases: Vec<LeaseStatus>,
    /// The store.
    pub store: StoreStatus,
    /// Time since the start in which blobs were wanted and none made progress, by reason.
    #[serde(rename = "stood_still")]
    pub stalled: Waits,
    /// Counters since the start, and every blob in the store.
    #[serde(flatten)]
    pub counters: Stats,
}

/// Seconds by reason.
pub type Waits = BTreeMap<StallReason, f64>;

/// Waiting times in the format of the document.
pub(crate) fn waits(times: &StallTimes) -> Waits {
    times
        .longest()
        .into_iter()
        .map(|(wait, time)| (wait, rounded(time.as_secs_f64())))
        .collect()
}

/// Rounds to milliseconds.
pub(crate) fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Concurrent transfers now.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Slots {
    /// The maximum number in each direction.
    pub each_way: u32,
    /// Chunks being fetched.
    pub downloads: u32,
    /// Chunks being served.
    pub uploads: u32,
}

/// All transfers in one direction.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Direction {
    /// The rate over about the last second.
    pub bytes_per_second: f64,
    /// Bytes since the start.
    pub bytes: u64,
    /// The configured rate limit.
    pub cap_bits_per_second: Option<BitRate>,
}

/// Bytes of an image by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The store, when the pull began.
    pub own_store: u64,
    /// Peers in the same zone.
    pub same_zone: u64,
    /// Peers in other zones.
    pub other_zones: u64,
    /// An origin, under a lease.
    pub origin_leased: u64,
    /// An origin, without a lease.
    pub origin_unleased: u64,
    /// An origin, passed through to the runtime.
    pub passed_through: u64,
}

impl Sources {
    /// All bytes received over the network.
    pub fn received(&self) -> u64 {
        self.same_zone
            + self.other_zones
            + self.origin_leased
            + self.origin_unleased
            + self.passed_through
    }
}

/// A pull in progress.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullStatus {
    /// Repository and tag, or digest.
    pub image: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Whether it is downloaded into the store only.
    pub is_warming: bool,
    /// The total size of its blobs.
    pub bytes: u64,
    /// Bytes that are verified and stored.
    pub held: u64,
    /// Bytes sent to the runtime.
    pub emitted: u64,
    /// The number of its blobs.
    pub blobs: u32,
    /// The number of complete blobs.
    pub complete: u32,
    /// The time since it began.
    pub seconds: f64,
    /// The bytes so far, by source.
    pub sources: Sources,
    /// The last error, if there was one.
    pub trouble: Option<String>,
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullResult {
    /// Every blob is complete in the store or was sent to the runtime.
    Pulled,
    /// No progress for too long.
    GivenUp,
}

/// A finished pull, with figures that explain its duration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullReport {
    /// Repository and tag, or digest.
    pub image: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The result.
    pub result: PullResult,
    /// The reason, if it was given up.
    pub why: Option<String>,
    /// Whether it was downloaded into the store only.
    pub is_warming: bool,
    /// The total size of its blobs.
    pub bytes: u64,
    /// Bytes sent to the runtime.
    pub emitted: u64,
    /// The bytes by source.
    pub sources: Sources,
    /// From the first request to the last byte.
    pub seconds: f64,
    /// From the first request to the first byte of a blob that was sent to the runtime.
    pub first_byte_seconds: Option<f64>,
    /// The average rate.
    pub bytes_per_second: f64,
    /// Time in which this peer wanted blobs and none made progress, by reason.
    pub waits: Waits,
    /// Time in which a blob of the image made no progress, summed over its blobs, by reason.
    pub blob_waits: Waits,
    /// The least time for the bytes received over the network, at the configured download limit.
    pub bound_seconds: Option<f64>,
    /// `seconds` divided by `bound_seconds`.
    pub over_bound: Option<f64>,
}

/// A blob that is being downloaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlobStatus {
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size.
    pub bytes: u64,
    /// Bytes that are verified and stored.
    pub held: u64,
    /// The rate over about the last second.
    pub bytes_per_second: f64,
    /// The number of neighbours that exchange it with this peer.
    pub neighbours: u32,
    /// The running downloads.
    pub transfers: Vec<TransferStatus>,
    /// Why it makes no progress now.
    pub waits_for: Option<StallReason>,
    /// Time without progress so far, by reason.
    pub waited: Waits,
}

/// The download of a chunk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferStatus {
    /// A neighbour's name or an origin's URL.
    pub from: String,
    /// The chunk's index in the blob.
    pub chunk: u32,
    /// The chunk's length.
    pub bytes: u64,
    /// Bytes received so far.
    pub received: u64,
}

/// A connected neighbour.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NeighbourStatus {
    /// Its name.
    pub id: PeerId,
    /// Its region.
    pub region: RegionName,
    /// Its zone.
    pub zone: ZoneName,
    /// Its distance.
    pub nearness: Near,
    /// The round-trip time.
    pub rtt_seconds: f64,
    /// Downloads from it.
    pub down: Exchange,
    /// Uploads to it.
    pub up: Exchange,
}

/// All transfers with a neighbour in one direction.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Exchange {
    /// The rate over about the last second.
    pub bytes_per_second: f64,
    /// Bytes since the first connection.
    pub bytes: u64,
    /// Running transfers.
    pub transfers: u32,
}

/// How far away a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Near {
    /// In the same zone.
    SameZone,
    /// In another zone of the region.
    SameRegion,
    /// In another region.
    Elsewhere,
}

impl From<Nearness> for Near {
    fn from(nearness: Nearness) -> Self {
        match nearness {
            Nearness::SameZone => Self::SameZone,
            Nearness::SameRegion => Self::SameRegion,
            Nearness::Elsewhere => Self::Elsewhere,
        }
    }
}

/// A peer in quarantine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its name.
    pub id: PeerId,
    /// The time until it may be used again.
    pub seconds_left: f64,
}

/// A tracker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// Its URL.
    pub url: String,
    /// Its region; `null` if the peer is older than this field.
    #[serde(default)]
    pub region: Option<RegionName>,
    /// Whether the peer announces to it. A tracker of another region is used while none of the own
    /// region answers.
    #[serde(default)]
    pub is_used: bool,
    /// Whether the last announce was answered; `null` before the first answer, and while the
    /// tracker is not used.
    pub is_answering: Option<bool>,
    /// Announces that it accepted.
    pub announces: u64,
    /// The error, if it does not answer.
    pub trouble: Option<String>,
}

/// An origin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OriginStatus {
    /// Its URL.
    pub url: String,
    /// Its region.
    pub region: RegionName,
    /// Whether the last request or probe was answered; `null` before the first request.
    pub is_answering: Option<bool>,
    /// How far it is used.
    pub standing: OriginStanding,
    /// The share of the requests that prefer it and ask it, in percent.
    pub share_percent: u8,
    /// The time since the standing changed last; `null` if it never did.
    pub seconds: Option<f64>,
    /// The error, if it does not answer.
    pub trouble: Option<String>,
}

/// How far an origin is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginStanding {
    /// Every request that prefers it asks it; it may never have been asked.
    Fine,
    /// As fine, but a request was slow or failed, and probes decide.
    Suspect,
    /// It is not asked until it answers probes.
    Out,
    /// It answers probes again, and is used by steps.
    Returning,
}

impl From<Standing> for OriginStanding {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Fine => Self::Fine,
            Standing::Suspect => Self::Suspect,
            Standing::Out => Self::Out,
            Standing::Returning { .. } => Self::Returning,
        }
    }
}

/// A lease held.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The blob.
    pub blob: Digest,
    /// The index of the chunk.
    pub chunk: u32,
}

/// The store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Its directory.
    pub dir: PathBuf,
    /// The total size of the blobs in it, including missing chunks.
    pub bytes: u64,
    /// The maximum of `bytes`.
    pub quota: u64,
    /// The number of blobs.
    pub blobs: u32,
    /// The number of complete blobs.
    pub complete: u32,
}

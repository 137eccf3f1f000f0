//! What a peer says of itself under `/flotilla/status`: the words of its JSON.
//!
//! Sizes are bytes, times seconds, rates bytes per second. Fields are only ever added.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use flotilla_common::digest::Digest;
use flotilla_common::name::{PeerId, RegionName, ZoneName};
use flotilla_common::swarm::{Nearness, Wait, WaitTimes};
use flotilla_common::units::BitRate;
use serde::{Deserialize, Serialize};

use crate::stats::Stats;

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The peer's name.
    pub id: PeerId,
    /// Where it is.
    pub region: RegionName,
    /// Where it is.
    pub zone: ZoneName,
    /// What neighbours are told to dial.
    pub address: SocketAddr,
    /// Transfers.
    pub slots: Slots,
    /// What comes from neighbours and origins.
    pub down: Direction,
    /// What goes to neighbours.
    pub up: Direction,
    /// Images that are being pulled, in the order they began.
    pub pulls: Vec<PullStatus>,
    /// The last pulls that are over, the latest first.
    pub finished: Vec<PullReport>,
    /// Blobs that are wanted and not complete.
    pub wanted: Vec<BlobStatus>,
    /// Connected neighbours.
    pub connected: Vec<NeighbourStatus>,
    /// Neighbours that sent corrupt bytes and are not used.
    pub quarantined: Vec<Quarantined>,
    /// The configured trackers.
    pub trackers: Vec<TrackerStatus>,
    /// The configured origins, in order.
    pub origins: Vec<OriginStatus>,
    /// Leases held.
    pub leases: Vec<LeaseStatus>,
    /// The store.
    pub store: StoreStatus,
    /// How long something was wanted and nothing moved since the start, by reason.
    pub stood_still: Waits,
    /// Counters since the start, and every blob in the store.
    #[serde(flatten)]
    pub counters: Stats,
}

/// Seconds by reason.
pub type Waits = BTreeMap<Wait, f64>;

/// The waits as JSON has them.
pub(crate) fn waits(times: &WaitTimes) -> Waits {
    times
        .longest()
        .into_iter()
        .map(|(wait, time)| (wait, rounded(time.as_secs_f64())))
        .collect()
}

/// To the millisecond.
pub(crate) fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Transfers now.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Slots {
    /// Of each kind at most.
    pub each_way: u32,
    /// Chunks being fetched.
    pub downloads: u32,
    /// Chunks being served.
    pub uploads: u32,
}

/// One direction of the own link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Direction {
    /// Over the last second or so.
    pub bytes_per_second: f64,
    /// Since the start.
    pub bytes: u64,
    /// The configured cap.
    pub cap_bits_per_second: Option<BitRate>,
}

/// Bytes of an image by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Held when the pull began.
    pub own_store: u64,
    /// Peers in the own zone.
    pub same_zone: u64,
    /// Peers in other zones.
    pub other_zones: u64,
    /// An origin, under a lease.
    pub origin_leased: u64,
    /// An origin, without a lease.
    pub origin_unleased: u64,
    /// An origin, straight to the runtime.
    pub passed_through: u64,
}

impl Sources {
    /// All that came over the network.
    pub fn received(&self) -> u64 {
        self.same_zone
            + self.other_zones
            + self.origin_leased
            + self.origin_unleased
            + self.passed_through
    }
}

/// An image that is being pulled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullStatus {
    /// Repository and tag, or digest.
    pub image: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Whether it is fetched for the store only.
    pub is_warming: bool,
    /// Of all its blobs.
    pub bytes: u64,
    /// Of these, verified and stored.
    pub held: u64,
    /// Handed to the runtime.
    pub emitted: u64,
    /// Its blobs.
    pub blobs: u32,
    /// Of these, complete.
    pub complete: u32,
    /// Since it began.
    pub seconds: f64,
    /// Where the bytes came from so far.
    pub sources: Sources,
    /// What went wrong last, if anything did.
    pub trouble: Option<String>,
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullResult {
    /// Every blob is here, or with the runtime.
    Pulled,
    /// It stood still too long.
    GivenUp,
}

/// A pull that is over, and what explains it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullReport {
    /// Repository and tag, or digest.
    pub image: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// How it ended.
    pub result: PullResult,
    /// Why it was given up.
    pub why: Option<String>,
    /// Whether it was for the store only.
    pub is_warming: bool,
    /// Of all its blobs.
    pub bytes: u64,
    /// Handed to the runtime.
    pub emitted: u64,
    /// Where the bytes came from.
    pub sources: Sources,
    /// From the first request to the last byte.
    pub seconds: f64,
    /// To the first byte of a blob that the runtime got.
    pub first_byte_seconds: Option<f64>,
    /// Bytes over seconds.
    pub bytes_per_second: f64,
    /// Time in which nothing at all moved for this peer, by reason.
    pub waits: Waits,
    /// Time in which nothing moved, summed over the blobs, by reason.
    pub blob_waits: Waits,
    /// What the bytes that came over the network need at the cap of the own downlink.
    pub bound_seconds: Option<f64>,
    /// `seconds` over that.
    pub over_bound: Option<f64>,
}

/// A blob on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlobStatus {
    /// Which.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: u64,
    /// Verified and stored.
    pub held: u64,
    /// Over the last second or so.
    pub bytes_per_second: f64,
    /// Neighbours with which it is exchanged.
    pub neighbours: u32,
    /// What comes now, and from where.
    pub transfers: Vec<TransferStatus>,
    /// Why nothing moves.
    pub waits_for: Option<Wait>,
    /// Time waited so far, by reason.
    pub waited: Waits,
}

/// A chunk on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferStatus {
    /// A neighbour's name or an origin's URL.
    pub from: String,
    /// Which chunk.
    pub chunk: u32,
    /// Its bytes.
    pub bytes: u64,
    /// Of these, here.
    pub received: u64,
}

/// A connected neighbour.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NeighbourStatus {
    /// Its name.
    pub id: PeerId,
    /// Where it is.
    pub region: RegionName,
    /// Where it is.
    pub zone: ZoneName,
    /// How far that is.
    pub nearness: Near,
    /// Round trip.
    pub rtt_seconds: f64,
    /// From it.
    pub down: Exchange,
    /// To it.
    pub up: Exchange,
}

/// One direction of a link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Exchange {
    /// Over the last second or so.
    pub bytes_per_second: f64,
    /// Since it was first met.
    pub bytes: u64,
    /// Chunks under way.
    pub transfers: u32,
}

/// How far away a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Near {
    /// In the own zone.
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

/// A neighbour that sent corrupt bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its name.
    pub id: PeerId,
    /// Until it may be used again.
    pub seconds_left: f64,
}

/// A tracker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// Its URL.
    pub url: String,
    /// Whether the last announce was answered; `null` before the first one was.
    pub is_answering: Option<bool>,
    /// Announces that it accepted.
    pub announces: u64,
    /// What went wrong, if it does not answer.
    pub trouble: Option<String>,
}

/// An origin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OriginStatus {
    /// Its URL.
    pub url: String,
    /// Whether the last request, or probe after it, was answered; `null` if it was never asked.
    pub is_answering: Option<bool>,
    /// What went wrong, if it does not answer.
    pub trouble: Option<String>,
}

/// A lease held.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// On which blob.
    pub blob: Digest,
    /// And which of its chunks.
    pub chunk: u32,
}

/// The store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Its folder.
    pub dir: PathBuf,
    /// Of the blobs in it, held or not.
    pub bytes: u64,
    /// At most so many.
    pub quota: u64,
    /// Blobs in it.
    pub blobs: u32,
    /// Of these, complete.
    pub complete: u32,
}
